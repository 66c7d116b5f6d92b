"""Docker inside machines: each has an engine of its own, with the images that its role finds there.

There is no registry to pull from: the image is the tree, imported once. A machine gets a copy of
the engine's notes, and what the image holds is bound into it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from onefed.appliance import container
from onefed.context import Role

from . import tree

VERSION = "1.41.0"
"""Of Flower; FLOWER_VERSION by default."""

FRAMEWORK = "pytorch"
"""ML_FRAMEWORK by default; names the image of a node, and no app of ours needs it."""

IMAGES = tuple(container.image(role, FRAMEWORK, VERSION) for role in Role)

IMPORT_LIMIT_S = 240.0

_IMPORT = """\
set -eu
dockerd --bridge none --iptables=false >/var/lib/docker/engine.log 2>&1 &
engine=$!
until docker info >/dev/null 2>&1; do kill -0 $engine; sleep 0.1; done
tar -C /image --one-file-system -c . | docker import --change 'ENV PATH={path}' - {first} >&2
docker tag {first} {second}
kill $engine
wait $engine
"""

CGROUPS = """\
[Service]
ExecStartPre=/bin/sh -c 'for each in /sys/fs/cgroup/*/; do mount -o remount,bind,rw "$each"; done'
"""
"""systemd-nspawn shows them read-only, and a virtual machine does not."""

FLAGS = (
    "--capability=all",
    "--system-call-filter=@keyring bpf @clock @module @mount",
)
"""For systemd-nspawn, so that an engine can be in it as in a virtual machine."""

ENVIRONMENT = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"}


def bake(folder: Path) -> None:
    """Make ``folder`` an engine's ``/var/lib/docker`` with ``IMAGES`` in it."""
    folder.mkdir()
    script = _IMPORT.format(
        path=f"{tree.VENV}/bin:/usr/sbin:/usr/bin:/sbin:/bin", first=IMAGES[0], second=IMAGES[1]
    )
    subprocess.run(
        [
            *("systemd-nspawn", "--quiet", f"--directory={tree.TREE}", "--volatile=overlay"),
            *("--register=no", "--keep-unit", "--private-network", "--as-pid2", "--pipe"),
            *(f"--bind={folder}:/var/lib/docker", f"--bind-ro={tree.TREE}:/image:norbind", *FLAGS),
            *("sh", "-c", script),
        ],
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=IMPORT_LIMIT_S,
    )


def give(baked: Path, folder: Path) -> Sequence[str]:
    """Make ``folder`` a machine's ``/var/lib/docker``; gives the flags that bind it in."""
    for notes in ("image", "overlay2"):
        shutil.copytree(baked / notes, folder / notes, symlinks=True, ignore=_without_content)
    layers = [path.relative_to(baked) for path in baked.glob("overlay2/*/diff")]
    for layer in layers:
        (folder / layer).mkdir()
    return (
        f"--bind={folder}:/var/lib/docker",
        *(f"--bind-ro={baked / layer}:/var/lib/docker/{layer}" for layer in layers),
    )


def enable(disk: Path) -> None:
    """The engine starts with the machine, as in an image that has it."""
    units = disk / "etc/systemd/system"
    for name in ("docker.service", "containerd.service"):
        (units / "multi-user.target.wants" / name).symlink_to(f"/lib/systemd/system/{name}")
    (units / "docker.service.d").mkdir()
    (units / "docker.service.d/cgroups.conf").write_text(CGROUPS)
    (disk / "opt/flower/PREBAKED_VERSION").write_text(f"{VERSION}\n")


def _without_content(place: str, names: list[str]) -> set[str]:
    is_layer = Path(place).parent.name == "overlay2"
    return {"diff"} if is_layer and "diff" in names else set()
