"""A model that is missing is fetched in pieces, from several nodes, and nothing of it twice."""

from __future__ import annotations

from onefed.peer.fetch import AHEAD
from onefed.peer.interface import (
    Action,
    Combine,
    Combined,
    Drop,
    Event,
    Install,
    Lost,
    Received,
    Send,
    Started,
    Tick,
)
from onefed.peer.machine import Machine
from onefed.peer.messages import (
    Adopt,
    Ballot,
    Blob,
    Contribution,
    Data,
    Entry,
    Heartbeat,
    Item,
    Member,
    Message,
    Piece,
    Want,
    Welcome,
)
from onefed.peer.settings import Saved, Settings
from onefed.peer.topology import Topology

NAMES = ("n0", "n1", "n2", "n3")
ROSTER = tuple(Member(name, "") for name in NAMES)
UPDATES = tuple(Contribution(name, 1, f"d-{name}", 100) for name in NAMES[1:])
FIRST = Entry(0, "root-0", 100, Ballot(0, 0), ROSTER, (), ())
REPAIR_S = 0.5
COUNT = 10
PIECES = tuple(Piece("root-1", index, COUNT) for index in range(COUNT))


def committed(number: int, size_bytes: int = 100) -> Entry:
    return Entry(
        number, f"root-{number}", size_bytes, Ballot(1, number), ROSTER, UPDATES, NAMES[1:]
    )


class Behind:
    """n0, which has the first model; a piece has 10 bytes."""

    def __init__(self, topology: Topology = Topology.FULL) -> None:
        settings = Settings(
            member=ROSTER[0],
            experiment="test",
            rounds_total=9,
            repair_s=REPAIR_S,
            piece_bytes=10,
            topology=topology,
        )
        self._machine = Machine(settings, Saved(FIRST, models=("root-0",)), jitter=lambda: 0.5)
        self.asked: dict[Item, list[str]] = {}
        self.do(0.0, Started())

    def do(self, now_s: float, event: Event) -> list[Action]:
        actions = self._machine.step(now_s, event)
        for each in actions:
            if isinstance(each, Send) and isinstance(each.message, Want):
                self.asked.setdefault(each.message.item, []).append(each.to)
        return actions

    def hear(self, now_s: float, message: Message, sender: str = "n1") -> list[Action]:
        return self.do(now_s, Received(sender, message))

    def learn(self, now_s: float = 0.1, number: int = 1) -> None:
        """Of a commit, from all the others."""
        for name in NAMES[1:]:
            self.hear(now_s, Welcome(committed(number)), name)

    def give(self, now_s: float, *without: str) -> list[Action]:
        """Whatever was asked for comes, but of some; until nothing more does."""
        actions, given = [], set()
        while to_give := [
            (item, nodes[-1])
            for item, nodes in self.asked.items()
            if nodes[-1] not in without and item not in given
        ]:
            for item, node in to_give:
                given.add(item)
                actions += self.hear(now_s, Data(item), node)
        return actions


def test_pieces_are_asked_of_all_that_should_have_the_model() -> None:
    node = Behind()
    node.learn()

    assert {nodes[0] for nodes in node.asked.values()} == {"n1", "n2", "n3"}
    assert len(node.asked) == 3 * AHEAD
    actions = node.give(0.2)
    assert Combine("root-1", PIECES) in actions
    assert {item: len(nodes) for item, nodes in node.asked.items()} == dict.fromkeys(PIECES, 1)


def test_a_model_is_there_when_its_pieces_are_joined_and_not_before() -> None:
    node = Behind()
    node.learn()
    before = node.give(0.2)

    assert not [each for each in before if isinstance(each, Install)]
    after = node.do(0.3, Combined("root-1", fits=True))
    assert Install(committed(1)) in after
    assert [each for each in after if isinstance(each, Drop)] == [Drop(each) for each in PIECES]


def test_a_node_that_is_lost_costs_its_pieces_only() -> None:
    node = Behind()
    node.learn()
    owed = {item for item, nodes in node.asked.items() if nodes == ["n2"]}
    node.give(0.2, "n2")
    assert len(owed) == AHEAD
    assert {item for item, nodes in node.asked.items() if nodes == ["n2"]} == owed

    node.do(0.3, Lost("n2"))
    assert {item for item, nodes in node.asked.items() if len(nodes) > 1} == owed
    assert all(node.asked[item][1] != "n2" for item in owed)
    assert Combine("root-1", PIECES) in node.give(0.4)


def test_a_node_that_is_silent_is_asked_for_nothing_more() -> None:
    node = Behind()
    node.learn()
    owed = {item for item, nodes in node.asked.items() if nodes == ["n2"]}
    node.give(0.2, "n2")
    node.do(0.2 + REPAIR_S / 2, Tick())
    assert all(len(nodes) == 1 for nodes in node.asked.values())

    node.do(0.2 + REPAIR_S, Tick())
    assert {item for item, nodes in node.asked.items() if len(nodes) > 1} == owed
    assert all(node.asked[item][1] != "n2" for item in owed)


def test_where_nobody_gave_anything_all_are_asked_once_more() -> None:
    node = Behind()
    node.learn()
    first = dict.fromkeys(node.asked, 1)
    for tries in range(1, 3):
        node.do(0.1 + tries * REPAIR_S, Tick())

    assert {item for item, nodes in node.asked.items() if len(nodes) > 1} == set(first)
    assert Combine("root-1", PIECES) in node.give(2.0)


def test_pieces_that_do_not_fit_are_thrown_away_and_the_model_comes_in_one() -> None:
    node = Behind()
    node.learn()
    node.give(0.2)
    actions = node.do(0.3, Combined("root-1", fits=False))

    assert [each for each in actions if isinstance(each, Drop)] == [Drop(each) for each in PIECES]
    assert len(node.asked[Blob("root-1")]) == 1
    assert Drop(PIECES[3]) in node.hear(0.4, Data(PIECES[3]))
    assert Install(committed(1)) in node.hear(0.4, Data(Blob("root-1")))


def test_a_piece_that_comes_twice_or_is_of_another_model_is_dropped() -> None:
    node = Behind()
    node.learn()
    piece = PIECES[0]

    assert Drop(piece) not in node.hear(0.2, Data(piece))
    assert Drop(piece) in node.hear(0.2, Data(piece), "n2")
    for other in (Piece("root-1", 0, COUNT - 1), Piece("root-7", 0, COUNT)):
        assert Drop(other) in node.hear(0.2, Data(other))


def test_pieces_of_a_model_that_is_not_wanted_any_more_go() -> None:
    node = Behind()
    node.learn()
    node.hear(0.2, Data(PIECES[0]))

    assert Drop(PIECES[0]) in node.hear(0.3, Welcome(committed(2)), "n1")
    assert Piece("root-2", 0, COUNT) in node.asked
    assert Drop(PIECES[1]) in node.hear(0.3, Data(PIECES[1]), "n2")


def test_a_model_that_is_adopted_is_asked_of_its_holders_and_stays_when_it_is_committed() -> None:
    node = Behind()
    node.hear(0.1, Welcome(FIRST), "n3")
    adopt = Adopt(Ballot(2, 1), committed(1), ("n2", "n3"))
    node.hear(0.1, Heartbeat(2, FIRST, adopt))
    node.hear(0.1, Welcome(FIRST), "n2")
    node.do(0.1 + REPAIR_S, Tick())
    assert {nodes[0] for nodes in node.asked.values()} == {"n2", "n3"}

    kept = next(iter(node.asked))
    node.hear(0.7, Data(kept), "n2")
    assert Drop(kept) not in node.hear(0.8, Heartbeat(2, committed(1), None))
    assert Combine("root-1", PIECES) in node.give(0.9)
    assert len(node.asked[kept]) == 1


def test_a_small_model_is_asked_for_whole() -> None:
    node = Behind()
    node.hear(0.1, Welcome(committed(1, size_bytes=10)))

    assert node.asked == {Blob("root-1"): ["n1"]}


def test_a_node_gives_pieces_of_what_it_has() -> None:
    node = Behind()
    piece = Piece("root-0", 1, 7)

    assert Send("n1", Data(piece)) in node.hear(0.1, Want(piece, "n0"))
    assert not [
        each
        for each in node.hear(0.2, Want(PIECES[0], "n0"))
        if isinstance(each, Send) and isinstance(each.message, Data)
    ]


def test_a_node_on_the_way_hands_a_piece_on_and_is_asked_for_it_once() -> None:
    """In a line n0 - n1 - n2 - n3 this one is at the end; n1 asks it, and it has nothing."""
    node = Behind(Topology.RING)
    wants = Want(PIECES[0], "n2")
    node.hear(0.1, wants, "n1")
    assert node.asked == {PIECES[0]: ["n3"]}

    given = node.hear(0.2, Data(PIECES[0]), "n3")
    assert Send("n1", Data(PIECES[0])) in given
    assert Drop(PIECES[0]) not in given
    assert Send("n3", Data(PIECES[0])) in node.hear(0.3, Want(PIECES[0], "n0"), "n3")
