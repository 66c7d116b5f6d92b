"""Global generators in a forked process: fresh, unless the app has seeded them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from onefed.flower import randomness


@pytest.fixture(autouse=True)
def _own_generators() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    yield
    random.setstate(python)
    np.random.set_state(numpy)


def drawn() -> tuple[float, float]:
    return random.random(), float(np.random.random())


def in_two_children(before: randomness.Keys | None) -> list[tuple[float, float]]:
    """What two processes draw that were forked from this one: a fork copies the state."""
    python, numpy = random.getstate(), np.random.get_state()
    found = []
    for _ in range(2):
        random.setstate(python)
        np.random.set_state(numpy)
        randomness.refresh(before)
        found.append(drawn())
    return found


def test_two_messages_draw_different_numbers() -> None:
    first, second = in_two_children(None)
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_an_app_that_only_drew_numbers_when_it_was_imported_has_seeded_nothing() -> None:
    before = randomness.Keys.now()
    drawn()
    first, second = in_two_children(before)
    assert first != second


def test_an_app_that_seeds_when_it_is_imported_gets_its_seed_in_every_message() -> None:
    before = randomness.Keys.now()
    random.seed(5)
    np.random.seed(5)
    first, second = in_two_children(before)
    assert first == second


def test_one_generator_does_not_speak_for_the_other() -> None:
    before = randomness.Keys.now()
    np.random.seed(5)
    first, second = in_two_children(before)
    assert first[0] != second[0]
    assert first[1] == second[1]
