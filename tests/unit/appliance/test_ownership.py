"""Files of the programs' user; root only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onefed.appliance import ownership
from onefed.appliance.paths import Paths

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def test_the_programs_get_their_files_and_nothing_behind_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    paths = Paths(tmp_path / "root")
    (paths.state / "deep").mkdir(parents=True)
    (paths.state / "deep/file").touch()
    (paths.state / "link").symlink_to(outside / "file")
    (paths.state / "folder").symlink_to(outside)
    paths.config.mkdir(parents=True)
    paths.superexec_secret.touch()
    private = paths.certificates.with_name("private")
    private.mkdir(parents=True)
    description = paths.programs / "superlink.json"
    description.parent.mkdir()
    description.touch()
    assert ownership.give(paths)
    # The client of Docker is root without capabilities; and no program changes what it is.
    assert (description.stat().st_uid, description.stat().st_gid) == (0, 49_999)
    for place in (paths.state, paths.state / "deep/file", paths.superexec_secret):
        assert (place.stat().st_uid, place.stat().st_gid) == (49_999, 49_999)
    assert (paths.state / "link").lstat().st_uid == 49_999
    for place in (outside, outside / "file", private):
        assert place.stat().st_uid == 0
    assert (paths.config.stat().st_uid, paths.config.stat().st_gid) == (0, 49_999)
    assert not ownership.give(paths), "a second time there is nothing to do"


def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    paths = Paths(tmp_path / "root")
    paths.state.parent.mkdir(parents=True)
    paths.state.symlink_to(outside)
    ownership.give(paths)
    assert (outside / "file").stat().st_uid == 0
