"""What no member that keeps to the protocol says: it is told, and counts for nothing.

A lie about votes and what is held is not found here. What is found is what this node knows better,
and what would make it do what it cannot.
"""

from __future__ import annotations

from onefed.peer.messages import Heartbeat, Message, NodeId, Plan
from onefed.peer.state import Role, State


def nonsense(state: State, sender: NodeId, message: Message) -> str | None:
    """What is wrong with a message; None: nothing that can be seen."""
    commit = getattr(message, "commit", None)
    if (
        commit is not None
        and commit.round_number == state.commit.round_number
        and commit.root != state.commit.root
    ):
        return f"{sender} says that another model was committed in round {commit.round_number}"
    if not isinstance(message, Heartbeat):
        return None
    if message.term == state.term and state.role is Role.LEADER:
        return f"{sender} says that it leads term {state.term}"
    return _of_plan(state, sender, message)


def _of_plan(state: State, sender: NodeId, message: Heartbeat) -> str | None:
    plan, commit = message.proposal, message.commit
    if not isinstance(plan, Plan):
        return None
    if plan.rule != state.settings.rule:
        return f"{sender} plans round {plan.round_number} under another rule"
    if plan.round_number == commit.round_number + 1 and plan.base != commit.root:
        return f"{sender} plans round {plan.round_number} on another model than it has committed"
    return None
