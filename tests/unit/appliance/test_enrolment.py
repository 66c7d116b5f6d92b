"""How a node shows its token: to a server with TLS, and to nobody else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import enrolment, gateway
from onefed.errors import ExitCode
from onefed.tls import material

TOKEN = "onefed-" + "a" * 43
KEY = b"ecdsa-sha2-nistp384 AAAA"


@pytest.fixture
def coordinator(token_taker: Any) -> Any:
    return token_taker


def enrol(coordinator: Any) -> None:
    enrolment.enrol(
        coordinator.endpoint,
        coordinator.ca_certificate,
        TOKEN,
        KEY,
        clock=lambda: coordinator.now_s,
        sleep=coordinator.sleep,
    )


def refusal(error: str) -> bytes:
    return json.dumps({"error": error}).encode()


def test_token_and_key_are_shown_once_where_the_gateway_takes_them(
    coordinator: Any,
) -> None:
    enrol(coordinator)
    shown = {"token": TOKEN, "public_key": KEY.decode()}
    assert coordinator.asked == [(gateway.ENROLMENT_PATH, shown)]
    assert coordinator.now_s == 0.0


@pytest.mark.parametrize("status", [404, 429, 502, 503, 504])
def test_a_coordinator_that_is_not_ready_is_asked_again(coordinator: Any, status: int) -> None:
    coordinator.answers = [(status, b"<html>"), (status, b""), (200, b"{}")]
    enrol(coordinator)
    assert len(coordinator.asked) == 3
    assert coordinator.now_s == 2 * enrolment.RETRY_S


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (403, refusal("the token was used by another key"), "the token was used by another key"),
        (400, b"\xff\x00", "no reason given"),
        (413, b"[]", "no reason given"),
        (403, refusal("\x1b[2J" + "a" * 1000), "\\x1b[2J" + "a" * 296),
    ],
)
def test_a_refusal_is_told_with_its_reason_and_is_the_end(
    coordinator: Any, status: int, answer: bytes, reason: str
) -> None:
    coordinator.answers = [(status, answer)]
    with pytest.raises(enrolment.EnrolmentError) as caught:
        enrol(coordinator)
    assert f"it answered {status}: '{reason}'." in caught.value.message
    assert caught.value.exit_code == ExitCode.BOOT
    assert "onefed nodes token" in (caught.value.hint or "")
    assert TOKEN not in str(caught.value)
    assert len(coordinator.asked) == 1


def test_one_who_is_never_ready_is_given_up(coordinator: Any) -> None:
    coordinator.answers = [(503, b"")]
    with pytest.raises(enrolment.EnrolmentError, match="503"):
        enrol(coordinator)
    assert coordinator.now_s >= enrolment.LIMIT_S


@pytest.mark.parametrize("kind", ["another authority", "nobody"])
def test_the_token_goes_to_nobody_whose_certificate_is_not_the_coordinators(
    coordinator: Any, tmp_path: Path, kind: str
) -> None:
    trusted = coordinator.ca_certificate
    if kind == "another authority":
        elsewhere = tmp_path / "foreign/certs"  # the authority's key lies beside the folder
        foreign = material.ensure(elsewhere, addresses=[], now=datetime.now(UTC))
        trusted = foreign.ca_certificate_path
    else:
        coordinator.close()
    with pytest.raises(enrolment.EnrolmentError) as caught:
        enrolment.enrol(
            coordinator.endpoint,
            trusted,
            TOKEN,
            KEY,
            clock=lambda: coordinator.now_s,
            sleep=lambda _: coordinator.sleep(enrolment.LIMIT_S),
        )
    assert coordinator.asked == []
    assert "FL_SSL_CA_CERTFILE" in (caught.value.hint or "")
    assert TOKEN not in str(caught.value)
