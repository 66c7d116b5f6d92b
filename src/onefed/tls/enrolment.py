"""Enrolment tokens: how a node outside the service has its key registered, once.

The operator makes a token on the coordinator and hands it to one site. The site's node shows it,
with its public key, over TLS that it verifies. The coordinator keeps only the token's digest.
"""

from __future__ import annotations

import hashlib
import re
import secrets

PREFIX = "onefed-"
"""So that people, and scanners for secrets, know one when they see it."""

LIFETIME_S_DEFAULT = 24 * 3600
LIFETIME_S_MAX = 30 * 24 * 3600

_TOKEN = re.compile(r"onefed-[A-Za-z0-9_-]{43}")


def new_token() -> str:
    """256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Whether a text has the form of a token."""
    return _TOKEN.fullmatch(text) is not None


def digest(token: str) -> str:
    """What is kept of a token: SHA-256, hex. Nobody guesses 256 bits, so no salt is needed."""
    return hashlib.sha256(token.encode()).hexdigest()
