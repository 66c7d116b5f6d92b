"""Of all tests: programs of the system (missing ones fail in CI and are skipped elsewhere)."""

from __future__ import annotations

import os
import shutil

import hypothesis
import pytest

from onefed.appliance import gateway

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("onefed", deadline=None)
hypothesis.settings.load_profile("onefed")


@pytest.fixture(scope="session")
def nginx() -> str:
    """Path of the real nginx."""
    return _found(gateway.find_nginx(), "nginx", "nginx-light")


@pytest.fixture(scope="session")
def shellcheck() -> str:
    """Path of the real shellcheck."""
    return _found(shutil.which("shellcheck"), "shellcheck", "shellcheck")


@pytest.fixture(scope="session")
def systemd_analyze() -> str:
    """Path of the real systemd-analyze."""
    return _found(shutil.which("systemd-analyze"), "systemd-analyze", "systemd")


@pytest.fixture(scope="session")
def promtool() -> str:
    """Path of the real promtool."""
    return _found(shutil.which("promtool"), "promtool", "prometheus")


def _found(path: str | None, program: str, package: str) -> str:
    if path is not None:
        return path
    if os.getenv("CI") == "true":  # noqa: TID251
        pytest.fail(f"{program} is not installed: .ci/run installs {package}")
    pytest.skip(f"{program} is not installed (Debian: {package})")
