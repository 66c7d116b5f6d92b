"""From what a user set to the context variables of a federation's machines.

Sources are joined here and checked by the table; whether the values fit the nodes and the app is
for ``request`` to find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onefed import context
from onefed.context import names, syntax
from onefed.errors import ExitCode, OnefedError

LAPTOP_ROUNDS = "5"
"""Enough for the built-in app to reach 0.90."""


class GivenTwiceError(OnefedError):
    """A variable has one value by its option and another by ``--set``."""

    exit_code = ExitCode.CONFIG


@dataclass(frozen=True)
class Resolved:
    """What all machines of a federation are told."""

    variables: Mapping[str, str]
    asked: frozenset[str]
    """Those variables that the user set; the others are what a laptop wants."""
    app_config: Mapping[str, context.ConfigValue]
    """What was set of the app's own settings, by ``--set key=...`` and in FL_RUN_CONFIG."""
    findings: tuple[context.Finding, ...]


def resolve(
    assignments: Sequence[str],
    options: Mapping[str, object],
    context_file: context.ContextFile | None,
    environ: Mapping[str, str],
    *,
    nodes: int,
) -> Resolved:
    """The variables of all machines: what the user said, and what a laptop wants by default.

    ``--set`` and options come before the context file, and that before the environment.

    Args:
        assignments: ``NAME=VALUE`` of every ``--set``.
        options: values that options of their own gave, by variable; None: not given.
        nodes: how many there will be; a laptop waits for all of them.

    Raises:
        GivenTwiceError: an option and ``--set`` differ about a variable.
        ContextError: with everything else that is wrong.
    """
    given, malformed = _assignments(assignments)
    explicit = _with_options(given.context, options)

    everyone = str(nodes)
    laptop = {
        "FL_NUM_ROUNDS": LAPTOP_ROUNDS,
        # All of them: then the same seed gives the same model.
        "FL_MIN_FIT_CLIENTS": everyone,
        "FL_MIN_EVALUATE_CLIENTS": everyone,
        "FL_MIN_AVAILABLE_CLIENTS": everyone,
        "FL_CHECKPOINT_ENABLED": "YES",
    }

    def resolve_all(explicit: Mapping[str, str]) -> list[context.Resolution]:
        found = [
            context.resolve(
                role,
                explicit=explicit,
                context_file=context_file,
                environment=environ,
                defaults=laptop,
            )
            for role in context.Role
        ]
        _require_valid(found, malformed)
        return found

    resolutions = resolve_all(explicit)
    app_config = {**_run_config(resolutions), **given.app_config}
    if given.app_config:
        # One variable carries them all; what a file or the environment set of it stays set.
        others = {
            name: text
            for name, text in explicit.items()
            if names.canonical_name(name) != "FL_RUN_CONFIG"
        }
        resolutions = resolve_all({**others, "FL_RUN_CONFIG": context.render_pairs(app_config)})
    asked = {
        name: found.text
        for each in resolutions
        for name, found in each.values.items()
        if found.is_set
    }
    told = ("FL_STRATEGY", "FL_SEED", "FL_USE_CASE")
    variables = {**laptop, **{name: context.VARIABLES[name].default for name in told}}
    findings = dict.fromkeys(finding for each in resolutions for finding in each.findings)
    return Resolved({**variables, **asked}, frozenset(asked), app_config, tuple(findings))


def _assignments(
    items: Sequence[str],
) -> tuple[context.Assignments, tuple[context.Finding, ...]]:
    """What ``--set`` gave, and what is wrong with it, so that the rest is checked as well."""
    variables: dict[str, str] = {}
    app_config: dict[str, context.ConfigValue] = {}
    findings: list[context.Finding] = []
    for item in items:
        try:
            given = context.parse_assignments([item])
        except context.ContextError as error:
            findings += error.findings
        else:
            variables |= given.context
            app_config |= given.app_config
    return context.Assignments(variables, app_config), tuple(findings)


def _with_options(given: Mapping[str, str], options: Mapping[str, object]) -> dict[str, str]:
    """What was given with ``--set`` and by options of their own; not both for one variable."""
    explicit = dict(given)
    twice = []
    for name, value in options.items():
        if value is None:
            continue
        if explicit.get(name, str(value)) != str(value):
            twice.append(
                f"{name} is given twice: {value} by its option, {explicit[name]} by --set."
            )
        explicit[name] = str(value)
    if twice:
        raise GivenTwiceError("\n".join(twice), hint="Give each once.")
    return explicit


def _require_valid(
    resolutions: Sequence[context.Resolution], malformed: Sequence[context.Finding]
) -> None:
    # What a source as a whole has wrong is found once for each role.
    errors = (finding for each in resolutions for finding in each.errors)
    findings = dict.fromkeys((*malformed, *errors))
    if findings:
        raise context.ContextError(findings)


def _run_config(resolutions: Sequence[context.Resolution]) -> dict[str, context.ConfigValue]:
    """The app's settings in FL_RUN_CONFIG, which is valid."""
    text = next(each.values["FL_RUN_CONFIG"].text for each in resolutions if _coordinates(each))
    return syntax.parse_pairs(text) if text else {}


def _coordinates(resolution: context.Resolution) -> bool:
    return resolution.role is context.Role.SUPERLINK
