"""Which kernels run, and with how many threads: what the environment asks for.

* ``ONEFED_KERNELS``: ``auto`` (the compiled ones where there are any), ``native`` or ``reference``
* ``ONEFED_THREADS``: 1 to 64; by default the cores that this process may use, at most 8
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from onefed.aggregate.kernels.checks import THREADS_MAX
from onefed.errors import ExitCode, OnefedError

KERNELS_VARIABLE, THREADS_VARIABLE = "ONEFED_KERNELS", "ONEFED_THREADS"
KERNELS = ("auto", "native", "reference")
THREADS_DEFAULT_MAX = 8
"""Threads that are taken unasked: a few saturate the memory bus."""


class KernelsError(OnefedError):
    """The environment asks for kernels or threads that there are not."""

    exit_code = ExitCode.CONFIG


@dataclass(frozen=True, slots=True)
class Choice:
    """What the environment asks for."""

    kernels: str
    """One of ``KERNELS``."""
    threads: int
    """1 to ``THREADS_MAX``: threads of a kernel that is not told otherwise."""


def from_environ(environ: Mapping[str, str] = os.environ) -> Choice:
    """Read the choice. Raises ``KernelsError`` for a value that is not allowed."""
    kernels = environ.get(KERNELS_VARIABLE, "auto")
    if kernels not in KERNELS:
        raise KernelsError(
            f"{KERNELS_VARIABLE} is {kernels[:60]!r}.",
            hint=f"Set it to one of: {', '.join(KERNELS)}.",
        )
    threads = environ.get(THREADS_VARIABLE)
    if threads is None:
        return Choice(kernels, min(THREADS_DEFAULT_MAX, len(os.sched_getaffinity(0))))
    if not (threads.isascii() and threads.isdigit() and 1 <= int(threads[:9]) <= THREADS_MAX):
        raise KernelsError(
            f"{THREADS_VARIABLE} is {threads[:60]!r}.",
            hint=f"Set it to a whole number from 1 to {THREADS_MAX}, or remove it.",
        )
    return Choice(kernels, int(threads))
