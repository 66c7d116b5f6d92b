"""Shared by the tests of telemetry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from onefed.telemetry import events as ev

SHA256 = "ab" * 32


class Clock:
    """Time as a test wants it: one second later at each look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 2, 9, 14, 30, 0, 123_999, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def examples() -> tuple[ev.Event, ...]:
    """One event of each class, in the order of the registry."""
    return (
        ev.TrainingStart("FedAvg", 5, 2),
        ev.RoundStart(3, 3, "FedAvg"),
        ev.RoundEnd(3, 3, 0.224, 0.931, 4.1),
        ev.TrainingEnd(5, 0.2, 0.95, 20.5),
        ev.ClientJoin("18446744073709551615", "10.0.0.7:41234"),
        ev.ClientLeave("7", "shutdown"),
        ev.CheckpointSaved(5, "/var/lib/onefed/checkpoint_round_5.npz", 1536),
        ev.EvaluationResult(3, 0.25, None, 1),
        ev.ClientFailure(3, "7", "timeout"),
        ev.TrainingStalled(3, 600.0, 1, 2),
        ev.GpuDetected("NVIDIA L4", 23034, "550.54"),
        ev.GpuUnavailable("CPU"),
        ev.FederationStart("demo", 3, 5, "FedAvg", "image-classification", 7, "/srv/demo"),
        ev.FederationEnd("finished", 5, 5, 0.2, 0.95, SHA256, "/srv/demo/c.npz", 1, 0, 31.25),
        ev.BootStep("node-1", "supernode", "7b", "TLS trust", "done", None, 0.01),
        ev.VmState("node-1", "supernode", "failed", "health check"),
        ev.ServiceRestart("node-1", "supernode", -9, 2, 1.0),
        ev.ProcessKilled("serverapp", 3, 2, 5),
        ev.ProcessRecovered("serverapp", 3, 2, 4.25),
        ev.NodeRegistered("node-1", "7", 0),
        ev.RunSubmitted("demo-1", "42", 1),
        ev.RunResumed("demo-1", 3),
        ev.RunStatus("running", None),
        ev.ClientReply(3, "train", "7", "0", 1200, 3.9),
        ev.RoundRepeated(3, "deadline", 1, 2),
        ev.RecoverySaved(3, SHA256, 5 * 2**20),
        ev.PeerRound(3, SHA256, "node-0,node-1", 2, 0.41),
        ev.PeerNotice("no_quorum", "1 of 3 voters are heard"),
        ev.AppLog("INFO: hello"),
        ev.Notice("WARNING", "the disk is almost full"),
    )
