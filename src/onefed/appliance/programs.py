"""The command line and environment of each program of a machine.

Flower's programs get their flags as flwr 1.41.0 spells them (docs/flower.md).
Values from the context are single arguments of an argument array; no shell sees them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from onefed import failpoints
from onefed.appliance import gateway
from onefed.appliance.paths import Paths
from onefed.appliance.process import Program
from onefed.context import SuperLinkSettings, SuperNodeSettings
from onefed.telemetry import voice

INHERITED = (
    *("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "VIRTUAL_ENV"),
    *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"),
)
"""The only names a program may get from the environment that the machine was started in.

The last two choose the kernels of a linear algebra, and so the last bits of its sums: they have to
be the same in all processes of a run.
"""

TASK_POLL_S = "0.5"
"""How often a SuperExec asks for work, in seconds; Flower's own default is 1.
Each time costs about 20 ms of CPU, half of it in the server: ten times a second would be a fifth of
a core for every node."""

SUPERLINK_STOP_S = 5.0
"""It waits for open connections, and every round is on disk already."""

GATEWAY_STOP_S = 5.0
"""It gives up the requests that are under way; nodes ask again."""

SUPERNODE_STOP_S = 10.0
"""Enough to deactivate; a message that was being trained is given up."""

SUPERNODE_EARLY_DEATHS_MORE = 6
"""A SuperLink refuses the key of a killed node for about 60 s (docs/flower.md), and the program
ends at each refusal; with the growing pauses so many starts take more than a minute longer."""


METRICS = "metrics"
METRICS_STOP_S = 2.0
"""It has nothing to finish."""

PEER_STOP_S = 10.0
"""It ends its training process and closes its connections; what it has promised is on disk."""

PEER_KEPT_ROUNDS = 3
"""Of a peer's own checkpoints where nobody asked for them: enough to come back from."""


def environment(
    paths: Paths,
    inherited: Mapping[str, str],
    *,
    state_folder: Path,
    events: Path,
    failpoints_folder: Path | None = None,
) -> dict[str, str]:
    """What every program of a machine gets, and nothing else."""
    return {
        **common(inherited),
        **({} if failpoints_folder is None else {failpoints.VARIABLE: str(failpoints_folder)}),
        "FLWR_HOME": str(paths.flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL_S,
        "ONEFED_STATE_DIR": str(state_folder),
        "ONEFED_EVENTS": str(events),
    }


def common(inherited: Mapping[str, str]) -> dict[str, str]:
    """What is the same for every program of every machine."""
    return {
        **kept(inherited),
        "PATH": search_path(),
        "PYTHONUNBUFFERED": "1",
        # One thread each: a node is one of many on a machine, and sums keep their order.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def kept(inherited: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a program may see."""
    return {name: inherited[name] for name in INHERITED if name in inherited}


def search_path() -> str:
    """``PATH`` of every program: Flower starts flower-superexec and flwr-clientapp by name."""
    return f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


def superlink(
    settings: SuperLinkSettings, paths: Paths, base: Mapping[str, str]
) -> tuple[Program, ...]:
    """The coordinator's programs, in the order in which they start."""
    address = loopback_address(settings)
    host, _, port = address.rpartition(":")
    tls = settings.tls_enabled
    certificates = paths.certificates
    link = [
        command("flower-superlink"),
        *(
            (
                *("--ssl-ca-certfile", str(certificates / "ca.crt")),
                *("--ssl-certfile", str(certificates / "server.pem")),
                *("--ssl-keyfile", str(certificates / "server.key")),
                "--enable-supernode-auth",
            )
            if tls
            else ("--insecure",)
        ),
        *("--isolation", settings.isolation),
        *("--host", host, "--port", port),
        *("--database", str(database(settings, paths))),
        "--disable-runtime-dependency-installation",
    ]
    trust = ("--root-certificates", str(certificates / "ca.crt")) if tls else ("--insecure",)
    secret = ("--superexec-auth-secret-file", str(paths.superexec_secret))
    execution = [
        *(sys.executable, "-P", "-m", "onefed.flower.executor"),
        *trust,
        *("--runtime-api-address", address),
        *secret,
        *("--record", str(paths.task_record)),
        *("--app", str(paths.app)),
    ]
    supervise = [sys.executable, "-P", "-m", "onefed.flower.supervisor", str(paths.supervisor)]
    mine = {
        **base,
        "FLWR_LOG_LEVEL": settings.log_level,
        voice.VARIABLE: settings.log_format,
        "ONEFED_RECOVERY_DIR": str(paths.recovery),
        "ONEFED_STOP_FILE": str(paths.stop_request),
    }
    separate = settings.isolation == "process"
    authority = (certificates / "ca.crt",) if tls else ()
    shown = (*authority, certificates / "server.pem") if tls else ()
    shared = (*authority, paths.superexec_secret)
    link += secret if separate else ()
    supervisor = _ours(
        "supervisor",
        supervise,
        mine,
        paths,
        SUPERLINK_STOP_S,
        (*authority, paths.supervisor, paths.gate_token),
    )
    made = (
        replace(
            _program("superlink", link, mine, paths, SUPERLINK_STOP_S, (*shown, *shared)),
            worked_port=settings.superlink_port,
        ),
        _ours("superexec", execution, mine, paths, SUPERLINK_STOP_S, shared),
        # It looks whether the ServerApp lives, which the SuperExec started.
        replace(supervisor, watches="superexec" if separate else ""),
        _program(
            "gateway",
            gateway_command(paths),
            {},
            paths,
            GATEWAY_STOP_S,
            (*shown, paths.gateway_configuration),
        ),
    )
    wanted = {"superexec": separate, "gateway": settings.gateway}
    return tuple(program for program in made if wanted.get(program.name, True))


def metrics(
    settings: SuperLinkSettings, paths: Paths, base: Mapping[str, str], *, address: str
) -> Program:
    """What serves the coordinator's metrics.

    Args:
        address: of the machine, on its own network.
    """
    argv = [
        *(sys.executable, "-P", "-m", "onefed.appliance.metrics"),
        *("--address", address, "--port", str(settings.metrics_port)),
        *("--events", base["ONEFED_EVENTS"]),
        *("--certificates", str(paths.certificates)),
        *("--strategy", settings.strategy, "--rounds", str(settings.num_rounds)),
    ]
    return replace(_program(METRICS, argv, base, paths, METRICS_STOP_S), is_beside=True)


def gateway_command(paths: Paths) -> list[str]:
    """The argument array of the gateway; nginx is looked for at every start."""
    nginx = gateway.find_nginx() or "nginx"
    return [nginx, *gateway.arguments(paths.gateway, paths.gateway_configuration)]


def supernode(
    settings: SuperNodeSettings,
    paths: Paths,
    base: Mapping[str, str],
    *,
    endpoint: str,
    tls: bool,
    private_key: Path | None,
    node_config: str,
    runtime_port: int,
) -> tuple[Program, ...]:
    """A node's programs, in the order in which they start.

    Args:
        runtime_port: free port on loopback for the node's own Runtime API.
    """
    authority = paths.certificates / "ca.crt"
    trust = ("--root-certificates", str(authority)) if tls else ("--insecure",)
    inputs = (authority,) if tls else ()
    shared = [
        *trust,
        *("--superlink", endpoint),
        *("--host", "127.0.0.1", "--port", str(runtime_port)),
        *(("--node-config", node_config) if node_config else ()),
        # 0 means no limit, and Flower would read it as one try: the flag is left out.
        *(("--max-retries", str(settings.max_retries)) if settings.max_retries else ()),
        *(("--max-wait-time", str(settings.max_wait_time_s)) if settings.max_wait_time_s else ()),
    ]
    mine = {
        **base,
        "FLWR_LOG_LEVEL": settings.log_level,
        voice.VARIABLE: settings.log_format,
        "ONEFED_DATA_DIR": str(paths.data),
    }
    if settings.isolation == "process":
        ours = [sys.executable, "-P", "-m", "onefed.flower.node", *shared]
        ours += ["--identity", str(paths.node_key), "--app-start", settings.app_start]
        ours += ["--keepalive-time", str(settings.keepalive_time_s)]
        ours += ["--keepalive-timeout", str(settings.keepalive_timeout_s)]
        return (_ours("supernode", ours, mine, paths, SUPERNODE_STOP_S, inputs),)
    stock = [
        command("flower-supernode"),
        *shared,
        *(("--auth-supernode-private-key", str(private_key)) if private_key else ()),
        *("--isolation", settings.isolation),
    ]
    return (
        replace(
            _program("supernode", stock, mine, paths, SUPERNODE_STOP_S, inputs),
            early_deaths_more=SUPERNODE_EARLY_DEATHS_MORE,
        ),
    )


def peer(
    paths: Paths, base: Mapping[str, str], *, log_level: str, log_format: str
) -> tuple[Program, ...]:
    """A peer's one program. It is of a room above this one, which is started and not imported."""
    argv = [sys.executable, "-P", "-m", "onefed.local.peer_machine", str(paths.peer)]
    mine = {
        **base,
        "FLWR_LOG_LEVEL": log_level,
        voice.VARIABLE: log_format,
        "ONEFED_DATA_DIR": str(paths.data),
    }
    return (_ours("peer", argv, mine, paths, PEER_STOP_S, (paths.peer, paths.gate_token)),)


def loopback_address(settings: SuperLinkSettings) -> str:
    """Where the SuperLink listens: loopback, whatever host the Fleet address names.

    What listens on the Fleet address for others is the gateway, where there is one.
    """
    return f"127.0.0.1:{settings.superlink_port}"


def database(settings: SuperLinkSettings, paths: Paths) -> Path:
    """``FL_DATABASE`` is relative to a container's ``/app``; its ``state`` is our state folder."""
    parts = PurePosixPath(settings.database).parts
    return paths.state.joinpath(*(parts[1:] if parts[:1] == ("state",) and parts[1:] else parts))


def command(name: str) -> str:
    """A program of the same Python environment as ours."""
    return str(Path(sys.executable).parent / name)


def _ours(
    name: str,
    argv: list[str],
    base: Mapping[str, str],
    paths: Paths,
    stop_timeout_s: float,
    inputs: tuple[Path, ...] = (),
) -> Program:
    """A program of ours, which says when it works (``flower.lifesign``)."""
    worked = paths.flower_home / f"{name}.worked"
    told = {**base, "ONEFED_WORKED_FILE": str(worked)}
    return replace(_program(name, argv, told, paths, stop_timeout_s, inputs), worked_file=worked)


def _program(
    name: str,
    argv: list[str],
    base: Mapping[str, str],
    paths: Paths,
    stop_timeout_s: float,
    inputs: tuple[Path, ...] = (),
) -> Program:
    return Program(
        name=name,
        argv=tuple(argv),
        environment=base,
        folder=paths.root,
        log=paths.logs / f"{name}.log",
        stop_timeout_s=stop_timeout_s,
        inputs=inputs,
    )
