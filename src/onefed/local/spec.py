"""What a federation was asked to be, and the document that says so: ``federation.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onefed.checkpoint import files
from onefed.errors import NotFoundError

FORMAT = 1
"""Of ``federation.json``; raised with every change that an older program would misread."""


NO_APP = "none"
"""Instead of an app, of a federation to which apps are submitted (``FL_USE_CASE``)."""


@dataclass(frozen=True)
class Spec:
    """What a federation was asked to be. Written once, read by every start of it."""

    name: str
    nodes: int
    app: str
    """For people: the use case, or the app's name and version; ``none`` where one comes later."""
    managed: bool
    """Whether the app runs under our ServerApp, and so can be resumed."""
    rounds: int
    """Wanted in all; 0 when the app alone knows."""
    strategy: str
    seed: int
    context: Mapping[str, str]
    """Context variables of all machines, by canonical name."""
    data: str | None = None
    """Folder with one folder of training files per node, or None."""
    format: int = field(default=FORMAT)

    @property
    def waits(self) -> bool:
        """Whether apps are submitted to it, one after the other, until somebody stops it."""
        return self.app == NO_APP


def read(file: Path) -> Spec:
    """What the federation in the folder of this file was asked to be.

    Raises:
        NotFoundError: there is no such file.
        StorageError: it is damaged, or of a newer onefed.
    """
    if not file.exists():
        raise NotFoundError(
            f"{file.parent} holds no federation.", hint="See the ones there are: onefed list"
        )
    try:
        return _checked(files.read_json(file))
    except ValueError as error:
        raise files.DamagedError(file, str(error)) from error


def write(file: Path, spec: Spec) -> None:
    """Make this what the federation in the folder of this file was asked to be."""
    files.write_bytes(file, json.dumps(asdict(spec), indent=1).encode())


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "nodes": int,
    "app": str,
    "managed": bool,
    "rounds": int,
    "strategy": str,
    "seed": int,
    "context": dict,
    "data": (str, type(None)),
    "format": int,
}


def _checked(document: Any) -> Spec:
    """Read what ``write`` wrote; ``ValueError`` with a reason for anything else."""
    if not isinstance(document, dict):
        raise ValueError("it is not a federation's")
    found = document.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise ValueError(f"it has format {found} of a newer onefed, and this one reads {FORMAT}")
    if document.keys() != _KINDS.keys():
        wrong = sorted(document.keys() ^ _KINDS.keys())
        raise ValueError(f"it has other fields than a federation's: {', '.join(wrong)}")
    for name, kind in _KINDS.items():
        if not isinstance(document[name], kind):
            raise ValueError(f"its {name} is of a wrong type")
    if not all(isinstance(text, str) for text in document["context"].values()):
        raise ValueError("its context holds values that are not text")
    return Spec(**document)
