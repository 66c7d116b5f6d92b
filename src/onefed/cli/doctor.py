"""version and doctor: what is here, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from onefed import __version__
from onefed.aggregate import kernels
from onefed.cli.screen import say, table_console
from onefed.errors import ExitCode, OnefedError
from onefed.local import request, state

PACKAGES = ("flwr", "numpy", "scikit-learn", "cryptography", "grpcio", "safetensors")
"""What decides the bits of a model or the words on the wire."""

PROGRAMS = ("flower-superlink", "flower-supernode", "flower-superexec")

FLOWER_VERSION = "1.41.0"
"""The one that onefed is made and tested for."""


@dataclass(frozen=True)
class Check:
    """One thing that a federation needs, or is better with."""

    name: str
    ok: bool
    needed: bool
    finding: str
    remedy: str
    """What to do where it is not ok."""


def version(*, as_json: bool) -> None:
    """Print versions, one a line."""
    found = {"onefed": __version__, "python": platform.python_version()}
    found |= {package: _package(package) or "missing" for package in PACKAGES}
    found["platform"] = platform.platform()
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    for name, text in found.items():
        sys.stdout.write(f"{name:14}{text}\n")


def run(*, as_json: bool) -> int:
    """Print every check; the exit code is FAILED when something that is needed is missing."""
    checks = list(_checks())
    lacking = [check for check in checks if check.needed and not check.ok]
    if as_json:
        sys.stdout.write(json.dumps([asdict(check) for check in checks], indent=1) + "\n")
    else:
        _print(checks)
        if lacking:
            say(f"Needed before onefed can work here: {', '.join(each.name for each in lacking)}.")
        else:
            say("Everything that is needed is here.")
    return ExitCode.FAILED if lacking else ExitCode.OK


def _print(checks: Iterable[Check]) -> None:
    table = Table(box=None, show_header=False)
    for _ in range(4):
        table.add_column(overflow="fold")
    for check in checks:
        mark = ("ok", "green") if check.ok else ("missing", "red" if check.needed else "yellow")
        # Text: a bracket in a path is no mark-up.
        remedy = "" if check.ok else check.remedy
        table.add_row(
            Text(*mark), Text(check.name), Text(check.finding), Text(remedy, style="bold")
        )
    table_console().print(table)


def _checks() -> Iterator[Check]:
    yield Check(
        name="Python",
        ok=sys.version_info >= (3, 11),
        needed=True,
        finding=platform.python_version(),
        remedy="install Python 3.11 or newer",
    )
    flower = _package("flwr")
    yield Check(
        name="Flower",
        ok=flower == FLOWER_VERSION,
        needed=True,
        finding=flower or "not installed",
        remedy=f"pip install flwr=={FLOWER_VERSION}",
    )
    for program in PROGRAMS:
        path = Path(sys.executable).parent / program
        yield Check(
            name=program,
            ok=os.access(path, os.X_OK),
            needed=True,
            finding=str(path),
            remedy=f"pip install --force-reinstall flwr=={FLOWER_VERSION}",
        )
    yield Check(
        name="compiled kernels",
        ok=kernels.NATIVE,
        needed=False,
        finding=kernels.describe(),
        remedy="install a C compiler and onefed again; results are the same, later",
    )
    yield from _state_folder()
    yield Check(
        name="Linux",
        ok=sys.platform == "linux",
        needed=False,
        finding=platform.system(),
        remedy="elsewhere, killed parents leave children behind",
    )
    pillow = importlib.util.find_spec("PIL") is not None
    yield Check(
        name="PNG training data",
        ok=pillow,
        needed=False,
        finding="Pillow" if pillow else "Pillow is not installed",
        remedy="pip install 'onefed[images]'",
    )


def _state_folder() -> Iterator[Check]:
    try:
        home = state.home(os.environ)
    except OnefedError as error:
        yield Check("state folder", False, True, error.message, error.hint or "")
        return
    place = home
    while not place.exists():
        place = place.parent
    usable = place.is_dir() and os.access(place, os.W_OK)
    yield Check(
        name="state folder",
        ok=usable,
        needed=True,
        finding=str(home),
        remedy="name another folder in ONEFED_HOME",
    )
    free = shutil.disk_usage(place).free
    yield Check(
        name="disk space",
        ok=free >= request.DISK_FREE_BYTES,
        needed=True,
        finding=f"{free // 2**20} MB free",
        remedy=f"free some: {request.DISK_FREE_BYTES // 2**20} MB are wanted",
    )


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
