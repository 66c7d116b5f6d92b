"""Step SN-07c: the coordinator knows this node by its key, through OneGate or by a token."""

from __future__ import annotations

from onefed.appliance import enrolment, machine
from onefed.appliance.failures import KnownFailureError
from onefed.appliance.machine import Edge
from onefed.appliance.steps import Outcome, done, skipped, unchanged
from onefed.opennebula import onegate
from onefed.tls import material, node_keys

REGISTRATION_POLL_S = 0.3
REGISTRATION_LIMIT_S = 120.0
"""The coordinator looks for new keys every half second; it may be busy booting itself."""

REGISTERED = "FL_NODE_REGISTERED"
"""Attribute in which the coordinator puts the fingerprint of the key that it registered."""

REFUSED = "REFUSED"
"""There, when the operator has revoked the node."""


class RegistrationError(KnownFailureError):
    """The coordinator did not accept this node."""

    code = "node_not_registered"


def ensure(edge: Edge, key: node_keys.NodeKey, token: str | None) -> Outcome:
    """Have the key registered, by a token where there is one, else by publishing it.

    Raises:
        RegistrationError, enrolment.EnrolmentError: the coordinator does not take this node.
    """
    if edge.facts["tls"] != "YES":
        return skipped("node keys need TLS")
    if token is not None:
        return _enrol(edge, token, key)
    if edge.gate is None:
        return skipped(f"no OneGate: register on the coordinator {key.public_key.decode()}")
    partition_id = _partition_id(edge.facts["node_config"])
    # The key comes last: who reads it registers the node with the partition that is there by then.
    wanted = {
        **({} if partition_id is None else {"FL_PARTITION": partition_id}),
        "FL_NODE_KEY": node_keys.encode_for_publication(key.public_key),
    }
    known = {**wanted, REGISTERED: key.fingerprint}
    if edge.gate.vm().attributes.items() >= known.items():
        return unchanged(f"key {key.fingerprint[:16]} is registered")
    held = edge.gate.vm().attributes
    for name, value in wanted.items():
        if held.get(name) != value:
            edge.gate.publish(name, value)
    started = edge.clock()
    while not _registered(edge.gate, key.fingerprint):
        if edge.clock() - started > REGISTRATION_LIMIT_S:
            raise RegistrationError(
                "The coordinator did not register this node's key in "
                f"{REGISTRATION_LIMIT_S:.0f} s.",
                hint="The supervisor's log on the SuperLink's machine says why.",
            )
        edge.sleep(REGISTRATION_POLL_S)
    return done(f"key {key.fingerprint[:16]} is registered")


def _enrol(edge: Edge, token: str, key: node_keys.NodeKey) -> Outcome:
    """Show the token once; a key that was taken stays so, and the token is used up."""
    if edge.facts.get("enrolled") == key.fingerprint:
        return unchanged(f"key {key.fingerprint[:16]} was enrolled")
    ca_certificate = edge.paths.certificates / material.CA_CERTIFICATE
    enrolment.enrol(
        edge.facts["endpoint"],
        ca_certificate,
        token,
        key.public_key,
        clock=edge.clock,
        sleep=edge.sleep,
    )
    machine.save_facts(edge, enrolled=key.fingerprint)
    return done(f"key {key.fingerprint[:16]} is enrolled")


def _partition_id(node_config: str) -> str | None:
    for pair in node_config.split():
        key, _, value = pair.partition("=")
        if key == "partition-id" and value.isdigit():
            return value
    return None


def _registered(gate: onegate.OneGate, fingerprint: str) -> bool:
    try:
        said = gate.vm().attributes.get(REGISTERED)
        if said == REFUSED:
            raise RegistrationError(
                "The coordinator's operator has revoked this node.",
                hint="On the coordinator: onefed nodes replace takes its new key.",
            )
        return said == fingerprint
    except onegate.NotAuthorizedError:
        raise
    except onegate.OneGateError:
        return False
