"""What a row of the table holds."""

from __future__ import annotations

import dataclasses
import enum

from onefed.context import syntax

_WHITE_SPACE = str.maketrans("\r\n\t", "   ")


class Role(enum.StrEnum):
    """The appliances, by their OneFlow role names: two of a federation, one of a group of peers."""

    SUPERLINK = "superlink"
    SUPERNODE = "supernode"
    PEER = "peer"
    """Trains without a coordinator (ours)."""


class Level(enum.StrEnum):
    """Where the templates ask for a variable."""

    SERVICE = "service"
    """Once per service; both roles get the value."""
    ROLE = "role"
    """At each role that knows it."""
    MULTI_SITE = "multi-site"
    """At the role, in the multi-site templates only."""
    EDGE = "edge"
    """At the role, in the edge template only."""
    INSTANCE = "VM template"
    """Not asked for; whoever needs it adds it to the VM template."""
    PLATFORM = "platform"
    """In every VM template's CONTEXT, read by the guest agent, never asked for."""


FIRST_RELEASE = "0.1.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variable:
    """One contextualization variable. The parser, the settings and the documents read only this."""

    name: str
    """Canonical name."""
    appliances: frozenset[Role]
    """Who reads it. On the other appliance it is ignored, with an INFO."""
    level: Level
    default: str
    """In the syntax of the context. Empty: no value unless one is set."""
    rule: syntax.Rule
    example: str
    """An accepted value."""
    help: str
    """One sentence for users: what it does, with its unit."""
    maps_to: str = ""
    """Where the value ends up, when that is not the run_config."""
    run_config_key: str = ""
    """Key in the run_config of the ServerApp."""
    aliases: tuple[str, ...] = ()
    """Older names; each is accepted with and without the prefix ``ONEAPP_``."""
    secret: bool = False
    """Never shown, logged or published."""
    multiline: bool = False
    """Line breaks and tabs inside the value are accepted."""
    ours: bool = False
    """Not among the 48 names of the appliance design."""
    since: str = FIRST_RELEASE
    """Release of onefed that was the first to have it."""
    changed: str = ""
    """Why the default, or its meaning, differs from the appliance design. Empty: it does not."""

    @property
    def kind(self) -> syntax.Kind:
        return self.rule.kind

    @property
    def options(self) -> tuple[str, ...]:
        return self.rule.options

    @property
    def is_hidden(self) -> bool:
        """Messages show no value: a file in base64 may be the wrong file, for example a key."""
        return self.secret or self.kind is syntax.Kind.TEXT64

    def parse(self, text: str) -> object:
        """Check a trimmed value and give what the settings hold; None for an empty one.

        Raises ``ValueError`` with a detail that completes the rule and never repeats the value.
        """
        if not text:
            return None
        if len(text) > self.rule.chars_max:
            raise ValueError(f"at most {self.rule.chars_max} characters")
        line = text.translate(_WHITE_SPACE) if self.multiline else text
        if not line.isprintable():
            raise ValueError("no line breaks, control or invisible characters")
        return self.rule.parse(text)
