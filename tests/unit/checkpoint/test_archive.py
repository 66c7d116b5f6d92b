"""Archives: plain numpy outside, and no member is believed before it was compared."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from onefed import arrays
from onefed.checkpoint import archive
from onefed.checkpoint.files import DamagedError
from onefed.errors import StorageError

PATH = Path("some.npz")

SHAPE = st_numpy.array_shapes(min_dims=0, min_side=0)
ARRAY = st.sampled_from(arrays.DTYPES).flatmap(
    lambda name: (
        st_numpy.arrays(np.uint16, SHAPE).map(lambda bits: bits.view(arrays.BFLOAT16))
        if name == "bfloat16"
        else st_numpy.arrays(name, SHAPE)
    )
)


def packed(*values: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    archive.write(stream, archive.positional(values))
    return stream.getvalue()


def named(*values: np.ndarray[Any, Any]) -> tuple[archive.Entry, ...]:
    return archive.manifest({f"key {n}": value for n, value in enumerate(values)})


def unpacked(data: bytes, entries: tuple[archive.Entry, ...]) -> list[np.ndarray[Any, Any]]:
    return archive.read(PATH, io.BytesIO(data), entries)


@settings(max_examples=60, deadline=None)
@given(st.lists(ARRAY, max_size=3))
def test_every_dtype_and_shape_comes_back_to_the_bit(values: list[np.ndarray[Any, Any]]) -> None:
    data = packed(*values)
    back = unpacked(data, named(*values))
    with np.load(io.BytesIO(data), allow_pickle=False) as plain:
        by_numpy = [plain[f"arr_{n}"] for n in range(len(values))]
    for value, ours, other in zip(values, back, by_numpy, strict=True):
        assert (ours.dtype, ours.shape) == (other.dtype, other.shape) == (value.dtype, value.shape)
        assert ours.dtype.byteorder == value.dtype.byteorder
        assert ours.tobytes() == other.tobytes() == value.tobytes()
        assert ours.flags.writeable


def test_layout_and_byte_order_do_not_show() -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert packed(np.asfortranarray(value).astype(">f4")) == packed(value)


def repacked(names: list[str], member: bytes, **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as target:
        for name in names:
            target.writestr(name, member)
    return stream.getvalue()


VALUE = np.arange(3, dtype=np.float32)
NPY = io.BytesIO()
np.save(NPY, VALUE)
MEMBER = NPY.getvalue()


def npy(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + body


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x05\x06",
        packed(VALUE)[:-30],
        packed(VALUE)[30:],
        packed(),
        packed(VALUE, VALUE),
        packed(VALUE.astype(np.float64)),
        packed(VALUE + 1),
        repacked(["arr_1.npy"], MEMBER),
        repacked(["../arr_0.npy"], MEMBER),
        repacked(["arr_0.npy"], MEMBER + b"\0"),
        repacked(["arr_0.npy"], MEMBER[:-1]),
        repacked(["arr_0.npy"], MEMBER[:9]),
        repacked(["arr_0.npy"], b""),
        repacked(["arr_0.npy"], npy(HUGE)),
        repacked(["arr_0.npy"], npy("__import__('os')._exit(1)", bytes(12))),
        repacked(["arr_0.npy"], npy("(" * 60_000, bytes(12))),
        repacked(["arr_0.npy"], MEMBER, compression=zipfile.ZIP_DEFLATED),
        packed(VALUE).replace(VALUE.tobytes(), VALUE[::-1].tobytes()),
    ],
    ids=range(19),
)
def test_anything_else_is_damage(data: bytes) -> None:
    with pytest.raises(DamagedError, match=r"some\.npz is damaged"):
        unpacked(data, named(VALUE))


def test_declared_shape_takes_no_memory() -> None:
    """The manifest itself may lie: what counts is what the file has."""
    entry = archive.Entry("w", "float32", (2**40,), "0" * 64)
    with pytest.raises(DamagedError, match="size of its array"):
        unpacked(repacked(["arr_0.npy"], npy(HUGE)), (entry,))


def test_size_claimed_by_the_zip_directory_takes_no_memory() -> None:
    stream, member = io.BytesIO(), npy(HUGE)
    with zipfile.ZipFile(stream, "w") as target:
        target.writestr("arr_0.npy", member)
        (info,) = target.infolist()
        info.file_size = info.compress_size = len(member) + 4 * 2**40
    entry = archive.Entry("w", "float32", (2**40,), "0" * 64)
    with pytest.raises(DamagedError, match="claims more bytes than it has"):
        unpacked(stream.getvalue(), (entry,))


def test_object_arrays_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    stream = io.BytesIO()
    np.savez(stream, np.array([Trap()], object))
    with pytest.raises(DamagedError):
        unpacked(stream.getvalue(), named(VALUE))
    assert not list(tmp_path.iterdir())


def test_directory_longer_than_that_of_the_members_is_not_read() -> None:
    directory = repacked([f"{n}.npy" for n in range(25_000)], b"")
    with pytest.raises(DamagedError, match="archive of ours"):
        unpacked(directory, named(VALUE))


def test_wrong_digest_names_the_array() -> None:
    with pytest.raises(DamagedError, match="'key 0' has not the digest"):
        unpacked(packed(VALUE), named(VALUE + 1))


def test_too_much_to_read_back_is_not_written() -> None:
    endless = np.broadcast_to(np.float32(0), 2**33)
    with pytest.raises(StorageError, match="would hold 1 arrays of 34359738368 bytes"):
        archive.check_size(PATH, [endless])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_mutated_archives_give_the_same_arrays_or_damage(data: st.DataObject) -> None:
    original = packed(VALUE, np.array(7))
    entries = named(VALUE, np.array(7))
    start = data.draw(st.integers(0, len(original)))
    length = data.draw(st.integers(0, 8))
    mutated = original[:start] + data.draw(st.binary(max_size=8)) + original[start + length :]
    try:
        back = unpacked(mutated, entries)
    except DamagedError:
        return
    assert [value.tobytes() for value in back] == [VALUE.tobytes(), np.array(7).tobytes()]


@pytest.mark.skipif(shutil.which("fincore") is None, reason="fincore of util-linux is not here")
def test_holes_do_not_fill_the_page_cache(tmp_path: Path) -> None:
    """A sparse file of 16 GiB drove out what other programs had read, and took a minute."""
    path = tmp_path / "holes.npz"
    zeros = np.zeros(2**23, np.float32)
    path.write_bytes(data := packed(zeros))
    start = data.index(bytes(2**20))
    with path.open("r+b") as stream:
        stream.truncate(start)
        stream.truncate(len(data) - 4096)
        stream.seek(0, 2)
        stream.write(data[-4096:])
        os.fsync(stream.fileno())
    with path.open("rb") as stream:
        assert os.fstat(stream.fileno()).st_blocks * 512 < len(data), "no file system with holes"
        (back,) = archive.read(path, stream, named(zeros))
    assert not back.any()
    cached = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", path],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(cached.stdout) < 2**22
