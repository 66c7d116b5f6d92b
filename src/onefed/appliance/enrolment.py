"""How a node outside the service has its key registered: it shows a token to the coordinator."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx

from onefed.appliance import gateway
from onefed.appliance.failures import KnownFailureError

ANSWER_TIMEOUT_S = 90.0
"""The supervisor answers within a second, unless its SuperLink is starting."""

ANSWER_CHARS_MAX = 300

RETRY_S = 2.0
LIMIT_S = 300.0
"""A coordinator that is being deployed may take minutes; then the boot fails."""

_LATER = (
    httpx.codes.NOT_FOUND,  # a gateway of before, about to be restarted
    httpx.codes.TOO_MANY_REQUESTS,
    httpx.codes.BAD_GATEWAY,
    httpx.codes.SERVICE_UNAVAILABLE,
    httpx.codes.GATEWAY_TIMEOUT,
)


class EnrolmentError(KnownFailureError):
    """The coordinator did not take this node."""

    code = "node_not_registered"


def enrol(
    endpoint: str,
    ca_certificate: Path,
    token: str,
    public_key: bytes,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Have this node's key registered; the same token and key again are no mistake.

    Args:
        endpoint: ``host:port`` of the coordinator's gateway.
        ca_certificate: of the authority that the coordinator's certificate has to come from. The
            token goes to nobody else.
        public_key: OpenSSH text.

    Raises:
        EnrolmentError: the coordinator refuses the token or the key, or does not answer in time.
    """
    trust = ssl.create_default_context(cafile=ca_certificate)
    what = {"token": token, "public_key": public_key.decode("ascii")}
    ends_at = clock() + LIMIT_S
    with httpx.Client(verify=trust, timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
        while True:
            try:
                answer = client.post(f"https://{endpoint}{gateway.ENROLMENT_PATH}", json=what)
                if answer.status_code == httpx.codes.OK:
                    return
                said = f"it answered {answer.status_code}: {_words(answer)}"
                if answer.status_code not in _LATER:
                    raise EnrolmentError(
                        f"The coordinator at {endpoint} did not take this node: {said}.",
                        hint="Ask its operator for another token: onefed nodes token",
                    )
            except httpx.HTTPError as error:
                said = f"{type(error).__name__}: {error}"
            if clock() > ends_at:
                raise EnrolmentError(
                    f"The coordinator at {endpoint} did not take this node in {LIMIT_S:.0f} s: "
                    f"{said}.",
                    hint="Check FL_SUPERLINK_ADDRESS and FL_SSL_CA_CERTFILE, and that it runs.",
                )
            sleep(RETRY_S)


def _words(answer: httpx.Response) -> str:
    try:
        text = str(json.loads(answer.text)["error"])
    except (ValueError, KeyError, TypeError):
        text = "no reason given"
    return ascii(text[:ANSWER_CHARS_MAX])
