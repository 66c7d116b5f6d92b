"""The kernels of this process, chosen once, when the first one is called."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onefed.aggregate.kernels import choice, reference, steps
from onefed.aggregate.kernels.reference import Column


class Kernels(Protocol):
    """What the modules and classes that have kernels agree on; ``reference`` says what they do."""

    def weighted_mean(
        self,
        columns: Sequence[Column],
        weights: Sequence[int],
        out: Column,
        *,
        threads: int | None = None,
    ) -> None: ...

    def fold(
        self,
        totals: Sequence[NDArray[np.float64]],
        columns: Sequence[Column],
        weight: int,
        *,
        threads: int | None = None,
    ) -> None: ...

    def divide(
        self,
        total: NDArray[np.float64],
        weight_sum: int,
        out: Column,
        *,
        threads: int | None = None,
    ) -> None: ...

    def sorted_mean(
        self,
        columns: Sequence[Column],
        low: int,
        high: int,
        out: Column,
        *,
        threads: int | None = None,
    ) -> None: ...

    def middle_mean(
        self, columns: Sequence[Column], keep: int, out: Column, *, threads: int | None = None
    ) -> None: ...

    def gram(
        self, columns: Sequence[Column], centre: Column, *, threads: int | None = None
    ) -> NDArray[np.float64]: ...

    def advance(
        self,
        kind: str,
        numbers: steps.Numbers,
        old: Column,
        model: Column,
        before: Sequence[Column],
        after: Sequence[Column],
        *,
        threads: int | None = None,
    ) -> bool: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """The kernels in use."""

    kernels: Kernels
    native: bool
    """Whether they are compiled."""
    words: str
    """Which they are, for people: ``native (avx2), 2 threads``."""


@functools.cache
def selected() -> Selection:
    """Choose as the environment asks. Raises ``KernelsError`` where that is not possible."""
    return select(choice.from_environ())


def select(wanted: choice.Choice) -> Selection:
    """Choose the compiled kernels with the widest instruction set, or the reference."""
    if wanted.kernels == "reference":
        return _reference(f"{choice.KERNELS_VARIABLE} asks for it")
    try:
        from onefed.aggregate.kernels import native
    except ImportError as error:
        if wanted.kernels == "native":
            raise choice.KernelsError(
                f"The compiled kernels cannot be loaded: {error}.",
                hint="Install onefed where there is a C compiler (on Debian and Ubuntu: "
                f"apt-get install gcc), or unset {choice.KERNELS_VARIABLE}.",
            ) from error
        return _reference("the extension is not compiled")
    widest = native.instruction_sets()[-1]
    threads = f"{wanted.threads} thread{'s' if wanted.threads > 1 else ''}"
    return Selection(native.Native(widest, wanted.threads), True, f"native ({widest}), {threads}")


def _reference(why: str) -> Selection:
    return Selection(reference, False, f"reference (numpy): {why}")
