"""USER_INPUTS and CONTEXT of OpenNebula templates, made from the table.

A row becomes ``M|O`` (mandatory or optional), type, description, options, default, joined by
bars. A name is asked for once: a role's input overrules the service's of the same name, so no
profile asks for one at both.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence

from onefed.context import syntax
from onefed.context.syntax import Kind
from onefed.context.table import VARIABLES
from onefed.context.variable import Level, Role, Variable


class Profile(enum.StrEnum):
    """Kinds of service template; which levels of the table each asks for."""

    SINGLE_SITE = "single-site"
    """Coordinator and nodes in one OneFlow service."""
    COORDINATOR = "coordinator"
    """The coordinator of a federation over several sites, without nodes of its own."""
    TRAINING_SITE = "training-site"
    """Nodes of one site; told by hand where the coordinator is and which authority it has."""
    EDGE = "edge"
    """As a single site, with nodes whose uplink comes and goes."""
    PEERS = "peers"
    """A group without a coordinator, in one OneFlow service of one role (ours)."""


ROLES: Mapping[Profile, tuple[Role, ...]] = {
    Profile.SINGLE_SITE: (Role.SUPERLINK, Role.SUPERNODE),
    Profile.COORDINATOR: (Role.SUPERLINK,),
    Profile.TRAINING_SITE: (Role.SUPERNODE,),
    Profile.EDGE: (Role.SUPERLINK, Role.SUPERNODE),
    Profile.PEERS: (Role.PEER,),
}
"""The roles of each kind of service."""

LEVELS: Mapping[Profile, frozenset[Level]] = {
    Profile.SINGLE_SITE: frozenset({Level.ROLE}),
    Profile.COORDINATOR: frozenset({Level.ROLE, Level.MULTI_SITE}),
    Profile.TRAINING_SITE: frozenset({Level.ROLE, Level.MULTI_SITE}),
    Profile.EDGE: frozenset({Level.ROLE, Level.EDGE}),
    Profile.PEERS: frozenset({Level.ROLE}),
}
"""What a role is asked for, beside what the service is."""

MANDATORY: Mapping[Profile, frozenset[str]] = {
    Profile.TRAINING_SITE: frozenset({"FL_SUPERLINK_ADDRESS", "FL_SSL_CA_CERTFILE"})
}
"""A training site has no OneGate in common with its coordinator: somebody has to say these."""

OPERATOR_CERTIFICATES = frozenset({"FL_SSL_CERTFILE", "FL_SSL_KEYFILE"})
"""Asked for nowhere: a form would put the private key where all machines of a service read it."""

FROM_THE_OWNER: Mapping[str, str] = {"SSH_PUBLIC_KEY": "$USER[SSH_PUBLIC_KEY]"}
"""Platform variables that OpenNebula fills in from the user who instantiates."""


def user_input(row: Variable, *, mandatory: bool = False) -> str:
    """One row as OpenNebula writes a user input: ``O|number|Rounds of the run.||3``."""
    options = ",".join(_offered(row)) if row.kind is Kind.LIST else ""
    return "|".join(("M" if mandatory else "O", row.kind, plain(row.help), options, row.default))


def service_inputs(profile: Profile) -> dict[str, str]:
    """``user_inputs`` of a service template: asked once, for all roles."""
    roles = frozenset(ROLES[profile])
    rows = [row for row in VARIABLES.values() if row.level is Level.SERVICE]
    return {row.name: user_input(row) for row in rows if row.appliances & roles}


def role_inputs(profile: Profile, role: Role, frameworks: Sequence[str] = ()) -> dict[str, str]:
    """``user_inputs`` of one role of a service template.

    Args:
        frameworks: what the image of the nodes carries; see ``of_image``.
    """
    mandatory = MANDATORY.get(profile, frozenset())
    return {
        row.name: user_input(of_image(row, frameworks), mandatory=row.name in mandatory)
        for row in VARIABLES.values()
        if role in row.appliances and row.level in LEVELS[profile]
    }


def of_image(row: Variable, frameworks: Sequence[str]) -> Variable:
    """A row as a form asks for it that knows what the image of the nodes carries.

    A framework that is asked for and not there stops the boot (rule X18), and a form sends its
    default. So that is the first of ``frameworks``; where they are not known it is nothing, which
    a boot takes for "not set".
    """
    if row.name != "ML_FRAMEWORK":
        return row
    rule = syntax.one_of(frameworks) if frameworks else row.rule
    return dataclasses.replace(row, default=frameworks[0] if frameworks else "", rule=rule)


def vm_inputs(role: Role, frameworks: Sequence[str] = ()) -> dict[str, str]:
    """``USER_INPUTS`` of the VM template of one appliance, for a machine outside of any service."""
    return {
        row.name: user_input(of_image(row, frameworks))
        for row in VARIABLES.values()
        if role in row.appliances
        and row.level not in (Level.PLATFORM, Level.EDGE)  # set, they make it an edge node
        and row.name not in OPERATOR_CERTIFICATES
    }


def vm_context(role: Role) -> dict[str, str]:
    """``CONTEXT`` of the VM template of one appliance: every input by reference, and the platform.

    ``$NAME`` is replaced by OpenNebula with what the user said, not by a shell.
    """
    references = {name: f"${name}" for name in vm_inputs(role)}
    platform = {
        row.name: FROM_THE_OWNER.get(row.name, row.default)
        for row in VARIABLES.values()
        if row.level is Level.PLATFORM and role in row.appliances
    }
    return {**references, **platform}


def vm_template(role: Role, frameworks: Sequence[str] = ()) -> str:
    """CONTEXT and USER_INPUTS in OpenNebula's template syntax."""
    blocks = (("CONTEXT", vm_context(role)), ("USER_INPUTS", vm_inputs(role, frameworks)))
    return "\n".join(f"{name} = [\n{_vector(pairs)}\n]" for name, pairs in blocks) + "\n"


def _vector(pairs: Mapping[str, str]) -> str:
    for name, value in pairs.items():
        assert not {'"', "\\"} & set(value), f"{name} needs no quoting"
    return ",\n".join(f'  {name} = "{value}"' for name, value in pairs.items())


def _offered(row: Variable) -> list[str]:
    """Options that a boot accepts; one that is planned would only fail later."""
    offered = []
    for option in row.options:
        try:
            row.parse(option)
        except ValueError:
            continue
        offered.append(option)
    return offered


def plain(text: str) -> str:
    """Bars separate fields, quotes end the template's string, backquotes are for Markdown."""
    return text.replace("|", "/").replace('"', "'").replace("`", "'")
