"""Federations of machines that systemd boots. ``make boots`` makes what they need."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # campaigns lie beside src

from campaigns.boots import engine, network, tree
from campaigns.boots.federation import Federation

from onefed.appliance.description import Runtime

Deploy = Callable[[str, Runtime], Federation]


@pytest.fixture(scope="session")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploy]:
    """Makes federations, each on a folder of its own; all are off in the end."""
    if missing := _missing():
        if os.getenv("CI") == "true":  # noqa: TID251
            pytest.fail(missing)
        pytest.skip(missing)
    network.make_bridge()
    # In memory: overlays need a file system that can be their upper layer, and it is gone with us.
    place = tmp_path_factory.mktemp("machines")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8g", "tmpfs", place], check=True)
    numbers = itertools.count()
    made: list[Federation] = []

    def new(name: str, runtime: Runtime) -> Federation:
        baked = place / "engine" if runtime is Runtime.DOCKER else None
        if baked is not None and not baked.exists():
            engine.bake(baked)
        (place / name).mkdir()
        made.append(Federation(place / name, runtime, numbers, baked))
        return made[-1]

    yield new
    for federation in made:
        federation.close()


def _missing() -> str:
    """What these tests lack; empty: nothing."""
    for program in ("systemd-nspawn", "ip", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: systemd-container, iproute2)"
    if os.geteuid() != 0 or not network.is_own():
        return "they run as root in namespaces of their own: make boots"
    return "" if tree.TREE.is_dir() else f"there is no {tree.TREE}: make boots"
