"""Names of variables: which one is meant by what somebody wrote."""

from __future__ import annotations

import difflib

from onefed.context.table import VARIABLES
from onefed.context.variable import Level

PREFIX = "ONEAPP_"
"""What the one-apps framework puts before the names of inputs."""

COMPARED_CHARS_MAX = 64
"""Longer names are cut before they are compared: the comparison is quadratic."""

FORMER_NAMES = {
    "FL_RESUME_ROUND": "FL_NUM_ROUNDS",
    "FL_SUPERLINK_IP": "FL_SUPERLINK_ADDRESS",
    "FLOWER_SERVER_ADDRESS": "FL_SUPERLINK_ADDRESS",
    "FL_MIN_CLIENTS": "FL_MIN_AVAILABLE_CLIENTS",
    "FL_NUM_CLIENTS": "FL_MIN_AVAILABLE_CLIENTS",
    "FL_FLOWER_VERSION": "FLOWER_VERSION",
    "FL_SERVER_CERT": "FL_SSL_CERTFILE",
    "FL_SERVER_KEY": "FL_SSL_KEYFILE",
    "TLS_ENABLED": "FL_TLS_ENABLED",
    "TLS_CA_CERT": "FL_SSL_CA_CERTFILE",
    "TLS_CERT": "FL_SSL_CERTFILE",
    "TLS_KEY": "FL_SSL_KEYFILE",
    "GPU_ENABLED": "FL_GPU_ENABLED",
    "CUDA_DEVICES": "FL_CUDA_VISIBLE_DEVICES",
    "GPU_MEMORY_FRACTION": "FL_GPU_MEMORY_FRACTION",
}
"""Names of early drafts: not accepted, but we know what was meant."""

_ALIASES = {alias: row.name for row in VARIABLES.values() for alias in row.aliases}


def canonical_name(given: str) -> str | None:
    """The variable that a name means: itself, an older name, or either after ``ONEAPP_``.

    The prefix, and what follows it, may be in any letter case. None: not ours.
    """
    prefixed = given.upper().startswith(PREFIX)
    bare = given.upper().removeprefix(PREFIX) if prefixed else given
    row = VARIABLES.get(_ALIASES.get(bare, bare))
    if row is None or (prefixed and row.level is Level.PLATFORM):
        return None
    return row.name


def looks_ours(given: str) -> bool:
    """Whether a name that is not known was probably meant for us."""
    return given.upper().removeprefix(PREFIX).startswith("FL_")


def nearest(given: str) -> str | None:
    """The variable that was probably meant by an unknown name."""
    name = given.upper().removeprefix(PREFIX)
    if name in FORMER_NAMES:
        return FORMER_NAMES[name]
    close = difflib.get_close_matches(name[:COMPARED_CHARS_MAX], VARIABLES, n=1)
    return close[0] if close else None
