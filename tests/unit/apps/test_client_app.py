"""The built-in app as a federation meets it: message in, reply out, and models that learn."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.cli.utils import collect_files
from flwr.common.config import validate_config

from onefed.apps import USE_CASES, bundle_folder
from onefed.apps.errors import DataError, SettingsError
from onefed.apps.image_classification import data, task
from onefed.apps.image_classification.client_app import app
from onefed.apps.image_classification.settings import Settings

Clients = Callable[..., Any]

START = task.initial_arrays({"seed": 0})


def bits(reply: RecordDict) -> bytes:
    return b"".join(array.numpy().tobytes() for array in reply["arrays"].values())


class TestReplies:
    def test_train_reply_is_what_every_strategy_of_flower_expects(
        self, virtual_clients: Clients
    ) -> None:
        first, second, third = virtual_clients(app, 3).ask("train", START, {"server-round": 1})

        assert list(first) == ["arrays", "metrics"]
        assert {name: array.shape for name, array in first["arrays"].items()} == {
            name: array.shape for name, array in START.items()
        }
        assert {array.dtype for array in first["arrays"].values()} == {"float32"}
        assert set(first["metrics"]) == {"num-examples", "train_loss"}
        assert [r["metrics"]["num-examples"] for r in (first, second, third)] == [385, 385, 384]

    def test_evaluate_reply_judges_the_examples_that_were_held_out(
        self, virtual_clients: Clients
    ) -> None:
        replies = virtual_clients(app, 3).ask("evaluate", START, {"server-round": 1})

        assert all(list(reply) == ["metrics"] for reply in replies)
        assert [reply["metrics"]["num-examples"] for reply in replies] == [96, 96, 96]
        assert all(reply["metrics"]["eval_loss"] > 1.0 for reply in replies)
        assert all(0.0 <= reply["metrics"]["eval_acc"] < 0.5 for reply in replies)


class TestReproducibility:
    def test_same_seed_round_and_partition_give_the_same_bits(
        self, virtual_clients: Clients
    ) -> None:
        config = {"server-round": 2, "seed": 5}
        first, second = (virtual_clients(app, 2).ask("train", START, config) for _ in range(2))

        assert [bits(reply) for reply in first] == [bits(reply) for reply in second]
        assert bits(first[0]) != bits(first[1])

    @pytest.mark.parametrize("config", [{"server-round": 3}, {"server-round": 2, "seed": 6}])
    def test_another_seed_or_round_gives_other_bits(
        self, virtual_clients: Clients, config: dict[str, int]
    ) -> None:
        clients = virtual_clients(app, 1, {"seed": 5})
        usual, other = (clients.ask("train", START, c)[0] for c in ({"server-round": 2}, config))

        assert bits(usual) != bits(other)

    def test_seed_of_the_message_comes_before_that_of_the_run(
        self, virtual_clients: Clients
    ) -> None:
        by_message = virtual_clients(app, 1, {"seed": 1}).ask("train", START, {"seed": 5})
        by_run = virtual_clients(app, 1, {"seed": 5}).ask("train", START, {})

        assert bits(by_message[0]) == bits(by_run[0])

    def test_proximal_mu_of_the_message_is_applied(self, virtual_clients: Clients) -> None:
        """FedProx sends it under this key."""
        clients = virtual_clients(app, 1)
        free, held = (
            clients.ask("train", START, {"proximal-mu": mu})[0]["arrays"] for mu in (0.0, 1e6)
        )

        def moved(arrays: Any) -> float:
            return max(float(abs(arrays[name].numpy() - START[name]).max()) for name in START)

        assert moved(held) < 1e-4 < 0.01 < moved(free)


class TestNodes:
    def test_node_without_a_partition_takes_its_node_id_modulo_two(
        self, virtual_clients: Clients
    ) -> None:
        """The fallback of the boot contract; virtual node ids are 10, 11, 12."""
        told = virtual_clients(app, 2).ask("train", START, {})
        untold = virtual_clients(app, 3, node_config={}).ask("train", START, {})

        assert [bits(reply) for reply in untold] == [bits(told[one]) for one in (0, 1, 0)]

    @pytest.mark.parametrize(
        "node_config",
        [
            {"partition-id": 2, "num-partitions": 2},
            {"partition-id": -1},
            {"partition-id": "one"},
            {"num-partitions": 0},
            {"num-partitions": 1.5},
        ],
    )
    def test_impossible_partition_is_a_settings_error(
        self, virtual_clients: Clients, node_config: dict[str, Any]
    ) -> None:
        with pytest.raises(SettingsError, match="FL_NODE_CONFIG"):
            virtual_clients(app, 1, node_config=node_config).ask("train", START, {})

    @pytest.mark.parametrize("by", ["data-dir", "ONEFED_DATA_DIR"])
    def test_own_files_are_used_instead_of_the_digits(
        self,
        virtual_clients: Clients,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        by: str,
    ) -> None:
        np.savez(tmp_path / "site.npz", x=np.zeros((10, 64)), y=np.arange(10))
        node_config = {"data-dir": str(tmp_path)} if by == "data-dir" else {}
        clients = virtual_clients(app, 1, node_config=node_config)
        if by == "ONEFED_DATA_DIR":
            monkeypatch.setenv(by, str(tmp_path))

        (reply,) = clients.ask("train", START, {})

        assert reply["metrics"]["num-examples"] == 8

    def test_empty_data_folder_means_the_digits(
        self, virtual_clients: Clients, tmp_path: Path
    ) -> None:
        clients = virtual_clients(app, 1, node_config={"data-dir": str(tmp_path)})

        (reply,) = clients.ask("train", START, {})

        assert reply["metrics"]["num-examples"] > 500

    def test_bad_file_fails_the_message_and_is_named(
        self, virtual_clients: Clients, tmp_path: Path
    ) -> None:
        (tmp_path / "site.npz").touch()
        clients = virtual_clients(app, 1, node_config={"data-dir": str(tmp_path)})

        with pytest.raises(DataError, match=r"site\.npz: File is not a zip file"):
            clients.ask("train", START, {})


class TestSettings:
    def test_all_bad_settings_are_reported_together(self) -> None:
        bad = {
            "seed": -1,
            "local-epochs": 0,
            "batch-size": 3.5,
            "learning-rate": float("nan"),
            "proximal-mu": True,
            "partition": "even",
            "dirichlet-alpha": "0.5",
        }

        with pytest.raises(SettingsError) as caught:
            Settings.read(bad)

        assert [line.split()[0] for line in caught.value.message.splitlines()] == list(bad)
        assert "partition must be iid or dirichlet, not 'even'." in caught.value.message
        assert "local-epochs must be a whole number from 1 to 1000, not 0." in caught.value.message

    def test_unknown_keys_are_left_alone_and_whole_numbers_serve_as_numbers(self) -> None:
        assert Settings.read({"learning-rate": 1, "strategy": "Krum"}) == Settings(learning_rate=1)

    def test_defaults_of_the_bundle_are_those_of_the_app(self) -> None:
        config = bundled()["tool"]["flwr"]["app"]["config"]

        assert Settings.read(config) == Settings()
        names = {field.name.replace("_", "-") for field in dataclasses.fields(Settings)}
        assert set(config) == names - {"server-round"} | {"num-server-rounds"}


class TestBundle:
    def test_every_use_case_has_a_bundle(self) -> None:
        for use_case in USE_CASES:
            assert (bundle_folder(use_case) / "pyproject.toml").is_file()

    def test_flower_accepts_it_once_the_server_app_is_added(self) -> None:
        config = bundled()
        components = config["tool"]["flwr"]["app"]["components"]
        components["serverapp"] = components["clientapp"]

        assert validate_config(config, True, bundle_folder("image-classification"))[:2] == (
            True,
            [],
        )

    def test_nothing_but_the_configuration_travels(self) -> None:
        assert list(collect_files(bundle_folder("image-classification"))) == ["pyproject.toml"]

    def test_no_machine_learning_framework_is_imported(self) -> None:
        """Stock Flower starts a process per message: an import costs every message its time."""
        program = (
            "import sys\n"
            "from onefed.apps.image_classification import client_app, task\n"
            "task.evaluate(task.initial_arrays({}), {})\n"
            "print([name for name in ('sklearn', 'scipy', 'torch') if name in sys.modules])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"


class TestLearning:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_reaches_its_goals(self, virtual_clients: Clients, seed: int) -> None:
        """3 nodes: 0.90 after 5 rounds, 0.95 after 20. Measured: 0.955 and 0.966 at least."""
        run_config = {"seed": seed}
        clients = virtual_clients(app, 3, run_config)
        start = task.initial_arrays(run_config)

        scores = {
            rounds: task.evaluate(clients.federate(start, rounds), run_config) for rounds in (5, 20)
        }

        assert scores[5]["accuracy"] >= 0.93
        assert scores[20]["accuracy"] >= 0.95
        assert scores[20]["loss"] < scores[5]["loss"] < 0.3
        assert scores[5]["num-examples"] == len(data.digits()[1])

    def test_learns_from_skewed_labels(self, virtual_clients: Clients) -> None:
        run_config = {"partition": "dirichlet", "dirichlet-alpha": 0.5}
        clients = virtual_clients(app, 3, run_config)

        model = clients.federate(task.initial_arrays(run_config), rounds=10)

        assert task.evaluate(model, run_config)["accuracy"] >= 0.90

    def test_two_runs_of_one_seed_end_in_the_same_bits(self, virtual_clients: Clients) -> None:
        first, again, other = (
            virtual_clients(app, 2).federate(START, rounds=2, seed=seed) for seed in (3, 3, 4)
        )

        assert all(first[name].tobytes() == again[name].tobytes() for name in START)
        assert not any(first[name].tobytes() == other[name].tobytes() for name in START)


def bundled() -> dict[str, Any]:
    path = bundle_folder("image-classification") / "pyproject.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))
