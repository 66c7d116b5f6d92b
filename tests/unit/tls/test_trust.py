"""TLS or not: the whole table."""

from __future__ import annotations

import pytest

from onefed.tls import trust
from onefed.tls.errors import TlsMaterialError
from onefed.tls.trust import CaSource, Mode


@pytest.mark.parametrize(
    ("tls_enabled", "published_tls", "mode", "warned"),
    [
        (True, True, Mode.TLS, False),
        (True, None, Mode.TLS, False),
        (True, False, Mode.TLS, True),
        (None, True, Mode.TLS, False),
        (None, None, Mode.TLS, False),
        (None, False, Mode.TLS, True),
        (False, True, Mode.INSECURE, True),
        (False, None, Mode.INSECURE, False),
        (False, False, Mode.INSECURE, False),
    ],
)
def test_only_an_explicit_no_turns_tls_off(
    tls_enabled: bool | None, published_tls: bool | None, mode: Mode, warned: bool
) -> None:
    decision = trust.decide(tls_enabled, published_tls)
    assert decision.mode is mode
    assert (decision.warning is not None) is warned


def test_the_operators_authority_wins() -> None:
    assert trust.ca_source("a", "b") is CaSource.OPERATOR
    assert trust.ca_source("", "b") is CaSource.ONEGATE


def test_tls_without_an_authority_is_an_error() -> None:
    with pytest.raises(TlsMaterialError, match="no CA certificate"):
        trust.ca_source(None, "")
