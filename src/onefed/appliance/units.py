"""Units of systemd, from the list of a machine's programs. Pure.

A unit holds no value of a context: it starts ``launch`` with the name of a program. So a second
boot with another context leaves the units as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onefed.appliance import container
from onefed.appliance import firewall as rules
from onefed.appliance.description import Runtime
from onefed.appliance.paths import Paths
from onefed.appliance.process import Program
from onefed.context import Role

RESTART_S = 10
START_LIMIT_S = 120

STOP_MARGIN_S = 5
"""Between the program's own limit and systemd's SIGKILL."""

FAREWELLS = {
    Role.SUPERLINK: ("begin",),
    Role.SUPERNODE: ("begin", "end"),
    Role.PEER: ("begin",),
}
"""What a machine says as it leaves (``leave``): only a node has a status to end with."""

FAREWELL_LIMIT_S = 20
"""Two attributes at most, each with its own timeout."""

PEER_FAREWELL_LIMIT_S = FAREWELL_LIMIT_S + 70
"""A peer that leaves its group waits for the commit of that, a minute at most."""

RENEWAL_TIMER = "flower-superlink-renewal.timer"

ACTIVITY = "flower-supernode-activity.service"
"""Tells OneGate what a node does (``activity``)."""

DCGM_IMAGE = "nvcr.io/nvidia/k8s/dcgm-exporter:4.5.1-4.8.0-distroless"
"""300 MB that no image of ours carries; a site without a way out loads it by hand."""

USER = "flower"
"""Uid and gid 49999; the image makes the account."""

GENERATED = "# Made by: onefed appliance configure. Changes are overwritten at the next boot.\n"

_EVERYWHERE = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateMounts=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "ProtectProc=invisible",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "RemoveIPC=yes",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
)
"""What no program of ours needs to do."""

_CAPABILITIES = ("CapabilityBoundingSet=", "AmbientCapabilities=")

_WITHOUT_DEVICES = ("PrivateDevices=yes", "DevicePolicy=closed")

_PROCESS = (
    f"User={USER}",
    f"Group={USER}",
    "PrivateUsers=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
)
"""Of a program that runs as a process: it talks to the network."""

_DOCKER = (
    *(f"Environment={name}={value}" for name, value in container.CLIENT.items()),
    "ProcSubset=pid",
    "PrivateNetwork=yes",
    "IPAddressDeny=any",
    "RestrictAddressFamilies=AF_UNIX",
    "MemoryDenyWriteExecute=yes",
)
"""Of docker's command line client: it talks to the engine's socket and to nothing else. The
container has its own limits (``container``)."""


_BESIDE = ("ProcSubset=pid", "MemoryDenyWriteExecute=yes")
"""Of a program that only tells."""


@dataclass(frozen=True)
class Unit:
    """One unit file."""

    name: str
    """With its suffix: ``flower-superlink.service``."""
    text: str


def name(program_name: str, role: Role) -> str:
    """``flower-superlink.service``, ``flower-superlink-supervisor.service``."""
    middle = "" if program_name == role else f"-{program_name}"
    return f"flower-{role}{middle}.service"


def of(
    programs: Sequence[Program], role: Role, runtime: Runtime, paths: Paths, *, python: str
) -> list[Unit]:
    """A unit for every program of a machine, in the order in which they start, and those beside.

    The first one carries the machine: the others come after it and are stopped with it.
    """
    first = name(programs[0].name, role)
    beside = [_farewell(role, moment, paths, python) for moment in FAREWELLS[role]]
    if role is Role.SUPERNODE:
        beside.append(_activity(paths, python))
    return [
        *(
            _service(program, role, runtime, paths, python, after=() if index == 0 else (first,))
            for index, program in enumerate(programs)
        ),
        *beside,
    ]


def farewell_name(moment: str, role: Role) -> str:
    """``flower-supernode-leave-begin.service``."""
    return f"flower-{role}-leave-{moment}.service"


def _farewell(role: Role, moment: str, paths: Paths, python: str) -> Unit:
    """What tells OneGate that the machine leaves, before its first program stops or after it did.

    systemd stops units in the reverse of the order in which it starts them. Beside the program and
    not in its unit, because that of docker's client has no network, and the platform's token is
    root's alone: systemd reads it.
    """
    main = name(role.value, role)
    text = _sections(
        Unit=(
            f"Description=onefed {role}: tells OneGate that it leaves ({moment})",
            f"{'After' if moment == 'begin' else 'Before'}={main}",
            # It asks systemd over the bus whether this is a stop.
            "After=network.target network-online.target dbus.service",
            f"PartOf={main}",
        ),
        Service=(
            "Type=oneshot",
            "RemainAfterExit=yes",
            f"StandardInput=file:{paths.context}",
            f"ExecStop={python} -P -m onefed.appliance.leave {role} {moment}",
            f"TimeoutStopSec={PEER_FAREWELL_LIMIT_S if role is Role.PEER else FAREWELL_LIMIT_S}",
            f"StandardOutput=append:{paths.logs}/leave.log",
            "StandardError=inherit",
            # No user that systemd makes up: the bus has to know who asks.
            f"User={USER}",
            f"Group={USER}",
            # Where its node is asked to leave the group.
            *([f"ReadWritePaths=-{paths.peers}"] if role is Role.PEER else []),
            *_EVERYWHERE,
            *_WITHOUT_DEVICES,
            "PrivateUsers=yes",
            "ProcSubset=pid",
            "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
            "MemoryDenyWriteExecute=yes",
        ),
    )
    return Unit(farewell_name(moment, role), GENERATED + text)


def _activity(paths: Paths, python: str) -> Unit:
    """What tells OneGate, beside a node, what it does.

    It starts with the node; but as a machine starts the platform has not written the context yet,
    and the boot starts it later.
    """
    main = name(Role.SUPERNODE.value, Role.SUPERNODE)
    text = _sections(
        Unit=(
            "Description=onefed supernode: tells OneGate what the node does",
            f"After={main} network-online.target",
            f"PartOf={main}",
            f"ConditionPathExists={paths.context}",
        ),
        Service=(
            "Type=simple",
            # Both are root's alone, and it is not root.
            f"StandardInput=file:{paths.context}",
            f"LoadCredential=facts:{paths.facts}",
            f"ExecStart={python} -P -m onefed.appliance.activity ${{CREDENTIALS_DIRECTORY}}/facts",
            "Restart=on-failure",
            f"RestartSec={RESTART_S}",
            f"StandardOutput=append:{paths.logs}/activity.log",
            "StandardError=inherit",
            "DynamicUser=yes",
            *_EVERYWHERE,
            *_WITHOUT_DEVICES,
            "PrivateUsers=yes",
            "ProcSubset=pid",
            "RestrictAddressFamilies=AF_INET AF_INET6",
            "MemoryDenyWriteExecute=yes",
        ),
    )
    return Unit(ACTIVITY, GENERATED + text)


def firewall(paths: Paths) -> Unit:
    """Loads the machine's rules before there is a network; without the unit they are gone."""
    text = _sections(
        Unit=(
            "Description=onefed: what this machine lets in",
            "DefaultDependencies=no",
            "After=local-fs.target",
            "Before=network-pre.target shutdown.target",
            "Wants=network-pre.target",
            "Conflicts=shutdown.target",
        ),
        Service=(
            "Type=oneshot",
            "RemainAfterExit=yes",
            # Read by systemd, so that nft need not be root to read what is root's.
            f"StandardInput=file:{paths.firewall}",
            f"ExecStart={rules.NFT} --file -",
            f"ExecReload={rules.NFT} --file -",
            f"ExecStop={rules.NFT} delete table inet {rules.TABLE}",
            "DynamicUser=yes",
            *(line for line in _EVERYWHERE if not line.startswith(_CAPABILITIES)),
            *(f"{name}CAP_NET_ADMIN" for name in _CAPABILITIES),
            *_WITHOUT_DEVICES,
            "ProcSubset=pid",
            "RestrictAddressFamilies=AF_NETLINK",
            "IPAddressDeny=any",
            "MemoryDenyWriteExecute=yes",
        ),
        Install=("WantedBy=sysinit.target",),
    )
    return Unit(rules.UNIT, GENERATED + text)


def dcgm(role: Role) -> Unit:
    """The GPU metrics exporter beside a node; dies and starts with it, and never holds it up."""
    main = name(role.value, role)
    label = "dcgm-exporter"
    text = _sections(
        Unit=(
            "Description=GPU metrics for Prometheus (DCGM exporter)",
            f"After=docker.service {main}",
            "Requires=docker.service",
            f"PartOf={main}",
        ),
        Service=(
            "Type=simple",
            f"ExecStartPre=-/usr/bin/docker rm --force {label}",
            # The one capability: profiling counters are the administrator's.
            f"ExecStart=/usr/bin/docker run --rm --name {label} --gpus all --network host "
            "--cap-drop ALL --cap-add SYS_ADMIN --security-opt no-new-privileges "
            "--pull never --log-opt max-size=10m --log-opt max-file=3 "
            f"{DCGM_IMAGE}",
            f"ExecStop=/usr/bin/docker stop {label}",
            "Restart=always",
            f"RestartSec={RESTART_S}",
            *_hardening(Runtime.DOCKER, devices=False),
        ),
        Install=("WantedBy=multi-user.target",),
    )
    return Unit(f"{label}.service", text)


def renewal() -> tuple[Unit, Unit]:
    """Looks once a day whether the server certificate ends soon; as root, for the authority's key.

    It reads and writes below ``/opt/flower``, and asks systemd to start two programs again.
    """
    program = f"{Path(sys.executable).parent}/onefed appliance renew --role superlink"
    service = _sections(
        Unit=("Description=onefed superlink: renewal of the server certificate",),
        Service=(
            "Type=oneshot",
            f"ExecStart={program}",
            "ReadWritePaths=-/opt/flower",
            *(line for line in _EVERYWHERE if not line.startswith("CapabilityBoundingSet")),
            # The new files are given to the programs' user.
            "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER",
            "SystemCallFilter=@chown",
            "ProcSubset=pid",
            "IPAddressDeny=any",
            "MemoryDenyWriteExecute=yes",
            *_WITHOUT_DEVICES,
            "PrivateNetwork=yes",
            "RestrictAddressFamilies=AF_UNIX",
        ),
    )
    timer = _sections(
        Unit=("Description=onefed superlink: renewal of the server certificate, daily",),
        Timer=("OnCalendar=daily", "RandomizedDelaySec=3600", "Persistent=true"),
        Install=("WantedBy=timers.target",),
    )
    return (
        Unit(RENEWAL_TIMER.replace(".timer", ".service"), GENERATED + service),
        Unit(RENEWAL_TIMER, GENERATED + timer),
    )


def _service(
    program: Program,
    role: Role,
    runtime: Runtime,
    paths: Paths,
    python: str,
    *,
    after: Sequence[str],
) -> Unit:
    label = name(program.name, role).removesuffix(".service")
    runtime = Runtime.PROCESS if program.is_beside else runtime
    in_docker = runtime is Runtime.DOCKER
    needs = ["docker.service"] if in_docker else []
    watched = [name(program.watches, role)] if program.watches else []
    stop_s = round(program.stop_timeout_s) + STOP_MARGIN_S
    beside = [] if after else [farewell_name(moment, role) for moment in FAREWELLS[role]]
    beside += [ACTIVITY] if role is Role.SUPERNODE and not after else []
    writable = [paths.flower_home, paths.logs, *_own_folders(role, paths)]
    may_write = [f"ReadWritePaths={' '.join(f'-{each}' for each in writable)}"]
    text = _sections(
        Unit=(
            f"Description=onefed {role}: {program.name}",
            f"After={' '.join(['network-online.target', *needs, *after, *watched])}",
            f"Wants={' '.join(['network-online.target', *beside])}",
            *([f"Requires={' '.join(needs)}"] if needs else []),
            *([f"PartOf={' '.join(after)}"] if after else []),
            "StartLimitIntervalSec=0",
        ),
        Service=(
            "Type=simple",
            *([f"ExecStartPre=-/usr/bin/docker rm --force {label}"] if in_docker else []),
            f"ExecStart={python} -P -m onefed.appliance.launch {paths.programs} {program.name}",
            *(
                [f"ExecStop=/usr/bin/docker stop --time {stop_s - STOP_MARGIN_S} {label}"]
                if in_docker
                else []
            ),
            # Always: Flower ends with status 0 when its other side was restarted.
            "Restart=always",
            f"RestartSec={RESTART_S}",
            f"TimeoutStartSec={START_LIMIT_S}",
            f"TimeoutStopSec={stop_s}",
            "KillMode=mixed",
            "KillSignal=SIGTERM",
            f"StandardOutput=append:{paths.logs}/{program.name}.log",
            "StandardError=inherit",
            *([] if in_docker or program.is_beside else may_write),
            *_hardening(runtime, devices=role is Role.SUPERNODE),
            *(_BESIDE if program.is_beside else ()),
            # Behind PrivateUsers even a process of the same user counts as another's.
            *(["ProtectProc=default"] if watched and not in_docker else []),
        ),
        Install=("WantedBy=multi-user.target",),
    )
    return Unit(name(program.name, role), GENERATED + text)


def _own_folders(role: Role, paths: Paths) -> list[Path]:
    """What the programs of a role write, beside what all do."""
    match role:
        case Role.SUPERLINK:
            return [paths.state, paths.checkpoints, paths.gateway]
        case Role.SUPERNODE:
            return [paths.node_key]  # a node notes beside its key that it is present
        case Role.PEER:
            return [paths.state, paths.checkpoints]


def _hardening(runtime: Runtime, *, devices: bool) -> tuple[str, ...]:
    own = _DOCKER if runtime is Runtime.DOCKER else _PROCESS
    # A process that trains may need the GPU's devices; docker hands them out itself.
    sees_devices = devices and runtime is Runtime.PROCESS
    return (*_EVERYWHERE, *(() if sees_devices else _WITHOUT_DEVICES), *own)


def _sections(**sections: Sequence[str]) -> str:
    blocks = (f"[{title}]\n" + "\n".join(lines) + "\n" for title, lines in sections.items())
    return "\n".join(blocks)
