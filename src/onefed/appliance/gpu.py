"""GPUs of a node at boot, and ``onefed gpu validate``: what is missing, and how to repair it.

Everything is asked through a ``Driver``, so each branch can be tried without a GPU.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onefed.appliance import commands

QUERY = (
    "nvidia-smi",
    "--query-gpu=name,memory.total,driver_version",
    "--format=csv,noheader,nounits",
)
QUERY_TIMEOUT_S = 20.0
"""The first call loads the driver's firmware."""

GPUS_MAX = 64
NVIDIA = "0x10de"
DISPLAY_CLASSES = ("0x0300", "0x0302")
"""PCI classes of a GPU; its audio function has another one."""

IOMMU = re.compile(r"\b(?:intel_iommu|amd_iommu|iommu)=on\b")
PCI_CONF = "/var/lib/one/remotes/etc/im/kvm-probes.d/pci.conf"


class Driver(Protocol):
    """What is asked of a machine."""

    def run(self, argv: Sequence[str], *, timeout_s: float) -> commands.Done:
        """A command to its end."""
        ...

    def read(self, path: str) -> str:
        """A file; empty when it is not there."""
        ...

    def names(self, path: str) -> list[str]:
        """What a folder holds; nothing when it is not there."""
        ...


class System:
    """The machine itself."""

    def run(self, argv: Sequence[str], *, timeout_s: float) -> commands.Done:
        """See ``commands.run``."""
        return commands.run(argv, timeout_s=timeout_s)

    def read(self, path: str) -> str:
        """What the file holds, as text."""
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def names(self, path: str) -> list[str]:
        """In the order of their names."""
        try:
            return sorted(each.name for each in Path(path).iterdir())
        except OSError:
            return []


@dataclass(frozen=True)
class Gpu:
    """One that answers."""

    name: str
    memory_mb: int
    driver_version: str


@dataclass(frozen=True)
class Detection:
    """What a boot found."""

    gpus: tuple[Gpu, ...]
    why_not: str = ""
    """In one sentence, when there is none."""


class Level(enum.StrEnum):
    """How a check ended."""

    OK = "OK"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Finding:
    """One check of ``validate``."""

    level: Level
    text: str
    repair: str = ""


def detect(driver: Driver) -> Detection:
    """The kernel module and nvidia-smi; both, or the node trains on its CPU."""
    if not _module(driver, "nvidia"):
        return Detection((), "the kernel module nvidia is not loaded")
    answer = driver.run(QUERY, timeout_s=QUERY_TIMEOUT_S)
    if not answer.ok:
        return Detection((), f"nvidia-smi failed: {answer.last_line}")
    gpus = tuple(_gpus(answer.output))[:GPUS_MAX]
    return Detection(gpus, "" if gpus else "nvidia-smi lists no GPU")


def missing_devices(devices: str, count: int) -> list[str]:
    """Ids of ``FL_CUDA_VISIBLE_DEVICES`` that this node does not have."""
    return [] if devices == "all" else [each for each in devices.split(",") if int(each) >= count]


def validate_vm(driver: Driver, *, image: str | None = None) -> list[Finding]:
    """Inside a virtual machine.

    Args:
        image: a local one in which nvidia-smi is run; None leaves that check out.
    """
    findings = [
        _check(
            _module(driver, "nvidia"),
            "kernel module nvidia is loaded",
            "install the NVIDIA driver, then: modprobe nvidia",
        )
    ]
    found = driver.run(QUERY, timeout_s=QUERY_TIMEOUT_S)
    gpus = list(_gpus(found.output)) if found.ok else []
    listed = "; ".join(f"{gpu.name}, {gpu.memory_mb} MB" for gpu in gpus)
    findings.append(
        _check(
            bool(gpus),
            f"nvidia-smi answers{': ' + listed if gpus else ''}",
            "check the PCI assignment in the VM template, UEFI firmware and machine type q35",
        )
    )
    findings.append(
        _check(
            '"nvidia"' in driver.read("/etc/docker/daemon.json"),
            "Docker knows the nvidia runtime",
            "nvidia-ctk runtime configure --runtime=docker, then restart Docker",
        )
    )
    if image is None:
        findings.append(Finding(Level.INFO, "no container was tried: name a local --image"))
    else:
        argv = ("docker", "run", "--rm", "--pull", "never", "--gpus", "all", image, "nvidia-smi")
        tried = driver.run(argv, timeout_s=commands.TIMEOUT_S)
        repair = f"{tried.last_line}; install the NVIDIA Container Toolkit"
        findings.append(_check(tried.ok, "a container sees the GPUs", repair))
    version = gpus[0].driver_version if gpus else "unknown"
    findings.append(Finding(Level.INFO, f"driver version: {version}"))
    return findings


def validate_host(driver: Driver) -> list[Finding]:
    """On the host that passes GPUs to virtual machines."""
    groups = driver.names("/sys/kernel/iommu_groups")
    rules = [
        name
        for folder in ("/etc/udev/rules.d", "/usr/lib/udev/rules.d")
        for name in driver.names(folder)
        if "vfio" in driver.read(f"{folder}/{name}")
    ]
    return [
        _check(
            IOMMU.search(driver.read("/proc/cmdline")) is not None,
            "the kernel was started with an IOMMU",
            "add intel_iommu=on iommu=pt (AMD: amd_iommu=on iommu=pt), update the boot loader, "
            "reboot",
        ),
        _check(
            bool(groups),
            f"{len(groups)} IOMMU groups",
            "enable VT-d (Intel) or AMD IOMMU in the BIOS",
        ),
        _check(
            _module(driver, "vfio_pci"),
            "kernel module vfio_pci is loaded",
            "put vfio-pci into /etc/modules-load.d/vfio-pci.conf, then: modprobe vfio-pci",
            otherwise=Level.WARNING,
        ),
        *_host_devices(driver),
        _check(
            bool(rules),
            "a udev rule lets KVM use vfio",
            'SUBSYSTEM=="vfio", GROUP="kvm", MODE="0666" in /etc/udev/rules.d/99-vfio.rules',
            otherwise=Level.WARNING,
        ),
        _check(
            "10de" in driver.read(PCI_CONF),
            "OpenNebula's probe looks for NVIDIA devices",
            f"filter '10de:*' in {PCI_CONF}, then: onehost sync -f",
            otherwise=Level.WARNING,
        ),
    ]


def passed(findings: Sequence[Finding]) -> bool:
    """Whether no check failed; warnings do not count."""
    return not any(finding.level is Level.ERROR for finding in findings)


def _host_devices(driver: Driver) -> Iterator[Finding]:
    devices = "/sys/bus/pci/devices"
    found = [
        address
        for address in driver.names(devices)
        if driver.read(f"{devices}/{address}/vendor").strip() == NVIDIA
        and driver.read(f"{devices}/{address}/class").strip()[:6] in DISPLAY_CLASSES
    ]
    if not found:
        yield Finding(Level.WARNING, "there is no NVIDIA GPU", "see: lspci -nn -d 10de:")
    for address in found:
        uevent = driver.read(f"{devices}/{address}/uevent")
        bound = re.search(r"^DRIVER=(\S+)$", uevent, re.MULTILINE)
        name = bound[1] if bound else "no driver"
        level = {"vfio-pci": Level.OK, "no driver": Level.WARNING}.get(name, Level.ERROR)
        repair = "" if level is Level.OK else f"driverctl set-override {address} vfio-pci"
        yield Finding(level, f"GPU {address} is bound to {name}", repair)


def _module(driver: Driver, name: str) -> bool:
    return any(line.split(" ")[0] == name for line in driver.read("/proc/modules").splitlines())


def _gpus(output: str) -> Iterator[Gpu]:
    for line in output.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[1].isdecimal():
            yield Gpu(parts[0], int(parts[1]), parts[2])


def _check(ok: bool, text: str, repair: str, *, otherwise: Level = Level.ERROR) -> Finding:
    return Finding(Level.OK, text) if ok else Finding(otherwise, f"not: {text}", repair)
