"""Rules that join several variables, for those that something reads today.

The ids are those of the appliance design. A rule sees values that are valid one by one; whether
something was given (``is_set``) it sees in any case, so that nothing is found out one at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeAlias

from onefed.context import peers, syntax
from onefed.context.outcome import Finding, Severity, Value
from onefed.context.requirements import (
    BOTH,
    FRAMEWORKS,
    FRAMEWORKS_OF,
    PEER,
    SUPERLINK,
    SUPERNODE,
)
from onefed.context.strategies import PARAMETERS, STRATEGIES
from onefed.context.table import RUN_CONFIG_NAMES, VARIABLES
from onefed.context.variable import Role

Values: TypeAlias = Mapping[str, Value]

SSL_FILES = ("FL_SSL_CA_CERTFILE", "FL_SSL_CERTFILE", "FL_SSL_KEYFILE")

KEEPALIVE_WANTED_S = 10
"""Servers take more frequent probes for an attack."""


@dataclasses.dataclass(frozen=True)
class CrossRule:
    """One requirement on several variables."""

    id: str
    """``X`` and a number in the appliance design; ``O`` and a number: ours."""
    appliances: frozenset[Role]
    reads: tuple[str, ...]
    """Variables whose text matters. The rule is left out when one of them is not valid."""
    text: str
    """The requirement, for docs/context.md."""
    check: Callable[[Values], Iterator[Finding]]


def check(role: Role, values: Values, invalid: Collection[str]) -> list[Finding]:
    """What all rules of an appliance say about its values."""
    return [
        finding
        for rule in CROSS_RULES
        if role in rule.appliances and not set(rule.reads) & set(invalid)
        for finding in rule.check(values)
    ]


def address_or_onegate(values: Values) -> Iterator[Finding]:
    if values["TOKEN"].text == "NO" and not values["FL_SUPERLINK_ADDRESS"].is_set:
        yield _finding(
            Severity.ERROR,
            "FL_SUPERLINK_ADDRESS",
            "FL_SUPERLINK_ADDRESS is empty and TOKEN=NO: there is no way to find the coordinator.",
        )


def clients_available(values: Values) -> Iterator[Finding]:
    available = values["FL_MIN_AVAILABLE_CLIENTS"].text
    for name in ("FL_MIN_FIT_CLIENTS", "FL_MIN_EVALUATE_CLIENTS"):
        needed = values[name].text
        if int(needed) > int(available):
            yield _finding(
                Severity.WARNING,
                name,
                f"{name}={needed} is more than FL_MIN_AVAILABLE_CLIENTS={available}: "
                f"a round that starts with {available} nodes cannot succeed.",
            )


def parameters_of_the_strategy(values: Values) -> Iterator[Finding]:
    name = values["FL_STRATEGY"].text
    strategy = STRATEGIES[name]
    others = tuple(set(PARAMETERS) - {*strategy.reads, *strategy.reads_if_set})
    yield from _ignored(values, tuple(sorted(others)), f"FL_STRATEGY is {name}")


def proximal_term(values: Values) -> Iterator[Finding]:
    if values["FL_STRATEGY"].text != "FedProx":
        return
    yield _finding(
        Severity.INFO,
        "FL_STRATEGY",
        "FL_STRATEGY is FedProx: the app has to add the proximal term (run_config proximal-mu).",
    )
    if float(values["FL_PROXIMAL_MU"].text) == 0:
        message = "FL_PROXIMAL_MU=0 leaves the proximal term out: FedProx is FedAvg then."
        yield _finding(Severity.WARNING, "FL_PROXIMAL_MU", message)


def nodes_for_hostile_ones(values: Values) -> Iterator[Finding]:
    name = values["FL_STRATEGY"].text
    hostile = int(values["FL_NUM_MALICIOUS"].text)
    nodes = int(values["FL_MIN_AVAILABLE_CLIENTS"].text)
    strategy = STRATEGIES[name]
    if not strategy.nodes_per_hostile:
        return
    needed = strategy.nodes_needed(hostile)
    if hostile and nodes < needed:
        yield _finding(
            Severity.ERROR,
            "FL_MIN_AVAILABLE_CLIENTS",
            f"{name} withstands FL_NUM_MALICIOUS={hostile} hostile nodes among {needed} or more "
            f"({strategy.nodes_per_hostile}f + 3), and FL_MIN_AVAILABLE_CLIENTS is {nodes}: "
            "use more nodes, or a smaller FL_NUM_MALICIOUS.",
            example=str(needed),
        )
    elif not hostile:
        message = f"FL_NUM_MALICIOUS is 0: {name} withstands no hostile node."
        yield _finding(Severity.WARNING, "FL_NUM_MALICIOUS", message)


def checkpoints_enabled(values: Values) -> Iterator[Finding]:
    switch = "FL_CHECKPOINT_ENABLED"
    if values[switch].text == "NO":
        names = tuple(n for n in values if n.startswith("FL_CHECKPOINT_") and n != switch)
        yield from _ignored(values, names, "FL_CHECKPOINT_ENABLED is NO")


def ssl_files_together(values: Values) -> Iterator[Finding]:
    given = [name for name in SSL_FILES if values[name].is_set]
    if values["FL_TLS_ENABLED"].text == "NO" or not given:
        return
    for name in SSL_FILES:
        if name not in given:
            yield _finding(
                Severity.ERROR,
                name,
                f"{name} is empty and {' and '.join(given)} "
                f"{'is' if len(given) == 1 else 'are'} set: set all three FL_SSL_* or none.",
            )


def tls_material_used(values: Values) -> Iterator[Finding]:
    if values["FL_TLS_ENABLED"].text == "NO":
        names = tuple(name for name in (*SSL_FILES, "FL_CERT_EXTRA_SAN") if name in values)
        yield from _ignored(values, names, "FL_TLS_ENABLED is NO")


def names_in_own_certificate(values: Values) -> Iterator[Finding]:
    is_operators = any(values[name].is_set for name in SSL_FILES)
    if (
        is_operators
        and values["FL_CERT_EXTRA_SAN"].is_set
        and values["FL_TLS_ENABLED"].text != "NO"
    ):
        yield _finding(
            Severity.WARNING,
            "FL_CERT_EXTRA_SAN",
            "FL_CERT_EXTRA_SAN is ignored: the FL_SSL_* certificate has its names already.",
        )


def ca_for_static_address(values: Values) -> Iterator[Finding]:
    tls = values["FL_TLS_ENABLED"]
    if (
        tls.text == "NO"
        or not values["FL_SUPERLINK_ADDRESS"].is_set
        or values["FL_SSL_CA_CERTFILE"].is_set
    ):
        return
    message = "FL_SUPERLINK_ADDRESS is set, TLS is on and FL_SSL_CA_CERTFILE is empty: "
    if tls.is_set:
        message += "there is no CA certificate to check the coordinator with."
        yield _finding(Severity.ERROR, "FL_SSL_CA_CERTFILE", message)
    else:
        message += "the CA certificate has to come from OneGate."
        yield _finding(Severity.WARNING, "FL_SSL_CA_CERTFILE", message)


def framework_of_the_use_case(values: Values) -> Iterator[Finding]:
    use_case, framework = values["FL_USE_CASE"].text, values["ML_FRAMEWORK"].text
    needed = FRAMEWORKS_OF.get(use_case, FRAMEWORKS)
    if framework not in needed:
        yield _finding(
            Severity.ERROR,
            "ML_FRAMEWORK",
            f"FL_USE_CASE={use_case} needs ML_FRAMEWORK={' or '.join(needed)}, and it is "
            f"{framework}.",
            example=needed[0],
        )


def gpu_of_the_use_case(values: Values) -> Iterator[Finding]:
    if values["FL_USE_CASE"].text == "llm-fine-tuning" and values["FL_GPU_ENABLED"].text != "YES":
        message = "FL_USE_CASE is llm-fine-tuning and FL_GPU_ENABLED is NO: a CPU is too slow."
        yield _finding(Severity.WARNING, "FL_GPU_ENABLED", message)


def metrics_enabled(values: Values) -> Iterator[Finding]:
    if values["FL_METRICS_ENABLED"].text != "YES":
        yield from _ignored(values, ("FL_METRICS_PORT",), "FL_METRICS_ENABLED is NO")


def gpu_enabled(values: Values) -> Iterator[Finding]:
    if values["FL_GPU_ENABLED"].text == "YES":
        return
    names = ("FL_CUDA_VISIBLE_DEVICES", "FL_GPU_MEMORY_FRACTION")
    yield from _ignored(values, names, "FL_GPU_ENABLED is NO")
    if values["FL_DCGM_ENABLED"].text == "YES":
        message = "FL_DCGM_ENABLED is YES and FL_GPU_ENABLED is NO: there will be no GPU metrics."
        yield _finding(Severity.WARNING, "FL_DCGM_ENABLED", message)


def probe_answered_in_time(values: Values) -> Iterator[Finding]:
    time, timeout = "FL_GRPC_KEEPALIVE_TIME", "FL_GRPC_KEEPALIVE_TIMEOUT"
    time_s, timeout_s = int(values[time].text), int(values[timeout].text)
    if timeout_s >= time_s:
        yield _finding(
            Severity.ERROR,
            timeout,
            f"{timeout}={timeout_s} has to be less than {time}={time_s}: a connection is given up "
            "before it is probed again.",
            example=str(max(1, time_s // 3)),
        )
    if time_s < KEEPALIVE_WANTED_S:
        message = f"{time}={time_s} probes every idle connection very often: use 10 or more."
        yield _finding(Severity.WARNING, time, message)


def backoff_grows(values: Values) -> Iterator[Finding]:
    if values["FL_EDGE_BACKOFF"].text == "fixed":
        yield from _ignored(values, ("FL_EDGE_MAX_BACKOFF",), "FL_EDGE_BACKOFF is fixed")


def run_config_unclaimed(values: Values) -> Iterator[Finding]:
    for key in syntax.parse_pairs(values["FL_RUN_CONFIG"].text):
        if owner := RUN_CONFIG_NAMES.get(key):
            yield _finding(
                Severity.ERROR,
                "FL_RUN_CONFIG",
                f"FL_RUN_CONFIG sets {key}, which belongs to {owner}: set {owner} instead.",
            )


def peers_listed(values: Values) -> Iterator[Finding]:
    if not values["FL_PEERS"].is_set:
        if values["TOKEN"].text == "NO" and not values["FL_PEER_NAME"].is_set:
            yield _finding(
                Severity.ERROR,
                "FL_PEERS",
                "FL_PEERS is empty and TOKEN=NO: there is no way to find the other peers.",
            )
        return
    listed = [contact.name for contact in peers.parse_contacts(values["FL_PEERS"].text)]
    name, founders = values["FL_PEER_NAME"], values["FL_PEER_FOUNDERS"].text
    if name.text not in listed:
        said = f"FL_PEER_NAME={name.text} is not in it" if name.is_set else "FL_PEER_NAME is empty"
        message = f"FL_PEERS is set and {said}: a peer has to know which of them it is."
        yield _finding(Severity.ERROR, "FL_PEER_NAME", message, example=listed[0])
    if len(listed) < int(founders):
        message = f"FL_PEER_FOUNDERS={founders} and FL_PEERS lists {len(listed)} peers."
        yield _finding(
            Severity.ERROR, "FL_PEER_FOUNDERS", message, example=str(max(1, len(listed)))
        )


def founders_for_hostile_ones(values: Values) -> Iterator[Finding]:
    name = values["FL_STRATEGY"].text
    hostile = int(values["FL_NUM_MALICIOUS"].text)
    founders = int(values["FL_PEER_FOUNDERS"].text)
    needed = STRATEGIES[name].nodes_needed(hostile)
    if founders < needed:
        yield _finding(
            Severity.ERROR,
            "FL_PEER_FOUNDERS",
            f"{name} with FL_NUM_MALICIOUS={hostile} needs {needed} peers, and FL_PEER_FOUNDERS is "
            f"{founders}: found the group with more, or choose another rule.",
            example=str(needed),
        )


CROSS_RULES = (
    CrossRule(
        "X2",
        SUPERNODE,
        ("TOKEN",),
        "Without `FL_SUPERLINK_ADDRESS` a SuperNode needs OneGate (`TOKEN`=YES).",
        address_or_onegate,
    ),
    CrossRule(
        "X4",
        SUPERLINK,
        ("FL_MIN_FIT_CLIENTS", "FL_MIN_EVALUATE_CLIENTS", "FL_MIN_AVAILABLE_CLIENTS"),
        "`FL_MIN_FIT_CLIENTS` and `FL_MIN_EVALUATE_CLIENTS` above `FL_MIN_AVAILABLE_CLIENTS` "
        "give a WARNING.",
        clients_available,
    ),
    CrossRule(
        "X6",
        SUPERLINK | PEER,
        ("FL_STRATEGY",),
        "A parameter of a strategy that is not selected is ignored, and has to be valid all the "
        "same (X9).",
        parameters_of_the_strategy,
    ),
    CrossRule(
        "X7",
        SUPERLINK | PEER,
        ("FL_STRATEGY", "FL_PROXIMAL_MU"),
        "FedProx needs an app that adds the proximal term; `FL_PROXIMAL_MU`=0 gives a WARNING.",
        proximal_term,
    ),
    CrossRule(
        "X8",
        SUPERLINK,
        ("FL_STRATEGY", "FL_NUM_MALICIOUS", "FL_MIN_AVAILABLE_CLIENTS"),
        "With f = `FL_NUM_MALICIOUS` > 0 Krum and MultiKrum need `FL_MIN_AVAILABLE_CLIENTS` "
        ">= 2f + 3, Bulyan >= 4f + 3; f = 0 gives a WARNING.",
        nodes_for_hostile_ones,
    ),
    CrossRule(
        "X10",
        SUPERLINK | PEER,
        ("FL_CHECKPOINT_ENABLED",),
        "The other `FL_CHECKPOINT_*` are ignored unless `FL_CHECKPOINT_ENABLED` is YES.",
        checkpoints_enabled,
    ),
    CrossRule(
        "X11",
        SUPERLINK,
        ("FL_TLS_ENABLED",),
        "On the SuperLink all three `FL_SSL_*` are set, or none.",
        ssl_files_together,
    ),
    CrossRule(
        "X12",
        BOTH,
        ("FL_TLS_ENABLED",),
        "`FL_SSL_*` and `FL_CERT_EXTRA_SAN` are ignored while `FL_TLS_ENABLED` is NO.",
        tls_material_used,
    ),
    CrossRule(
        "X13",
        SUPERLINK,
        ("FL_TLS_ENABLED",),
        "`FL_CERT_EXTRA_SAN` is ignored, with a WARNING, beside `FL_SSL_*`.",
        names_in_own_certificate,
    ),
    CrossRule(
        "X14",
        SUPERNODE,
        ("FL_TLS_ENABLED",),
        "`FL_SUPERLINK_ADDRESS` with `FL_TLS_ENABLED` set to YES needs `FL_SSL_CA_CERTFILE`; "
        "with `FL_TLS_ENABLED` left out its absence is a WARNING.",
        ca_for_static_address,
    ),
    CrossRule(
        "X16",
        SUPERNODE | PEER,
        ("ML_FRAMEWORK",),
        "`ML_FRAMEWORK` is one that the app of `FL_USE_CASE` runs with.",
        framework_of_the_use_case,
    ),
    CrossRule(
        "X17",
        SUPERNODE,
        ("FL_GPU_ENABLED",),
        "`FL_USE_CASE`=llm-fine-tuning without `FL_GPU_ENABLED` gives a WARNING.",
        gpu_of_the_use_case,
    ),
    CrossRule(
        "X19",
        SUPERNODE,
        ("FL_GPU_ENABLED", "FL_DCGM_ENABLED"),
        "`FL_CUDA_VISIBLE_DEVICES` and `FL_GPU_MEMORY_FRACTION` are ignored unless "
        "`FL_GPU_ENABLED` is YES; `FL_DCGM_ENABLED` without it is a WARNING (X21).",
        gpu_enabled,
    ),
    CrossRule(
        "X22",
        SUPERLINK,
        ("FL_METRICS_ENABLED",),
        "`FL_METRICS_PORT` is ignored unless `FL_METRICS_ENABLED` is YES, and has to be valid all "
        "the same.",
        metrics_enabled,
    ),
    CrossRule(
        "X23",
        BOTH | PEER,
        ("FL_GRPC_KEEPALIVE_TIME", "FL_GRPC_KEEPALIVE_TIMEOUT"),
        "`FL_GRPC_KEEPALIVE_TIMEOUT` is less than `FL_GRPC_KEEPALIVE_TIME`; "
        "a time below 10 gives a WARNING.",
        probe_answered_in_time,
    ),
    CrossRule(
        "X26",
        SUPERNODE,
        ("FL_EDGE_BACKOFF",),
        "`FL_EDGE_MAX_BACKOFF` is ignored when `FL_EDGE_BACKOFF` is fixed.",
        backoff_grows,
    ),
    CrossRule(
        "O1",
        SUPERLINK | PEER,
        ("FL_RUN_CONFIG",),
        "`FL_RUN_CONFIG` names no key of the run_config that belongs to another variable.",
        run_config_unclaimed,
    ),
    CrossRule(
        "O2",
        PEER,
        ("TOKEN", "FL_PEERS", "FL_PEER_NAME", "FL_PEER_FOUNDERS"),
        "`FL_PEERS` holds `FL_PEER_NAME` and at least `FL_PEER_FOUNDERS` peers; "
        "without it a peer needs OneGate (`TOKEN`=YES), or a name to tell its contact under.",
        peers_listed,
    ),
    CrossRule(
        "O3",
        PEER,
        ("FL_STRATEGY", "FL_NUM_MALICIOUS", "FL_PEER_FOUNDERS"),
        "Krum, MultiKrum and Bulyan need as many `FL_PEER_FOUNDERS` as X8 says for nodes.",
        founders_for_hostile_ones,
    ),
)


def _ignored(values: Values, names: tuple[str, ...], because: str) -> Iterator[Finding]:
    for name in names:
        if values[name].is_set:
            yield _finding(Severity.INFO, name, f"{name} is ignored: {because}.")


def _finding(severity: Severity, name: str, message: str, *, example: str = "") -> Finding:
    if severity is Severity.ERROR:
        example = example or VARIABLES[name].example
    return Finding(severity=severity, name=name, message=message, example=example)
