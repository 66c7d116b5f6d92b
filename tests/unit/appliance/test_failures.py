"""Every failure class of docs/boot.md, caused on a whole boot: what becomes of the machine."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import failures, surroundings
from onefed.appliance.commands import Done
from onefed.appliance.description import Runtime
from onefed.appliance.failures import FailureClass
from onefed.appliance.firewall import NFT
from onefed.appliance.platform import Systemd
from onefed.appliance.steps import BootError
from onefed.context import Role
from onefed.tls import authority as authorities
from onefed.tls import material, pem

DOCKER = "/usr/bin/docker"
BAKED = "1.40.0"


class Scene:
    """The machine that is going to fail, and what surrounds it."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self.cloud = request.getfixturevalue("cloud")
        self.flower = request.getfixturevalue("flower")
        self.time = request.getfixturevalue("time")
        self.folder = folder
        self.open = ExitStack()
        self._request = request

    def coordinator(self) -> Any:
        return self._request.getfixturevalue("coordinator")

    def node(self, *, registered: bool = True, **superlink: str) -> Any:
        """A node beside a SuperLink that is ready, and has published this, too."""
        self._request.getfixturevalue("node")
        if registered:
            self._request.getfixturevalue("supervisor")
        published = {
            "FL_READY": "YES",
            "FL_ENDPOINT": "10.0.0.5:9092",
            "FL_TLS": "YES",
            "FL_CA_CERT": self.ca(),
            "FL_VERSION": "1.41.0",
        } | superlink
        self.cloud.add("superlink", **{name: value for name, value in published.items() if value})
        return self._request.getfixturevalue("node")

    def peer(self, **variables: str) -> Any:
        return self._request.getfixturevalue("new_peer")(**variables)

    def ca(self) -> str:
        certificates = self.folder / "certs"
        material.ensure(certificates, addresses=["10.0.0.5"], now=datetime.now(UTC))
        return material.ca_for_publication(certificates)

    def with_docker(self, computer: Any, **answers: Done) -> Any:
        """Programs are containers; Docker answers this to commands that begin so."""

        def run(argv: Sequence[str], *, timeout_s: float = 0) -> Done:
            line = " ".join(argv).removeprefix(f"{DOCKER} ")
            return next((done for start, done in answers.items() if line.startswith(start)), OK)

        computer.platform = Systemd(
            role=computer.role,
            runtime=Runtime.DOCKER,
            paths=computer.paths,
            framework="sklearn",
            checkpoint_path=None,
            gpus=lambda: None,
            running_version=lambda: "1.41.0",
            run=run,
        )
        return computer


OK = Done(0, "")


class NoGpu:
    """A machine without GPU and driver."""

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Done:
        assert timeout_s > 0
        return Done(127, f"{argv[0]} cannot be started")

    def read(self, path: str) -> str:
        del path
        return ""

    def names(self, path: str) -> list[str]:
        del path
        return []


class OneGpu(NoGpu):
    """A machine with one."""

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Done:
        if argv[0] == "nvidia-smi":
            return Done(0, "NVIDIA A10, 23028, 550.54.14\n")
        return super().run(argv, timeout_s=timeout_s)

    def read(self, path: str) -> str:
        return "nvidia 1 0 - Live 0x0\n" if path == "/proc/modules" else ""


def variable(scene: Scene) -> Any:
    computer = scene.coordinator()
    computer.variables |= {"FL_NUM_ROUNDS": "$(reboot)", "FL_STRATEGY": "FedMagic"}
    return computer


def port(scene: Scene) -> Any:
    computer = scene.coordinator()
    host, number = computer.variables["FL_FLEET_API_ADDRESS"].split(":")
    scene.open.enter_context(socket.create_server((host, int(number))))
    return computer


def disk(scene: Scene) -> Any:
    computer = scene.coordinator()
    computer.paths.state.parent.mkdir(parents=True, exist_ok=True)
    computer.paths.state.touch()
    return computer


def certificates(scene: Scene) -> Any:
    """Each is sound, and the key is that of another certificate."""
    computer = scene.coordinator()
    now = datetime.now(UTC)
    ca = authorities.create_ca(now)
    server, other = (
        authorities.create_server_certificate(ca, ["IP:127.0.0.1"], now) for _ in range(2)
    )
    computer.variables |= {
        "FL_SSL_CA_CERTFILE": pem.encode(pem.dump_certificates([ca.certificate])),
        "FL_SSL_CERTFILE": pem.encode(pem.dump_certificates([server.certificate])),
        "FL_SSL_KEYFILE": pem.encode(pem.dump_private_key(other.key)),
    }
    return computer


def data(scene: Scene) -> Any:
    computer = scene.node()
    computer.paths.data.mkdir(parents=True)
    (computer.paths.data / "train.npz").symlink_to("nowhere")
    return computer


def discovery(scene: Scene) -> Any:
    return scene.node(FL_READY="")


def authority(scene: Scene) -> Any:
    return scene.node(FL_CA_CERT="")


def registration(scene: Scene) -> Any:
    return scene.node(registered=False)


def peers(scene: Scene) -> Any:
    """Two of three founders: the third one never comes."""
    scene.cloud.add("peer")
    return scene.peer()


def contact(scene: Scene) -> Any:
    other = scene.peer(FL_PEER_NAME="site-0", FL_PEER_FOUNDERS="1")
    with pytest.raises(BootError) as caught:
        other.boot()
    listed = (caught.value.hint or "").rpartition(" ")[2]
    return scene.peer(FL_PEER_NAME="site-0", FL_PEER_FOUNDERS="1", FL_PEERS=listed)


def docker(scene: Scene) -> Any:
    return scene.with_docker(scene.node(), info=Done(1, "Cannot connect to the Docker daemon"))


def image(scene: Scene) -> Any:
    absent = Done(1, "no such image")
    return scene.with_docker(scene.node(), image=absent, pull=Done(1, "no route to host"))


def program(scene: Scene) -> Any:
    computer = scene.node()
    scene.flower.healthy = False
    scene.time.after_every_sleep(lambda: computer.given_up.add("supernode"))
    return computer


def superlink(scene: Scene) -> Any:
    scene.flower.healthy = False
    return scene.coordinator()


def version(scene: Scene) -> Any:
    computer = scene.node()
    computer.paths.prebaked.parent.mkdir(parents=True)
    computer.paths.prebaked.write_text(f"{BAKED}\n")
    baked = {f"image inspect flower-supernode-sklearn:{BAKED}": OK}
    return scene.with_docker(
        computer, **baked, image=Done(1, "no such image"), pull=Done(1, "no route to host")
    )


def mismatch(scene: Scene) -> Any:
    return scene.node(FL_VERSION="1.38.0")


def publication(scene: Scene) -> Any:
    computer = scene.coordinator()
    computer.gate = scene.cloud.gate(computer.vm, token="nobody")
    return computer


def static_address(scene: Scene) -> Any:
    computer = scene.node()
    address = {"FL_SUPERLINK_ADDRESS": "127.0.0.1:1", "FL_SSL_CA_CERTFILE": scene.ca()}
    computer.variables |= address
    return computer


def no_metrics(scene: Scene) -> Any:
    computer = scene.coordinator()
    taken = scene.open.enter_context(socket.create_server(("127.0.0.1", 0)))
    computer.variables["FL_METRICS_ENABLED"] = "YES"
    computer.variables["FL_METRICS_PORT"] = str(taken.getsockname()[1])
    return computer


def no_gpu(scene: Scene) -> Any:
    computer = scene.node()
    computer.variables["FL_GPU_ENABLED"] = "YES"
    computer.driver = NoGpu()
    return computer


def no_gpu_metrics(scene: Scene) -> Any:
    computer = scene.with_docker(
        scene.node(), **{"systemctl enable --now dcgm": Done(1, "dcgm-exporter failed")}
    )
    computer.variables |= {"FL_GPU_ENABLED": "YES", "FL_DCGM_ENABLED": "YES"}
    computer.driver = OneGpu()
    return computer


def no_firewall(scene: Scene) -> Any:
    computer = scene.node()
    refused = {NFT: Done(1, "Could not process rule: Operation not supported")}
    return scene.with_docker(computer, **refused)


CAUSES: dict[str, Callable[[Scene], Any]] = {
    "variable": variable,
    "port": port,
    "disk": disk,
    "certificates": certificates,
    "data": data,
    "discovery": discovery,
    "authority": authority,
    "registration": registration,
    "peers": peers,
    "contact": contact,
    "docker": docker,
    "image": image,
    "program": program,
    "superlink": superlink,
    "version": version,
    "mismatch": mismatch,
    "publication": publication,
    "static address": static_address,
    "firewall": no_firewall,
    "metrics": no_metrics,
    "gpu": no_gpu,
    "gpu metrics": no_gpu_metrics,
}


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(request, tmp_path)
    yield made
    made.open.close()


def test_every_class_has_a_cause_here() -> None:
    assert [each.name for each in failures.CLASSES] == list(CAUSES)


@pytest.mark.parametrize("failure", failures.CLASSES, ids=lambda each: each.name)
def test_a_failure_is_fatal_or_a_warning_as_the_table_says(
    failure: FailureClass, scene: Scene
) -> None:
    computer = CAUSES[failure.name](scene)
    if not failure.is_fatal:
        computer.boot()
        ready = "FL_READY" if computer.role is Role.SUPERLINK else "FL_NODE_READY"
        told = scene.cloud.attributes(computer.vm)
        assert told.get(ready) == ("YES" if failure.name != "publication" else None)
        assert bool(computer.warnings) == (failure.step != "none"), computer.warnings
        return
    with pytest.raises(BootError) as caught:
        computer.boot()
    error = caught.value
    assert error.step_id in failure.step.split(", ")
    assert error.exit_code is failure.exit_code
    assert error.hint
    surroundings.publish_failure(computer.gate, computer.role, error)
    told = scene.cloud.attributes(computer.vm)
    assert told["FL_ERROR"] == failure.error
    assert "YES" not in (told.get(name) for name in ("READY", "FL_READY", "FL_NODE_READY"))
