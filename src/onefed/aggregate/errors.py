"""What choosing or applying a rule raises."""

from __future__ import annotations

from onefed.errors import ExitCode, OnefedError


class RuleError(OnefedError):
    """There is no such rule, it has no such parameter, or a value is out of its bounds."""

    exit_code = ExitCode.CONFIG


class AggregationError(OnefedError):
    """The updates of a round cannot be made into a model; state and model stay as they were."""
