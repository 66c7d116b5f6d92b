"""A write is whole and durable or did not happen, whatever lies in the folder."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from onefed.checkpoint import files
from onefed.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO


def put(path: Path, data: bytes, **options: Any) -> int:
    def write(stream: BinaryIO) -> None:
        stream.writelines(data[start : start + 3] for start in range(0, len(data), 3))

    return files.write_atomically(path, write, **options)


def calls_of_a_write(path: Path, disks: Any) -> int:
    system = disks.killed(1000)
    put(path, b"the new one", system=system)
    return int(system.calls)


def test_write_gives_content_size_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert put(path, b"content", mode=0o600) == 7
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_killed_at_any_call_the_file_is_the_old_or_the_new(tmp_path: Path, disks: Any) -> None:
    path = tmp_path / "file"
    for at in range(1, calls_of_a_write(path, disks) + 1):
        put(path, b"old")
        with pytest.raises(disks.Killed):
            put(path, b"the new one", system=disks.killed(at))
        assert path.read_bytes() in (b"old", b"the new one")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_any_call_that_fails_is_an_error_and_leaves_no_litter(
    tmp_path: Path, disks: Any, number: int
) -> None:
    path = tmp_path / "file"
    put(path, b"old")
    for at in range(1, calls_of_a_write(path, disks) + 1):
        with pytest.raises(StorageError, match=os.strerror(number)) as caught:
            put(path, b"the new one", system=disks.failing(at, number))
        assert str(path) in caught.value.message
        assert caught.value.hint == files.HINTS[number]
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_short_writes_are_completed(tmp_path: Path) -> None:
    class Drop(files.System):
        def write(self, descriptor: int, data: memoryview) -> int:
            return super().write(descriptor, data[:1])

    assert put(tmp_path / "file", b"drop by drop", system=Drop()) == 12
    assert (tmp_path / "file").read_bytes() == b"drop by drop"


def test_what_the_writer_raises_comes_out_and_changes_nothing(tmp_path: Path) -> None:
    def write(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise KeyError("mine")

    with pytest.raises(KeyError):
        files.write_atomically(tmp_path / "file", write)
    assert not list(tmp_path.iterdir())


def test_planted_links_are_replaced_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").symlink_to(outside)
    (folder / ".file.partial").symlink_to(outside)
    put(folder / "file", b"ours")
    assert outside.read_bytes() == b"precious"
    assert not (folder / "file").is_symlink()
    assert (folder / "file").read_bytes() == b"ours"


def test_folder_of_that_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError, match="Cannot write"):
        put(tmp_path / "file", b"ours")


def test_missing_folder_is_named_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file") as caught:
        put(tmp_path / "none" / "file", b"")
    assert caught.value.hint == "Create the folder."


def test_symlink_is_replaced_in_one_step(tmp_path: Path, disks: Any) -> None:
    link = tmp_path / "latest"
    files.replace_symlink(link, "first")
    for at in range(1, 5):
        with pytest.raises(disks.Killed):
            files.replace_symlink(link, "second", system=disks.killed(at))
        assert str(link.readlink()) in ("first", "second")
    files.replace_symlink(link, "third", system=disks.killed(5))
    assert str(link.readlink()) == "third"


def test_remove_takes_the_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    files.remove(tmp_path / "link")
    files.remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_make_folder_makes_all_that_is_missing(tmp_path: Path) -> None:
    files.make_folder(tmp_path / "a" / "b", mode=0o700)
    files.make_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Cannot create"):
        files.make_folder(tmp_path / "file" / "below")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nothing"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "planted"
    match kind:
        case "link":
            (tmp_path / "target").write_bytes(b"{}")
            path.symlink_to("target")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    with pytest.raises(files.DamagedError) as caught:
        files.open_regular(path)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "text", ["", "{", "\xff", "[" * 100_000, "9" * 5000, '{"a": 1} x'], ids=range(6)
)
def test_what_is_not_json_is_damage(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(files.DamagedError, match="not a JSON document"):
        files.read_json(path)


def test_json_has_a_bound_in_both_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    files.write_json(path, {"key": [1, None, "é"]})
    assert files.read_json(path) == {"key": [1, None, "é"]}
    monkeypatch.setattr(files, "JSON_BYTES_MAX", 8)
    with pytest.raises(files.DamagedError, match="longer than 8 bytes"):
        files.read_json(path)
    with pytest.raises(StorageError, match="at most 8 can be read back"):
        files.write_json(path, {"key": [1, None, "é"]})
