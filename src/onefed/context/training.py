"""Rows of the table: parameters of the rules, and the exports of the model."""

from __future__ import annotations

from onefed.context import syntax
from onefed.context.requirements import (
    ABOVE_ZERO,
    BOOLEAN,
    NON_NEGATIVE,
    POSITIVE,
    SUPERLINK,
)
from onefed.context.syntax import Rule
from onefed.context.variable import Level, Variable

TRAINING = (
    Variable(
        name="FL_PROXIMAL_MU",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="1.0",
        rule=syntax.number("must be a float >= 0.0", lambda x: x >= 0),
        example="0.1",
        help="FedProx: weight of the distance between local and global model.",
        run_config_key="proximal-mu",
        aliases=("FL_FEDPROX_MU",),
    ),
    Variable(
        name="FL_SERVER_LR",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="0.1",
        rule=ABOVE_ZERO,
        example="0.01",
        help="FedAdam: learning rate of the coordinator. "
        "FedAvgM, FedAdagrad and FedYogi take it when it is set.",
        run_config_key="server-lr",
    ),
    Variable(
        name="FL_CLIENT_LR",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="0.1",
        rule=ABOVE_ZERO,
        example="0.01",
        help="FedAdam, FedAvgM, FedAdagrad, FedYogi: learning rate of the nodes, when it is set; "
        "else the app's own.",
        run_config_key="client-lr",
        changed="Not set, the app's own learning rate stands: it knows its model.",
    ),
    Variable(
        name="FL_FEDADAM_TAU",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="1e-9",
        rule=ABOVE_ZERO,
        example="1e-3",
        help="FedAdam: how little it adapts. FedAdagrad and FedYogi take it when it is set.",
        run_config_key="tau",
    ),
    Variable(
        name="FL_NUM_MALICIOUS",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="0",
        rule=NON_NEGATIVE,
        example="1",
        help="Krum, MultiKrum and Bulyan: hostile nodes that they withstand.",
        run_config_key="num-malicious",
        aliases=("FL_BYZANTINE_CLIENTS",),
    ),
    Variable(
        name="FL_TRIM_BETA",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="0.2",
        rule=syntax.number("must be between 0.0 and 0.5, exclusive", lambda x: 0 < x < 0.5),
        example="0.1",
        help="FedTrimmedAvg: share that is cut off at each end.",
        run_config_key="trim-beta",
        aliases=("FL_TRIM_RATIO",),
    ),
)

CHECKPOINTS = (
    Variable(
        name="FL_CHECKPOINT_ENABLED",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="NO",
        rule=BOOLEAN,
        example="YES",
        help="Export the model while it trains; what a resume needs is kept in any case.",
        run_config_key="checkpoint-enabled",
    ),
    Variable(
        name="FL_CHECKPOINT_INTERVAL",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="5",
        rule=POSITIVE,
        example="1",
        help="Rounds between two exports; the last round is always exported.",
        run_config_key="checkpoint-interval",
    ),
    Variable(
        name="FL_CHECKPOINT_PATH",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="/app/checkpoints",
        rule=Rule(
            "must be an absolute path in the container using [A-Za-z0-9._/-]",
            syntax.parse_container_path,
        ),
        example="/app/exports",
        help="Where the exports lie, as a container sees it.",
        maps_to="container side of the mount",
        run_config_key="checkpoint-path",
    ),
    Variable(
        name="FL_CHECKPOINT_KEEP_LAST",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="0",
        rule=NON_NEGATIVE,
        example="3",
        help="Newest exports that are kept; 0 keeps all.",
        run_config_key="checkpoint-keep-last",
        ours=True,
    ),
    Variable(
        name="FL_CHECKPOINT_KEEP_EVERY",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="0",
        rule=NON_NEGATIVE,
        example="50",
        help="Besides the newest, exports of rounds that it divides are kept; 0: no other.",
        run_config_key="checkpoint-keep-every",
        ours=True,
    ),
    Variable(
        name="FL_CHECKPOINT_RESUME",
        appliances=SUPERLINK,
        level=Level.ROLE,
        default="YES",
        rule=BOOLEAN,
        example="NO",
        help="A new machine that finds exports goes on with their run; `NO` never does.",
        maps_to="the recovery store",
    ),
)
