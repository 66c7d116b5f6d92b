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
from onefed.cli.screen import LogFormat, say, table_console
from onefed.errors import ExitCode, InUseError, NotFoundError, OnefedError
from onefed.local import peer_group, request, state
from onefed.local.peer_spec import PeerGroup, PeerSpec, free_addresses, group
from onefed.peer.topology import Topology
from onefed.telemetry import events, lines
from onefed.telemetry.lines import Record

NODES_MAX = 64
NAME_DEFAULT = "peers"
LEAVE_LIMIT_S = 60.0
KEEPALIVE = ("FL_GRPC_KEEPALIVE_TIME", "FL_GRPC_KEEPALIVE_TIMEOUT")
LOOK_S = 0.2


class PeerRequestError(OnefedError):
    """What was asked of a peer group cannot be done."""

    exit_code = ExitCode.CONFIG


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
    failure = _failure(failure_round, recovery_round, failure_nodes or [], names, rounds)
    holds = [] if failure is None else [failure.after_round + 1, failure.before_round]
    fab = peer_app.pack(app, use_case)
    keepalive, rest = _keepalive(settings or [])
    run_config = {**_settings(rest, fab), "strategy": strategy, "seed": seed}
    aggregate.require_clients(peer_app.rule(fab, run_config), nodes)
    place = group(state.home(os.environ), name)
    if place.folder.exists():
        _require_free(place, replace=replace)
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
        keepalive_time_s=keepalive["FL_GRPC_KEEPALIVE_TIME"],
        keepalive_timeout_s=keepalive["FL_GRPC_KEEPALIVE_TIMEOUT"],
        protocol="memory" if protocol is Protocol.MEMORY else "grpc",
        holds=tuple(each for each in holds if each is not None),
        remote_checkpoint_interval=remote_checkpoint_interval,
        kept_rounds=keep_checkpoints,
    )
    place.write(spec, fab)
    if log_format is LogFormat.TEXT:
        say(promise(nodes))
    _conclude(place, spec, failure, summary, log_format)


def resume(
    name: Name = NAME_DEFAULT,
    summary: Annotated[
        Path | None, typer.Option("--summary", help="Write the outcome to this file as JSON.")
    ] = None,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Go on with a group that was stopped or killed: every node from its own disk."""
    place = group(state.home(os.environ), name)
    spec = place.read()
    _require_stopped(place)
    _conclude(place, spec, None, summary, log_format)


def status(name: Name = NAME_DEFAULT) -> None:
    """What each node of a group says of itself."""
    place = group(state.home(os.environ), name)
    spec = place.read()
    table = Table("NODE", "STATE", "ROLE", "LEADER", "TERM", "ROUND", "MODEL", "VOTERS", box=None)
    for node, said in place.states().items():
        model = str(said.get("model_sha256") or "-")[:12]
        alive = is_alive(said)
        table.add_row(
            node,
            str(said["state"]) if alive or said["state"] == "finished" else "gone",
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
    states = {each: said for each, said in place.states().items() if is_alive(said)}
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
        living = {each: said for each, said in place.states().items() if is_alive(said)}
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
        raise PeerRequestError(
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
        raise PeerRequestError(
            f"{chosen!r} does not say which part of the data is its own.",
            hint="End the name with a dash and a number, as in node-4.",
        )
    raise typer.Exit(asyncio.run(_join(place, spec, chosen, log_format)))


def promise(nodes: int) -> str:
    """What a group of so many nodes withstands."""
    majority = nodes // 2 + 1
    spare = nodes - majority
    if spare == 0:
        return f"{nodes} nodes, all of them decide: none may fail while it trains."
    who = "any one of them" if spare == 1 else f"any {spare} of them"
    return f"{nodes} nodes, {majority} of them decide: training goes on without {who}."


def _keepalive(items: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """What ``--set`` says of the nodes' connections in seconds, and the rest of it.

    Raises:
        PeerRequestError: it makes no sense.
    """
    given = {name: context.VARIABLES[name].default for name in KEEPALIVE}
    rest = []
    for item in items:
        name, equals, text = item.partition("=")
        if name in given and equals:
            given[name] = text.strip()
        else:
            rest.append(item)
    try:
        read = {name: context.VARIABLES[name].parse(text) for name, text in given.items()}
        seconds = {name: float(str(value)) for name, value in read.items()}
    except ValueError as error:
        raise PeerRequestError(f"{' and '.join(KEEPALIVE)}: {error}.") from error
    idle, limit = (seconds[name] for name in KEEPALIVE)
    if limit >= idle:
        raise PeerRequestError(
            f"{KEEPALIVE[1]}={limit:g} has to be less than {KEEPALIVE[0]}={idle:g}.",
            hint="A connection would be given up before it is probed again.",
        )
    return seconds, rest


def _settings(items: Sequence[str], fab: bytes) -> dict[str, context.ConfigValue]:
    """Keys of the run's configuration, from what ``--set`` says.

    Raises:
        PeerRequestError: a context variable that a group without a coordinator does not read.
    """
    from onefed.flower import bundle

    assigned = context.parse_assignments(items)
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


def _failure(
    after: int | None, before: int | None, nodes: Sequence[str], names: Sequence[str], rounds: int
) -> peer_group.Failure | None:
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
    return peer_group.Failure(tuple(dict.fromkeys(chosen)), after, before)


async def _train(
    place: PeerGroup, spec: PeerSpec, failure: peer_group.Failure | None, log_format: LogFormat
) -> peer_group.Outcome:
    shown = _Shown(log_format, spec.rounds)
    run = peer_group.GroupRun(
        place,
        spec,
        environ=os.environ,
        clock=time.monotonic,
        say=say if log_format is LogFormat.TEXT else lambda _: None,
        show=shown.show,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, run.stop)
    return await run.run(failure)


async def _join(place: PeerGroup, spec: PeerSpec, node: str, log_format: LogFormat) -> int:
    own = PeerSpec(**{**vars(spec), "addresses": {node: free_addresses(1)[0]}, "holds": ()})
    shown = _Shown(log_format, spec.rounds)
    run = peer_group.GroupRun(
        place, own, environ=os.environ, clock=time.monotonic, say=say, show=shown.show
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, run.stop)
    outcome = await run.run()
    if outcome.error is not None:
        raise OnefedError(outcome.error)
    return int(outcome.exit_code)


class _Shown:
    """Events as lines: for people one a round, when the first node has it, and what is wrong."""

    def __init__(self, log_format: LogFormat, rounds: int) -> None:
        self._format = log_format
        self._rounds = rounds
        self._round = 0

    def show(self, records: Sequence[Record]) -> None:
        """Show what is worth it."""
        for record in records:
            if self._format is LogFormat.JSON:
                say(lines.record_line(record))
            elif isinstance(record.event, events.PeerRound):
                if record.event.round > self._round:
                    self._round = record.event.round
                    say(lines.text_line(record, rounds_total=self._rounds))
            elif self._is_told(record):
                say(f"{lines.text_line(record, rounds_total=self._rounds)} ({record.role})")

    def _is_told(self, record: Record) -> bool:
        is_leader = isinstance(record.event, events.PeerNotice) and record.event.kind == "leader"
        return is_leader or record.level in ("WARNING", "ERROR")


def _conclusion(document: dict[str, object]) -> str:
    accuracy = document["accuracy"]
    good = f", accuracy {accuracy:.4f}" if isinstance(accuracy, float) else ""
    said = f"{document['status']}: {document['rounds_done']} of {document['rounds_total']} rounds"
    model = document["model_sha256"]
    told = f"one model, {str(model)[:12]}" if model else "no common model"
    return (
        f"{said} in {document['seconds']} s, {told}{good}; all of it is in {document['directory']}"
    )


def _conclude(
    place: PeerGroup,
    spec: PeerSpec,
    failure: peer_group.Failure | None,
    summary: Path | None,
    log_format: LogFormat,
) -> None:
    """Train, and say how it ended; raises ``typer.Exit``."""
    outcome = asyncio.run(_train(place, spec, failure, log_format))
    document = peer_group.summary(place, spec, outcome)
    files.write_json(place.summary, document)
    if summary is not None:
        files.write_bytes(summary, json.dumps(document, indent=2).encode() + b"\n")
    if log_format is LogFormat.TEXT:
        say(_conclusion(document))
    if outcome.error is not None:
        raise OnefedError(outcome.error)
    raise typer.Exit(outcome.exit_code)


def _require_stopped(place: PeerGroup) -> None:
    if any(is_alive(said) for said in place.states().values()):
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


def is_alive(said: dict[str, object]) -> bool:
    """Whether the process that wrote this is still there."""
    pid = said.get("pid")
    return isinstance(pid, int) and said["state"] != "stopped" and _is_node(pid)


def _is_node(pid: int) -> bool:
    try:
        return b"onefed.local.peer_" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
