"""A Flower app as a node of a peer group trains it: unchanged, with the hub engine's task runner.

The node hands in a model and gets an update. In between is Flower's own train message, which a
process forked for it gives to the ClientApp (``flower.node``), so that training cannot delay what
the node says to its peers.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onefed import aggregate
from onefed.arrays import Arrays
from onefed.errors import ExitCode, OnefedError
from onefed.flower import adapter_peer, bundle, server_app, strategy
from onefed.flower.adapter_fleet import AppReference
from onefed.flower.app_functions import Score
from onefed.flower.judging import Judge
from onefed.flower.node.workers import Crash, NurseryDiedError, Start, Workers

LOOK_S = 0.1
"""How soon a training that is of no more use is ended."""

EPOCHS_KEY = "local-epochs"
"""What ``epochs`` sets, where the app has it."""


class PeerAppError(OnefedError):
    """The app gave no update, or cannot be used without a coordinator."""

    exit_code = ExitCode.APP


@dataclass(frozen=True, slots=True)
class Update:
    """What the app made of a model."""

    model: Arrays
    examples: int
    context: bytes | None
    """The app's own state, Flower's bytes."""


class PeerApp:
    """One app at one node."""

    def __init__(
        self,
        nursery: socket.socket,
        fab: bytes,
        run_config: Mapping[str, Any],
        *,
        partition_id: int,
        num_partitions: int,
    ) -> None:
        """Take the app; nothing of it is imported before the first training.

        Args:
            nursery: of ``flower.node.forks``, made before this process had threads.
            run_config: what was asked for, instead of what the app says itself.

        Raises:
            PeerAppError: the app is not managed: it has no first model for us.
        """
        packed = bundle.unpack(fab)
        managed = bundle.managed_functions(fab)
        if managed is None:
            raise _unmanaged()
        self._managed = managed
        self._fab = fab
        self._app = AppReference(*adapter_peer.identity(fab))
        self._workers = Workers(nursery, Start.AUTO)
        self._run_config = {**packed.run_config, **run_config}
        self._node = adapter_peer.PeerNode(partition_id, num_partitions, self._run_config)
        self._judge: Judge | None = None
        self._tasks = 0

    @property
    def rule(self) -> aggregate.Rule:
        """The rule that the run's configuration names."""
        return strategy.rule(self._run_config)

    def initial_model(self) -> Arrays:
        """The model before round 1, from the app's own function."""
        folder = adapter_peer.install(self._fab)
        sys.path.insert(0, str(folder))
        if self._managed.evaluate is not None and self._judge is None:
            self._judge = Judge(folder, self._managed.evaluate, self._run_config)
        return server_app.first_model(self._managed.initial_arrays, self._run_config)

    @property
    def judges(self) -> bool:
        """Whether it has a measure of its own."""
        return self._managed.evaluate is not None

    def judge(self, model: Arrays) -> Score:
        """How good a model is by the app's own measure; blocks.

        Raises:
            JudgingError: the measure gave nothing.
        """
        assert self._judge is not None, "the app has a measure, and has given its first model"
        return self._judge.score(model)

    def train(
        self,
        model: Arrays,
        round_number: int,
        epochs: int | None,
        context: bytes | None,
        cancelled: threading.Event,
    ) -> Update | None:
        """Train; None where it was cancelled.

        Raises:
            PeerAppError: the app raised, died, or answered something else.
        """
        rule = self.rule
        extra: dict[str, Any] = dict(rule.told) if isinstance(rule, aggregate.FedProx) else {}
        if epochs is not None and EPOCHS_KEY in self._run_config:
            extra[EPOCHS_KEY] = epochs
        self._tasks += 1
        task = adapter_peer.task(
            self._node,
            self._app,
            self._tasks,
            model,
            round_number=round_number,
            seed=int(self._run_config["seed"]),
            extra=extra,
            context=context,
        )
        try:
            why = self._workers.use(self._app, self._fab)
            if why is not None and self._tasks == 1:
                sys.stderr.write(f"Every training is a fresh process: {why}.\n")
            execution = self._workers.begin(task)
        except NurseryDiedError as error:
            raise PeerAppError(error.message) from error
        while True:
            answer = execution.wait(None, LOOK_S)
            if isinstance(answer, Crash):
                raise PeerAppError(answer.reason)
            if answer is not None:
                break
            if cancelled.is_set():
                execution.kill()
                return None
        update = adapter_peer.read(answer)
        if isinstance(update, str):
            raise PeerAppError(update)
        return Update(update.arrays, update.weight, answer.context)

    def close(self) -> None:
        """End its processes."""
        if self._judge is not None:
            self._judge.close()
        self._workers.close()


def pack(folder: Path | None, use_case: str) -> bytes:
    """A Flower app directory, or a built-in app, as the bytes that every node is given.

    Raises:
        AppError: the directory holds no app that can be used.
        PeerAppError: it has a ServerApp of its own, and there is no server here.
    """
    app = bundle.built_in(use_case) if folder is None else bundle.load(folder)
    if app.managed is None:
        raise _unmanaged()
    return bundle.build(app).fab


def rule(fab: bytes, run_config: Mapping[str, Any]) -> aggregate.Rule:
    """The rule of a run, before there is a node; raises ``RuleError`` for what is wrong with it."""
    return strategy.rule({**bundle.unpack(fab).run_config, **run_config})


def _unmanaged() -> PeerAppError:
    return PeerAppError(
        "The app does not say how its first model is made, and there is no server to ask.",
        hint="Add [tool.onefed] with initial-arrays to its pyproject.toml.",
    )
