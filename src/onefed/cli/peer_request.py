"""What is asked of a group without a coordinator, and whether it makes sense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onefed import context
from onefed.errors import ExitCode, OnefedError
from onefed.local import request
from onefed.local.peer_group import Failure

KEEPALIVE = ("FL_GRPC_KEEPALIVE_TIME", "FL_GRPC_KEEPALIVE_TIMEOUT")


class PeerRequestError(OnefedError):
    """What was asked of a peer group cannot be done."""

    exit_code = ExitCode.CONFIG


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Of the nodes' connections."""

    time_s: float
    """Silence after which one is probed."""
    timeout_s: float
    """Until it is given up without an answer."""


def keepalive(items: Sequence[str]) -> Keepalive:
    """What ``--set`` says of the nodes' connections, in seconds.

    Raises:
        PeerRequestError: it makes no sense.
    """
    given = {name: context.VARIABLES[name].default for name in KEEPALIVE}
    for item in items:
        name, equals, text = item.partition("=")
        if name in given and equals:
            given[name] = text.strip()
    try:
        read = {name: context.VARIABLES[name].parse(text) for name, text in given.items()}
        time_s, timeout_s = (float(str(read[name])) for name in KEEPALIVE)
    except ValueError as error:
        raise PeerRequestError(f"{' and '.join(KEEPALIVE)}: {error}.") from error
    if timeout_s >= time_s:
        raise PeerRequestError(
            f"{KEEPALIVE[1]}={timeout_s:g} has to be less than {KEEPALIVE[0]}={time_s:g}.",
            hint="A connection would be given up before it is probed again.",
        )
    return Keepalive(time_s, timeout_s)


def settings(items: Sequence[str], fab: bytes) -> dict[str, context.ConfigValue]:
    """Keys of the run's configuration, from what ``--set`` says.

    Raises:
        PeerRequestError: a context variable that a group without a coordinator does not read.
    """
    from onefed.flower import bundle

    others = [item for item in items if item.partition("=")[0] not in KEEPALIVE]
    assigned = context.parse_assignments(others)
    keys = {owner: key for key, owner in context.RUN_CONFIG_NAMES.items()}
    unknown = sorted(set(assigned.context) - set(keys))
    if unknown:
        raise PeerRequestError(
            f"A peer group does not read {', '.join(unknown)}.",
            hint="It reads settings of the app and parameters of the rule.",
        )
    given = dict(assigned.app_config)
    for name, text in assigned.context.items():
        given[keys[name]] = context.parse_assignments([f"value={text}"]).app_config["value"]
    request.check_app_keys(given, bundle.unpack(fab))
    return given


def failure(
    after: int | None, before: int | None, nodes: Sequence[str], names: Sequence[str], rounds: int
) -> Failure | None:
    """The faults that were asked for.

    Raises:
        PeerRequestError: they do not make sense; every reason is named.
    """
    chosen = [name for each in nodes for name in each.replace(",", " ").split()]
    if after is None and before is None and not chosen:
        return None
    problems = []
    if after is None or not chosen:
        problems.append("--failure-round and --failure-nodes belong together")
    elif not 1 <= after < (rounds if before is None else min(before, rounds)):
        problems.append("--failure-round must be from 1 to below --recovery-round and --rounds")
    if before is not None and before > rounds:
        problems.append(f"--recovery-round must be at most {rounds}, the number of rounds")
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        problems.append(f"there is no node {', '.join(unknown)}")
    elif len(names) - len(set(chosen)) < len(names) // 2 + 1:
        problems.append(
            f"{len(names) - len(set(chosen))} of {len(names)} nodes that are left are no majority "
            f"({len(names) // 2 + 1}), so no round would be agreed on without the others"
        )
    if problems or after is None:
        raise PeerRequestError("\n".join(problems), hint="See onefed peer up --help.")
    return Failure(tuple(dict.fromkeys(chosen)), after, before)
