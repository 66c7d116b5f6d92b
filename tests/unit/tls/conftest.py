"""Time and folders for the tests of certificates."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def now() -> datetime:
    """The real time, because a handshake compares certificates with the real clock."""
    return datetime.now(tz=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "certs"


@pytest.fixture
def open_umask() -> Iterator[None]:
    """No help from the umask: modes must come from the program."""
    before = os.umask(0)
    yield
    os.umask(before)
