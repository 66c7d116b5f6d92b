"""Flower's SuperLink and our own programs around it, run inside a process that was forked.

``preload`` imports what they need; a process that has done so forks others that begin at once.
Flower is imported late: who only asks whether a program is one of these has no need of it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

OURS: Mapping[str, str] = {
    "onefed.flower.executor": "onefed.flower.executor",
    "onefed.flower.supervisor": "onefed.flower.supervisor",
    "onefed.flower.node": "onefed.flower.node.__main__",
}
"""What follows ``-m``, and the module whose ``main`` it is."""


def preload() -> None:
    """Import everything that one of the programs imports; no thread runs afterwards."""
    flower = _adapter()
    flower.preload_superlink()
    flower.preload_server_app()
    for module in OURS.values():
        importlib.import_module(module)


def find(argv: Sequence[str]) -> Callable[[], int] | None:
    """What becomes of a command line that is one of these programs; None: it is another one.

    Args:
        argv: as ``appliance.programs`` writes it.
    """
    if Path(argv[0]).name == "flower-superlink":
        return lambda: int(_adapter().run_superlink(argv))
    if list(argv[:3]) == [sys.executable, "-P", "-m"] and argv[3] in OURS:
        return lambda: _run(OURS[argv[3]], list(argv[4:]))
    return None


def wake(environ: Mapping[str, str]) -> None:
    """In a forked process: draw its own random numbers, and log as loudly as its own environment
    says."""
    importlib.import_module("onefed.flower.randomness").refresh()
    with contextlib.suppress(ValueError):  # no such level: Flower's own
        _adapter().log_as_told(environ)


def _adapter() -> Any:
    return importlib.import_module("onefed.flower.adapter_runtime")


def _run(module: str, arguments: list[str]) -> int:
    found = importlib.import_module(module)
    sys.argv = [str(found.__file__), *arguments]
    code = found.main(arguments)
    assert isinstance(code, int), code
    return code
