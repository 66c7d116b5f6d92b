"""Which node is which client, and who takes part in a round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.flower import clients
from onefed.flower.clients import Client


def silent(_message: object) -> None:
    """A node that answers nothing."""


def keys_of(chosen: tuple[Client, ...]) -> list[str]:
    return [client.key for client in chosen]


class TestKeys:
    @pytest.mark.parametrize("key", ["0", "17", "3fa9c04be1d27788", "with:colon"])
    def test_the_key_comes_back_with_the_name_a_node_is_registered_under(self, key: str) -> None:
        assert clients.client_key(clients.node_name(key), node_id=5) == key

    @pytest.mark.parametrize("name", ["", "alice", "client", "client:", "a client:3"])
    def test_a_node_that_somebody_else_registered_is_known_by_its_node_id(self, name: str) -> None:
        assert clients.client_key(name, node_id=2**63 + 1) == str(2**63 + 1)


class TestConnected:
    def test_clients_are_in_one_order_whatever_their_node_ids(self, grid: Any) -> None:
        for key in ("10", "beef", "2", "0"):
            grid.add(key, silent)

        assert keys_of(clients.connected(grid)) == ["0", "2", "10", "beef"]

    def test_nodes_that_claim_one_partition_are_told_apart(self, grid: Any) -> None:
        grid.add("0", silent, node_id=70)
        grid.add("1", silent, node_id=71)
        grid.add("0", silent, node_id=72)

        found = clients.connected(grid)

        assert {client.node_id for client in found} == {70, 71, 72}
        assert len(set(keys_of(found))) == 3
        assert Client("1", 71) in found

    def test_nobody_is_connected_to_an_empty_grid(self, grid: Any) -> None:
        assert clients.connected(grid) == ()


federations = st.lists(
    st.integers(0, 10_000).map(lambda number: Client(str(number), 2**60 + number)),
    unique=True,
    max_size=40,
)


class TestSample:
    @settings(deadline=None)  # a busy machine is no failure
    @given(
        federations,
        st.floats(0, 1),
        st.integers(0, 50),
        st.integers(0, 2**63 - 1),
        st.integers(1, 1000),
        st.randoms(use_true_random=False),
    )
    def test_the_same_clients_in_any_order_give_the_same_choice(
        self,
        everyone: list[Client],
        fraction: float,
        at_least: int,
        seed: int,
        round_number: int,
        shuffler: Any,
    ) -> None:
        def choose(from_these: list[Client]) -> tuple[Client, ...]:
            return clients.sample(
                from_these, fraction, at_least=at_least, seed=seed, round_number=round_number
            )

        chosen = choose(everyone)
        shuffled = list(everyone)
        shuffler.shuffle(shuffled)

        assert choose(shuffled) == chosen
        assert chosen == clients.in_order(chosen)
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(everyone)
        assert len(chosen) >= min(at_least, len(everyone))
        assert len(chosen) >= fraction * len(everyone) - 1e-3

    @pytest.mark.parametrize(
        ("fraction", "at_least", "count"),
        [
            (1.0, 0, 30),
            (0.5, 0, 15),
            (0.1, 0, 3),
            (0.11, 0, 4),
            (0.0, 0, 0),
            (0.0, 2, 2),
            (0.1, 8, 8),
            (0.1, 99, 30),
        ],
    )
    def test_the_fraction_is_rounded_up_and_has_a_floor(
        self, fraction: float, at_least: int, count: int
    ) -> None:
        everyone = [Client(str(number), number) for number in range(30)]

        chosen = clients.sample(everyone, fraction, at_least=at_least, seed=0, round_number=1)

        assert len(chosen) == count

    @pytest.mark.parametrize(
        "choice_of",
        [
            lambda everyone, n: clients.sample(everyone, 0.5, at_least=1, seed=0, round_number=n),
            lambda everyone, n: clients.sample(everyone, 0.5, at_least=1, seed=n, round_number=1),
        ],
        ids=["rounds", "seeds"],
    )
    def test_everybody_has_a_turn_as_rounds_or_seeds_go_by(
        self, choice_of: Callable[[list[Client], int], tuple[Client, ...]]
    ) -> None:
        everyone = [Client(str(number), number) for number in range(10)]

        choices = {choice_of(everyone, number) for number in range(1, 40)}

        assert len(choices) > 10
        assert {client for choice in choices for client in choice} == set(everyone)

    def test_a_recorded_choice_stays_what_it_was(self) -> None:
        """Recorded with numpy 2: where another version samples otherwise, replays would differ."""
        everyone = [Client(str(number), number) for number in range(10)]

        chosen = [
            keys_of(clients.sample(everyone, 0.3, at_least=1, seed=7, round_number=number))
            for number in (1, 2, 3)
        ]

        assert chosen == [["6", "8", "9"], ["1", "2", "8"], ["5", "8", "9"]]
