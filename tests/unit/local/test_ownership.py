"""The lock of a state directory, and the processes that carry it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from onefed.errors import InUseError, StorageError
from onefed.local import ownership
from onefed.local.state import StateDir

BYSTANDER = """
import sys
print("here", flush=True)
sys.stdin.read()
"""

STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
while True:
    signal.pause()
"""

Make = Callable[..., StateDir]
Starter = Callable[..., "subprocess.Popen[str]"]


# --- the lock -------------------------------------------------------------------------------------


def test_whoever_holds_it_is_the_owner_for_everybody_else(make: Make, held: Starter) -> None:
    made = make()
    assert ownership.owner(made) is None
    holder = held(made)
    assert ownership.owner(made) == holder.pid
    with pytest.raises(InUseError, match="is running") as refused, ownership.hold(made):
        pass
    assert "onefed down" in (refused.value.hint or "")
    assert ownership.owner(made) == holder.pid
    holder.communicate()
    assert ownership.owner(made) is None


def test_a_killed_owner_frees_it(make: Make, held: Starter) -> None:
    made = make()
    holder = held(made)
    holder.kill()
    holder.wait()
    assert ownership.owner(made) is None
    with ownership.hold(made):
        pass


def test_those_who_look_do_not_keep_anybody_from_holding_it(make: Make) -> None:
    made = make()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            ownership.owner(made)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            with ownership.hold(made):
                assert ownership.owner(made) == os.getpid()
    finally:
        ended.set()
        for looker in lookers:
            looker.join()


def test_a_folder_that_is_gone_cannot_be_held(tmp_path: Path) -> None:
    nowhere = StateDir(tmp_path / "gone")
    assert ownership.owner(nowhere) is None
    with pytest.raises(StorageError, match=r"gone/cloud\.lock"), ownership.hold(nowhere):
        pass


def test_a_signal_reaches_the_owner(make: Make, held: Starter) -> None:
    made = make()
    holder = held(made, carries=made.folder)
    assert ownership.signal_owner(made, signal.SIGTERM)
    assert holder.wait() == -signal.SIGTERM
    assert not ownership.signal_owner(made, signal.SIGTERM)


@pytest.mark.parametrize("written", ["1", "0", "-1", "", "rubbish", "99999999999999999999"])
def test_a_number_in_the_lock_file_is_no_reason_to_signal_anybody(
    make: Make, written: str, held: Starter
) -> None:
    """The lock is held and its number is not, or no more, the holder's."""
    made = make()
    holder = held(made, carries=made.folder)
    made.lock_file.write_text(written)
    assert ownership.owner(made) is not None
    assert not ownership.signal_owner(made, signal.SIGKILL)
    assert holder.poll() is None


def test_a_reused_number_is_not_signalled(make: Make, program: Starter, held: Starter) -> None:
    """A process that got the number of an old owner carries no state directory of ours."""
    made = make()
    held(made, carries=made.folder)
    innocent = program(BYSTANDER)
    made.lock_file.write_text(str(innocent.pid))
    assert not ownership.signal_owner(made, signal.SIGKILL)
    assert innocent.poll() is None


# --- processes ------------------------------------------------------------------------------------


def test_processes_are_found_by_the_folder_they_carry(make: Make, program: Starter) -> None:
    mine, other = make("fed-1"), make("fed-10")
    found = program(BYSTANDER, carries=mine.folder)
    program(BYSTANDER, carries=other.folder)
    program(BYSTANDER)
    assert [process.pid for process in ownership.processes(mine)] == [found.pid]


def test_what_is_left_is_ended_and_nothing_else(make: Make, program: Starter) -> None:
    mine, other = make("fed-1"), make("fed-10")
    left = [program(BYSTANDER, carries=mine.folder), program(STUBBORN, carries=mine.folder)]
    innocent = [program(BYSTANDER, carries=other.folder), program(BYSTANDER)]
    assert ownership.end_processes(mine) == 2
    assert [process.wait() for process in left] == [-signal.SIGTERM, -signal.SIGKILL]
    assert [process.poll() for process in innocent] == [None, None]
    assert ownership.processes(mine) == []
    assert ownership.end_processes(mine) == 0


def test_who_calls_is_spared_with_the_shell_it_was_called_from(make: Make) -> None:
    """A user may have the variable set in the shell: it is no part of the federation."""
    made = make()
    inner = (
        "import os, pathlib; from onefed.local import ownership, state; "
        "print(ownership.end_processes(state.StateDir(pathlib.Path(os.environ['ONEFED_STATE_DIR']))))"
    )
    outer = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True); "
        "print('alive')"
    )
    done = subprocess.run(
        ["env", f"{ownership.STATE_VARIABLE}={made.folder}", sys.executable, "-c", outer, inner],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "alive"]
