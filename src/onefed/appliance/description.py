"""A program as a file: written by the boot, read by what systemd starts.

So no value of a context ever enters a unit file: the unit names a program, and its description
holds arguments and environment as JSON, which nothing expands.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onefed.appliance.process import Program
from onefed.checkpoint import files
from onefed.errors import StorageError

FORMAT = 1
MODE = 0o640
"""Its group is the programs' own; see ``ownership``."""


class Runtime(enum.StrEnum):
    """What runs the programs of a machine."""

    DOCKER = "docker"
    """Each in a container of its own."""
    PROCESS = "process"
    """Each a process of the machine."""


@dataclass(frozen=True)
class Description:
    """What is started under the name of a program."""

    name: str
    argv: tuple[str, ...]
    """With ``docker`` it is docker's own command line."""
    environment: Mapping[str, str]
    folder: Path
    inputs: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by file of what it read as it started; so a file that is another one shows."""


def of(program: Program) -> Description:
    """A program that runs as a process."""
    return Description(
        program.name, program.argv, program.environment, program.folder, inputs(program)
    )


def inputs(program: Program) -> dict[str, str]:
    """What the files that it reads as it starts hold now; nothing of one that is not there."""
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in program.inputs
        if file.is_file()
    }


def path(folder: Path, name: str) -> Path:
    """Where the description of a program lies."""
    return folder / f"{name}.json"


def render(description: Description) -> bytes:
    """The content of its file."""
    document = {
        "format": FORMAT,
        "name": description.name,
        "argv": list(description.argv),
        "environment": dict(description.environment),
        "folder": str(description.folder),
        "inputs": dict(description.inputs),
    }
    return json.dumps(document, indent=1).encode()


def is_written(folder: Path, description: Description) -> bool:
    """Whether the file says exactly this."""
    place = path(folder, description.name)
    try:
        return place.read_bytes() == render(description)
    except OSError:
        return False


def write(folder: Path, description: Description) -> bool:
    """Bring the file to what it should say; True when something had to change."""
    if is_written(folder, description):
        return False
    files.write_bytes(path(folder, description.name), render(description), mode=MODE)
    return True


def read(folder: Path, name: str) -> Description:
    """What ``write`` wrote.

    Raises:
        StorageError: there is no whole description of that name.
    """
    place = path(folder, name)
    document = files.read_json(place)
    try:
        assert isinstance(document, dict)
        assert document["format"] == FORMAT
        return Description(
            name=str(document["name"]),
            argv=tuple(str(word) for word in document["argv"]),
            environment={str(k): str(v) for k, v in document["environment"].items()},
            folder=Path(document["folder"]),
            inputs={str(k): str(v) for k, v in document["inputs"].items()},
        )
    except (AssertionError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{place} is not the description of a program.",
            hint="Boot again: onefed appliance configure, then bootstrap.",
        ) from error
