"""What the modules of an app import from elsewhere: found without running any of it."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

NAMES_MAX = 200
SOURCE_BYTES_MAX = 1024 * 1024
"""Of one module; a larger one is data."""


def of(fab: bytes) -> tuple[str, ...]:
    """Modules that a bundle's modules import when they are imported themselves, by full name.

    Those of the bundle are left out, and so is what stands in a function or under a condition: an
    app may have reasons to import that late, or never.

    Args:
        fab: a bundle; of one that cannot be read, which its installation will tell, nothing is
            found.
    """
    try:
        return _of(fab)
    except Exception:  # noqa: BLE001 - whatever hostile bytes make zipfile and zlib raise
        return ()


def load(names: Iterable[str]) -> None:
    """Import what can be imported; the rest is for the app to complain of."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _of(fab: bytes) -> tuple[str, ...]:
    found: dict[str, None] = {}
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        sources = [
            entry
            for entry in archive.infolist()
            if entry.filename.endswith(".py") and entry.file_size <= SOURCE_BYTES_MAX
        ]
        own = {PurePosixPath(entry.filename).parts[0].removesuffix(".py") for entry in sources}
        for entry in sources:
            with contextlib.suppress(SyntaxError, ValueError):
                found |= dict.fromkeys(_imported(ast.parse(archive.read(entry))))
    names = (name for name in found if name.partition(".")[0] not in own)
    return tuple(sorted(names))[:NAMES_MAX]


def _imported(module: ast.Module) -> Iterator[str]:
    for statement in module.body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and not statement.level and statement.module:
            yield statement.module
