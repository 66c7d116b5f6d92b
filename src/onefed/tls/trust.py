"""Whether a node speaks TLS, and whose CA certificate it believes. Decisions, no I/O.

Plaintext needs the operator's explicit NO. What a coordinator publishes can be written by any
member of the service, so it may turn a warning on and never TLS off.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from onefed.tls.errors import TlsMaterialError


class Mode(enum.StrEnum):
    """How a node talks to the coordinator."""

    TLS = "tls"
    INSECURE = "insecure"


class CaSource(enum.StrEnum):
    """The variable that the CA certificate comes from."""

    OPERATOR = "FL_SSL_CA_CERTFILE"
    ONEGATE = "FL_CA_CERT"


@dataclass(frozen=True, slots=True)
class Trust:
    """What to do, and what to tell the operator about it."""

    mode: Mode
    warning: str | None = None


def decide(tls_enabled: bool | None, published_tls: bool | None) -> Trust:
    """TLS or not, from ``FL_TLS_ENABLED`` and the coordinator's ``FL_TLS``; None is unset.

    ============== ================ ==========================================
    FL_TLS_ENABLED published FL_TLS
    ============== ================ ==========================================
    YES or unset   YES or unset     TLS
    YES or unset   NO               TLS, with a warning: the connection will fail
    NO             YES              insecure, with a warning: the same
    NO             NO or unset      insecure
    ============== ================ ==========================================

    An unset variable means YES on a coordinator, so it means YES here.
    """
    wanted = tls_enabled is not False
    if wanted and published_tls is False:
        return Trust(
            Mode.TLS,
            "The coordinator says FL_TLS=NO and this node insists on TLS: the connection will "
            "fail. Set FL_TLS_ENABLED to the same value for both.",
        )
    if not wanted and published_tls:
        return Trust(
            Mode.INSECURE,
            "FL_TLS_ENABLED=NO here and the coordinator speaks TLS: the connection will fail. "
            "Set FL_TLS_ENABLED to the same value for both.",
        )
    return Trust(Mode.TLS if wanted else Mode.INSECURE)


def ca_source(operator_ca: str | None, published_ca: str | None) -> CaSource:
    """Whose CA certificate counts: the operator's always wins; neither is an error."""
    if operator_ca:
        return CaSource.OPERATOR
    if published_ca:
        return CaSource.ONEGATE
    raise TlsMaterialError(
        "TLS is on and there is no CA certificate: FL_SSL_CA_CERTFILE is empty and the "
        "coordinator published no FL_CA_CERT",
        hint="Put the coordinator's ca.crt, encoded with `base64 -w0 ca.crt`, into "
        "FL_SSL_CA_CERTFILE. The node does not fall back to plaintext.",
    )
