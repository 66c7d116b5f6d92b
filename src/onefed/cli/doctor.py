"""version and doctor: what is here, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onefed import __version__
from onefed.errors import ExitCode
from onefed.local import deploy, state

PACKAGES = ("flwr", "numpy", "scikit-learn", "cryptography", "grpcio", "safetensors")
"""What decides the bits of a model or the words on the wire."""

PROGRAMS = ("flower-superlink", "flower-supernode", "flower-superexec")

FLOWER_VERSION = "1.41.0"


@dataclass(frozen=True)
class Check:
    """One thing that a federation needs, or is better with."""

    name: str
    ok: bool
    needed: bool
    finding: str
    remedy: str = ""


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


def run() -> int:
    """Print every check; the exit code is FAILED when something that is needed is missing."""
    checks = list(_checks())
    table = Table(box=None, show_header=False)
    for check in checks:
        mark = ("ok", "green") if check.ok else ("missing", "red" if check.needed else "yellow")
        table.add_row(Text(*mark), check.name, check.finding, Text(check.remedy, style="bold"))
    Console(soft_wrap=True).print(table)
    lacking = [check for check in checks if check.needed and not check.ok]
    if lacking:
        Console().print(f"{len(lacking)} things are needed before onefed can work here.")
        return ExitCode.FAILED
    Console().print("Everything that is needed is here.")
    return ExitCode.OK


def _checks() -> Iterator[Check]:
    python = platform.python_version()
    yield Check(
        "Python", sys.version_info >= (3, 11), True, python, "" if sys.version_info >= (3, 11) else
        "install Python 3.11 or newer",
    )  # fmt: skip
    flower = _package("flwr")
    yield Check(
        "Flower",
        flower == FLOWER_VERSION,
        True,
        flower or "not installed",
        "" if flower == FLOWER_VERSION else f"pip install flwr=={FLOWER_VERSION}",
    )
    for program in PROGRAMS:
        path = Path(sys.executable).parent / program
        yield Check(program, path.exists(), True, str(path), "" if path.exists() else "make setup")
    home = state.home(os.environ)
    place = home
    while not place.exists():
        place = place.parent
    writable = os.access(place, os.W_OK)
    yield Check("state folder", writable, True, str(home), "" if writable else "set ONEFED_HOME")
    free = shutil.disk_usage(place).free
    enough = free > deploy.DISK_FREE_BYTES
    yield Check(
        "disk space", enough, True, f"{free // 2**20} MB free", "" if enough else "free some space"
    )
    yield Check(
        "Linux",
        sys.platform == "linux",
        False,
        platform.system(),
        "" if sys.platform == "linux" else "elsewhere, killed parents leave children behind",
    )
    pillow = importlib.util.find_spec("PIL") is not None
    yield Check(
        "PNG training data",
        pillow,
        False,
        "Pillow" if pillow else "Pillow is not installed",
        "" if pillow else "pip install 'onefed[images]'",
    )


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
