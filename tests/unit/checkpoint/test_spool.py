"""What waits in the spool comes out once, bit by bit, and nothing stays behind."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.aggregate import Update
from onefed.arrays import DTYPES, ArraysError, array_digest, dtype_of
from onefed.checkpoint import DamagedError, files, spool
from onefed.checkpoint.spool import Spool, SpoolFullError
from onefed.errors import StorageError


def update(client: str, elements: int = 100) -> Update:
    return Update(client, len(client) + 1, {"w": np.full(elements, len(client), np.float32)})


def same(ours: Update, theirs: Update) -> bool:
    assert list(ours.arrays) == list(theirs.arrays)
    return (ours.client, ours.weight) == (theirs.client, theirs.weight) and all(
        array_digest(array) == array_digest(theirs.arrays[key])
        for key, array in ours.arrays.items()
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    layout=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=5
    ),
)
def test_any_update_comes_back_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, layout: list[tuple[str, list[int]]]
) -> None:
    generator = np.random.default_rng(seed)
    arrays = {}
    for index, (dtype, shape) in enumerate(layout):
        size = int(np.prod(shape, dtype=int)) * dtype_of(dtype).itemsize
        data = bytes(n & 1 for n in generator.bytes(size))
        arrays[f"{index}/\n{dtype}"] = np.frombuffer(data, dtype_of(dtype)).reshape(shape)
    put = Update("0", 3, arrays)
    with Spool(tmp_path_factory.mktemp("spool")) as held:
        held.put(put)
        assert same(held.take("0"), put)


def test_updates_are_taken_in_any_order(tmp_path: Path) -> None:
    clients = ["2", "10", "../x", "", "a\nb", "\ud800", "c" * 5000]
    with Spool(tmp_path) as held:
        for client in clients:
            held.put(update(client))
        assert len(held) == len(clients)
        for client in reversed(clients):
            assert same(held.take(client), update(client))
            assert client not in held
        assert (len(held), held.bytes_waiting) == (0, 0)


def test_file_is_private_and_named_by_no_client_and_gone_after_the_take(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    with Spool(folder) as held:
        held.put(update("secret"))
        [path] = folder.iterdir()
        assert path.name == "update_000000.spool"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        held.take("secret")
        assert not list(folder.iterdir())


def test_arrays_are_read_only_and_live_on_after_close(tmp_path: Path) -> None:
    with Spool(tmp_path) as held:
        held.put(update("0"))
        held.put(update("1"))
        taken = held.take("0")
    assert not list(tmp_path.iterdir())
    assert not taken.arrays["w"].flags.writeable
    assert same(taken, update("0"))


def test_memory_layout_does_not_show(tmp_path: Path) -> None:
    plain = np.arange(12, dtype=np.float64).reshape(3, 4)
    with Spool(tmp_path) as held:
        for index, array in enumerate((plain, np.asfortranarray(plain), plain.astype(">f8"))):
            held.put(Update(str(index), 1, {"w": array}))
            assert same(held.take(str(index)), Update(str(index), 1, {"w": plain}))


def test_bytes_are_bounded_and_room_comes_back(tmp_path: Path) -> None:
    with Spool(tmp_path, bytes_max=900) as held:
        held.put(update("0"))
        held.put(update("1"))
        with pytest.raises(SpoolFullError, match="pass 900") as caught:
            held.put(update("2"))
        assert caught.value.hint
        assert "2" not in held
        held.take("0")
        held.put(update("2"))
        assert held.bytes_waiting == 800


class Refusing(files.System):
    """A disk that refuses one kind of call, once."""

    def __init__(self, call: str) -> None:
        self._call = call

    def _check(self, call: str) -> None:
        if call == self._call:
            self._call = ""
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, name: str, mode: int, folder: int) -> int:
        self._check("create")
        return super().create(name, mode, folder)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._check("write")
        return super().write(descriptor, data[: len(data) // 2 + 1])

    def unlink(self, name: str, folder: int) -> None:
        self._check("unlink")
        super().unlink(name, folder)


@pytest.mark.parametrize("call", ["create", "write"])
def test_disk_that_refuses_keeps_nothing_of_the_update(tmp_path: Path, call: str) -> None:
    with Spool(tmp_path, system=Refusing(call)) as held:
        with pytest.raises(StorageError, match="No space left"):
            held.put(update("0"))
        assert not list(tmp_path.iterdir())
        held.put(update("0"))
        assert same(held.take("0"), update("0"))


def test_file_that_cannot_be_removed_is_taken_and_removed_at_the_end(tmp_path: Path) -> None:
    with Spool(tmp_path, system=Refusing("unlink")) as held:
        held.put(update("0"))
        assert same(held.take("0"), update("0"))
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


LEAVER = """
import os, sys
from pathlib import Path
import numpy as np
from onefed.aggregate import Update
from onefed.checkpoint.spool import Spool
held = Spool(Path(sys.argv[1]))
held.put(Update("0", 1, {"w": np.zeros(3)}))
os._exit(1)
"""


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAVER, tmp_path], check=False)
    [left] = tmp_path.iterdir()
    assert spool.NAME.fullmatch(left.name)
    (tmp_path / "update_000001.spool").symlink_to(tmp_path / "notes.txt")
    (tmp_path / "notes.txt").write_text("mine")
    with Spool(tmp_path) as held:
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
        assert "0" not in held
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("planted", ["cut", "link", "gone"])
def test_file_that_somebody_changed_is_damaged(tmp_path: Path, planted: str) -> None:
    with Spool(tmp_path) as held:
        held.put(update("0"))
        [path] = tmp_path.iterdir()
        match planted:
            case "cut":
                os.truncate(path, 10)
            case "link":
                path.unlink()
                path.symlink_to("/etc/passwd")
            case "gone":
                path.unlink()
        with pytest.raises(DamagedError):
            held.take("0")


def test_planted_link_is_not_written_through(tmp_path: Path) -> None:
    with Spool(tmp_path) as held:
        target = tmp_path / "target"
        target.write_text("precious")
        (tmp_path / "update_000000.spool").symlink_to(target)
        with pytest.raises(StorageError, match="exists"):
            held.put(update("0"))
        assert target.read_text() == "precious"


def test_element_type_that_no_model_has_is_refused(tmp_path: Path) -> None:
    with Spool(tmp_path) as held, pytest.raises(ArraysError):
        held.put(Update("0", 1, {"w": np.zeros(2, np.complex64)}))
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        Spool(tmp_path / "file")


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    held = Spool(tmp_path)
    held.close()
    held.close()
