"""The example apps: Flower accepts them, and they learn both ways."""

from __future__ import annotations

import filecmp
import importlib
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Context, RecordDict

EXAMPLES = Path(__file__).parents[3] / "examples"
PLAIN = EXAMPLES / "sklearn-logreg"
MANAGED = EXAMPLES / "sklearn-logreg-managed"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, str], Any]]:
    """Imports ``module:attribute`` of an example; both call their package ``logreg``."""

    def load(app_folder: Path, reference: str) -> Any:
        monkeypatch.syspath_prepend(app_folder)
        module, _, attribute = reference.partition(":")
        return getattr(importlib.import_module(module), attribute)

    yield load
    for name in [name for name in sys.modules if name.partition(".")[0] == "logreg"]:
        del sys.modules[name]


def configuration(app_folder: Path) -> dict[str, Any]:
    tool = tomllib.loads((app_folder / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    return {**tool["flwr"]["app"], "onefed": tool.get("onefed", {})}


@pytest.mark.parametrize("app_folder", [PLAIN, MANAGED], ids=lambda path: path.name)
def test_flower_builds_it(
    app_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(app_folder, tmp_path / app_folder.name)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")

    done = subprocess.run(
        [Path(sys.executable).with_name("flwr"), "build", "--app", app_folder.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "missing" not in done.stdout
    assert len(list(tmp_path.glob("*.fab"))) == 1


def test_becoming_managed_leaves_the_client_app_as_it_is() -> None:
    for name in ("client_app.py", "__init__.py"):
        assert filecmp.cmp(PLAIN / "logreg" / name, MANAGED / "logreg" / name, shallow=False)


@pytest.mark.parametrize("app_folder", [PLAIN, MANAGED], ids=lambda path: path.name)
def test_own_server_app_trains(
    app_folder: Path, load: Callable[[Path, str], Any], virtual_clients: Callable[..., Any]
) -> None:
    app = configuration(app_folder)
    client_app = load(app_folder, app["components"]["clientapp"])
    server_app = load(app_folder, app["components"]["serverapp"])
    clients = virtual_clients(client_app, 3, app["config"])

    server_app(clients, Context(1, 1, {}, RecordDict(), app["config"]))

    last = clients.sent[-3:]
    accuracies = [
        client_app(message, clients.contexts[message.metadata.dst_node_id]).content["metrics"][
            "eval_acc"
        ]
        for message in last
    ]
    assert len(clients.sent) == 3 * 3 * 2, "three rounds of training and evaluation"
    assert sum(accuracies) / 3 > 0.9


def test_managed_example_keeps_its_contract(
    load: Callable[[Path, str], Any], virtual_clients: Callable[..., Any]
) -> None:
    """What onefed's ServerApp does with ``[tool.onefed]``."""
    app = configuration(MANAGED)
    initial_arrays = load(MANAGED, app["onefed"]["initial-arrays"])(app["config"])
    evaluate = load(MANAGED, app["onefed"]["evaluate"])
    clients = virtual_clients(load(MANAGED, app["components"]["clientapp"]), 3, app["config"])
    assert isinstance(initial_arrays, ArrayRecord)
    start = {name: array.numpy() for name, array in initial_arrays.items()}

    model = clients.federate(start, rounds=3)

    assert evaluate(start, app["config"])["accuracy"] < 0.2
    assert evaluate(model, app["config"])["accuracy"] > 0.9
    assert set(evaluate(model, app["config"])) == {"loss", "accuracy", "num-examples"}
