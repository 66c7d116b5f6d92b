"""Transcripts of ``tests/transcripts``: what a group does is what the text says it does.

``ONEFED_REWRITE=1 pytest tests/unit/sim/test_transcripts.py`` writes them anew, to be read by eye.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onefed.sim import scenario

TRANSCRIPTS = sorted((Path(__file__).parents[2] / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_is_what_happens(path: Path) -> None:
    written = path.read_text()
    now = scenario.replay(written)
    if os.environ.get("ONEFED_REWRITE"):  # noqa: TID251 - the flag that rewrites them
        path.write_text(now)
        return
    assert now == written
    assert "!!" not in now
