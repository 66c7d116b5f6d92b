"""Whether a coordinator serves metrics, and where; best effort, whatever is wrong with them."""

from __future__ import annotations

from onefed.appliance import firewall, machine, metrics, programs
from onefed.appliance.machine import Edge
from onefed.appliance.process import Program
from onefed.appliance.steps import Outcome, done, skipped, unchanged
from onefed.context import SuperLinkSettings
from onefed.errors import OnefedError

POLL_S = 0.2
LIMIT_S = 20.0
"""It answers after half a second; the rest is for a slow machine."""


def program(edge: Edge, chosen: SuperLinkSettings) -> tuple[Program, ...]:
    """The exporter, where it was asked for.

    It listens on the machine's own address: on loopback where the machine is a laptop's.
    """
    if not chosen.metrics_enabled:
        return ()
    base = programs.environment(
        edge.paths, edge.inherited, state_folder=edge.state_folder, events=edge.events
    )
    return (programs.metrics(chosen, edge.paths, base, address=edge.facts["address"]),)


def openings(edge: Edge, chosen: SuperLinkSettings) -> tuple[firewall.Opening, ...]:
    """Its port, for the machine's own network; closed where that is not known."""
    if not chosen.metrics_enabled or edge.network is None:
        return ()
    return (firewall.Opening(chosen.metrics_port, "metrics", edge.network),)


def start(edge: Edge, chosen: SuperLinkSettings) -> Outcome:
    """Step SL-10a: the exporter runs and answers, or a warning says why not."""
    wanted, port = program(edge, chosen), chosen.metrics_port
    try:
        if not wanted:
            stopped = edge.platform.retire(programs.METRICS)
            return (done if stopped else skipped)("FL_METRICS_ENABLED is NO")
        address = edge.facts["address"]
        if not edge.running(programs.METRICS):
            machine.require_free_port(address, port, "FL_METRICS_PORT")
        started = machine.start(edge, wanted)
        machine.wait_until(
            edge,
            lambda: metrics.is_served(address, port),
            program=programs.METRICS,
            poll_s=POLL_S,
            limit_s=LIMIT_S,
            waiting_for=f"an answer to GET /metrics on {address}:{port}",
        )
    except OnefedError as error:
        edge.warn(f"There are no metrics; training goes on without. {error}")
        return skipped(error.message)
    return (done if started else unchanged)(f"metrics on {address}:{port}")
