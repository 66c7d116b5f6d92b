"""Case 36: planted secrets, and a failure after each step of a boot; nothing tells any of them."""

from __future__ import annotations

import base64
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import superlink, supernode, surroundings
from onefed.appliance.steps import BootError, Step
from onefed.tls import authority, material, pem

ENROLMENT_TOKEN = "onefed-" + "s3cr3t" * 7 + "x"


def needles(secrets: Sequence[bytes]) -> set[bytes]:
    """As they are, in base64, and of a PEM file each line."""
    found = {spelled for each in secrets for spelled in (each, base64.b64encode(each))}
    lines = {line for each in secrets for line in each.split() if len(line) >= 32}
    return found | lines


def readable(computer: Any) -> Iterator[tuple[str, bytes]]:
    """Whatever somebody else could read: open files, logs, arguments, environments, words."""
    for path in computer.paths.root.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and (mode & stat.S_IROTH or path == computer.paths.status):
            yield str(path), path.read_bytes()
    yield "warnings", "\n".join(computer.warnings).encode()
    yield "events", repr([asdict(event) for event in computer.told]).encode()
    yield "programs", repr([(each.argv, each.environment) for each in computer.started]).encode()


def failing(steps: Sequence[Step[Any]], at: str) -> list[Step[Any]]:
    """The disk is full when the step ``at`` has done its work."""

    def fails(step: Step[Any]) -> Step[Any]:
        def run(machine: Any) -> Any:
            step.run(machine)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/opt/flower/state/x")

        return replace(step, run=run)

    return [fails(step) if step.id == at else step for step in steps]


def tells_nothing(computer: Any, cloud: Any, at: str, secrets: Sequence[bytes]) -> None:
    computer.variables["FL_LOG_LEVEL"] = "DEBUG"
    with pytest.raises(BootError) as caught:
        computer.boot(failing(computer.steps, at))
    surroundings.publish_failure(computer.gate, computer.role, caught.value)
    own = [
        path.read_bytes()
        for path in (computer.paths.superexec_secret, computer.paths.gate_token)
        if path.exists()
    ]
    own += [
        key for path in computer.paths.node_key.glob("*") if b"PRIV" in (key := path.read_bytes())
    ]
    wanted = needles([*secrets, *own, computer.vm.token.encode()])
    found = [*readable(computer), ("error", str(caught.value).encode())]
    found.append(("OneGate", repr(cloud.published(computer.vm)).encode()))
    assert [place for place, text in found if any(each in text for each in wanted)] == []


@pytest.mark.parametrize("at", [step.id for step in superlink.STEPS])
def test_a_coordinator_that_fails_at_any_step(coordinator, cloud, at: str) -> None:
    now = datetime.now(UTC)
    ca = authority.create_ca(now)
    server = authority.create_server_certificate(ca, ["IP:127.0.0.1", "DNS:localhost"], now)
    key = pem.dump_private_key(server.key)
    coordinator.variables |= {
        "FL_SSL_CA_CERTFILE": pem.encode(pem.dump_certificates([ca.certificate])),
        "FL_SSL_CERTFILE": pem.encode(pem.dump_certificates([server.certificate])),
        "FL_SSL_KEYFILE": pem.encode(key),
    }
    tells_nothing(coordinator, cloud, at, [key])


@pytest.mark.parametrize("at", [step.id for step in supernode.STEPS])
def test_a_node_that_fails_at_any_step(node, cloud, supervisor, tmp_path: Path, at: str) -> None:
    material.ensure(tmp_path / "certs", addresses=["10.0.0.5"], now=datetime.now(UTC))
    published = {"FL_CA_CERT": material.ca_for_publication(tmp_path / "certs"), "FL_TLS": "YES"}
    cloud.add("superlink", FL_READY="YES", FL_ENDPOINT="10.0.0.5:9092", **published)
    node.variables["FL_ENROLMENT_TOKEN"] = ENROLMENT_TOKEN
    tells_nothing(node, cloud, at, [ENROLMENT_TOKEN.encode()])
