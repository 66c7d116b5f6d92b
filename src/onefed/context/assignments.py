"""``--set NAME=VALUE`` on a command line: context variables and settings of the app, told apart."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from onefed.context import names, syntax
from onefed.context.outcome import ContextError, Finding, Severity, show
from onefed.context.table import RUN_CONFIG_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KEY_CHARS_MAX = 128
"""Bound of a key of the app."""

NAME_SHOWN_CHARS_MAX = 32
"""How much of a malformed item a message repeats."""


@dataclasses.dataclass(frozen=True)
class Assignments:
    """What the user set, by kind. Of several values for one name the last one counts."""

    context: Mapping[str, str]
    """By name as written, for ``resolve(explicit=...)``; neither names nor values are checked."""
    app_config: Mapping[str, syntax.ConfigValue]
    """By key of the app's run_config, typed; none of them belongs to a context variable."""


def parse_assignments(items: Iterable[str]) -> Assignments:
    """Split ``NAME=VALUE`` items: upper case is a context variable, lower case a key of the app.

    Raises ``ContextError`` with all items that are neither.
    """
    context: dict[str, str] = {}
    app_config: dict[str, syntax.ConfigValue] = {}
    findings = []
    for item in items:
        name, equals, text = item.partition("=")
        name = name.strip()
        try:
            if not equals:
                raise ValueError(_FORM)
            if _is_variable(name):
                context[name] = text
            else:
                app_config[_app_key(name)] = _app_value(text.strip())
        except ValueError as error:
            findings.append(_finding(name, str(error)))
    if findings:
        raise ContextError(findings)
    return Assignments(context, app_config)


_FORM = "is not NAME=VALUE, as in FL_NUM_ROUNDS=5 or, for the app, local-epochs=2"
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)
_APP_KEY = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)*", re.ASCII)


def _is_variable(name: str) -> bool:
    """Spelt like one, or as ours may be misspelt; ``resolve`` says what is wrong then."""
    return (
        _VARIABLE.fullmatch(name) is not None
        or names.canonical_name(name) is not None
        or names.looks_ours(name.replace("-", "_"))
    )


def _app_key(name: str) -> str:
    if not _APP_KEY.fullmatch(name) or len(name) > KEY_CHARS_MAX:
        raise ValueError(_FORM)
    if owner := RUN_CONFIG_NAMES.get(name):
        raise ValueError(f"belongs to the context variable {owner}: set that")
    return name


def _app_value(text: str) -> syntax.ConfigValue:
    if not text:
        raise ValueError('has no value; an empty text is written ""')
    if len(text) > syntax.VALUE_CHARS_MAX or not text.isprintable():
        raise ValueError(f"needs printable text of at most {syntax.VALUE_CHARS_MAX} characters")
    try:
        return syntax.config_value(text)
    except ValueError as error:
        raise ValueError(f"has a value that cannot be used ({error})") from None


def _finding(name: str, problem: str) -> Finding:
    """Without the value, and little of the name: either may be a secret in the wrong place."""
    shown = show(name[:NAME_SHOWN_CHARS_MAX])
    return Finding(severity=Severity.ERROR, message=f"--set {shown} {problem}.")
