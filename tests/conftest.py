"""Programs of the system that tests use: missing ones fail in CI and are skipped elsewhere."""

from __future__ import annotations

import os

import pytest

from onefed.appliance import gateway


@pytest.fixture(scope="session")
def nginx() -> str:
    """Path of the real nginx."""
    found = gateway.find_nginx()
    if found is None:
        if os.getenv("CI") == "true":  # noqa: TID251
            pytest.fail("nginx is not installed: .ci/run installs nginx-light")
        pytest.skip("nginx is not installed (Debian: nginx-light)")
    return found
