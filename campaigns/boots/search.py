"""Where a secret must not be: looked for in whole machines, from outside, in every spelling of it.

A machine keeps its secrets in files that only their owner reads. They are in no log, no journal, no
argument, no environment, no file that everybody may read, and in nothing that machines published.
"""

from __future__ import annotations

import base64
import os
import stat
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from .machine import Machine

FILE_BYTES_MAX = 64 << 20
"""Nothing of a machine is larger; a file that is would be searched to there."""

MEMORY_FOLDERS = ("run", "tmp", "dev/shm", "var/tmp")
"""File systems of a machine's own, which no disk shows."""

LOGS = ("var/log", "run/log", "var/lib/docker/containers")
"""Here nobody may have it, whoever may read the file."""

ENGINE = "var/lib/docker"
"""Of a machine with Docker a folder of its own, beside the disk."""

Needles = Mapping[str, Sequence[bytes]]
"""Spellings of each secret, by its name."""


def spellings(secret: bytes) -> tuple[bytes, ...]:
    """As it is, in base64, in a form, and of a PEM file also each line that holds the key."""
    lines = secret.split()
    whole = (secret, base64.b64encode(secret), urllib.parse.quote(secret).encode())
    # A line of fewer characters could be anywhere by chance.
    return (*dict.fromkeys((*whole, *(line for line in lines if len(line) >= 32))),)


def spelled(secrets: Mapping[str, bytes]) -> Needles:
    """What to look for, of secrets by name."""
    return {name: spellings(secret) for name, secret in secrets.items()}


def own_secrets(machines: Iterable[Machine]) -> Needles:
    """What machines made for themselves, and what the platform gave them."""
    found = {}
    for each in machines:
        found[f"OneGate token of {each.name}"] = each.record.token.encode()
        secret = each.paths.superexec_secret
        if secret.exists():
            found[f"SuperExec secret of {each.name}"] = secret.read_bytes()
        for path in (*each.paths.node_key.glob("*"), *each.paths.peers.glob("nodes/*/identity/*")):
            content = path.read_bytes()
            if b"PRIVATE KEY" in content:
                found[f"node key of {each.name}"] = content
    return spelled(found)


def everywhere(machines: Iterable[Machine], needles: Needles) -> list[str]:
    """What was found where; nothing, of machines that keep their secrets."""
    found = []
    for machine in machines:
        places = (*_files(machine), *_processes(machine), *_journal(machine))
        found += [
            f"{machine.name}: {name} in {place}"
            for place, content in places
            for name in names_in(content, needles)
        ]
    return found


def names_in(content: bytes, needles: Needles) -> list[str]:
    """Which of the secrets a text holds."""
    return [name for name, forms in needles.items() if any(form in content for form in forms)]


def _files(machine: Machine) -> Iterator[tuple[str, bytes]]:
    """Files that everybody may read, and all logs, on disk and in memory."""
    # Only what differs from the tree, which nobody can write a secret to.
    roots = {machine.folder / "upper": "", machine.folder / "docker": ENGINE}
    roots |= {machine.seen_inside / name: name for name in MEMORY_FOLDERS}
    for root, under in roots.items():
        for place, folders, names in os.walk(root):
            here = Path(place)
            inside = under / here.relative_to(root)
            is_log = str(inside).startswith(LOGS)
            # Behind a folder that others may not enter nobody reads anything but logs.
            folders[:] = [
                each
                for each in folders
                if is_log
                or str(inside / each).startswith(LOGS)
                or _mode(here / each) & stat.S_IXOTH
            ]
            for name in names:
                mode = _mode(here / name)
                if stat.S_ISREG(mode) and (is_log or mode & stat.S_IROTH):
                    yield str(inside / name), _read(here / name)


def _processes(machine: Machine) -> Iterator[tuple[str, bytes]]:
    for folder in (machine.seen_inside / "proc").iterdir():
        if folder.name.isdecimal():
            for name in ("cmdline", "environ"):
                yield f"{name} of process {folder.name}", _read(folder / name)


def _journal(machine: Machine) -> Iterator[tuple[str, bytes]]:
    # Its files are compressed.
    said = machine.output("journalctl", "--no-pager", "--output=export", "--all")
    assert said, f"{machine.name} has no journal"
    yield "the journal", said.encode(errors="surrogateescape")


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0  # it is gone


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(FILE_BYTES_MAX)
    except OSError:
        return b""  # a process that has ended
