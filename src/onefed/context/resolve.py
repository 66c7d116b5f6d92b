"""From several sources to one value for each variable, and everything there is to say about them.

Sources, the strongest first: explicit (``--set``), the context file, the environment, the default.
An empty value is no value: OneFlow passes inputs that nobody filled in as empty strings.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from onefed.context import names, rules
from onefed.context.outcome import (
    SHOWN_CHARS_MAX,
    Finding,
    Resolution,
    Severity,
    Source,
    Value,
    show,
)
from onefed.context.syntax import Kind
from onefed.context.table import VARIABLES
from onefed.context.variable import Level

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onefed.context.files import ContextFile
    from onefed.context.variable import Role, Variable

UNKNOWN_FINDINGS_MAX = 20
"""Unknown names reported from one source; the rest is counted."""


def resolve(
    role: Role,
    *,
    explicit: Mapping[str, str] | None = None,
    context_file: ContextFile | None = None,
    environment: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> Resolution:
    """Find the value of each variable of one appliance. Never raises: see ``Resolution.errors``.

    Args:
        explicit: what the user set for this start; here an unknown name is an ERROR.
        environment: of this process, whole. The names of the platform are not looked up in it,
            for on a laptop a ``TOKEN`` belongs to somebody else.
        defaults: valid values, where the caller's differ from those of the table.
    """
    defaults = {**{row.name: row.default for row in VARIABLES.values()}, **(defaults or {})}
    in_file = context_file.assignments if context_file else {}
    findings = list(context_file.findings) if context_file else []
    offers: dict[str, list[_Offer]] = {}
    for offer in (
        *_offers(Source.EXPLICIT, explicit or {}, findings),
        *_offers(Source.FILE, {name: given.text for name, given in in_file.items()}, findings),
        *_offers(Source.ENVIRONMENT, environment or {}, findings),
    ):
        offers.setdefault(offer.variable.name, []).append(offer)
    values: dict[str, Value] = {}
    invalid: set[str] = set()
    for row in VARIABLES.values():
        offered = offers.get(row.name, [])
        if role not in row.appliances:
            if offered:
                findings.append(_misplaced(row, role))
            continue
        if not offered:
            values[row.name] = Value(defaults[row.name], Source.DEFAULT, is_set=False)
            continue
        chosen = _choose(offered, findings)
        line = in_file[chosen.name].line if chosen.source is Source.FILE else None
        text = chosen.text.upper() if row.kind is Kind.BOOLEAN else chosen.text
        try:
            row.parse(text)
        except ValueError as error:
            findings.append(_invalid(chosen, line, str(error)))
            invalid.add(row.name)
            text = defaults[row.name]
        values[row.name] = Value(text, chosen.source, is_set=True)
    findings += rules.check(role, values, invalid)
    return Resolution(role, values, tuple(findings))


@dataclasses.dataclass(frozen=True)
class _Offer:
    """A value that one source has for one variable."""

    variable: Variable
    source: Source
    name: str
    """As the source spells it."""
    text: str
    """Trimmed, not empty."""


def _offers(source: Source, pairs: Mapping[str, str], findings: list[Finding]) -> list[_Offer]:
    offers = []
    unknown = []
    for name, text in pairs.items():
        canonical = names.canonical_name(name)
        if canonical is None:
            if source is Source.EXPLICIT or names.looks_ours(name):
                unknown.append(name)
            continue
        row = VARIABLES[canonical]
        belongs_to_others = source is Source.ENVIRONMENT and row.level is Level.PLATFORM
        if text.strip() and not belongs_to_others:
            offers.append(_Offer(row, source, name, text.strip()))
    findings += _unknown(source, unknown)
    return offers


def _choose(offers: list[_Offer], findings: list[Finding]) -> _Offer:
    """The strongest source; within it the canonical name before an alias."""
    rivals = [offer for offer in offers if offer.source is offers[0].source]
    chosen = next((rival for rival in rivals if rival.name == rival.variable.name), rivals[0])
    findings += [
        Finding(
            severity=Severity.WARNING,
            name=chosen.variable.name,
            message=f"{chosen.name} and {rival.name} differ ({rival.source}): "
            f"{chosen.name} counts, {rival.name} is ignored.",
        )
        for rival in rivals
        if rival.text != chosen.text
    ]
    return chosen


def _invalid(offer: _Offer, line: int | None, detail: str) -> Finding:
    row = offer.variable
    shown = show(offer.text, hide=row.is_hidden)
    origin = str(offer.source) if line is None else f"{offer.source}, line {line}"
    alias = "" if offer.name == row.name else f", as {offer.name}"
    requirement = f"{row.rule.text} ({detail})" if detail else row.rule.text
    return Finding(
        severity=Severity.ERROR,
        name=row.name,
        shown=shown,
        rule=row.rule.text,
        example=row.example,
        message=f"Invalid {row.name}: {shown} (from {origin}{alias}). It {requirement}.",
    )


def _unknown(source: Source, unknown: list[str]) -> list[Finding]:
    """Their values are not shown: a misspelt name may hold a key."""
    severity = Severity.ERROR if source is Source.EXPLICIT else Severity.WARNING
    findings = []
    for name in unknown[:UNKNOWN_FINDINGS_MAX]:
        meant = names.nearest(name)
        advice = f"did you mean {meant}?" if meant else "docs/context.md lists all variables."
        findings.append(
            Finding(
                severity=severity,
                name=name[:SHOWN_CHARS_MAX],
                message=f"Unknown variable {show(name)} (from {source}): {advice}",
            )
        )
    if len(unknown) > UNKNOWN_FINDINGS_MAX:
        count = len(unknown) - UNKNOWN_FINDINGS_MAX
        message = f"{count} further unknown variables (from {source})."
        findings.append(Finding(severity=severity, message=message))
    return findings


def _misplaced(row: Variable, role: Role) -> Finding:
    message = f"{row.name} is ignored: the {role} does not read it."
    return Finding(severity=Severity.INFO, name=row.name, message=message)
