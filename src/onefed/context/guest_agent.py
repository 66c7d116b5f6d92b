"""Rows of the table that only the platform's guest agent reads, in CONTEXT of every VM."""

from __future__ import annotations

from onefed.context import syntax
from onefed.context.requirements import BOOLEAN, BOTH, FILE_CHARS_MAX
from onefed.context.syntax import Rule
from onefed.context.variable import Level, Variable

ROWS = (
    Variable(
        name="TOKEN",
        appliances=BOTH,
        level=Level.PLATFORM,
        default="YES",
        rule=BOOLEAN,
        example="YES",
        help="Gives the VM a OneGate token; without it every OneGate call fails.",
        maps_to="token file in the VM",
        secret=True,  # in case somebody puts a token here
    ),
    Variable(
        name="NETWORK",
        appliances=BOTH,
        level=Level.PLATFORM,
        default="YES",
        rule=BOOLEAN,
        example="YES",
        help="Lets the guest agent configure the network.",
        maps_to="guest agent",
    ),
    Variable(
        name="REPORT_READY",
        appliances=BOTH,
        level=Level.PLATFORM,
        default="YES",
        rule=BOOLEAN,
        example="YES",
        help="Lets the guest agent report READY once the VM is healthy.",
        maps_to="guest agent",
    ),
    Variable(
        name="READY_SCRIPT_PATH",
        appliances=BOTH,
        level=Level.PLATFORM,
        default="/opt/flower/scripts/health-check.sh",
        rule=syntax.pattern("must be an absolute path using [A-Za-z0-9._/-]", r"/[A-Za-z0-9._/-]+"),
        example="/opt/flower/scripts/health-check.sh",
        help="READY is reported when this program succeeds.",
        maps_to="guest agent",
    ),
    Variable(
        name="SSH_PUBLIC_KEY",
        appliances=BOTH,
        level=Level.PLATFORM,
        default="",
        rule=Rule("must be printable text, one key per line", str, chars_max=FILE_CHARS_MAX),
        example="ssh-ed25519 AAAA... ops@example.com",
        help="Keys that may log in to the VM.",
        maps_to="guest agent",
        multiline=True,
    ),
)
