"""What happened, one line per event: the legend is in docs/simulator.md."""

from __future__ import annotations

from onefed.peer.interface import (
    AcceptedRecord,
    Append,
    CommittedRecord,
    Fail,
    Install,
    Notice,
    Restore,
    Send,
)
from onefed.peer.messages import (
    Ack,
    Adopt,
    Blob,
    Data,
    Entry,
    Heartbeat,
    Held,
    Hello,
    Item,
    Join,
    Leave,
    Message,
    NodeId,
    Parcel,
    Piece,
    Plan,
    Prevote,
    Prevoted,
    Relay,
    Shard,
    Slice,
    Stashed,
    Stashes,
    Unstash,
    Vote,
    VoteRequest,
    Want,
    Welcome,
)

DIGEST_CHARACTERS = 4
"""Of a digest that is shown."""


def line(at_s: float, node: NodeId, what: object) -> str:
    """One event."""
    return f"{at_s:8.3f} {node:>3} {describe(what)}"


def describe(what: object) -> str:
    """Without time and place."""
    match what:
        case str():
            return what
        case Send(to, message):
            return f"-> {to} {say(message)}"
        case Append(AcceptedRecord(entry)):
            return f"accepts {_entry(entry)}"
        case Append(CommittedRecord(entry)):
            return f"knows commit {_entry(entry)}"
        case Install(entry):
            return f"installs {entry.round_number}:{_short(entry.root)}"
        case Restore(parcel):
            return f"restores {_item(parcel)}"
        case Notice(kind, detail):
            return f"* {kind}: {detail}"
        case Fail(reason):
            return f"fails: {reason}"
        case _:
            return str(what)


def say(message: Message) -> str:
    """A message in a few words."""
    match message:
        case Heartbeat(term, commit, proposal, hopeless):
            told = f" HOPELESS {hopeless}" if hopeless else ""
            return f"beat t{term} commit {commit.round_number}{_proposal(proposal)}{told}"
        case Ack():
            ready = "" if message.ready is None else f" ready {_short(message.ready.digest)}"
            held = "" if message.held is None else f" held {_entry(message.held)}"
            none = f" declines {message.declined}" if message.declined else ""
            return f"ack t{message.term} at {message.installed}{ready}{held}{none}"
        case Data(item):
            return f"data {_item(item)}"
        case Want(item, _):
            return f"want {_item(item)}"
        case Prevote(term, commit):
            return f"prevote? t{term} commit {commit.round_number}"
        case Prevoted(asked, ok, term, _):
            return f"prevote {'yes' if ok else 'no'} t{asked} (own t{term})"
        case VoteRequest(term, commit):
            return f"vote? t{term} commit {commit.round_number}"
        case Vote(term, ok, _, accepted):
            held = "" if accepted is None else f" accepted {_entry(accepted)}"
            return f"vote {'yes' if ok else 'no'} t{term}{held}"
        case Hello() | Welcome():
            return f"{type(message).__name__.lower()} commit {message.commit.round_number}"
        case Join(member, votes):
            return f"join {member.node}{'' if votes else ' (observes)'}"
        case Relay(origin, _, sequence, to, inner):
            return f"relay {origin}#{sequence} to {','.join(to)}: {say(inner)}"
        case Leave(node):
            return f"leave {node}"
        case Stashed(parcel):
            return f"stashed {_item(parcel)}"
        case Unstash(nodes):
            return f"unstash {','.join(nodes)}"
        case Stashes(parcels):
            return f"stashes {', '.join(_item(each) for each in parcels) or 'none'}"


def _proposal(proposal: Plan | Adopt | None) -> str:
    match proposal:
        case None:
            return ""
        case Adopt(ballot, entry):
            return f" ADOPT {_ballot(ballot)} of {_entry(entry)}"
        case Plan():
            names = ",".join(each.node for each in proposal.contributors)
            owners = ",".join(proposal.owners) or "all"
            voters = ",".join(member.node for member in proposal.roster)
            number = proposal.round_number
            new = proposal.evictions and proposal.evictions[-1].root == proposal.base
            decided = " by an operator's decision" if new else ""
            return (
                f" PLAN {_ballot(proposal.ballot)} of {number}: {names} by {owners}, "
                f"then {voters}{decided}"
            )


def _entry(entry: Entry | Held) -> str:
    return f"{entry.round_number}:{_short(entry.root)}@{_ballot(entry.ballot)}"


def _item(item: Item) -> str:
    match item:
        case Slice(number, node, digest, index, count):
            return f"slice {number}:{node}:{_short(digest)} {index + 1}/{count}"
        case Shard(number, ballot, index):
            return f"shard {number}@{_ballot(ballot)} {index + 1}"
        case Blob(root):
            return f"model {_short(root)}"
        case Piece(root, index, count):
            return f"model {_short(root)} {index + 1}/{count}"
        case Parcel(node, number, digest, base):
            return f"parcel {number}:{node}:{_short(digest)}{' as a difference' if base else ''}"


def _ballot(ballot: tuple[int, int]) -> str:
    return f"{ballot[0]}.{ballot[1]}"


def _short(digest: str) -> str:
    return digest[:DIGEST_CHARACTERS]
