"""A peer's boot: it tells who it is before anybody is pinned, finds its group, and takes part.

Training goes on without a coordinator, so there is no step about one; the ids begin with ``PE``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from onefed import context
from onefed.appliance import (
    discovery,
    firewall,
    frameworks,
    machine,
    peer_state,
    peers,
    programs,
    training_data,
)
from onefed.appliance.machine import Edge
from onefed.appliance.process import Program
from onefed.appliance.steps import Outcome, Stage, Step, done, skipped, unchanged
from onefed.checkpoint import files
from onefed.context import PeerContact
from onefed.errors import ExitCode, OnefedError, StorageError
from onefed.tls import member_identity

_Found = TypeVar("_Found")

RUNNING_POLL_S = 0.5
RUNNING_LIMIT_S = 120.0
"""The founders start within seconds of each other; an election takes two more."""


class PeerContactError(OnefedError):
    """What the operator lists, or what is pinned, is not this peer, or no peer at all."""

    exit_code = ExitCode.CONFIG


@dataclass
class Peer:
    """A peer while it boots."""

    edge: Edge
    resolution: context.Resolution
    settings: context.PeerSettings | None = None
    """Set by PE-04; bootstrap, a process of its own, reads them again."""
    own: PeerContact | None = None
    """Set by PE-06."""
    founders: peers.Roster = ()
    """Set by PE-09."""

    @property
    def chosen(self) -> context.PeerSettings:
        if self.settings is None:
            self.settings = context.peer_settings(self.resolution)
        return self.settings

    @property
    def contact(self) -> PeerContact:
        assert self.own is not None, "PE-06 comes before"
        return self.own


def _source(peer: Peer) -> Outcome:
    return machine.report_context(peer.edge, peer.resolution)


def _validate(peer: Peer) -> Outcome:
    edge = peer.edge
    machine.refuse_failpoints(edge)
    peer.settings = context.peer_settings(peer.resolution)
    for each in peer.chosen.listed:
        try:
            peers.check(each)
        except ValueError as error:
            raise PeerContactError(
                f"FL_PEERS: {error}.", hint="Copy each entry as its peer told it at PE-09."
            ) from error
    if peer.chosen.use_case == "none" and not edge.paths.app.exists():
        raise PeerContactError(
            "FL_USE_CASE is none: a peer that has no app has nothing to train.",
            hint=f"Set FL_USE_CASE, or put a packed app to {edge.paths.app}.",
        )
    if not edge.running("peer"):
        machine.require_free_port(edge.facts["address"], peer.chosen.port, "FL_PEER_PORT")
    return unchanged("every variable is valid")


def _folders(peer: Peer) -> Outcome:
    paths = peer.edge.paths
    wanted = {paths.config: 0o750, paths.state: 0o700, paths.peers: 0o700, paths.flower_home: 0o700}
    if peer.chosen.checkpoint_enabled:
        wanted[paths.checkpoints] = 0o755
    made = [folder.name for folder, mode in wanted.items() if machine.make_folder(folder, mode)]
    if training_data.ensure(paths.data):
        made.append(paths.data.name)
    if peer.edge.gate is not None:
        token = peer.edge.gate_token.encode()
        if machine.write_secret(paths.gate_token, token):
            made.append("OneGate's token for the node")
    return done("made " + ", ".join(made)) if made else unchanged("all folders are there")


def _identity(peer: Peer) -> Outcome:
    edge, chosen = peer.edge, peer.chosen
    name = _name(peer)
    folder = edge.paths.peer_node(name) / "identity"
    before = (folder / member_identity.CERTIFICATE).exists()
    made = member_identity.ensure(folder, name, edge.now())
    machine.save_facts(edge, peer_name=name)
    address = f"{edge.facts['address']}:{chosen.port}"
    peer.own = peers.contact(name, address, made.certificate)
    if chosen.listed:
        peer.own = _as_listed(peer.own, chosen.listed)
    return unchanged(f"{name} has its key") if before else done(f"{name} has a new key")


def _name(peer: Peer) -> str:
    """That of the identity on the disk, the operator's, or one that no other machine ever has."""
    edge, chosen = peer.edge, peer.chosen
    if chosen.name is not None:
        return chosen.name
    held = edge.facts.get("peer_name", "")
    if held and (edge.paths.peer_node(held) / "identity" / member_identity.CERTIFICATE).exists():
        return held
    gate = edge.gate
    if gate is None:
        raise peers.PeersNotFoundError(
            "This peer knows no others: it has neither a list of them nor a OneGate token.",
            hint="Set FL_PEERS and FL_PEER_NAME, or deploy it in a service with TOKEN=YES.",
        )

    def take() -> tuple[str] | str:
        told = gate.vm().attributes
        found = discovery.claim_partition(gate, edge.vm_id, edge.sleep, peers.ROLE)
        if found is None:
            return "this machine is not among the service's peers yet"
        first = peers.name_of_vm(edge.vm_id, found.id)
        if not told.get(peers.CONTACT_CERTIFICATE):
            return (first,)
        # Whoever lost its disk has forgotten its votes, and must not vote under that name.
        earlier = told.get(peers.CONTACT_NAME, "")
        return (peers.successor(earlier if peers.is_of_vm(earlier, edge.vm_id) else first),)

    return _until(peer, take)[0]


def _as_listed(own: PeerContact, listed: peers.Roster) -> PeerContact:
    """The operator says where this peer is reached; its certificate he has to have from it."""
    entry = next(each for each in listed if each.name == own.name)
    if entry.certificate != own.certificate:
        raise PeerContactError(
            f"FL_PEERS lists {own.name} with another certificate than this machine has.",
            hint=f"List it as {own} (the address as others reach it). If its disk was lost, give "
            f"it another name as well, {peers.successor(own.name)}: it has forgotten its votes.",
        )
    return entry


def _tell_contact(peer: Peer) -> Outcome:
    gate = peer.edge.gate
    if gate is None:
        return skipped("this machine has no OneGate")
    wanted = peers.attributes(peer.contact)

    def publish() -> tuple[str, ...] | str:
        held = gate.vm().attributes
        news = [name for name, value in wanted.items() if held.get(name) != value]
        for name in news:
            gate.publish(name, wanted[name])
        return tuple(news)

    news = _until(peer, publish)
    if news:
        return done(f"published {', '.join(news)}")
    return unchanged(f"OneGate holds {', '.join(wanted)}")


def _roster(peer: Peer) -> Outcome:
    edge, chosen, own = peer.edge, peer.chosen, peer.contact
    pinned = _pinned(edge.paths.peer_roster)
    if pinned is not None:
        peer.founders = pinned
    elif chosen.listed:
        peer.founders = chosen.listed[: chosen.founders]
    elif chosen.name is not None:
        raise peers.PeersNotFoundError(
            f"FL_PEERS is empty, so {own.name} knows no other peers.",
            hint=f"List it at every site, its own included: {own}",
        )
    else:
        assert edge.gate is not None, "without it and without a list there is no name"
        gate = edge.gate
        peer.founders = _until(peer, lambda: peers.look(gate, edge.vm_id, chosen.founders))
    entry = next((each for each in peer.founders if each.name == own.name), None)
    if entry is not None and entry.certificate != own.certificate:
        raise PeerContactError(
            f"The group knows {own.name} with another certificate.",
            hint=f"Let this machine join under another name: {peers.successor(own.name)}.",
        )
    if entry is not None and entry.address != own.address:
        edge.warn(f"The group dials {own.name} at {entry.address}; it is at {own.address} now.")
    if edge.gate is not None and not chosen.listed:
        # So the roster is there for others when the oldest machine is gone.
        machine.publish(edge, {peers.ROSTER: peers.encode(peer.founders)})
    what = "founds" if entry is not None else "joins"
    detail = f"{what} {peers.group_of(peer.founders)}, of {len(peer.founders)} founders"
    if pinned is not None:
        return unchanged(detail)
    files.write_bytes(
        edge.paths.peer_roster, peers.encode(peer.founders).encode() + b"\n", mode=0o600
    )
    return done(detail)


def _pinned(file: Path) -> peers.Roster | None:
    if not file.exists():
        return None
    try:
        with files.open_regular(file) as stream:
            return peers.decode(stream.read().decode("ascii", "replace").strip())
    except ValueError as error:
        raise StorageError(
            f"{file} is not the roster that this peer has pinned: {error}.",
            hint="Restore it from another peer of the group: it is the same at all of them.",
        ) from error


def _instructions(peer: Peer) -> Outcome:
    edge, chosen, own, paths = peer.edge, peer.chosen, peer.contact, peer.edge.paths
    founder = next((each for each in peer.founders if each.name == own.name), own)
    asks = edge.gate is not None and not chosen.listed
    document = {
        "format": 1,
        "folder": str(paths.peers),
        "group": peers.group_of(peer.founders),
        "name": own.name,
        # As the roster has it, or the others would know another member.
        "address": str(founder.address),
        "listen": f"{edge.facts['address']}:{chosen.port}",
        "founders": [str(each) for each in peer.founders],
        "listed": [str(each) for each in chosen.listed],
        "onegate_endpoint": edge.gate_endpoint if asks else None,
        "vm_id": edge.vm_id,
        "token_file": str(paths.gate_token),
        "rounds": chosen.num_rounds,
        "strategy": chosen.strategy,
        "seed": chosen.seed,
        "run_config": context.peer_run_config(chosen),
        "use_case": chosen.use_case,
        "bundle": str(paths.app),
        "evict_after_rounds": chosen.evict_after_rounds,
        "topology": chosen.topology,
        "keepalive_time_s": chosen.keepalive_time_s,
        "keepalive_timeout_s": chosen.keepalive_timeout_s,
        "checkpoints": str(paths.checkpoints) if chosen.checkpoint_enabled else None,
        "kept_rounds": (chosen.checkpoint_keep_last or None)
        if chosen.checkpoint_enabled
        else programs.PEER_KEPT_ROUNDS,
    }
    if machine.write_secret(paths.peer, json.dumps(document, indent=1).encode()):
        return done(f"{own.name} trains {chosen.num_rounds} rounds of {chosen.strategy}")
    return unchanged("what the node is told is the same")


def all_programs(peer: Peer) -> tuple[Program, ...]:
    """A peer's one program, as it is started."""
    edge = peer.edge
    base = programs.environment(
        edge.paths,
        edge.inherited,
        state_folder=edge.state_folder,
        events=edge.events,
        failpoints_folder=edge.failpoints,
    )
    values = peer.resolution.values
    return programs.peer(
        edge.paths,
        base,
        log_level=values["FL_LOG_LEVEL"].text,
        log_format=values["FL_LOG_FORMAT"].text,
    )


def _unit(peer: Peer) -> Outcome:
    return peer.edge.platform.units(all_programs(peer))


def _firewall(peer: Peer) -> Outcome:
    served = [firewall.Opening(peer.chosen.port, "peers")]
    return machine.firewall(peer.edge, served if peer.chosen.firewall else None)


def _docker(peer: Peer) -> Outcome:
    return peer.edge.platform.engine(peer.edge.clock, peer.edge.sleep)


def _version(peer: Peer) -> Outcome:
    edge = peer.edge
    own = edge.platform.version(peer.chosen.flower_version, edge.warn)
    machine.save_facts(edge, version=own, framework=frameworks.present(edge, peer.resolution))
    return unchanged(f"Flower {own} is installed")


def _start(peer: Peer) -> Outcome:
    started = machine.start(peer.edge, all_programs(peer))
    return done("started " + ", ".join(started)) if started else unchanged("it runs")


def _takes_part(peer: Peer) -> Outcome:
    edge = peer.edge
    name = edge.facts["peer_name"]
    seconds = machine.wait_until(
        edge,
        lambda: peer_state.look(edge.paths, name, edge.now()).takes_part,
        program="peer",
        poll_s=RUNNING_POLL_S,
        limit_s=RUNNING_LIMIT_S,
        waiting_for=f"{name} taking part in its group",
    )
    found = peer_state.look(edge.paths, name, edge.now())
    return done(f"{found}, after {seconds:.1f} s") if seconds else unchanged(str(found))


def _publish(peer: Peer) -> Outcome:
    edge = peer.edge
    attributes = {
        "FL_ROLE": "peer",
        "FL_VERSION": edge.facts.get("version", peer.chosen.flower_version),
        **({"FL_FRAMEWORK": framework} if (framework := edge.facts.get("framework")) else {}),
        # Last: a reader that sees YES sees the rest.
        "FL_READY": "YES",
    }
    return machine.publish(edge, attributes)


def _ready(peer: Peer) -> Outcome:
    if peer.edge.platform.has_agent:
        return skipped("the guest agent reports it, when its script says that all is well")
    return machine.publish(peer.edge, {"READY": "YES"})


_C, _B, _P = Stage.CONFIGURE, Stage.BOOTSTRAP, Stage.PLATFORM

STEPS: tuple[Step[Peer], ...] = (
    Step(
        "PE-01",
        "OS boot",
        _P,
        "network, SSH keys, context files",
        lambda _: skipped("this machine runs already"),
    ),
    Step(
        "PE-02",
        "Start script",
        _C,
        "the configure stage begins",
        lambda _: skipped("onefed itself is the start script here"),
    ),
    Step("PE-03", "Source context", _C, "context variables are read, never executed", _source),
    Step("PE-04", "Validate", _C, "every variable is checked, all errors at once", _validate),
    Step("PE-05", "Folders", _C, "state, checkpoints, the node's copy of the token", _folders),
    Step("PE-06", "Identity", _C, "name, key and self-made certificate", _identity),
    Step("PE-07", "Unit file", _C, "systemd units", _unit),
    Step("PE-07a", "Firewall", _C, "ssh and the peers' port are let in, nothing else", _firewall),
    Step("PE-08", "Contact", _C, "the others can read who this peer is", _tell_contact),
    Step("PE-09", "Roster", _C, "the founders of the group are known and pinned", _roster),
    Step("PE-10", "Instructions", _C, "what the node is told", _instructions),
    Step("PE-10a", "Wait for Docker", _B, "the engine answers", _docker),
    Step("PE-10b", "Version override", _B, "the wanted Flower version is there", _version),
    Step("PE-11", "Start", _B, "the node runs", _start),
    Step("PE-12", "Take part", _B, "the node trains with a leader", _takes_part),
    Step("PE-13", "Publish", _B, "attributes in OneGate, FL_READY last", _publish),
    Step("PE-14", "Report ready", _P, "READY=YES opens the deployment gate", _ready),
)


def _waits(peer: Peer) -> Iterator[float]:
    """Apart from those of the other machines, by its id."""
    return peers.waits(random.Random(peer.edge.vm_id).random)  # noqa: S311 - no secret


def _until(peer: Peer, attempt: Callable[[], _Found | str]) -> _Found:
    edge = peer.edge
    return peers.until(
        attempt,
        waits=_waits(peer),
        sleep=edge.sleep,
        on_try=lambda number, finding: edge.warn(f"Peers, try {number}: {finding}."),
    )
