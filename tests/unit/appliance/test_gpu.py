"""GPUs at boot and their checks, on machines that are a table of answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from onefed.appliance import container, gpu, steps, supernode
from onefed.appliance.commands import Done
from onefed.appliance.gpu import Level

ONE = "NVIDIA A100-PCIE-40GB, 40960, 545.23.08\n"
MODULES = "nvidia 56000000 2 - Live\nvfio_pci 16384 0 - Live\n"


@dataclasses.dataclass
class FakeDriver:
    """A machine: its files, its folders, and what its commands say."""

    files: dict[str, str] = dataclasses.field(default_factory=dict)
    folders: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    commands: dict[str, Done] = dataclasses.field(default_factory=dict)

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Done:
        assert timeout_s > 0
        return self.commands.get(argv[0], Done(127, f"{argv[0]} cannot be started"))

    def read(self, path: str) -> str:
        return self.files.get(path, "")

    def names(self, path: str) -> list[str]:
        return self.folders.get(path, [])


def healthy_vm(output: str = ONE) -> FakeDriver:
    return FakeDriver(
        files={"/proc/modules": MODULES, "/etc/docker/daemon.json": '{"runtimes": {"nvidia": {}}}'},
        commands={"nvidia-smi": Done(0, output), "docker": Done(0, "")},
    )


def healthy_host() -> FakeDriver:
    devices = "/sys/bus/pci/devices"
    return FakeDriver(
        files={
            "/proc/cmdline": "quiet intel_iommu=on iommu=pt",
            "/proc/modules": MODULES,
            f"{devices}/0000:01:00.0/vendor": "0x10de\n",
            f"{devices}/0000:01:00.0/class": "0x030200\n",
            f"{devices}/0000:01:00.0/uevent": "DRIVER=vfio-pci\nPCI_ID=10DE:20B0\n",
            f"{devices}/0000:01:00.1/vendor": "0x10de\n",
            f"{devices}/0000:01:00.1/class": "0x040300\n",
            f"{devices}/0000:01:00.1/uevent": "DRIVER=snd_hda_intel\n",
            "/etc/udev/rules.d/99-vfio.rules": 'SUBSYSTEM=="vfio"',
            gpu.PCI_CONF: ":filter: '10de:*'",
        },
        folders={
            "/sys/kernel/iommu_groups": ["0", "1"],
            devices: ["0000:01:00.0", "0000:01:00.1"],
            "/etc/udev/rules.d": ["99-vfio.rules"],
        },
    )


def levels(findings: Sequence[gpu.Finding]) -> list[Level]:
    return [finding.level for finding in findings]


# --- detection -----------------------------------------------------------------------------------


def test_a_gpu_that_answers_is_found_with_its_memory_and_driver() -> None:
    found = gpu.detect(healthy_vm(ONE * 2))
    assert found.gpus == (gpu.Gpu("NVIDIA A100-PCIE-40GB", 40960, "545.23.08"),) * 2


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        (FakeDriver(), "nvidia is not loaded"),
        (FakeDriver(files={"/proc/modules": "nvidia_uvm 1 0 - Live\n"}), "is not loaded"),
        (FakeDriver(files={"/proc/modules": MODULES}), "nvidia-smi failed"),
        (healthy_vm("No devices were found\n"), "lists no GPU"),
        (healthy_vm("a, b\n,,,\nx, -1, y\n"), "lists no GPU"),
    ],
)
def test_without_a_gpu_it_is_said_why(driver: FakeDriver, why: str) -> None:
    found = gpu.detect(driver)
    assert found.gpus == ()
    assert why in found.why_not


def test_devices_that_a_node_does_not_have() -> None:
    assert gpu.missing_devices("all", 1) == []
    assert gpu.missing_devices("0,1,7", 2) == ["7"]


# --- validation ----------------------------------------------------------------------------------


def test_a_vm_with_everything_passes() -> None:
    findings = gpu.validate_vm(healthy_vm(), image="cuda:local")
    assert levels(findings) == [Level.OK] * 4 + [Level.INFO]
    assert gpu.passed(findings)
    assert "545.23.08" in findings[-1].text


def test_a_vm_with_nothing_says_how_to_repair_each() -> None:
    findings = gpu.validate_vm(FakeDriver(), image="cuda:local")
    failed = [finding for finding in findings if finding.level is Level.ERROR]
    assert len(failed) == 4
    assert all(finding.repair for finding in failed)
    assert not gpu.passed(findings)


def test_without_an_image_no_container_is_tried() -> None:
    assert levels(gpu.validate_vm(healthy_vm())) == [Level.OK] * 3 + [Level.INFO] * 2


def test_a_host_with_everything_passes_and_the_audio_function_does_not_count() -> None:
    findings = gpu.validate_host(healthy_host())
    assert levels(findings) == [Level.OK] * 6


@pytest.mark.parametrize(
    ("uevent", "level"),
    [("DRIVER=nouveau\n", Level.ERROR), ("PCI_ID=1\n", Level.WARNING)],
)
def test_a_gpu_of_the_host_has_to_be_bound_to_vfio(uevent: str, level: Level) -> None:
    host = healthy_host()
    host.files["/sys/bus/pci/devices/0000:01:00.0/uevent"] = uevent
    [finding] = [each for each in gpu.validate_host(host) if each.level is not Level.OK]
    assert finding.level is level
    assert finding.repair == "driverctl set-override 0000:01:00.0 vfio-pci"


def test_a_host_with_nothing_has_errors_and_warnings_as_the_design_ranks_them() -> None:
    assert levels(gpu.validate_host(FakeDriver())) == [
        *(Level.ERROR, Level.ERROR, Level.WARNING),
        *(Level.WARNING, Level.WARNING, Level.WARNING),
    ]


# --- the boot ------------------------------------------------------------------------------------


class Wired:
    """A node that has booted so far that only GPUs are left to look for."""

    def __init__(self, node, driver: FakeDriver, **variables: str) -> None:
        node.variables |= {"FL_TLS_ENABLED": "NO", **variables}
        self.subject = node.subject()
        self.subject.edge.driver = driver
        self.told: list[str] = []
        self.subject.edge.emit = lambda event: self.told.append(event.EVENT)
        self.subject.edge.paths.config.mkdir(parents=True, exist_ok=True)
        self.warnings = node.warnings

    def step(self, step_id: str) -> steps.Outcome:
        [step] = [step for step in supernode.STEPS if step.id == step_id]
        return step.run(self.subject)

    def environment(self) -> dict[str, str]:
        facts = {"tls": "NO", "endpoint": "h:1", "node_config": "", "runtime_port": "1"}
        facts |= {"gpus": self.subject.edge.facts.get("gpus", "")}
        return dict(supernode.all_programs(self.subject, facts)[0].environment)


def test_a_node_that_asks_for_no_gpu_is_not_looked_at(node) -> None:
    wired = Wired(node, healthy_vm())
    assert wired.step("SN-09").status is steps.Status.SKIPPED
    assert wired.told == []
    assert wired.environment()["CUDA_VISIBLE_DEVICES"] == "", "an app takes no GPU that is there"


def test_a_gpu_that_is_found_is_used_and_told(node) -> None:
    wired = Wired(node, healthy_vm(ONE * 2), FL_GPU_ENABLED="YES", FL_CUDA_VISIBLE_DEVICES="1")
    assert wired.step("SN-09").status is steps.Status.DONE
    assert wired.step("SN-09").status is steps.Status.UNCHANGED
    assert set(wired.told) == {"gpu_detected"}
    environment = wired.environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["FL_GPU_MEMORY_FRACTION"] == "0.8"
    assert environment["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert wired.warnings == []


def test_all_is_no_value_of_cuda(node) -> None:
    wired = Wired(node, healthy_vm(), FL_GPU_ENABLED="YES")
    wired.step("SN-09")
    assert "CUDA_VISIBLE_DEVICES" not in wired.environment()
    assert container.Gpus(wired.subject.edge.facts["gpus"]) == container.Gpus("all")


def test_a_gpu_that_is_missing_is_a_warning_and_the_boot_goes_on(node) -> None:
    wired = Wired(node, FakeDriver(), FL_GPU_ENABLED="YES", FL_DCGM_ENABLED="YES")
    assert wired.step("SN-09").status is not steps.Status.FAILED
    assert wired.told == ["gpu_unavailable"]
    assert wired.environment()["CUDA_VISIBLE_DEVICES"] == ""
    assert "onefed gpu validate" in wired.warnings[0]
    assert "FL_GPU_MEMORY_FRACTION" not in wired.environment()
    assert wired.step("SN-14a").status is steps.Status.SKIPPED
    assert "no GPU metrics" in wired.warnings[-1]


def test_a_device_that_is_not_there_is_a_warning(node) -> None:
    wired = Wired(node, healthy_vm(), FL_GPU_ENABLED="YES", FL_CUDA_VISIBLE_DEVICES="0,3")
    wired.step("SN-09")
    assert "names 3; this node has GPUs 0 to 0" in wired.warnings[0]


def test_metrics_that_cannot_be_started_are_a_warning(node) -> None:
    wired = Wired(node, healthy_vm(), FL_GPU_ENABLED="YES", FL_DCGM_ENABLED="YES")
    wired.step("SN-09")
    assert wired.step("SN-14a").detail.startswith("no Docker")
