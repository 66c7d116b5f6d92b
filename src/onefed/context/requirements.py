"""What values of several rows of the table must be, and on whose appliance they are read."""

from __future__ import annotations

from onefed.context import pem, syntax
from onefed.context.syntax import Kind, Rule
from onefed.context.variable import Role

TESTED_FLOWER_VERSIONS = ("1.41.0",)
"""Releases of Flower that the whole test set passes with."""

USE_CASES = ("none", "image-classification")
"""Values of ``FL_USE_CASE`` that work; ``none`` waits for an app."""

PLANNED_USE_CASES = ("anomaly-detection", "llm-fine-tuning")
"""Known, and refused until they are built."""

FRAMEWORKS = ("pytorch", "tensorflow", "sklearn")
"""Values of ``ML_FRAMEWORK``."""

FRAMEWORKS_OF = {
    "image-classification": FRAMEWORKS,
    "anomaly-detection": ("sklearn",),
    "llm-fine-tuning": ("pytorch",),
}
"""Those that the app of a use case runs with; with ``none`` the app is not known."""

FILE_CHARS_MAX = 128 * 1024
"""Bound of a file in base64. A chain of three RSA 4096 certificates has 8,000 characters."""

SUPERLINK = frozenset({Role.SUPERLINK})
SUPERNODE = frozenset({Role.SUPERNODE})
PEER = frozenset({Role.PEER})
BOTH = SUPERLINK | SUPERNODE

POSITIVE = syntax.integer("must be a positive integer", 1)
NON_NEGATIVE = syntax.integer("must be a non-negative integer", 0)
BOOLEAN = Rule("must be YES or NO", syntax.parse_boolean, Kind.BOOLEAN)
ADDRESS = Rule("must be host:port", syntax.parse_address)
ABOVE_ZERO = syntax.number("must be a float > 0.0", lambda x: x > 0)
PAIRS = Rule(
    "must be key=value pairs separated by spaces, without shell metacharacters", syntax.parse_pairs
)
CERTIFICATE = Rule(
    "must decode from base64 to a valid PEM certificate",
    pem.parse_certificate,
    Kind.TEXT64,
    chars_max=FILE_CHARS_MAX,
)
PRIVATE_KEY = Rule(
    "must decode from base64 to a valid PEM private key",
    pem.parse_private_key,
    Kind.TEXT64,
    chars_max=FILE_CHARS_MAX,
)
FLOWER_VERSION = Rule(
    f"must be X.Y.Z, one of the tested versions: {', '.join(TESTED_FLOWER_VERSIONS)}",
    syntax.one_of(TESTED_FLOWER_VERSIONS).parse,
)
