"""Transcripts: commands to a group in virtual time, and what it does, as text that is read by eye.

A transcript is a text file: prose, then commands that begin with ``>``, each followed by the lines
that it gave. ``tests/transcripts`` replays them and rewrites them by a flag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onefed.peer.interface import (
    AcceptedRecord,
    Action,
    Append,
    EvictAsked,
    Fail,
    Install,
    Notice,
    Restore,
    Send,
)
from onefed.peer.messages import (
    Ack,
    Adopt,
    Data,
    Heartbeat,
    NodeId,
    Parcel,
    Piece,
    Plan,
    Relay,
    Shard,
    Slice,
    Stashed,
    Stashes,
    Unstash,
    Vote,
    Want,
)
from onefed.peer.topology import Topology
from onefed.sim import show
from onefed.sim.host import Host
from onefed.sim.options import Options
from onefed.sim.violation import Violation
from onefed.sim.world import World

UNTIL_S_MAX = 60.0
"""How long ``until`` waits."""


class ScenarioError(Exception):
    """A command that is none, or something that did not come."""


@dataclass(slots=True)
class _Moment:
    """What ``until`` waits for, or where ``crash`` strikes."""

    node: NodeId | None
    word: str
    number: int | None
    skip: int = 0

    def is_it(self, node: NodeId, action: Action) -> bool:
        """Whether this action is the moment, counting down the ones to let pass."""
        if self.node not in (None, node) or not _matches(self.word, self.number, action):
            return False
        self.skip -= 1
        return self.skip < 0


class Scenario:
    """Takes commands, gives lines. Latency is fixed, nothing is lost, unless a command says so."""

    def __init__(self) -> None:
        self._world: World | None = None
        self._lines: list[str] = []
        self._talk = False
        self._moments: list[_Moment] = []
        self._found = False
        self._beats: dict[NodeId, object] = {}

    def command(self, text: str) -> list[str]:
        """Carry one out; what happened meanwhile, one line each.

        Raises:
            ScenarioError: an unknown command, or a moment that does not come.
            Violation: a checker saw a promise broken.
        """
        self._lines = []
        name, *words = text.split()
        if name == "group":
            self._group(words)
        else:
            assert self._world is not None, "a transcript begins with: group"
            commands: dict[str, Callable[[World, list[str]], None]] = {
                "until": self._until,
                "run": self._run,
                "crash": self._crash,
                "crash-after": self._crash_after,
                "start": self._start,
                "cut": self._cut,
                "heal": self._heal,
                "leave": self._leave,
                "evict": self._evict,
                "slow": self._slow,
                "hoard": self._hoard,
                "talk": self._talk_on,
                "state": self._state,
            }
            if name not in commands:
                raise ScenarioError(f"there is no command {name!r}")
            commands[name](self._world, words)
        return self._lines

    def _group(self, words: list[str]) -> None:
        """``group nodes=3 rounds=2 whole=yes joiners=1 topology=ring piece-bytes=3``."""
        given = dict(word.split("=") for word in words)
        options = Options(
            seed=int(given.get("seed", "1")),
            nodes=int(given.get("nodes", "3")),
            joiners=int(given.get("joiners", "0")),
            join_at_s=float(given.get("join-at", "1")),
            rounds=int(given.get("rounds", "1")),
            whole="whole" in given,
            whole_roster="whole-roster" in given,
            give_up_s=float(given["give-up"]) if "give-up" in given else None,
            evict_after_rounds=int(given.get("evict-after", "0")),
            latency_min_s=0.005,
            latency_max_s=0.005,
            straggler_cap_s=float(given.get("straggler-cap", "3")),
            train_min_s=0.1,
            train_max_s=0.1,
            resets="silent" not in given,
            topology=Topology(given.get("topology", "full")),
            stash_rounds=int(given.get("stash", "0")),
            piece_bytes=int(given.get("piece-bytes", str(2**22))),
        )
        self._world = World(options)
        self._world.watches.append(self._watch)

    def _until(self, world: World, words: list[str]) -> None:
        """``until n0 installs 2``: let time pass to a moment."""
        moment = _moment(words)
        self._moments.append(moment)
        self._found = False
        if not world.run(world.now_s + UNTIL_S_MAX, lambda: self._found):
            raise ScenarioError(f"{' '.join(words)}: not within {UNTIL_S_MAX:g} s")

    def _run(self, world: World, words: list[str]) -> None:
        """``run 2.5``: let so many seconds pass."""
        world.run(world.now_s + float(words[0]), lambda: False)

    def _crash(self, world: World, words: list[str]) -> None:
        """``crash n0``; ``crash leader``."""
        host = self._host(world, words[0])
        self._say(world, f"{host.name} crashes")
        world.crash(host)

    def _crash_after(self, world: World, words: list[str]) -> None:
        """``crash-after leader plans 2 skip 1``: end between that action and the next."""
        name, *rest = words
        host = self._host(world, name)
        moment = _moment([host.name, *rest])

        def watch(acting: Host, action: Action) -> bool:
            if acting is host and moment.is_it(acting.name, action):
                acting.actions_left = 0
                world.watches.remove(watch)
                world.after(0.0, self._say, world, f"{host.name} crashes")
            return False

        world.watches.append(watch)

    def _start(self, world: World, words: list[str]) -> None:
        host = self._host(world, words[0])
        self._say(world, f"{host.name} starts")
        world.start(host)

    def _cut(self, world: World, words: list[str]) -> None:
        """``cut n0 | n1 n2``: two sides; ``cut n0 > n1``: one direction."""
        place = next(index for index, word in enumerate(words) if word in "|>")
        here = [self._host(world, name).name for name in words[:place]]
        there = [self._host(world, name).name for name in words[place + 1 :]]
        pairs = [(a, b) for a in here for b in there]
        if words[place] == "|":
            pairs += [(b, a) for a, b in pairs]
        world.cut.update(dict.fromkeys(pairs, 1))

    def _heal(self, world: World, words: list[str]) -> None:
        world.cut.clear()

    def _leave(self, world: World, words: list[str]) -> None:
        host = self._host(world, words[0])
        world.leave(host, host.name)

    def _evict(self, world: World, words: list[str]) -> None:
        """``evict n0 n1 by n2``: the operator tells n2 that n0 and n1 are gone."""
        *gone, _, told = words
        world.checkers.on_decision(frozenset(gone))
        world.step(world.hosts[told], EvictAsked(tuple(gone)))

    def _slow(self, world: World, words: list[str]) -> None:
        """``slow n2 5``: its training takes so long from now on."""
        self._host(world, words[0]).train_s = float(words[1])

    def _hoard(self, world: World, words: list[str]) -> None:
        """``hoard n2``: it gives its updates to nobody from now on."""
        self._host(world, words[0]).hoards = True

    def _talk_on(self, world: World, words: list[str]) -> None:
        """``talk on``: show the data that is sent, too."""
        self._talk = words == ["on"]

    def _state(self, world: World, words: list[str]) -> None:
        """What every node is at."""
        for host in world.hosts.values():
            machine = host.machine
            if machine is None:
                self._lines.append(f"{host.name} is down")
            else:
                voters = ",".join(machine.voters)
                model = f"{machine.installed}:{machine.root[:4]}"
                self._lines.append(f"{host.name} {machine.role.value} model {model} of {voters}")

    def _host(self, world: World, name: str) -> Host:
        if name != "leader":
            return world.hosts[name]
        leading = [
            host
            for host in world.hosts.values()
            if host.machine is not None and host.machine.leader == host.name
        ]
        if not leading:
            raise ScenarioError("nobody leads")
        return leading[-1]

    def _watch(self, host: Host, action: Action) -> bool:
        world = self._world
        assert world is not None
        if self._is_shown(host, action):
            self._say(world, f"{host.name} {show.describe(action)}")
        for moment in list(self._moments):
            if moment.is_it(host.name, action):
                self._moments.remove(moment)
                self._found = True
        return False

    def _is_shown(self, host: Host, action: Action) -> bool:
        match action:
            case Notice() | Fail() | Install() | Restore() | Append(AcceptedRecord()):
                return True
            case Send(_, Heartbeat(_, commit, proposal)):
                said = (commit.round_number, proposal)
                news = self._beats.get(host.name) != said
                self._beats[host.name] = said
                return news and proposal is not None
            case Send(_, Vote()):
                return True
            case Send(_, Stashed() | Unstash() | Stashes() | Data(Parcel())):
                return True
            case Send(_, Data() | Want() | Relay()):
                return self._talk
            case _:
                return False

    def _say(self, world: World, text: str) -> None:
        self._lines.append(f"{world.now_s:7.3f} {text}")


def _moment(words: list[str]) -> _Moment:
    """``[NODE] WORD [NUMBER] [skip COUNT]``."""
    node = words.pop(0) if words[0].startswith("n") and words[0][1:].isdigit() else None
    word = words.pop(0)
    number = int(words.pop(0)) if words and words[0].isdigit() else None
    skip = int(words[1]) if words[:1] == ["skip"] else 0
    return _Moment(node, word, number, skip)


def _matches(word: str, number: int | None, action: Action) -> bool:
    """Words for moments, each with the round it may be asked for."""
    match word, action:
        case "installs", Install(entry):
            return number in (None, entry.round_number)
        case "accepts", Append(AcceptedRecord(entry)):
            return number in (None, entry.round_number)
        case "acks", Send(_, Ack(held=held)) if held is not None:
            return number in (None, held.round_number)
        case "readies", Send(_, Ack(ready=ready)):
            return ready is not None
        case "plans", Send(_, Heartbeat(proposal=Plan() as plan)):
            return number in (None, plan.round_number)
        case "adopts", Send(_, Heartbeat(proposal=Adopt() as adopt)):
            return number in (None, adopt.round_number)
        case "announces", Send(_, Heartbeat(commit=commit)):
            return number in (None, commit.round_number)
        case "slices", Send(_, Data(Slice(round_number))):
            return number in (None, round_number)
        case "shards", Send(_, Data(Shard(round_number))):
            return number in (None, round_number)
        case "pieces", Send(_, Data(Piece())):
            return True
        case "leads", Notice("leader"):
            return True
        case "commits", Notice("committed", detail):
            return number is None or detail.startswith(f"round {number}:")
        case _:
            return False


def replay(text: str) -> str:
    """A transcript with what its commands give now; prose and commands stay as they are."""
    scenario, out = Scenario(), []
    for line in _kept(text):
        out.append(line)
        if line.startswith("> "):
            try:
                out += scenario.command(line[2:])
            except ScenarioError as error:
                out.append(f"!! {error}")
            except Violation as violation:
                out.append(f"!! {violation}")
    return "\n".join(out) + "\n"


def _kept(text: str) -> Iterator[str]:
    """Prose, commands and the empty lines before them; not what was given last time."""
    answers = False
    for line in text.splitlines():
        if line.startswith("> "):
            answers = True
            yield line
        elif not answers or line.startswith("#") or not line:
            yield line
