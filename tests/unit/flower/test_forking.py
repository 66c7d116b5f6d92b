"""What a process looks at before it forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and prctl")

PROGRAM = """
import ctypes, sys, threading
from onefed.flower import forking
named, done = threading.Event(), threading.Event()
def live():
    ctypes.CDLL(None).prctl(15, sys.argv[1].encode())
    named.set()
    done.wait()
threading.Thread(target=live).start()
named.wait()
print(forking.hazards())
done.set()
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [("worker", "['1 threads run in it']\n"), ("jemalloc_bg_thd", "[]\n")],
)
def test_a_thread_is_a_hazard_unless_a_fork_does_it_no_harm(name: str, told: str) -> None:
    command = [sys.executable, "-c", PROGRAM, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == told
