"""What an app raises when its node is at fault. Flower carries the text to the coordinator."""

from __future__ import annotations

from onefed.errors import ExitCode, OnefedError


class DataError(OnefedError):
    """Training data of this node cannot be used; all bad files are named at once."""

    exit_code = ExitCode.DATA


class SettingsError(OnefedError):
    """Run or node settings that the app cannot work with; all are named at once."""

    exit_code = ExitCode.CONFIG
