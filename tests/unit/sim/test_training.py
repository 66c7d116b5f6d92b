"""Three nodes train the built-in app in one process, and agree on the model of the hub's rule."""

from __future__ import annotations

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from onefed import aggregate, arrays
from onefed.apps.image_classification import task
from onefed.apps.image_classification.client_app import app
from onefed.arrays import Arrays
from onefed.sim.arrays import ArrayMatter
from onefed.sim.options import Fault, Kind, Options
from onefed.sim.run import run

NODES, ROUNDS, SEED = 3, 3, 11


@pytest.fixture(autouse=True)
def may_make_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that Flower has started."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def train(node: str, model: Arrays, round_number: int) -> tuple[Arrays, int]:
    """Ask the app, as a Flower node would."""
    partition = int(node.removeprefix("n"))
    record = ArrayRecord({name: Array(array) for name, array in model.items()})
    config = ConfigRecord({"server-round": round_number, "seed": SEED})
    content = RecordDict({"arrays": record, "config": config})
    context = Context(
        run_id=1,
        node_id=partition,
        node_config={"partition-id": partition, "num-partitions": NODES},
        state=RecordDict(),
        run_config={},
    )
    reply = app(Message(content, partition, "train"), context).content
    trained = {name: array.numpy() for name, array in reply.array_records["arrays"].items()}
    return trained, int(reply.metric_records["metrics"]["num-examples"])


def by_the_hubs_rule(contributors: list[list[str]]) -> list[str]:
    """Digests of the rounds as the hub's loop makes them, of the same contributors."""
    rule = aggregate.rule("FedAvg")
    model = dict(task.initial_arrays({"seed": SEED}))
    state, digests = rule.init(model), []
    for number, names in enumerate(contributors, start=1):
        updates = []
        for name in names:
            trained, examples = train(name, model, number)
            updates.append(aggregate.Update(name.removeprefix("n"), examples, trained))
        state, model = rule.step(state, model, updates, number)
        digests.append(arrays.digest(model))
    return digests


def check(options: Options) -> None:
    first = dict(task.initial_arrays({"seed": SEED}))
    outcome = run(options, matter=ArrayMatter(first, train, aggregate.rule("FedAvg")))

    assert outcome.violation is None
    committed = [outcome.world.checkers.committed[number] for number in range(1, ROUNDS + 1)]
    contributors = [[each.node for each in entry.contributors] for entry in committed]
    assert [entry.root for entry in committed] == by_the_hubs_rule(contributors)


def test_without_faults_all_nodes_have_the_models_of_the_hub() -> None:
    check(Options(seed=SEED, nodes=NODES, rounds=ROUNDS))


def test_with_crashes_and_loss_the_models_are_those_of_the_recorded_contributors() -> None:
    crashes = tuple(
        Fault(Kind.CRASH, at_s=at_s, for_s=1.0, node=node, skip=2)
        for at_s, node in ((1.3, -1), (3.0, 1), (4.5, 2))
    )
    check(Options(seed=SEED, nodes=NODES, rounds=ROUNDS, loss=0.1, faults=crashes, calm_at_s=6.0))
