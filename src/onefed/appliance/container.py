"""Runtime ``docker``: from a program to docker's command line. Pure.

The same program runs as a process or in a container: its folders are mounted under the paths that
its arguments name, and its environment goes through a file, so that ``ps`` shows none of it.
systemd owns the life cycle: no restart policy, and the container goes when the program ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onefed.appliance.description import Description, inputs
from onefed.appliance.paths import Paths
from onefed.appliance.process import Program
from onefed.context import Role

DOCKER = "/usr/bin/docker"

CLIENT = {"PATH": "/usr/bin:/bin", "DOCKER_CONFIG": "/nonexistent"}
"""Environment of docker's client: it looks for no configuration in a home."""

USER = "49999:49999"
"""``app`` in Flower's images."""

APP = Path("/app")
"""Where Flower's images have an app's folders."""

PIDS_MAX = 4096
LOG_SIZE_MAX = "10m"
LOG_FILES_MAX = 3
"""30 MB a container; onefed's own logs are files of the machine."""

TEMPORARY_MB = 512
"""Of /tmp, which is in memory; everything else of the image is read-only."""

NOT_PASSED = frozenset({"PATH", "HOME", "VIRTUAL_ENV"})
"""Of the environment: the image has its own."""


@dataclass(frozen=True)
class Mount:
    """A folder or file that a container sees."""

    path: Path
    writable: bool
    inside: Path | None = None
    """Where; None: under the path that it has outside."""


@dataclass(frozen=True)
class Gpus:
    """What training may use."""

    devices: str
    """``all``, or indices joined by commas (FL_CUDA_VISIBLE_DEVICES)."""


def mounts(role: Role, paths: Paths, checkpoints: Path | None) -> tuple[Mount, ...]:
    """What the programs of a role need. The authority's private key is in none of them.

    Args:
        checkpoints: where a SuperLink's container sees the operator's (FL_CHECKPOINT_PATH).
    """
    read_only = [paths.config]
    writable = [paths.flower_home, paths.logs]
    # Under the names of Flower's own image, for people and apps; our command lines use others.
    data = Mount(paths.data, writable=False, inside=APP / "data")
    if role is Role.SUPERLINK:
        read_only += [paths.certificates, paths.app.parent]
        writable += [paths.state, paths.gateway]
        elsewhere = [
            Mount(paths.state, writable=True, inside=APP / "state"),
            Mount(paths.certificates, writable=False, inside=APP / "certificates"),
            Mount(paths.checkpoints, writable=True, inside=checkpoints),
        ]
    elif role is Role.SUPERNODE:
        read_only += [paths.certificates, paths.data]
        writable.append(paths.node_key)  # a node notes beside its key that it is present
        elsewhere = [data]
    else:
        read_only += [paths.app.parent, paths.data]
        writable += [paths.state, paths.checkpoints]
        elsewhere = [data]
    return (
        *(Mount(path, writable=False) for path in dict.fromkeys(read_only)),
        *(Mount(path, writable=True) for path in dict.fromkeys(writable)),
        *elsewhere,
    )


def name(program: Program, role: Role) -> str:
    """Name of the container: ``flower-superlink``, ``flower-superlink-supervisor``."""
    return f"flower-{role}" if program.name == role else f"flower-{role}-{program.name}"


def description(
    program: Program,
    role: Role,
    *,
    image: str,
    mounted: Sequence[Mount],
    binaries: Path,
    environment_file: Path,
    gpus: Gpus | None = None,
) -> Description:
    """Docker's command line that runs a program in the foreground.

    Args:
        image: with its tag.
        binaries: folder of the programs outside; inside they are found by their name.
        environment_file: holds ``environment(program)``.
    """
    argv = (
        *(DOCKER, "run", "--rm", "--name", name(program, role)),
        # Reaps what a killed parent leaves; without it zombies defeat Flower's parent checks.
        "--init",
        *("--pull", "never", "--network", "host"),
        *("--user", USER, "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--read-only", "--tmpfs", f"/tmp:rw,noexec,nosuid,nodev,size={TEMPORARY_MB}m"),  # noqa: S108
        *("--pids-limit", str(PIDS_MAX), "--ipc", "private"),
        *("--log-driver", "json-file"),
        *("--log-opt", f"max-size={LOG_SIZE_MAX}", "--log-opt", f"max-file={LOG_FILES_MAX}"),
        *("--stop-timeout", str(round(program.stop_timeout_s))),
        *("--env-file", str(environment_file)),
        *_process_flags(program, role),
        *_gpu_flags(gpus),
        *(word for mount in mounted for word in ("--mount", _mount(mount))),
        *("--workdir", str(program.folder)),
        *("--entrypoint", _inside(program.argv[0], binaries)),
        image,
        *(_inside(word, binaries) for word in program.argv[1:]),
    )
    return Description(program.name, argv, dict(CLIENT), Path("/"), inputs(program))


def environment(program: Program) -> bytes:
    """An environment file of docker: ``NAME=value`` lines, taken as they are."""
    kept = {k: v for k, v in program.environment.items() if k not in NOT_PASSED}
    for key, value in kept.items():
        assert "\n" not in value, f"{key} is one line: the context refuses line breaks"
    return "".join(f"{key}={value}\n" for key, value in sorted(kept.items())).encode()


def image(role: Role, framework: str, version: str) -> str:
    """Which image runs the programs of a role. A peer trains as a node does, in a node's image."""
    if role is Role.SUPERLINK:
        return f"onefed-superlink:{version}"
    return f"flower-supernode-{framework}:{version}"


def _process_flags(program: Program, role: Role) -> tuple[str, ...]:
    """A container sees its own processes, and those of the one that it watches."""
    watched = f"flower-{role}-{program.watches}"
    return ("--pid", f"container:{watched}") if program.watches else ()


def _gpu_flags(gpus: Gpus | None) -> tuple[str, ...]:
    if gpus is None:
        return ()
    chosen = () if gpus.devices == "all" else ("--env", f"CUDA_VISIBLE_DEVICES={gpus.devices}")
    return ("--gpus", "all", *chosen)


def _mount(mount: Mount) -> str:
    source, target = (PurePosixPath(path) for path in (mount.path, mount.inside or mount.path))
    assert "," not in f"{source}{target}", "docker's mount syntax separates by commas"
    return f"type=bind,source={source},target={target}" + ("" if mount.writable else ",readonly")


def _inside(word: str, binaries: Path) -> str:
    """A program of this machine's environment is one of the image's, by its name."""
    path = PurePosixPath(word)
    is_program = path.parent == PurePosixPath(binaries)
    return path.name if is_program else word
