"""Links of a group, and ways around those that are silent."""

from __future__ import annotations

import pytest

from onefed.peer.topology import Topology, distances, in_order, neighbours

ORDER = in_order(f"n{place}" for place in range(11))


def test_members_are_in_the_order_of_their_numbers() -> None:
    assert tuple(f"n{place}" for place in range(11)) == ORDER


@pytest.mark.parametrize("topology", Topology)
@pytest.mark.parametrize("count", range(1, 8))
def test_links_go_both_ways_and_reach_everybody(topology: Topology, count: int) -> None:
    order = ORDER[:count]
    for one in order:
        near = neighbours(topology, order, one)
        assert one not in near
        assert all(one in neighbours(topology, order, other) for other in near)
        assert set(distances(topology, order, one)) == set(order)


@pytest.mark.parametrize(
    ("topology", "near", "farthest"),
    [
        (Topology.FULL, {"n0", "n1", "n3", "n4"}, 1),
        (Topology.RING, {"n1", "n3"}, 2),
        (Topology.LINE, {"n1", "n3"}, 2),
        (Topology.STAR, {"n0"}, 2),
    ],
)
def test_the_shapes(topology: Topology, near: set[str], farthest: int) -> None:
    assert neighbours(topology, ORDER[:5], "n2") == near
    assert max(distances(topology, ORDER[:5], "n2").values()) == farthest


def test_a_ring_has_a_way_around_and_a_line_has_none() -> None:
    order = ORDER[:5]

    assert distances(Topology.RING, order, "n0", {"n1"})["n2"] == 3
    assert "n2" not in distances(Topology.LINE, order, "n0", {"n1"})
