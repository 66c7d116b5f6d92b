"""``python -m onefed.local.peer_machine FILE``: the node of a peer's machine, until SIGTERM.

The boot has pinned the founders of the group and written down what the node is told
(``appliance.peer``). Whoever else is let in stands on the operator's list, or else is a peer of the
own service, as OneGate tells. The group's folder is as that of ``onefed peer up``, so
``onefed peer`` works on it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onefed import context
from onefed.appliance import peers
from onefed.checkpoint import files
from onefed.context import PeerContact
from onefed.errors import ExitCode, OnefedError, StorageError
from onefed.flower import peer_app
from onefed.flower.lifesign import LifeSign
from onefed.flower.node import forks
from onefed.local import peer_member
from onefed.local.peer_process import stopping
from onefed.local.peer_spec import PeerGroup, PeerSpec
from onefed.node import NodeState
from onefed.node.contact import Contact
from onefed.node.grpc_transport import GrpcTransport
from onefed.node.transport import Transport
from onefed.opennebula import onegate
from onefed.peer.messages import NodeId
from onefed.telemetry import voice
from onefed.tls.member_identity import MemberIdentity

_LOG = logging.getLogger("onefed")

ROLE = "peer"

FORMAT = 1

RELAY_LOOK_S = 1.0

SERVICE_LOOK_S = 5.0
"""How soon a new peer of the service is let in; a look reads each of them once."""


@dataclass(frozen=True)
class Instructions:
    """What the node is told, as ``appliance.peer`` writes it."""

    folder: Path
    group: str
    name: str
    address: str
    """Where the others reach it."""
    listen: str
    """Where it listens: another one behind a router."""
    founders: tuple[PeerContact, ...]
    listed: tuple[PeerContact, ...]
    """By the operator. Empty: those of the service, as OneGate tells of them."""
    onegate_endpoint: str | None
    vm_id: str
    token_file: Path
    rounds: int
    strategy: str
    seed: int
    run_config: Mapping[str, bool | int | float | str]
    use_case: str
    bundle: Path
    evict_after_rounds: int
    topology: str
    keepalive_time_s: float
    keepalive_timeout_s: float
    checkpoints: Path | None
    kept_rounds: int | None

    @property
    def partition(self) -> tuple[int, int]:
        """Which part of the data is its own, and of how many."""
        own = peers.partition_of(self.name)
        return own, max(len(self.founders), own + 1)

    @property
    def spec(self) -> PeerSpec:
        """The group, as its folder says it."""
        return PeerSpec(
            name=self.group,
            addresses={each.name: str(each.address) for each in self.founders},
            rounds=self.rounds,
            epochs=None,
            seed=self.seed,
            strategy=self.strategy,
            app=self.use_case,
            run_config=self.run_config,
            evict_after_rounds=self.evict_after_rounds,
            topology=self.topology,
            keepalive_time_s=self.keepalive_time_s,
            keepalive_timeout_s=self.keepalive_timeout_s,
        )


def read(file: Path) -> Instructions:
    """What the boot wrote.

    Raises:
        StorageError: it is not there, or of another version.
    """
    document: Any = files.read_json(file)
    try:
        if document.pop("format") != FORMAT:
            raise ValueError("another format")
        for key in ("founders", "listed"):
            document[key] = tuple(context.parse_peer_contact(each) for each in document[key])
        for key in ("folder", "token_file", "bundle", "checkpoints"):
            document[key] = None if document[key] is None else Path(document[key])
        return Instructions(**document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{file} is not what a boot tells a peer: {error}.",
            hint="Boot again: onefed appliance configure --role peer, then bootstrap.",
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node; returns its exit code."""
    nursery = forks.start_nursery()  # first of all: from a process without threads
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        sys.stderr.write("usage: python -m onefed.local.peer_machine FILE\n")
        return ExitCode.USAGE
    voice.configure(_LOG, ROLE, os.environ)
    try:
        return asyncio.run(_run(read(Path(given[0])), nursery, os.environ))
    except OnefedError as error:
        _LOG.error("%s", error)
        return int(error.exit_code)


async def _run(told: Instructions, nursery: socket.socket, environ: Mapping[str, str]) -> int:
    place = PeerGroup(told.folder)
    place.write(told.spec, _app(told))
    own, count = told.partition
    flower = peer_app.PeerApp(
        nursery, place.app.read_bytes(), told.run_config, partition_id=own, num_partitions=count
    )
    let_in(place, told.name, told.founders, told.listed or await _siblings_now(told))
    sign = LifeSign(environ)

    def on_state(state: NodeState) -> None:
        if state.leader is not None:
            sign.give()

    events = environ.get("ONEFED_EVENTS")
    stop = stopping()
    beside = [asyncio.ensure_future(_watch(place, told))]
    if events is not None and voice.wants_json(environ):
        relay = voice.Relay(Path(events), told.name, sys.stdout)
        beside.append(asyncio.ensure_future(_hand_on(relay)))
    try:
        error = await peer_member.run(
            place,
            told.name,
            told.address,
            flower,
            peer_member.HeldApp(flower, (), outlives=False),
            functools.partial(_connect, told),
            stop,
            asyncio.Event(),
            events_file=None if events is None else Path(events),
            checkpoints=told.checkpoints,
            kept_rounds=told.kept_rounds,
            on_state=on_state,
        )
    finally:
        for each in beside:
            each.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    return 0 if error is None else int(error.exit_code)


def _app(told: Instructions) -> bytes:
    """The operator's packed app, else the built-in one."""
    if told.bundle.exists():
        return told.bundle.read_bytes()
    return peer_app.pack(None, told.use_case)


def _connect(
    told: Instructions,
    name: NodeId,
    identity: MemberIdentity,
    address: str,
    contacts: Callable[[], Mapping[NodeId, Contact]],
) -> Transport:
    del address  # what the others dial; a router may stand between
    return GrpcTransport(
        name,
        identity,
        told.listen,
        contacts,
        keepalive_time_s=told.keepalive_time_s,
        keepalive_timeout_s=told.keepalive_timeout_s,
    )


def let_in(
    place: PeerGroup, own: NodeId, founders: Iterable[PeerContact], others: Iterable[PeerContact]
) -> None:
    """Bring the list that the node keeps to (``members``) to the founders and these others.

    A founder is known by its pinned contact, whatever somebody publishes under its name.
    """
    wanted = {each.name: each for each in (*others, *founders) if each.name != own}
    for name, each in wanted.items():
        document = {"node": name, "contact": f"{each.address} {each.certificate}"}
        file = place.members / name
        if not file.exists() or files.read_json(file) != document:
            files.write_json(file, document)
    for name in files.names_in(place.members):
        if name != own and name not in wanted:
            files.remove(place.members / name)


async def _siblings_now(told: Instructions) -> tuple[PeerContact, ...]:
    """Peers of the own service, for one that joins: the founders that it knows may have left."""
    if told.onegate_endpoint is None or told.name in [each.name for each in told.founders]:
        return ()
    token = told.token_file.read_text(encoding="ascii")
    with onegate.OneGate(told.onegate_endpoint, token, told.vm_id) as gate:
        try:
            found = await asyncio.to_thread(peers.siblings, gate)
        except OnefedError as error:  # then it is the founders that it asks
            _LOG.warning("%s", error)
            return ()
    return tuple(each.contact for each in found if each.contact is not None)


async def _hand_on(relay: voice.Relay) -> None:
    """What happens here, for whoever collects the log of this program."""
    try:
        while True:
            await asyncio.to_thread(relay.look)
            await asyncio.sleep(RELAY_LOOK_S)
    finally:
        relay.look()  # the last words, too


async def _watch(place: PeerGroup, told: Instructions) -> None:
    """Let in whoever is a peer of the own service now."""
    if told.onegate_endpoint is None:
        return
    token = told.token_file.read_text(encoding="ascii")
    with onegate.OneGate(told.onegate_endpoint, token, told.vm_id) as gate:
        said = ""
        while True:
            try:
                found = await asyncio.to_thread(peers.siblings, gate)
                contacts = [each.contact for each in found if each.contact is not None]
                let_in(place, told.name, told.founders, contacts)
                said = ""
            except OnefedError as error:  # the list stays as it is: who is in, is in
                if str(error) != said:
                    _LOG.warning("%s", error)
                said = str(error)
            await asyncio.sleep(SERVICE_LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
