"""Who owns what the programs of a machine read and write: 49999:49999, as in Flower's images.

Root prepares the files; a container or a unit that runs as 49999 exits at once with a permission
error when they are still root's. Links are not followed, since that user may plant some.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from onefed.appliance.paths import Paths

UID = GID = 49_999


def owned(paths: Paths) -> tuple[Path, ...]:
    """Folders and files of the programs. The authority's private key stays root's."""
    return (
        *(paths.certificates, paths.node_key, paths.state, paths.checkpoints, paths.data),
        *(
            paths.gateway,
            paths.gateway_configuration,
            paths.app.parent,
            paths.flower_home,
            paths.logs,
        ),
        *(paths.superexec_secret, paths.supervisor, paths.peer, paths.gate_token),
    )


def give(
    paths: Paths, places: Sequence[Path] | None = None, *, uid: int = UID, gid: int = GID
) -> bool:
    """Give them to the programs' user, as far as they are there; only root can, else nothing.

    Args:
        places: these, for who may write nowhere else; None: all of ``owned``. The descriptions of
            the programs are always among them.
    """
    if os.geteuid() != 0:
        return False
    wanted = owned(paths) if places is None else places
    changed = [_give_tree(place, uid, gid) for place in wanted]
    # Read by a program that becomes theirs, or by root without any capability: docker's client.
    changed.append(_give_tree(paths.programs, os.geteuid(), gid))
    with contextlib.suppress(FileNotFoundError):
        os.chown(paths.config, -1, gid)  # 0750: the programs may enter it, and read what is theirs
    return any(changed)


def become(folder: Path) -> None:
    """Be the owner of a folder from now on; only root can, for everybody else nothing happens."""
    if os.geteuid() != 0:
        return
    owner = folder.stat()
    os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def _give_tree(place: Path, uid: int, gid: int) -> bool:
    try:
        parent = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        changed = _give_one(place.name, uid, gid, parent)
    finally:
        os.close(parent)
    if place.is_symlink() or not place.is_dir():
        return changed
    for _, folders, names, descriptor in os.fwalk(place):
        for name in (*folders, *names):
            changed |= _give_one(name, uid, gid, descriptor)
    return changed


def _give_one(name: str, uid: int, gid: int, parent: int) -> bool:
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if (found.st_uid, found.st_gid) == (uid, gid):
            return False
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
