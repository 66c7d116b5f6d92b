"""The one table of contextualization variables.

48 rows are the variables of the appliance design, the rows with ``ours=True`` are added by onefed.
Settings, findings, user inputs and docs/context.md are made from these rows.
"""

from __future__ import annotations

from collections.abc import Mapping

from onefed.context import access, connection, guest_agent, peers, syntax, training
from onefed.context.requirements import (
    ADDRESS,
    BOOLEAN,
    BOTH,
    FLOWER_VERSION,
    FRAMEWORKS,
    PAIRS,
    PLANNED_USE_CASES,
    POSITIVE,
    SUPERLINK,
    SUPERNODE,
    USE_CASES,
)
from onefed.context.strategies import STRATEGIES
from onefed.context.syntax import Rule
from onefed.context.variable import Level, Variable

_CORE = (
    Variable(
        name="FLOWER_VERSION",
        appliances=BOTH,
        level=Level.SERVICE,
        default="1.41.0",
        rule=FLOWER_VERSION,
        example="1.41.0",
        help="Release of Flower on both sides.",
        maps_to="Flower package or image tag",
        changed="Fleet and Control changed from gRPC to HTTP since 1.25.0; "
        "only releases that were tested are accepted.",
    ),
    Variable(
        name="FL_NUM_ROUNDS",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="3",
        rule=POSITIVE,
        example="10",
        help="Rounds of the run; a resumed run does the rest of them.",
        run_config_key="num-server-rounds",
    ),
    Variable(
        name="FL_STRATEGY",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="FedAvg",
        rule=syntax.one_of(tuple(STRATEGIES)),
        example="FedAvg",
        help="Aggregation rule; docs/strategies.md says when to use which.",
        run_config_key="strategy",
        aliases=("FL_AGG_STRATEGY",),
    ),
    Variable(
        name="FL_MIN_FIT_CLIENTS",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="2",
        rule=POSITIVE,
        example="3",
        help="Training results that a round needs; with fewer it is repeated.",
        run_config_key="min-fit-clients",
    ),
    Variable(
        name="FL_MIN_EVALUATE_CLIENTS",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="2",
        rule=POSITIVE,
        example="3",
        help="Evaluation results that a round needs.",
        run_config_key="min-evaluate-clients",
    ),
    Variable(
        name="FL_MIN_AVAILABLE_CLIENTS",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="2",
        rule=POSITIVE,
        example="4",
        help="Connected nodes that a round waits for.",
        run_config_key="min-available-clients",
    ),
    Variable(
        name="FL_FLEET_API_ADDRESS",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="0.0.0.0:9092",
        rule=ADDRESS,
        example="0.0.0.0:9192",
        help="Where the coordinator listens for nodes; the port is part of its published endpoint.",
        maps_to="Fleet API; port of `FL_ENDPOINT`",
    ),
    Variable(
        name="FL_CONTROL_API_ADDRESS",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="127.0.0.1:9093",
        rule=ADDRESS,
        example="127.0.0.1:9193",
        help="Where the gateway takes commands; only the port counts, the address is loopback.",
        maps_to="Control API",
        changed="Whoever reaches the Control API runs code on every node, "
        "so it listens on loopback only.",
    ),
    Variable(
        name="FL_ISOLATION",
        appliances=BOTH,
        level=Level.INSTANCE,
        default="process",
        rule=syntax.one_of(("subprocess", "process")),
        example="subprocess",
        help="How apps are started: by our processes, or Flower's own way (`subprocess`).",
        maps_to="`--isolation`",
        changed="Flower starts each app anew and neither resumes nor restarts it; "
        "our processes do.",
    ),
    Variable(
        name="FL_DATABASE",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="state/state.db",
        rule=Rule("must be a relative path using [A-Za-z0-9._/-]", syntax.parse_relative_path),
        example="state/federation.db",
        help="Flower's database, relative to the folder of the coordinator.",
        maps_to="`--database`",
    ),
    Variable(
        name="FL_LOG_LEVEL",
        appliances=BOTH,
        level=Level.SERVICE,
        default="INFO",
        rule=syntax.one_of(("DEBUG", "INFO", "WARNING", "ERROR")),
        example="DEBUG",
        help="The least severe log lines that are written.",
        maps_to="env `FLWR_LOG_LEVEL`",
    ),
    Variable(
        name="FL_SEED",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="0",
        rule=syntax.integer("must be a non-negative integer", 0, syntax.INTEGER_64_MAX),
        example="42",
        help="Seed of the run: the same seed, nodes and data give the same model.",
        run_config_key="seed",
        ours=True,
    ),
    Variable(
        name="FL_ROUND_TIMEOUT",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="600",
        rule=POSITIVE,
        example="120",
        help="Seconds after which a round without its quorum is repeated.",
        run_config_key="round-timeout-s",
        ours=True,
    ),
    Variable(
        name="FL_ROUND_TIMEOUT_MIN",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="60",
        rule=POSITIVE,
        example="20",
        help="Least seconds a round with its quorum waits for the rest; slow replies make it more.",
        run_config_key="round-timeout-min-s",
        ours=True,
    ),
    Variable(
        name="FL_RUN_CONFIG",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="",
        rule=PAIRS,
        example="local-epochs=2 batch-size=64",
        help="Settings of the app, beside those that have a variable of their own.",
        maps_to="run_config, key by key",
        ours=True,
    ),
)

_USE_CASE = (
    Variable(
        name="ML_FRAMEWORK",
        appliances=SUPERNODE,
        level=Level.ROLE,
        default="pytorch",
        rule=syntax.one_of(FRAMEWORKS),
        example="sklearn",
        help="Framework that the node's image or machine carries; no other one is tried.",
        maps_to="node image",
        aliases=("FL_FRAMEWORK", "FL_ML_FRAMEWORK"),
    ),
    Variable(
        name="FL_USE_CASE",
        appliances=BOTH,
        level=Level.SERVICE,
        default="image-classification",
        rule=syntax.one_of(USE_CASES, planned=PLANNED_USE_CASES),
        example="none",
        help="Built-in app that the federation trains by itself; `none` waits for one.",
        maps_to="app that is submitted",
        changed="A deployment with no value changed trains by itself; "
        "both roles know the app, so the service asks once.",
    ),
)

_GPU = (
    Variable(
        name="FL_GPU_ENABLED",
        appliances=SUPERNODE,
        level=Level.ROLE,
        default="NO",
        rule=BOOLEAN,
        example="YES",
        help="Train on the GPUs of the node.",
        maps_to="`--gpus all`",
    ),
    Variable(
        name="FL_CUDA_VISIBLE_DEVICES",
        appliances=SUPERNODE,
        level=Level.ROLE,
        default="all",
        rule=syntax.pattern(
            "must be 'all' or comma-separated GPU ids", r"all|[0-9]{1,4}(,[0-9]{1,4})*"
        ),
        example="0,1",
        help="GPUs that training may use.",
        maps_to="env `CUDA_VISIBLE_DEVICES`",
    ),
    Variable(
        name="FL_GPU_MEMORY_FRACTION",
        appliances=SUPERNODE,
        level=Level.ROLE,
        default="0.8",
        rule=syntax.number("must be a float between 0.0 (excluded) and 1.0", lambda x: 0 < x <= 1),
        example="0.5",
        help="Share of the GPU memory that PyTorch may take.",
        maps_to="env `FL_GPU_MEMORY_FRACTION`",
    ),
)

_MONITORING = (
    Variable(
        name="FL_LOG_FORMAT",
        appliances=BOTH,
        level=Level.SERVICE,
        default="text",
        rule=syntax.one_of(("text", "json")),
        example="json",
        help="Log lines for people or for machines.",
        maps_to="lines of the boot, logs of our programs",
    ),
    Variable(
        name="FL_METRICS_ENABLED",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="NO",
        rule=BOOLEAN,
        example="YES",
        help="Serve training metrics for Prometheus, to the machine's own network.",
        maps_to="metrics exporter",
    ),
    Variable(
        name="FL_METRICS_PORT",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="9101",
        rule=syntax.integer(
            "must be an integer 1024-65535, not 9091-9093", 1024, 65535, but=range(9091, 9094)
        ),
        example="9102",
        help="Port of the training metrics.",
        maps_to="metrics exporter, firewall",
    ),
    Variable(
        name="FL_DCGM_ENABLED",
        appliances=SUPERNODE,
        level=Level.ROLE,
        default="NO",
        rule=BOOLEAN,
        example="YES",
        help="Serve GPU metrics on port 9400.",
        maps_to="GPU metrics exporter",
    ),
)

_GROUPS: Mapping[str, tuple[Variable, ...]] = {
    "Core": _CORE,
    "Connection of a SuperNode": connection.CONNECTION,
    "TLS": connection.TLS,
    "Who may connect": access.ROWS,
    "Framework and use case": _USE_CASE,
    "Training": training.TRAINING,
    "Checkpoints": training.CHECKPOINTS,
    "GPU": _GPU,
    "Keepalive": connection.KEEPALIVE,
    "Monitoring": _MONITORING,
    "Edge": connection.EDGE,
    "Peers": peers.ROWS,
    "Platform": guest_agent.ROWS,
}

GROUPS = peers.with_readers(_GROUPS)
"""All rows, under the headings of docs/context.md."""

VARIABLES: Mapping[str, Variable] = {row.name: row for rows in GROUPS.values() for row in rows}
"""All rows by canonical name, in the same order."""

CHANGED_DEFAULTS = {row.name: row.changed for row in VARIABLES.values() if row.changed}
"""Reason for each default, or meaning of one, that differs from the appliance design."""

RUN_CONFIG_NAMES = {
    row.run_config_key: row.name for row in VARIABLES.values() if row.run_config_key
}
"""Which variable owns a key of the run_config. Nobody else sets it."""
