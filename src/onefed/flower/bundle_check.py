"""Whether a packed app may be unpacked anywhere: its names, its size, and what it would shadow.

Flower installs a bundle below ``FLWR_HOME`` on every machine and puts it on the module path. A
bundle of 1 MB can expand to 1 GiB, and its 20,000 files are installed again for every process; so
all of this is looked at in the archive's directory, before anything is expanded.
"""

from __future__ import annotations

import io
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath

FILES_MAX = 2_000
BYTES_MAX = 64 * 2**20
"""Of all files, expanded."""
RATIO_MAX = 200
"""Expanded to packed, of one file above ``RATIO_FROM_BYTES``. Sources reach 10, zeros 1,000."""
RATIO_FROM_BYTES = 2**20
NAME_BYTES_MAX = 255
"""Of a part of a path: what file systems take."""
DEPTH_MAX = 16

SHADOWED = frozenset({"flwr", "onefed", "sitecustomize", "usercustomize"})
"""Modules at the top that would take the place of those of the programs which load the app."""

PROBLEMS_MAX = 10
"""Shown of a bundle."""

_DRIVE = re.compile(r"[A-Za-z]:")


def problems(fab: bytes) -> list[str]:
    """What speaks against a bundle, a sentence each; nothing of it is expanded."""
    try:
        with zipfile.ZipFile(io.BytesIO(fab)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        return [f"it is no zip archive: {error}"]
    if len(entries) > FILES_MAX:
        return [f"it holds {len(entries)} files, at most {FILES_MAX}"]
    found: list[str] = []
    for problem in _all(entries):
        if len(found) == PROBLEMS_MAX:
            return [*found, "and more"]
        found.append(problem)
    return found


def _all(entries: list[zipfile.ZipInfo]) -> Iterator[str]:
    total = sum(entry.file_size for entry in entries)
    if total > BYTES_MAX:
        yield f"it expands to {total // 2**20} MiB, at most {BYTES_MAX // 2**20}"
    names: dict[str, str] = {}
    for entry in entries:
        shown = ascii(entry.filename[:80])
        problem = _name_problem(entry.orig_filename) or _kind_problem(entry)
        if problem:
            yield f"{shown} {problem}"
            continue
        same = unicodedata.normalize("NFC", entry.filename).casefold()
        if same in names:
            yield f"{shown} and {names[same][:80]!a} are one name on some file systems"
        names[same] = entry.filename


def _name_problem(name: str) -> str | None:
    parts = name.rstrip("/").split("/")
    first = PurePosixPath(name).parts[:1]
    if name.startswith("/") or _DRIVE.match(name):
        return "is an absolute path"
    if ".." in parts or "." in parts or "" in parts:
        return "leads out of its folder"
    if "\\" in name or not name.isprintable():
        return "holds characters that mean something else elsewhere"
    if any(len(part.encode(errors="replace")) > NAME_BYTES_MAX for part in parts):
        return f"has a part of more than {NAME_BYTES_MAX} bytes"
    if len(parts) > DEPTH_MAX:
        return f"lies more than {DEPTH_MAX} folders deep"
    if first and first[0].split(".")[0].casefold() in SHADOWED:
        return "would shadow a module of the programs that load the app"
    if name.endswith((".pth", ".pyc", ".pyo")) or "__pycache__" in parts:
        return "would run without being a source that anybody reads"
    return None


def _kind_problem(entry: zipfile.ZipInfo) -> str | None:
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.file_size > RATIO_FROM_BYTES and entry.file_size > RATIO_MAX * max(
        1, entry.compress_size
    ):
        return f"expands to more than {RATIO_MAX} times its size"
    return None
