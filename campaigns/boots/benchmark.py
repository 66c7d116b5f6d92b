"""A running container beside the CIS Docker Benchmark 1.6, section 5, as ``docker inspect`` tells.

What only people can judge (which ports are needed, what runs in an image) is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Inspected = Mapping[str, Any]

SENSITIVE = ("/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr")

PRIVILEGED_PORTS_END = 1024


def _host(name: str) -> Callable[[Inspected], Any]:
    return lambda found: found["HostConfig"][name]


def _ports(found: Inspected) -> list[Mapping[str, str]]:
    bindings = found["HostConfig"]["PortBindings"] or {}
    return [each for port in bindings.values() for each in port or ()]


def _options(found: Inspected) -> list[str]:
    return list(found["HostConfig"]["SecurityOpt"] or ())


FAILS: Mapping[str, Callable[[Inspected], Any]] = {
    "5.1 AppArmor": lambda found: found["AppArmorProfile"] == "unconfined",
    "5.2 SELinux": lambda found: "label=disable" in _options(found),
    "5.3 capabilities": _host("CapAdd"),
    "5.4 privileged": _host("Privileged"),
    "5.5 sensitive folders": lambda found: [
        each["Source"] for each in found["Mounts"] if each["Source"] in SENSITIVE
    ],
    "5.7 privileged ports": lambda found: [
        each for each in _ports(found) if int(each["HostPort"]) < PRIVILEGED_PORTS_END
    ],
    "5.9 host network": lambda found: found["HostConfig"]["NetworkMode"] == "host",
    "5.10 memory limit": lambda found: not found["HostConfig"]["Memory"],
    "5.11 CPU priority": lambda found: not found["HostConfig"]["CpuShares"],
    "5.12 read-only root": lambda found: not found["HostConfig"]["ReadonlyRootfs"],
    "5.13 interface": lambda found: [
        each
        for each in _ports(found)
        if each["HostIp"] in ("", "0.0.0.0", "::")  # noqa: S104
    ],
    "5.14 restarts": lambda found: found["HostConfig"]["RestartPolicy"]["Name"] == "always",
    "5.15 host processes": lambda found: found["HostConfig"]["PidMode"] == "host",
    "5.16 host IPC": lambda found: found["HostConfig"]["IpcMode"] == "host",
    "5.17 devices": _host("Devices"),
    "5.19 propagation": lambda found: [
        each for each in found["Mounts"] if each["Propagation"] in ("shared", "rshared")
    ],
    "5.20 host UTS": lambda found: found["HostConfig"]["UTSMode"] == "host",
    "5.21 seccomp": lambda found: "seccomp=unconfined" in _options(found),
    "5.24 cgroup": _host("CgroupParent"),
    "5.25 new privileges": lambda found: "no-new-privileges" not in _options(found),
    "5.26 health check": lambda found: "Health" not in found["State"],
    "5.28 processes": lambda found: not found["HostConfig"]["PidsLimit"],
    "5.29 default bridge": lambda found: (
        found["HostConfig"]["NetworkMode"] in ("bridge", "default")
    ),
    "5.30 host users": lambda found: found["HostConfig"]["UsernsMode"] == "host",
    "5.31 docker's socket": lambda found: [
        each for each in found["Mounts"] if each["Source"].endswith("docker.sock")
    ],
    "4.1 user": lambda found: found["Config"]["User"] in ("", "0", "root"),
}
"""Number and subject of a recommendation, and what is truthy where a container does not meet it."""


def failed(found: Inspected) -> set[str]:
    """What a container does not meet."""
    return {name for name, fails in FAILS.items() if fails(found)}
