"""What the environment may ask for, and what comes of it."""

from __future__ import annotations

import os
import sys

import pytest

from onefed.aggregate import kernels
from onefed.aggregate.kernels import choice, reference, selection
from onefed.aggregate.kernels.choice import Choice
from onefed.errors import ExitCode


def test_without_variables_the_kernels_are_chosen_and_the_usable_cores_used() -> None:
    cores = len(os.sched_getaffinity(0))
    assert choice.from_environ({}) == Choice("auto", min(8, cores))


def test_the_environment_decides() -> None:
    environ = {"ONEFED_KERNELS": "reference", "ONEFED_THREADS": "64"}
    assert choice.from_environ(environ) == Choice("reference", 64)


@pytest.mark.parametrize(
    ("environ", "allowed"),
    [
        ({"ONEFED_KERNELS": ""}, "auto, native, reference"),
        ({"ONEFED_KERNELS": "fast"}, "auto, native, reference"),
        ({"ONEFED_THREADS": "0"}, "from 1 to 64"),
        ({"ONEFED_THREADS": "65"}, "from 1 to 64"),
        ({"ONEFED_THREADS": "-1"}, "from 1 to 64"),
        ({"ONEFED_THREADS": "2.0"}, "from 1 to 64"),
        ({"ONEFED_THREADS": "٣"}, "from 1 to 64"),
        ({"ONEFED_THREADS": ""}, "from 1 to 64"),
        ({"ONEFED_THREADS": "9" * 10_000}, "from 1 to 64"),
    ],
)
def test_a_bad_value_is_an_error_that_says_what_is_allowed(
    environ: dict[str, str], allowed: str
) -> None:
    with pytest.raises(kernels.KernelsError) as caught:
        choice.from_environ(environ)
    assert caught.value.exit_code is ExitCode.CONFIG
    assert allowed in str(caught.value.hint)
    assert next(iter(environ)) in caught.value.message
    assert len(caught.value.message) < 100


def test_the_reference_can_be_asked_for() -> None:
    selected = selection.select(Choice("reference", 2))
    assert selected.kernels is reference
    assert not selected.native
    assert selected.words == "reference (numpy): ONEFED_KERNELS asks for it"


def test_native_kernels_take_the_widest_instruction_set() -> None:
    native = pytest.importorskip("onefed.aggregate.kernels.native", exc_type=ImportError)
    widest = native.instruction_sets()[-1]
    for threads, words in ((1, "1 thread"), (2, "2 threads")):
        selected = selection.select(Choice("native", threads))
        assert selected.native
        assert selected.words == f"native ({widest}), {words}"
        assert selection.select(Choice("auto", threads)).words == selected.words


def test_the_package_says_which_kernels_it_uses() -> None:
    assert kernels.describe() == selection.selected().words
    assert kernels.NATIVE is selection.selected().native
    with pytest.raises(AttributeError, match="no attribute"):
        _ = kernels.MISSING


def test_without_the_extension_numpy_takes_over_or_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("native", "_native"):
        monkeypatch.delattr(kernels, name, raising=False)
        monkeypatch.delitem(sys.modules, f"{kernels.__name__}.{name}", raising=False)
    monkeypatch.setitem(sys.modules, f"{kernels.__name__}._native", None)
    selected = selection.select(Choice("auto", 2))
    assert selected.kernels is reference
    assert selected.words == "reference (numpy): the extension is not compiled"
    with pytest.raises(kernels.KernelsError, match="cannot be loaded") as caught:
        selection.select(Choice("native", 2))
    assert caught.value.exit_code is ExitCode.CONFIG
    assert "ONEFED_KERNELS" in str(caught.value.hint)
