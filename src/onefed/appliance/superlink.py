"""The coordinator's boot: the twelve steps of docs/boot.md, and 7a."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from onefed import context
from onefed.appliance import earlier_run, firewall, gateway, machine, metrics_use, programs
from onefed.appliance.machine import Edge
from onefed.appliance.paths import Paths
from onefed.appliance.process import Program
from onefed.appliance.steps import Outcome, Stage, Step, done, skipped, unchanged
from onefed.checkpoint import files
from onefed.tls import material, names, pem
from onefed.tls.authority import KeyKind
from onefed.tls.errors import TlsMaterialError

HEALTH_POLL_S = 0.2
HEALTH_LIMIT_S = 120.0
"""Generous: a SuperLink takes 2 to 6 s here, and a virtual machine may be slow."""

RENEW_BEFORE = timedelta(days=30)
RENEWAL_LOOK_S = 24 * 3600.0
"""How often a machine looks whether its certificate ends soon."""

SHOW_CERTIFICATE = ("superlink", "gateway")
"""Programs that read the server certificate as they start."""

CONTAINER_CHECKPOINT_PATH = "/app/checkpoints"
"""Default of ``FL_CHECKPOINT_PATH``: inside a container; it stands for ``Paths.checkpoints``."""

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - it is compared with, and never bound to

ENROLMENT_SOCKET = "enrolment.sock"
"""In the gateway's folder: the supervisor listens there."""

LOOPBACK_NAME = f"IP:{LOOPBACK}"
"""As a certificate has to name the host of ``programs.loopback_address``."""


@dataclass
class SuperLink:
    """A coordinator while it boots."""

    edge: Edge
    resolution: context.Resolution
    settings: context.SuperLinkSettings | None = None
    """Set by SL-04; bootstrap, a process of its own, reads them again."""

    @property
    def chosen(self) -> context.SuperLinkSettings:
        if self.settings is None:
            self.settings = context.superlink_settings(self.resolution)
        return self.settings


def _source(link: SuperLink) -> Outcome:
    return machine.report_context(link.edge, link.resolution)


def _validate(link: SuperLink) -> Outcome:
    machine.refuse_failpoints(link.edge)
    link.settings = context.superlink_settings(link.resolution)
    chosen = link.chosen
    if not link.edge.running("superlink"):
        setting = "FL_SUPERLINK_PORT" if chosen.gateway else "FL_FLEET_API_ADDRESS"
        machine.require_free_port(LOOPBACK, chosen.superlink_port, setting)
    if chosen.gateway and not link.edge.running("gateway"):
        machine.require_free_port(chosen.fleet_host, chosen.fleet_port, "FL_FLEET_API_ADDRESS")
        machine.require_free_port(LOOPBACK, chosen.control_port, "FL_CONTROL_API_ADDRESS")
    return unchanged("every variable is valid")


def _defaults(link: SuperLink) -> Outcome:
    chosen = link.chosen
    return unchanged(f"{chosen.strategy}, {chosen.num_rounds} rounds, seed {chosen.seed}")


def _environment(link: SuperLink) -> Outcome:
    chosen, paths = link.chosen, link.edge.paths
    machine.make_folder(paths.config, 0o750)
    made = machine.write_secret_once(paths.superexec_secret, secrets.token_hex(32).encode())
    if link.edge.gate is not None:
        made |= machine.write_secret(paths.gate_token, link.edge.gate_token.encode())
    run_config = dict(context.run_config(chosen))
    if chosen.checkpoint_enabled:
        in_containers = link.edge.platform.in_containers
        folder = chosen.checkpoint_path if in_containers else _exports(link)
        run_config["checkpoint-path"] = str(folder)
    endpoint = link.edge.gate_endpoint if link.edge.gate is not None else None
    document = {
        "format": 1,
        "superlink": programs.loopback_address(chosen),
        "ca_certificate": str(paths.certificates / "ca.crt") if chosen.tls_enabled else None,
        "onegate_endpoint": endpoint,
        "vm_id": link.edge.vm_id,
        "token_file": str(paths.gate_token),
        "bundle": str(paths.app),
        "use_case": chosen.use_case,
        "run_config": run_config,
        "keys_set": _keys_set(link),
        "min_available_clients": chosen.min_available_clients,
        "state_file": str(paths.supervisor_state),
        "stop_request": str(paths.stop_request),
        "run_log": str(paths.logs / "serverapp.log"),
        "node_keys": list(chosen.node_keys),
        # Relative to the folder that programs run in: a socket's path is short.
        "enrolment_socket": (
            str(enrolment_socket(paths).relative_to(paths.root)) if chosen.gateway else None
        ),
        "supervised": chosen.isolation == "process",
    }
    text = json.dumps(document, indent=1).encode()
    if not made and paths.supervisor.exists() and paths.supervisor.read_bytes() == text:
        return unchanged("what the supervisor is told is the same")
    files.write_bytes(paths.supervisor, text, mode=0o600)
    return done("run_config and the supervisor's instructions written")


def enrolment_socket(paths: Paths) -> Path:
    """Where the supervisor answers nodes that show a token."""
    return paths.gateway / ENROLMENT_SOCKET


def _keys_set(link: SuperLink) -> list[str]:
    """The run_config keys that somebody set; an app with its own ServerApp is told no others."""
    values = link.resolution.values
    named = [key for key, name in context.RUN_CONFIG_NAMES.items() if values[name].is_set]
    return sorted({*named, *link.chosen.extra_run_config})


def _folders(link: SuperLink) -> Outcome:
    chosen, paths = link.chosen, link.edge.paths
    private = (paths.state, programs.database(chosen, paths).parent, paths.recovery)
    wanted = {**dict.fromkeys(private, 0o700), paths.flower_home: 0o700}
    if chosen.checkpoint_enabled:
        wanted[paths.checkpoints] = 0o755
    made = [folder.name for folder, mode in wanted.items() if machine.make_folder(folder, mode)]
    if chosen.checkpoint_enabled and chosen.checkpoint_resume and _takes_earlier_run(link):
        made.append("a recovery store from the newest checkpoint")
    return done("made " + ", ".join(made)) if made else unchanged("all folders are there")


def _takes_earlier_run(link: SuperLink) -> bool:
    """Whether this machine, which has no run yet, goes on with that of the checkpoints."""
    chosen, paths = link.chosen, link.edge.paths
    if earlier_run.is_known(paths):
        return False
    found = earlier_run.newest(_exports(link))
    if found is None:
        return False
    for damaged in found.damaged:
        link.edge.warn(f"A damaged checkpoint was passed over: {damaged}")
    earlier_run.require_same(found.snapshot, seed=chosen.seed, strategy=chosen.strategy)
    earlier_run.plant(paths, found.snapshot)
    return True


def _exports(link: SuperLink) -> Path:
    """Where the operator's checkpoints lie, as this machine sees it."""
    chosen, paths = link.chosen, link.edge.paths
    is_default = chosen.checkpoint_path == CONTAINER_CHECKPOINT_PATH
    is_default |= link.edge.platform.in_containers
    return paths.checkpoints if is_default else Path(chosen.checkpoint_path)


def _tls(link: SuperLink) -> Outcome:
    chosen, edge = link.chosen, link.edge
    if not chosen.tls_enabled:
        return skipped("FL_TLS_ENABLED is NO: nothing on the wire is protected")
    folder = edge.paths.certificates
    given = (chosen.ssl_ca_pem, chosen.ssl_certificate_pem, chosen.ssl_key_pem)
    if given[0] is not None and given[1] is not None and given[2] is not None:
        _require_loopback(given[1])
        made = material.install_operator(
            folder, given[0], given[1], given[2], edge.now(), addresses=[edge.facts["address"]]
        )
    else:
        made = _own_authority(link)
    if made.warning:
        edge.warn(made.warning)
    return _told(made)


def _told(made: material.Material) -> Outcome:
    if made.created:
        return done(f"new certificates: {made.reason}")
    return unchanged(made.reason)


def _require_loopback(certificate_pem: bytes) -> None:
    """Our own programs dial the SuperLink on loopback and check its name as a node does."""
    held = names.of(pem.certificates(material.CERTIFICATE_VARIABLE, certificate_pem)[0])
    if names.missing([LOOPBACK_NAME], held):
        raise TlsMaterialError(
            f"{material.CERTIFICATE_VARIABLE} does not cover {LOOPBACK_NAME}, under which the "
            "coordinator's own programs reach it.",
            hint=f"Issue it with the subject alternative name {LOOPBACK_NAME} beside its others, "
            "or leave the FL_SSL_* variables empty and use FL_CERT_EXTRA_SAN.",
        )


def _own_authority(
    link: SuperLink, renew_before: timedelta = material.RENEW_BEFORE
) -> material.Material:
    edge = link.edge
    return material.ensure(
        edge.paths.certificates,
        addresses=[edge.facts["address"]],
        extra_sans=link.chosen.cert_extra_san,
        now=edge.now(),
        key_kind=KeyKind(link.chosen.cert_key_type),
        renew_before=renew_before,
    )


def renew(link: SuperLink) -> Outcome:
    """A new server certificate from the kept authority, when the old one ends within 30 days.

    No node has to trust anything new. ``SHOW_CERTIFICATE`` have to start again.
    """
    chosen = link.chosen
    if not chosen.tls_enabled:
        return skipped("FL_TLS_ENABLED is NO")
    if chosen.ssl_certificate_pem is not None:
        return skipped("the certificates are the operator's, and so is their renewal")
    made = _own_authority(link, RENEW_BEFORE)
    return _told(made)


def _gateway(link: SuperLink) -> Outcome:
    chosen, paths = link.chosen, link.edge.paths
    if not chosen.gateway:
        return skipped(f"the SuperLink serves {programs.loopback_address(chosen)} itself")
    machine.make_folder(paths.gateway, 0o755)
    machine.make_folder(paths.logs, 0o755)
    text = gateway.configuration(gateway_of(chosen, paths)).encode()
    file = paths.gateway_configuration
    is_news = not file.exists() or file.read_bytes() != text
    if is_news:
        files.write_bytes(file, text, mode=0o640)
    gateway.check(programs.gateway_command(paths), paths.root)
    return (done if is_news else unchanged)("nginx takes the configuration")


def gateway_of(chosen: context.SuperLinkSettings, paths: Paths) -> gateway.Gateway:
    """The gateway that these settings ask for; the certificates are in place."""
    folder, tls = paths.certificates, None
    if chosen.tls_enabled:
        certificate = folder / material.SERVER_CERTIFICATE
        held = names.of(pem.certificates(str(certificate), certificate.read_bytes())[0])
        tls = gateway.Tls(
            ca_certificate=folder / material.CA_CERTIFICATE,
            certificate=certificate,
            key=folder / material.SERVER_KEY,
            superlink_name=gateway.superlink_name(sorted(held)),
        )
    return gateway.Gateway(
        fleet_address=f"{chosen.fleet_host}:{chosen.fleet_port}",
        control_address=f"{LOOPBACK}:{chosen.control_port}",
        superlink_address=programs.loopback_address(chosen),
        tls=tls,
        folder=paths.gateway,
        access_log=paths.logs / "gateway-access.log",
        enrolment_socket=str(enrolment_socket(paths).relative_to(paths.root)),
        connections_per_address=chosen.gateway_connections,
        requests_per_s=chosen.gateway_rate,
        keepalive_time_s=chosen.keepalive_time_s,
        keepalive_timeout_s=chosen.keepalive_timeout_s,
        # A federation's folder on a laptop is closed to everybody else, and nginx started by root
        # would give it up.
        workers_stay_root=os.geteuid() == 0 and paths.root != Path("/"),
    )


def all_programs(link: SuperLink) -> tuple[Program, ...]:
    """The coordinator's programs, as they are started."""
    edge = link.edge
    base = programs.environment(
        edge.paths,
        edge.inherited,
        state_folder=edge.state_folder,
        events=edge.events,
        failpoints_folder=edge.failpoints,
    )
    return programs.superlink(link.chosen, edge.paths, base)


def _start(link: SuperLink) -> Outcome:
    edge = link.edge
    version = edge.platform.version(link.chosen.flower_version, edge.warn)
    machine.save_facts(edge, version=version)
    started = machine.start(edge, all_programs(link))
    if not started:
        return unchanged("everything runs")
    return done(f"started {', '.join(started)} on {programs.loopback_address(link.chosen)}")


def _metrics(link: SuperLink) -> Outcome:
    return metrics_use.start(link.edge, link.chosen)


def _health(link: SuperLink) -> Outcome:
    edge = link.edge
    address = programs.loopback_address(link.chosen)
    ca_certificate = edge.paths.certificates / "ca.crt" if link.chosen.tls_enabled else None
    seconds = machine.wait_until(
        edge,
        lambda: machine.healthy(address, ca_certificate),
        program="superlink",
        poll_s=HEALTH_POLL_S,
        limit_s=HEALTH_LIMIT_S,
        waiting_for=f"an answer to GET /health on {address}",
    )
    if link.chosen.gateway:
        fleet = _own_fleet_address(link.chosen)
        seconds += machine.wait_until(
            edge,
            lambda: machine.healthy(fleet, ca_certificate),
            program="gateway",
            poll_s=HEALTH_POLL_S,
            limit_s=HEALTH_LIMIT_S,
            waiting_for=f"an answer to GET /health on {fleet}, through the gateway,",
        )
    return done(f"healthy after {seconds:.1f} s") if seconds else unchanged("healthy")


def _own_fleet_address(chosen: context.SuperLinkSettings) -> str:
    """The Fleet address as this machine itself dials it."""
    host = LOOPBACK if chosen.fleet_host == EVERY_ADDRESS else chosen.fleet_host
    return f"{host}:{chosen.fleet_port}"


def _publish(link: SuperLink) -> Outcome:
    edge, chosen = link.edge, link.chosen
    attributes = {
        "FL_ROLE": "superlink",
        "FL_VERSION": edge.facts.get("version", chosen.flower_version),
        "FL_ENDPOINT": f"{edge.facts['address']}:{chosen.fleet_port}",
        "FL_ISOLATION": chosen.isolation,
        "FL_TLS": "YES" if chosen.tls_enabled else "NO",
        **(
            {"FL_CA_CERT": material.ca_for_publication(edge.paths.certificates)}
            if chosen.tls_enabled
            else {}
        ),
        # Last: a reader that sees YES sees the rest.
        "FL_READY": "YES",
    }
    return machine.publish(edge, attributes)


def _ready(link: SuperLink) -> Outcome:
    if link.edge.platform.has_agent:
        return skipped("the guest agent reports it, when its script says that all is well")
    return machine.publish(link.edge, {"READY": "YES"})


def _booted(_link: SuperLink) -> Outcome:
    return skipped("this machine runs already")


def _start_script(_link: SuperLink) -> Outcome:
    return skipped("onefed itself is the start script here")


def _unit(link: SuperLink) -> Outcome:
    beside = metrics_use.program(link.edge, link.chosen)
    return link.edge.platform.units([*all_programs(link), *beside])


def _firewall(link: SuperLink) -> Outcome:
    chosen = link.chosen
    served = [firewall.Opening(chosen.fleet_port, "nodes")] if chosen.gateway else []
    served += metrics_use.openings(link.edge, chosen)
    return machine.firewall(link.edge, served if chosen.firewall else None)


def _docker(link: SuperLink) -> Outcome:
    return link.edge.platform.engine(link.edge.clock, link.edge.sleep)


_C, _B, _P = Stage.CONFIGURE, Stage.BOOTSTRAP, Stage.PLATFORM

STEPS: tuple[Step[SuperLink], ...] = (
    Step("SL-01", "OS boot", _P, "network, SSH keys, context files", _booted),
    Step("SL-02", "Start script", _C, "the configure stage begins", _start_script),
    Step("SL-03", "Source context", _C, "context variables are read, never executed", _source),
    Step("SL-04", "Validate", _C, "every variable is checked, all errors at once", _validate),
    Step("SL-05", "Set defaults", _C, "the effective settings are known", _defaults),
    Step("SL-06", "Environment", _C, "run_config and the supervisor's instructions", _environment),
    Step("SL-07", "Mount directories", _C, "state, recovery, checkpoints", _folders),
    Step("SL-07a", "TLS setup", _C, "certificates are generated, or the operator's used", _tls),
    Step("SL-07b", "Gateway", _C, "nginx's configuration is made and checked", _gateway),
    Step("SL-08", "Unit file", _C, "systemd units", _unit),
    Step("SL-08a", "Firewall", _C, "ssh, Fleet and metrics are let in, nothing else", _firewall),
    Step("SL-09", "Wait for Docker", _B, "the container engine answers", _docker),
    Step("SL-10", "Start", _B, "SuperLink, SuperExec, supervisor and gateway run", _start),
    Step("SL-10a", "Metrics", _B, "the exporter answers, where it was asked for", _metrics),
    Step("SL-11", "Health check", _B, "SuperLink and gateway answer over TLS", _health),
    Step("SL-12", "Publish", _B, "attributes in OneGate, FL_READY last", _publish),
    Step("SL-13", "Report ready", _P, "READY=YES opens the deployment gate", _ready),
)
"""In the order in which they run."""
