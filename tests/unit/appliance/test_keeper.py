"""The lock of a machine's keeper dies with its holder, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onefed.appliance import keeper
from onefed.errors import InUseError

HOLDER = """
import sys
from pathlib import Path
from onefed.appliance import keeper
with keeper.hold(Path(sys.argv[1])) as tell:
    tell(keeper.Keeper(7, "running", "abc"))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_nobody_keeps_a_machine_that_was_never_booted(tmp_path: Path) -> None:
    assert keeper.find(tmp_path / "run/keeper.json") is None


def test_who_holds_the_lock_is_found_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "run/keeper.json"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert keeper.find(path) == keeper.Keeper(7, "running", "abc")
        with pytest.raises(InUseError, match="runs already"), keeper.hold(path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert keeper.find(path) is None


def test_a_newer_word_replaces_a_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "keeper.json"
    with keeper.hold(path) as tell:
        tell(keeper.Keeper(123456, "booting", "a" * 64))
        tell(keeper.Keeper(1, "x", ""))
        # flock sees another descriptor of the same process as another holder.
        assert keeper.find(path) == keeper.Keeper(1, "x", "")
    assert keeper.find(path) is None
