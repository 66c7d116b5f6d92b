"""peer up, status, leave, join: groups without a coordinator on this machine."""

from __future__ import annotations

import asyncio
import enum
import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from onefed import aggregate, context
from onefed.checkpoint import files
from onefed.cli import peer_request, start
from onefed.cli.peer_screen import GroupScreen, screen_for
from onefed.cli.screen import LogFormat, say, table_console
from onefed.errors import Attempts, InUseError, NotFoundError, OnefedError
from onefed.local import peer_group, state
from onefed.local.peer_spec import PeerGroup, PeerSpec, free_addresses, group
from onefed.peer.topology import Topology
from onefed.telemetry.lines import Record

NODES_MAX = 64
NAME_DEFAULT = "peers"
LEAVE_LIMIT_S = 60.0
LOOK_S = 0.2


class Protocol(enum.StrEnum):
    """What ``--protocol`` takes."""

    GRPC = "grpc"
    MEMORY = "memory"


Name = Annotated[str, typer.Option("--name", help="Name of the group.")]
Format = Annotated[
    LogFormat, typer.Option("--log-format", help="Lines for people, or the events as JSON.")
]


def up(
    nodes: Annotated[
        int, typer.Option("--nodes", "-n", min=1, max=NODES_MAX, help="Number of nodes.")
    ] = 4,
    rounds: Annotated[int, typer.Option("--rounds", "-r", min=1, help="Rounds to train.")] = 3,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Passes over a node's data a round."),
    ] = None,
    strategy: Annotated[str, typer.Option("--strategy", help="Aggregation rule.")] = "FedAvg",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the run.")] = 0,
    use_case: Annotated[
        str, typer.Option("--use-case", help="Built-in app.")
    ] = "image-classification",
    app: Annotated[
        Path | None, typer.Option("--app", help="A Flower app of your own instead.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the app, or of the rule (FL_NUM_MALICIOUS=1); may be repeated.",
        ),
    ] = None,
    name: Name = NAME_DEFAULT,
    replace: Annotated[
        bool, typer.Option("--replace", help="Discard a group that has the name.")
    ] = False,
    protocol: Annotated[
        Protocol,
        typer.Option("--protocol", help="A process for each node, or all of them in one."),
    ] = Protocol.GRPC,
    topology: Annotated[
        Topology,
        typer.Option("--topology", help="Which nodes have a connection to each other."),
    ] = Topology.FULL,
    remote_checkpoint_interval: Annotated[
        int,
        typer.Option(
            "--remote-checkpoint-interval",
            min=0,
            help="Rounds between two checkpoints of a node that other nodes keep; 0: none.",
        ),
    ] = 5,
    keep_checkpoints: Annotated[
        int | None,
        typer.Option(
            "--keep-checkpoints",
            min=1,
            help="Newest rounds of which a node keeps checkpoints.",
            show_default="all",
        ),
    ] = None,
    failure_round: Annotated[
        int | None,
        typer.Option(
            "--failure-round",
            "--failure_round",
            help="Kill nodes once all have completed this round.",
        ),
    ] = None,
    recovery_round: Annotated[
        int | None,
        typer.Option(
            "--recovery-round",
            "--recovery_round",
            help="Start them again before this round.",
        ),
    ] = None,
    failure_nodes: Annotated[
        list[str] | None,
        typer.Option("--failure-nodes", "--failure_nodes", help="Whom to kill; may be repeated."),
    ] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", help="Write the outcome to this file as JSON.")
    ] = None,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Train without a coordinator: a process for each node, which agree on every round.

    Ends when every node has the last model; the exit code is 0 only if all have the same one.
    """
    from onefed.flower import peer_app  # it imports Flower

    names = [f"node-{index}" for index in range(nodes)]
    attempts = Attempts()
    attempts.make(lambda: start.check_summary_file(summary))
    place = attempts.make(lambda: group(state.home(os.environ), name))
    if place is not None and place.folder.exists():
        attempts.make(lambda: _require_free(place, replace=replace))
    failure = attempts.make(
        lambda: peer_request.failure(
            failure_round, recovery_round, failure_nodes or [], names, rounds
        )
    )
    keepalive = attempts.make(lambda: peer_request.keepalive(settings or []))
    fab = attempts.make(lambda: peer_app.pack(app, use_case))
    run_config: dict[str, context.ConfigValue] = {"strategy": strategy, "seed": seed}
    if fab is not None:
        run_config |= attempts.make(lambda: peer_request.settings(settings or [], fab)) or {}
        attempts.make(lambda: aggregate.require_clients(peer_app.rule(fab, run_config), nodes))
    attempts.conclude()
    assert place is not None
    assert fab is not None
    assert keepalive is not None
    holds = [] if failure is None else [failure.after_round + 1, failure.before_round]
    if place.folder.exists():
        shutil.rmtree(place.folder)
    spec = PeerSpec(
        name=name,
        addresses=dict(zip(names, free_addresses(nodes), strict=True)),
        rounds=rounds,
        epochs=epochs,
        seed=seed,
        strategy=strategy,
        app=use_case if app is None else str(app),
        run_config=run_config,
        topology=topology.value,
        keepalive_time_s=keepalive.time_s,
        keepalive_timeout_s=keepalive.timeout_s,
        protocol="memory" if protocol is Protocol.MEMORY else "grpc",
        holds=tuple(each for each in holds if each is not None),
        remote_checkpoint_interval=remote_checkpoint_interval,
        kept_rounds=keep_checkpoints,
    )
    place.write(spec, fab)
    screen = screen_for(log_format, place, spec)
    screen.say(promise(nodes))
    _conclude(place, spec, failure, summary, screen)


def resume(
    name: Name = NAME_DEFAULT,
    summary: Annotated[
        Path | None, typer.Option("--summary", help="Write the outcome to this file as JSON.")
    ] = None,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Go on with a group that was stopped or killed: every node from its own disk."""
    start.check_summary_file(summary)
    place = group(state.home(os.environ), name)
    spec = place.read()
    _require_stopped(place)
    _conclude(place, spec, None, summary, screen_for(log_format, place, spec))


def status(name: Name = NAME_DEFAULT) -> None:
    """What each node of a group says of itself."""
    place = group(state.home(os.environ), name)
    spec = place.read()
    table = Table("NODE", "STATE", "ROLE", "LEADER", "TERM", "ROUND", "MODEL", "VOTERS", box=None)
    for node, said in place.states().items():
        model = str(said.get("model_sha256") or "-")[:12]
        alive = peer_group.is_alive(said)
        table.add_row(
            node,
            str(said["state"]) if alive or said["state"] in peer_group.ENDED else "gone",
            *(str(said["role"]) if alive else "-", str(said["leader"] or "-"), str(said["term"])),
            *(f"{said['round_number']}/{spec.rounds}", model, str(len(said["voters"]))),
        )
    table_console().print(table)
    for decision in peer_group.evictions(place):
        say(
            f"After round {decision['after_round']} the operator took off "
            f"{', '.join(decision['nodes'])}, without a majority."
        )


def leave(
    node: Annotated[str, typer.Argument(help="Whom to take off the roster.")],
    name: Name = NAME_DEFAULT,
) -> None:
    """Have a node taken off the roster with the next commit.

    The node itself is asked, or where it is gone, one that lives.
    """
    place = group(state.home(os.environ), name)
    place.read()
    states = {each: said for each, said in place.states().items() if peer_group.is_alive(said)}
    voters = [voter for said in states.values() for voter in said["voters"]]
    if node not in voters:
        raise NotFoundError(
            f"{node!r} is not on the roster of {name}.",
            hint=f"On it: {', '.join(sorted(set(voters))) or 'nobody that lives'}.",
        )
    # A voter that lives can be asked for another one; the one that leaves is the best to ask.
    for asked in [node] if node in states else sorted(states):
        files.make_folder(place.requests(asked), mode=0o700)
        files.write_bytes(place.requests(asked) / f"leave {node}", b"")
    deadline_s = time.monotonic() + LEAVE_LIMIT_S
    while time.monotonic() < deadline_s:
        living = {each: said for each, said in place.states().items() if peer_group.is_alive(said)}
        if all(node not in said["voters"] for each, said in living.items() if each != node):
            files.remove(place.members / node)  # it is let in no more
            say(f"{node} is off the roster.")
            return
        time.sleep(LOOK_S)
    raise OnefedError(
        f"{node} is still on the roster after {LEAVE_LIMIT_S:.0f} s.",
        hint="It leaves with the next round that is agreed on: onefed peer status shows whether "
        "there is one.",
    )


def join(
    node: Annotated[
        str | None, typer.Argument(help="Its name.", show_default="the next free one")
    ] = None,
    name: Name = NAME_DEFAULT,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Add a node to a group that trains, and run it until it has the last model."""
    place = group(state.home(os.environ), name)
    spec = place.read()
    if spec.protocol == "memory":
        raise peer_request.PeerRequestError(
            f"The nodes of {name} live in one process, which no other can join.",
            hint="Start the group with --protocol grpc.",
        )
    known = {*spec.addresses, *files.names_in(place.folder / "nodes")}
    chosen = node or next(
        f"node-{index}" for index in range(len(known) + 1) if f"node-{index}" not in known
    )
    if chosen in spec.addresses:
        raise InUseError(f"{chosen} is on the first roster of {name}.", hint="Choose another name.")
    if not chosen.rpartition("-")[2].isdigit():
        raise peer_request.PeerRequestError(
            f"{chosen!r} does not say which part of the data is its own.",
            hint="End the name with a dash and a number, as in node-4.",
        )
    own = PeerSpec(**{**vars(spec), "addresses": {chosen: free_addresses(1)[0]}, "holds": ()})
    outcome = asyncio.run(_train(place, own, None, screen_for(log_format, place, own)))
    if outcome.error is not None:
        raise OnefedError(outcome.error)
    raise typer.Exit(outcome.exit_code)


def promise(nodes: int) -> str:
    """What a group of so many nodes withstands."""
    majority = nodes // 2 + 1
    spare = nodes - majority
    if spare == 0:
        return f"{nodes} nodes, all of them decide: none may fail while it trains."
    who = "any one of them" if spare == 1 else f"any {spare} of them"
    return f"{nodes} nodes, {majority} of them decide: training goes on without {who}."


async def _train(
    place: PeerGroup, spec: PeerSpec, failure: peer_group.Failure | None, screen: GroupScreen
) -> peer_group.Outcome:
    """Run the nodes of a group, or of a part of it, and show it."""

    def show(records: Sequence[Record]) -> None:
        screen.show(run, records)

    run = peer_group.GroupRun(
        place, spec, environ=os.environ, clock=time.monotonic, say=screen.say, show=show
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, run.stop)
    with screen.open():
        return await run.run(failure)


def _conclude(
    place: PeerGroup,
    spec: PeerSpec,
    failure: peer_group.Failure | None,
    summary: Path | None,
    screen: GroupScreen,
) -> None:
    """Train, and say how it ended; raises ``typer.Exit``."""
    outcome = asyncio.run(_train(place, spec, failure, screen))
    document = peer_group.summary(place, spec, outcome)
    files.write_json(place.summary, document)
    if summary is not None:
        files.write_bytes(summary, json.dumps(document, indent=2).encode() + b"\n")
    screen.finish(document)
    raise typer.Exit(outcome.exit_code)


def _require_stopped(place: PeerGroup) -> None:
    if any(peer_group.is_alive(said) for said in place.states().values()):
        raise InUseError(
            f"Nodes of {place.folder.name} are running.",
            hint="Stop them, or choose another --name.",
        )


def _require_free(place: PeerGroup, *, replace: bool) -> None:
    _require_stopped(place)
    if not replace:
        raise InUseError(
            f"There is a peer group {place.folder.name}.",
            hint="--replace discards it; --name names another; onefed peer resume goes on with it.",
        )
