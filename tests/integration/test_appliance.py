"""A machine without systemd, from its context to its end, by the commands of a VM's life cycle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from onefed.appliance import keeper, machine
from onefed.appliance.paths import Paths

pytestmark = [pytest.mark.flower, pytest.mark.timeout(300)]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    ports = {machine.free_port() for _ in range(3)}
    tell(
        tmp_path,
        f"FL_FLEET_API_ADDRESS='127.0.0.1:{ports.pop()}'\n"
        f"FL_METRICS_ENABLED='YES'\nFL_METRICS_PORT='{ports.pop()}'\n",
    )
    yield tmp_path
    if keeper.find(Paths(tmp_path).keeper) is not None:
        onefed(tmp_path, "drain")


def tell(root: Path, variables: str) -> None:
    place = Paths(root).context
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(variables)


def onefed(root: Path, command: str, *more: str) -> Any:
    program = Path(sys.executable).with_name("onefed")
    argv = [program, "appliance", command, "--role", "superlink", "--root", root, *more]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=240)


def test_a_coordinator_from_its_context_to_its_end(root: Path) -> None:
    process = ("--runtime", "process")
    assert onefed(root, "configure", *process).returncode == 0
    assert onefed(root, "health").returncode == 8, "READY is not reported before bootstrap"

    booted = onefed(root, "bootstrap", *process)
    assert booted.returncode == 0, booted.stderr
    assert "SL-11   Health check: done" in booted.stdout
    assert onefed(root, "health").returncode == 0
    assert "fl_training_status 0.0" in metrics(root)
    first = keeper.find(Paths(root).keeper)
    assert first is not None

    again = onefed(root, "bootstrap", *process)
    assert again.stdout == f"unchanged: it runs already, kept by process {first.pid}\n"

    tell(root, Paths(root).context.read_text() + "FL_NUM_ROUNDS='9'\n")
    changed = onefed(root, "bootstrap", *process)
    assert changed.returncode == 0, changed.stderr
    second = keeper.find(Paths(root).keeper)
    assert second is not None
    assert second.pid != first.pid
    assert json.loads(Paths(root).supervisor.read_text())["run_config"]["num-server-rounds"] == 9

    assert onefed(root, "drain").stdout == "drained and stopped\n"
    assert onefed(root, "health").returncode == 8
    assert keeper.find(Paths(root).keeper) is None
    with pytest.raises(httpx.ConnectError):
        metrics(root)


def metrics(root: Path) -> str:
    """What a monitoring system on this computer sees."""
    told = Paths(root).context.read_text()
    port = re.findall("FL_METRICS_PORT='([0-9]+)'", told)[0]
    return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
