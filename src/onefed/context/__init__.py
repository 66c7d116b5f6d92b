"""The contextualization variables: one table, and everything that is made from it.

``table``       one row per variable
``access``, ``connection``, ``training``, ``guest_agent``
                more rows of the table, by topic
``peers``       rows about a group without coordinator, and what a peer reads of the others
``requirements``  what values of several rows must be; the use cases and releases that we accept
``strategies``  what a value of ``FL_STRATEGY`` reads and needs
``variable``    what a row holds
``syntax``      rules and parsers for single values; ``pem`` those for certificates and keys
``names``       which variable a name means: prefix, aliases, the nearest one
``files``       reading ``context.sh`` and ``one_env`` without executing them
``resolve``     sources to values and findings
``rules``       rules that join several variables
``outcome``     value, finding, severity, and the error that lists findings
``settings``    typed settings of each appliance; the run_config
``assignments`` ``--set NAME=VALUE`` on a command line
``inputs``      USER_INPUTS and CONTEXT of VM and service templates
``completion``  what a shell offers after ``--set``
``explain``     every effective value with its source
``reference``   docs/context.md

The way through the room: ``parse_context_file``, ``resolve``, then ``superlink_settings``,
``supernode_settings`` or ``peer_settings``.
"""

from onefed.context.assignments import Assignments, parse_assignments
from onefed.context.files import FILE_BYTES_MAX, Assignment, ContextFile
from onefed.context.files import parse as parse_context_file
from onefed.context.outcome import (
    ContextError,
    Finding,
    Resolution,
    Severity,
    Source,
    Value,
)
from onefed.context.peers import PeerContact
from onefed.context.peers import parse_contact as parse_peer_contact
from onefed.context.requirements import USE_CASES
from onefed.context.resolve import resolve
from onefed.context.settings import (
    PeerSettings,
    SuperLinkSettings,
    SuperNodeSettings,
    peer_run_config,
    peer_settings,
    run_config,
    superlink_settings,
    supernode_settings,
)
from onefed.context.strategies import STRATEGIES, Strategy
from onefed.context.syntax import Address, ConfigValue, render_pairs
from onefed.context.table import (
    CHANGED_DEFAULTS,
    RUN_CONFIG_NAMES,
    VARIABLES,
)
from onefed.context.variable import Level, Role, Variable

__all__ = [
    "CHANGED_DEFAULTS",
    "FILE_BYTES_MAX",
    "RUN_CONFIG_NAMES",
    "STRATEGIES",
    "USE_CASES",
    "VARIABLES",
    "Address",
    "Assignment",
    "Assignments",
    "ConfigValue",
    "ContextError",
    "ContextFile",
    "Finding",
    "Level",
    "PeerContact",
    "PeerSettings",
    "Resolution",
    "Role",
    "Severity",
    "Source",
    "Strategy",
    "SuperLinkSettings",
    "SuperNodeSettings",
    "Value",
    "Variable",
    "parse_assignments",
    "parse_context_file",
    "parse_peer_contact",
    "peer_run_config",
    "peer_settings",
    "render_pairs",
    "resolve",
    "run_config",
    "superlink_settings",
    "supernode_settings",
]
