"""A node's boot: the fifteen steps of docs/boot.md, with 7b, and 7c which is ours."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onefed import context
from onefed.appliance import (
    discovery,
    drain,
    firewall,
    frameworks,
    gpu_use,
    identity,
    machine,
    programs,
    training_data,
)
from onefed.appliance.machine import Edge
from onefed.appliance.process import Program
from onefed.appliance.steps import Outcome, Stage, Step, done, skipped, unchanged
from onefed.errors import OnefedError
from onefed.opennebula import onegate
from onefed.telemetry import events
from onefed.tls import material, node_keys, trust
from onefed.tls.errors import CaChangedError

RUNNING_POLL_S = 0.2
RUNNING_ANSWERS = 3
"""In a row: a program that answers once and ends does not run."""
RUNNING_LIMIT_S = 60.0
"""A container that is not running by then has failed, too."""

VERSION_CHARS_MAX = 40
"""Of a version that somebody else published."""


@dataclass
class SuperNode:
    """A node while it boots."""

    edge: Edge
    resolution: context.Resolution
    settings: context.SuperNodeSettings | None = None
    """Set by SN-04; bootstrap, a process of its own, reads them again."""
    found: discovery.SuperLink | None = None
    """Set by SN-07."""
    key: node_keys.NodeKey | None = None
    """Set by SN-05; the same for bootstrap."""

    @property
    def chosen(self) -> context.SuperNodeSettings:
        if self.settings is None:
            self.settings = context.supernode_settings(self.resolution)
        return self.settings

    @property
    def identity(self) -> node_keys.NodeKey:
        if self.key is None:
            self.key = node_keys.ensure(self.edge.paths.node_key)
        return self.key


def _source(node: SuperNode) -> Outcome:
    return machine.report_context(node.edge, node.resolution)


def _validate(node: SuperNode) -> Outcome:
    machine.refuse_failpoints(node.edge)
    node.settings = context.supernode_settings(node.resolution)
    return unchanged("every variable is valid")


def _configuration(node: SuperNode) -> Outcome:
    paths = node.edge.paths
    folders = {paths.config: 0o750, paths.flower_home: 0o700}
    made = [folder.name for folder, mode in folders.items() if machine.make_folder(folder, mode)]
    if training_data.ensure(paths.data):
        made.append(paths.data.name)
    if machine.write_secret_once(paths.superexec_secret, secrets.token_hex(32).encode()):
        made.append("SuperExec secret")
    if node.identity.created:
        made.append("node key")
    return done("made " + ", ".join(made)) if made else unchanged("folders and key are there")


def _discover(node: SuperNode) -> Outcome:
    edge, chosen = node.edge, node.chosen
    if chosen.superlink_address is not None:
        node.found = discovery.SuperLink(str(chosen.superlink_address), None, None, None)
        detail = f"{chosen.superlink_address}, set by FL_SUPERLINK_ADDRESS"
    elif edge.gate is None:
        raise discovery.DiscoveryError(
            "This node knows no SuperLink: it has neither an address nor a OneGate token.",
            hint="Set FL_SUPERLINK_ADDRESS=host:port, or deploy it in a service with TOKEN=YES.",
        )
    else:
        node.found = discovery.discover(
            edge.gate,
            waits=_waits(node),
            sleep=edge.sleep,
            on_try=lambda attempt, finding: edge.warn(f"Discovery, try {attempt}: {finding}."),
        )
        detail = f"{node.found.endpoint}, found through OneGate"
        if node.found.others:
            edge.warn(
                f"The service has {node.found.others + 1} superlinks: this node takes the oldest "
                f"that is ready, {node.found.endpoint}."
            )
    before = edge.facts.get("endpoint")
    if chosen.superlink_address is None and before not in (None, node.found.endpoint):
        edge.warn(
            f"The SuperLink was at {before} at the last boot, and is at {node.found.endpoint} now; "
            "only the authority that this node knows from then is trusted."
        )
    if node.found.isolation not in (None, chosen.isolation):
        edge.warn(
            f"The SuperLink has FL_ISOLATION={node.found.isolation[:VERSION_CHARS_MAX]!r}, this "
            f"node {chosen.isolation}: use the same for both."
        )
    node_config = _node_config(node)
    is_news = machine.save_facts(
        edge,
        endpoint=node.found.endpoint,
        node_config=node_config,
        superlink_version=node.found.version or "",
    )
    if node_config:
        detail += f"; {node_config}"
    return done(detail) if is_news else unchanged(detail)


def _trust(node: SuperNode) -> Outcome:
    edge, chosen, found = node.edge, node.chosen, node.found
    assert found is not None, "SN-07 comes before SN-07b"
    decision = trust.decide(chosen.tls_enabled, found.tls)
    if decision.warning:
        edge.warn(decision.warning)
    machine.save_facts(edge, tls="YES" if decision.mode is trust.Mode.TLS else "NO")
    if decision.mode is not trust.Mode.TLS:
        return skipped("TLS is off on both sides: nothing on the wire is protected")
    given = node.resolution.values["FL_SSL_CA_CERTFILE"].text
    source = trust.ca_source(given, found.ca_certificate)
    before = _content(edge.paths.certificates / material.CA_CERTIFICATE)
    # What OneGate says is pinned at first sight; an operator's own word may change the pin.
    try:
        installed = material.install_ca(
            edge.paths.certificates,
            given or found.ca_certificate or "",
            source=source.value,
            keep_pin=source is trust.CaSource.ONEGATE,
        )
    except CaChangedError as error:
        edge.emit(events.Notice("ERROR", f"Alarm: {error.message}"))
        raise
    detail = f"the CA certificate of {source.value} is checked and in place"
    return unchanged(detail) if _content(installed) == before else done(detail)


def _version(node: SuperNode) -> Outcome:
    edge = node.edge
    own = edge.platform.version(node.chosen.flower_version, edge.warn)
    machine.save_facts(edge, version=own, framework=frameworks.present(edge, node.resolution))
    theirs = edge.facts.get("superlink_version")
    if theirs and theirs != own:
        edge.warn(
            f"The SuperLink runs Flower {theirs[:VERSION_CHARS_MAX]!r}, this node {own}: "
            "deploy both with the same FLOWER_VERSION."
        )
    return unchanged(f"Flower {own} is installed")


def all_programs(node: SuperNode, facts: Mapping[str, str]) -> tuple[Program, ...]:
    """A node's programs, as they are started with what was found out."""
    edge = node.edge
    base = programs.environment(
        edge.paths,
        edge.inherited,
        state_folder=edge.state_folder,
        events=edge.events,
        failpoints_folder=edge.failpoints,
    )
    tls = facts["tls"] == "YES"
    made = programs.supernode(
        node.chosen,
        edge.paths,
        base,
        endpoint=facts["endpoint"],
        tls=tls,
        private_key=node.identity.private_key_path if tls else None,
        node_config=facts["node_config"],
        runtime_port=int(facts["runtime_port"]),
    )
    more = gpu_use.environment(node.chosen) if facts.get("gpus") else gpu_use.WITHOUT
    return tuple(replace(each, environment={**each.environment, **more}) for each in made)


def _identity(node: SuperNode) -> Outcome:
    return identity.ensure(node.edge, node.identity, node.chosen.enrolment_token)


def _gpus(node: SuperNode) -> Outcome:
    return gpu_use.detect(node.edge, node.chosen)


def _gpu_metrics(node: SuperNode) -> Outcome:
    return gpu_use.start_metrics(node.edge, node.chosen)


def _unit(node: SuperNode) -> Outcome:
    # Names and limits of the programs only: the SuperLink is not known yet.
    nothing_known = {"tls": "NO", "endpoint": "", "node_config": "", "runtime_port": "0"}
    return node.edge.platform.units(all_programs(node, nothing_known))


def _firewall(node: SuperNode) -> Outcome:
    chosen, edge = node.chosen, node.edge
    served = []
    if chosen.dcgm_enabled and edge.network is not None:
        served.append(firewall.Opening(firewall.GPU_METRICS_PORT, "GPU metrics", edge.network))
    return machine.firewall(edge, served if chosen.firewall else None)


def _docker(node: SuperNode) -> Outcome:
    return node.edge.platform.engine(node.edge.clock, node.edge.sleep)


def _start(node: SuperNode) -> Outcome:
    edge = node.edge
    if not edge.running("supernode"):
        machine.save_facts(edge, runtime_port=str(_runtime_port(edge)))
    started = machine.start(edge, all_programs(node, edge.facts))
    return done("started " + ", ".join(started)) if started else unchanged("everything runs")


def _running(node: SuperNode) -> Outcome:
    address = f"127.0.0.1:{node.edge.facts['runtime_port']}"
    answers = machine.Steady(lambda: machine.healthy(address, None), RUNNING_ANSWERS)
    seconds = machine.wait_until(
        node.edge,
        answers.look,
        program="supernode",
        poll_s=RUNNING_POLL_S,
        limit_s=RUNNING_LIMIT_S,
        waiting_for=f"{RUNNING_ANSWERS} answers in a row to GET /health on {address}",
    )
    if answers.looks == RUNNING_ANSWERS:
        return unchanged("running")
    return done(f"running after {seconds:.1f} s")


def _publish(node: SuperNode) -> Outcome:
    edge = node.edge
    attributes = {
        "FL_ROLE": "supernode",
        "FL_VERSION": edge.facts.get("version", node.chosen.flower_version),
        **({"FL_FRAMEWORK": framework} if (framework := edge.facts.get("framework")) else {}),
        "FL_NODE_ID": edge.vm_id,
        "FL_GPU_AVAILABLE": "YES" if edge.facts.get("gpus") else "NO",
        "FL_CLIENT_STATUS": drain.IDLE,  # it may say yet that the machine left
        "FL_NODE_READY": "YES",
    }
    return machine.publish(edge, attributes)


def _activity(node: SuperNode) -> Outcome:
    edge = node.edge
    if edge.gate is None:
        return skipped("this machine has no OneGate")
    try:
        return edge.platform.activity()
    except OnefedError as error:
        edge.warn(f"OneGate does not hear what this node does. {error}")
        return skipped(error.message)


def _ready(node: SuperNode) -> Outcome:
    if node.edge.platform.has_agent:
        return skipped("the guest agent reports it, when its script says that all is well")
    return machine.publish(node.edge, {"READY": "YES"})


_C, _B, _P = Stage.CONFIGURE, Stage.BOOTSTRAP, Stage.PLATFORM

STEPS: tuple[Step[SuperNode], ...] = (
    Step(
        "SN-01",
        "OS boot",
        _P,
        "network, SSH keys, context files",
        lambda _: skipped("this machine runs already"),
    ),
    Step(
        "SN-02",
        "Start script",
        _C,
        "the configure stage begins",
        lambda _: skipped("onefed itself is the start script here"),
    ),
    Step("SN-03", "Source context", _C, "context variables are read, never executed", _source),
    Step("SN-04", "Validate", _C, "every variable is checked, all errors at once", _validate),
    Step("SN-05", "Generate config", _C, "folders, secret and node key", _configuration),
    Step("SN-06", "Unit file", _C, "systemd units", _unit),
    Step("SN-06a", "Firewall", _C, "ssh is let in, nothing else", _firewall),
    Step("SN-07", "Discovery", _C, "the SuperLink's address and this node's partition", _discover),
    Step("SN-07b", "TLS trust", _C, "the CA certificate is checked and in place", _trust),
    Step("SN-07c", "Node identity", _C, "the coordinator has registered the node key", _identity),
    Step("SN-08", "Wait for Docker", _B, "the engine answers", _docker),
    Step("SN-09", "GPU detection", _B, "GPU flags, or CPU", _gpus),
    Step(
        "SN-10",
        "Version override",
        _B,
        "the wanted Flower version is there",
        _version,
    ),
    Step("SN-11", "Start", _B, "SuperNode and SuperExec run", _start),
    Step("SN-12", "Wait for running", _B, "the SuperNode answers", _running),
    Step("SN-13", "Publish", _B, "attributes in OneGate, FL_NODE_READY last", _publish),
    Step("SN-13a", "Activity", _B, "OneGate hears what the node does, as it changes", _activity),
    Step("SN-14a", "DCGM sidecar", _B, "GPU metrics", _gpu_metrics),
    Step("SN-15", "Report ready", _P, "READY=YES opens the deployment gate", _ready),
)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _runtime_port(edge: Edge) -> int:
    """That of the last boot if it is free."""
    earlier = edge.facts.get("runtime_port", "")
    return machine.free_port(int(earlier) if earlier.isdecimal() else 0)


def _node_config(node: SuperNode) -> str:
    """The operator's node config as it is, else the partition from the place in the service."""
    edge = node.edge
    if node.chosen.node_config is not None:
        return context.render_pairs(node.chosen.node_config)
    if edge.gate is None:
        edge.warn("The partition is not known without OneGate: the app decides by its node id.")
        return ""
    try:
        found = discovery.claim_partition(edge.gate, edge.vm_id, edge.sleep)
    except onegate.OneGateError as error:
        edge.warn(f"The partition is not known: {error.message}")
        return ""
    if found is None:
        edge.warn("The partition is not known: this machine is not among the service's supernodes.")
        return ""
    return found.node_config


def _waits(node: SuperNode) -> Iterator[float]:
    values = node.resolution.values
    is_edge = values["FL_EDGE_BACKOFF"].is_set or values["FL_EDGE_MAX_BACKOFF"].is_set
    chosen = node.chosen
    return discovery.waits(chosen.edge_backoff if is_edge else None, chosen.edge_max_backoff_s)
