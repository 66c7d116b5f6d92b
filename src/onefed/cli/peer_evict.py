"""peer evict: an operator decides to go on where a majority is lost for good."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import typer

from onefed.checkpoint import files
from onefed.cli import peer_group
from onefed.cli.peer_request import PeerRequestError
from onefed.cli.screen import say
from onefed.errors import OnefedError
from onefed.local import state
from onefed.local.peer_group import is_alive
from onefed.local.peer_spec import PeerGroup, group

LIMIT_S = 60.0
AGAIN_S = 5.0
"""A node that still hears somebody refuses; it is asked again."""
NOTICE_LIMIT_S = 5.0
LOOK_S = 0.2


def evict(
    nodes: Annotated[list[str], typer.Argument(help="All members that are lost for good.")],
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="You know that none of them comes back.")
    ] = False,
    name: peer_group.Name = peer_group.NAME_DEFAULT,
) -> None:
    """Go on with the survivors where a majority is lost for good.

    All others have to answer: name everybody who is gone. The decision stands in the history.
    """
    place = group(state.home(os.environ), name)
    place.read()
    lost = sorted(set(nodes))
    _require_lost(name, lost, _living(place))
    living = _when_nobody_leads(place)
    survivors = sorted(set(living) - set(lost))
    if not unsafe:
        raise PeerRequestError(
            f"{', '.join(survivors)} would go on without {', '.join(lost)}: rounds that only these "
            "have are lost, and if one of them goes on there are two histories.",
            hint="Say --unsafe if none of them comes back. Where a majority lives, onefed peer "
            "leave takes a member off safely.",
        )
    deadline_s, ask_s = time.monotonic() + LIMIT_S, 0.0
    while (now_s := time.monotonic()) < deadline_s:
        if now_s >= ask_s:
            for each in survivors:
                _ask(place, each, lost)
            ask_s = now_s + AGAIN_S
        living = _living(place)
        if living and all(_went_on(said, lost) for said in living.values()):
            for each in lost:
                files.remove(place.members / each)  # they are let in no more
            say(f"{', '.join(sorted(living))} went on without {', '.join(lost)}.")
            return
        time.sleep(LOOK_S)
    raise OnefedError(
        f"{', '.join(lost)} are still on the roster after {LIMIT_S:.0f} s.",
        hint="All others have to answer: onefed peer status shows who does not. "
        "Name that one, too, if it is lost.",
    )


def _went_on(said: dict[str, Any], lost: list[str]) -> bool:
    """Whether a node has seen the first round without those that are lost."""
    done = said["leader"] is not None or said["state"] == "finished"
    return done and not set(lost) & set(said["roster"])


def _living(place: PeerGroup) -> dict[str, dict[str, Any]]:
    return {each: said for each, said in place.states().items() if is_alive(said)}


def _when_nobody_leads(place: PeerGroup) -> dict[str, dict[str, Any]]:
    """Who lives; a leader that lost its majority has a moment to notice and to say so.

    Raises:
        PeerRequestError: it has not lost it.
    """
    deadline_s = time.monotonic() + NOTICE_LIMIT_S
    while True:
        living = _living(place)
        leader = next((each for each, said in living.items() if said["role"] == "leader"), None)
        if leader is None:
            return living
        if time.monotonic() > deadline_s:
            raise PeerRequestError(
                f"{leader} leads with a majority.",
                hint="onefed peer leave takes a member off safely.",
            )
        time.sleep(LOOK_S)


def _require_lost(name: str, lost: list[str], living: dict[str, dict[str, Any]]) -> None:
    """They are members, and do not live.

    Raises:
        PeerRequestError: every reason is named.
    """
    voters = {voter for said in living.values() for voter in said["voters"]}
    problems = []
    unknown = sorted(set(lost) - voters)
    if unknown:
        known = ", ".join(sorted(voters)) or "nobody that lives"
        problems.append(f"{', '.join(unknown)} is not on the roster of {name} (on it: {known})")
    alive = sorted(set(lost) & set(living))
    if alive:
        problems.append(f"{', '.join(alive)} is alive")
    if problems:
        raise PeerRequestError("\n".join(problems), hint="See onefed peer status.")


def _ask(place: PeerGroup, node: str, lost: list[str]) -> None:
    files.make_folder(place.requests(node), mode=0o700)
    files.write_bytes(place.requests(node) / f"evict {' '.join(lost)}", b"")
