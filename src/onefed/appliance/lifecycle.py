"""The few lines of shell that the platform demands around us.

``appliance.sh`` speaks the life cycle of one-apps: functions ``service_*`` and the parameters that
its framework manages. ``health-check.sh`` is what ``READY_SCRIPT_PATH`` names.
Both only call ``onefed appliance``; no value of the context is ever in them.
"""

from __future__ import annotations

import enum

from onefed.context import Level, Role, inputs
from onefed.context.names import PREFIX
from onefed.context.table import VARIABLES


class Script(enum.StrEnum):
    """What ``onefed appliance script`` prints."""

    LIFECYCLE = "appliance.sh"
    HEALTH = "health-check.sh"


_LIFECYCLE = """\
#!/usr/bin/env bash
# Made by: onefed appliance script appliance.sh --role {role}
# /etc/one-appliance/service.d/appliance.sh: the life cycle of one-apps, which sources this file.
# shellcheck disable=SC2034  # the framework reads these variables

ONE_SERVICE_NAME='onefed {role}'
ONE_SERVICE_VERSION='{version}'
ONE_SERVICE_RECONFIGURABLE=true

# Groups of four: name, stage, description, user input.
ONE_SERVICE_PARAMS=(
{params}
)

service_install() {{
    onefed version
}}

service_configure() {{
    onefed appliance configure --role {role} --runtime {runtime}
}}

service_bootstrap() {{
    onefed appliance bootstrap --role {role} --runtime {runtime} || return
    [ -z "${{ONE_SERVICE_REPORT:-}}" ] || report || : # nobody waits for it
}}

# What the framework keeps for people; root's alone.
report() {{
    (umask 077 && onefed appliance status --role {role} >"$ONE_SERVICE_REPORT")
}}

# Called after bootstrap: whatever it removed would be in use.
service_cleanup() {{
    :
}}

service_help() {{
    onefed appliance --help
}}
"""

_HEALTH = """\
#!/bin/sh
# Made by: onefed appliance script health-check.sh --role {role}
# READY_SCRIPT_PATH: READY is reported when this succeeds.
exec onefed appliance health --role {role}
"""


def script(kind: Script, role: Role, runtime: str, version: str) -> str:
    """The text of one file."""
    if kind is Script.HEALTH:
        return _HEALTH.format(role=role.value)
    return _LIFECYCLE.format(
        role=role.value, version=version, runtime=runtime, params="\n".join(_parameters(role))
    )


def _parameters(role: Role) -> list[str]:
    rows = [
        row
        for row in VARIABLES.values()
        if role in row.appliances and row.level is not Level.PLATFORM
    ]
    return [
        "    "
        + " ".join(
            _quoted(word)
            for word in (
                PREFIX + row.name,
                "configure",
                inputs.plain(row.help),
                inputs.user_input(inputs.of_image(row, ())),
            )
        )
        for row in rows
    ]


def _quoted(text: str) -> str:
    """For the shell, in single quotes: it expands nothing there."""
    return "'" + text.replace("'", "'\\''") + "'"
