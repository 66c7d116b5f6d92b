"""A stored model comes back bit by bit, and nothing else ever does."""

from __future__ import annotations

import hashlib
import json
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from onefed.arrays import BFLOAT16, DTYPES, Arrays, digest, dtype_of
from onefed.checkpoint import DamagedError, delta, delta_file, files
from onefed.checkpoint.delta import DeltaStore
from onefed.checkpoint.delta_file import PREFIX
from onefed.errors import NotFoundError, StorageError

UNKNOWN = "0" * 64


def bits(seed: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Any bit patterns: NaNs with payloads, infinities, subnormals."""
    kind = dtype_of(dtype)
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer(generator.bytes(size), kind).reshape(shape)


def every_kind(seed: int) -> Arrays:
    """One array of each element type, with a scalar, an empty one and several tiles among them."""
    model = {f"layer/{dtype}": bits(seed, dtype, (3, 5)) for dtype in DTYPES}
    model["scalar"] = np.asarray(np.float32(seed))
    model["empty"] = np.empty((0, 4), BFLOAT16)
    model["tiles"] = bits(seed, "bfloat16", (2 * delta_file.TILE_ELEMENTS + 3,))
    return model


def trained(round_number: int, elements: int = 3000) -> Arrays:
    """Models of consecutive rounds differ in little, as when they are trained."""
    generator = np.random.default_rng(0)
    start = generator.normal(0, 0.1, elements)
    step = generator.normal(0, 1e-5, elements)
    return {
        "weight": (start + round_number * step).astype(np.float32),
        "steps": np.array(round_number),
    }


def same(ours: Arrays, theirs: Arrays) -> bool:
    return list(ours) == list(theirs) and digest(ours) == digest(theirs)


def size_of(store: DeltaStore, name: str) -> int:
    return store.path(name).stat().st_size


def forged(store: DeltaStore, name: str, **changed: Any) -> Path:
    """Change the header of a file, with a digest that fits."""
    path = store.path(name)
    data = path.read_bytes()
    length = PREFIX.unpack_from(data)[2]
    document = json.loads(data[PREFIX.size : PREFIX.size + length])
    for field, value in changed.items():
        if field in document:
            document[field] = value
        else:
            document["arrays"][0][field] = value
    return rewritten(path, json.dumps(document).encode(), data[PREFIX.size + length :])


def rewritten(path: Path, text: bytes, body: bytes) -> Path:
    sha256 = hashlib.sha256(text).digest()
    path.write_bytes(
        PREFIX.pack(delta_file.MAGIC, delta_file.VERSION, len(text), sha256) + text + body
    )
    return path


# --- Round trip -----------------------------------------------------------------------------------


def test_every_kind_of_array_comes_back_in_its_order(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path / "store")
    first = store.put(every_kind(1), None)
    second = store.put(every_kind(2), first)
    for seed, name in ((1, first), (2, second)):
        assert name == digest(every_kind(seed))
        assert same(store.get(name), every_kind(seed))
    assert store.names() == sorted((first, second))


def test_what_comes_back_is_the_callers_own(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    name = store.put(trained(1), None)
    mine = store.get(name)
    mine["weight"][:] = 0
    second = store.put(trained(2), name)
    assert same(store.get(name), trained(1))
    assert same(store.get(second), trained(2))


def test_the_callers_arrays_may_change_after_put(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    model = trained(1)
    name = store.put(model, None)
    model["weight"][:] = 7
    second = store.put(trained(2), name)
    assert len(store.chain(second)) == 2
    assert same(DeltaStore(tmp_path).get(second), trained(2))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_delta_of_any_bits_restores_any_bits(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, dtype: str
) -> None:
    shape = data.draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
    base, target = (
        {"a": bits(data.draw(st.integers(0, 2**32)), dtype, shape), "b": np.array(number)}
        for number in (1, 2)
    )
    store = DeltaStore(tmp_path_factory.mktemp("store"), threads=1)
    name = store.put(target, store.put(base, None))
    assert same(store.get(name), target)


def test_zeros_and_nans_keep_their_bits(tmp_path: Path) -> None:
    payloads = np.array([0x7FC00000, 0x7F800001, 0xFFC12345, 0x80000000, 0], np.uint32)
    base = {"a": np.zeros(5, np.float32)}
    target = {"a": payloads.view(np.float32)}
    store = DeltaStore(tmp_path)
    got = store.get(store.put(target, store.put(base, None)))
    assert got["a"].view(np.uint32).tolist() == payloads.tolist()


@pytest.mark.parametrize("layout", ["F", "strided", "swapped", "read-only"])
def test_memory_layout_does_not_show(tmp_path: Path, layout: str) -> None:
    plain = np.arange(60, dtype=np.float32).reshape(6, 10)
    laid = {
        "F": np.asfortranarray(plain),
        "strided": np.repeat(plain, 2, axis=1)[:, ::2],
        "swapped": plain.astype(">f4"),
        "read-only": plain.copy(),
    }[layout]
    laid.flags.writeable = False
    ours, theirs = DeltaStore(tmp_path / "a"), DeltaStore(tmp_path / "b")
    name = ours.put({"a": laid}, None)
    assert theirs.put({"a": plain}, None) == name
    assert ours.path(name).read_bytes() == theirs.path(name).read_bytes()
    assert ours.get(name)["a"].dtype == np.float32


def test_threads_do_not_show_in_the_files(tmp_path: Path) -> None:
    contents = []
    for threads in (1, 3):
        store = DeltaStore(tmp_path / str(threads), threads=threads)
        name = store.put(every_kind(2), store.put(every_kind(1), None))
        contents.append(store.path(name).read_bytes())
    assert contents[0] == contents[1]


# --- Full or delta --------------------------------------------------------------------------------


def test_delta_of_consecutive_models_is_shorter_than_the_model(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    full = store.put(trained(1), None)
    name = store.put(trained(2), full)
    assert store.chain(name) == [name, full]
    assert size_of(store, name) < 3000 * 4 / 1.7
    assert size_of(store, full) < 3000 * 4


def test_chain_is_no_longer_than_it_may_be(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path, chain_max=2)
    names: list[str] = []
    for number in range(7):
        names.append(store.put(trained(number), names[-1] if names else None))
    assert [len(store.chain(name)) for name in names] == [1, 2, 3, 1, 2, 3, 1]
    for number, name in enumerate(names):
        assert same(store.get(name), trained(number))


def test_without_chains_every_model_is_full(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path, chain_max=0)
    assert store.chain(second := store.put(trained(2), store.put(trained(1), None))) == [second]


@pytest.mark.parametrize("base", ["unknown", "other shape", "other dtype", "other keys", "damaged"])
def test_without_a_base_of_use_the_model_is_full(tmp_path: Path, base: str) -> None:
    store = DeltaStore(tmp_path)
    below = {
        "unknown": trained(1),
        "other shape": trained(1, elements=2),
        "other dtype": trained(1) | {"steps": np.array(1, np.int32)},
        "other keys": trained(1) | {"more": np.array(1)},
        "damaged": trained(1),
    }[base]
    name = store.put(below, None)
    match base:
        case "unknown":
            name = UNKNOWN
        case "damaged":
            path = store.path(name)
            path.write_bytes(path.read_bytes()[:-1])
            store = DeltaStore(tmp_path)
    second = store.put(trained(2), name)
    assert store.chain(second) == [second]
    assert same(store.get(second), trained(2))


def test_model_that_shares_nothing_with_its_base_is_full(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    base = store.put({"a": bits(1, "float32", (5000,))}, None)
    name = store.put({"a": np.zeros(5000, np.float32)}, base)
    assert store.chain(name) == [name]


def test_model_that_is_here_is_left_as_it_is(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    full = store.put(trained(1), None)
    second = store.put(trained(2), full)
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    assert store.put(trained(1), second) == full
    assert store.put(trained(2), None) == second
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before


def test_damaged_file_of_a_model_is_made_anew_and_rests_on_nothing_that_rests_on_it(
    tmp_path: Path,
) -> None:
    store = DeltaStore(tmp_path)
    first = store.put(trained(1), None)
    second = store.put(trained(2), first)
    path = store.path(first)
    path.write_bytes(path.read_bytes()[:-1])
    assert store.put(trained(1), second) == first
    assert store.chain(first) == [first]
    assert same(store.get(second), trained(2))


def test_element_type_that_no_model_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="complex64"):
        DeltaStore(tmp_path).put({"a": np.zeros(2, np.complex64)}, None)
    assert not list(tmp_path.iterdir())


def test_model_too_large_to_read_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta.archive, "ARRAYS_BYTES_MAX", 100)
    with pytest.raises(StorageError, match="at most"):
        DeltaStore(tmp_path).put(trained(1), None)
    monkeypatch.undo()
    monkeypatch.setattr(delta_file, "HEADER_BYTES_MAX", 100)
    with pytest.raises(StorageError, match="names and shapes"):
        DeltaStore(tmp_path).put(trained(1), None)
    assert not list(tmp_path.iterdir())


# --- Prune ----------------------------------------------------------------------------------------


def test_prune_keeps_what_kept_models_rest_on(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    names: list[str] = []
    for number in range(4):
        names.append(store.put(trained(number), names[-1] if names else None))
    other = store.put(trained(9), names[0])
    assert store.prune([names[2], UNKNOWN]) == sorted([names[3], other])
    assert store.names() == sorted(names[:3])
    assert same(store.get(names[2]), trained(2))


def test_prune_that_is_cut_off_leaves_whole_models(tmp_path: Path, disks: Any) -> None:
    store = DeltaStore(tmp_path)
    names: list[str] = []
    for number in range(4):
        names.append(store.put(trained(number), names[-1] if names else None))
    for _ in names[1:]:
        with pytest.raises(disks.Killed):
            DeltaStore(tmp_path, system=disks.killed(2)).prune([])
        for name in store.names():
            assert digest(store.get(name)) == name
    assert store.names() == names[:1]


def test_prune_removes_nothing_where_a_kept_file_does_not_tell_its_base(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    first = store.put(trained(1), None)
    second = store.put(trained(2), first)
    store.path(second).write_bytes(b"?")
    with pytest.raises(DamagedError, match="cut short"):
        store.prune([second])
    assert store.names() == sorted([first, second])
    assert store.prune([first]) == [second]


def test_prune_clears_what_a_killed_writer_left(tmp_path: Path, disks: Any) -> None:
    with pytest.raises(disks.Killed):
        DeltaStore(tmp_path, system=disks.killed(4)).put(trained(1), None)
    (tmp_path / "notes.txt").touch()
    DeltaStore(tmp_path).prune([])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# --- Durable --------------------------------------------------------------------------------------


def test_file_is_private(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path / "store")
    path = store.path(store.put(trained(1), None))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_killed_or_without_power_at_any_call_no_announced_model_is_lost(
    tmp_path: Path, disks: Any
) -> None:
    at, finished = 0, False
    while not finished:
        at += 1
        system = disks.PowerCut(at)
        folder = tmp_path / str(at)
        store, announced = DeltaStore(folder, threads=1, system=system), None
        try:
            announced = store.put(trained(1), None)
            announced = store.put(trained(2), announced)
            finished = True
        except disks.Killed:
            pass
        if not folder.exists():
            continue
        for after in (folder, *system.survivors(folder, tmp_path / f"{at} after")):
            for name in (found := DeltaStore(after)).names():
                assert digest(found.get(name)) == name
            assert announced is None or announced in found.names()
    assert at > 10


def test_any_call_that_fails_is_an_error_and_the_put_can_be_repeated(
    tmp_path: Path, disks: Any
) -> None:
    for at in range(1, 12):
        store = DeltaStore(tmp_path / str(at), system=disks.failing(at))
        try:
            name = store.put(trained(1), None)
        except StorageError:
            name = store.put(trained(1), None)
        assert same(store.get(name), trained(1))


def test_what_does_not_read_back_is_not_announced(tmp_path: Path) -> None:
    class Forgetful(files.System):
        """A disk that flips a bit of what it is given."""

        def write(self, descriptor: int, data: memoryview) -> int:
            flipped = bytearray(data)
            flipped[-1] ^= 1
            return super().write(descriptor, memoryview(flipped))

    with pytest.raises(DamagedError):
        DeltaStore(tmp_path, system=Forgetful()).put(trained(1), None)
    assert not list(tmp_path.iterdir())


# --- Hostile files --------------------------------------------------------------------------------


@pytest.fixture
def chain(tmp_path: Path) -> tuple[DeltaStore, str, str]:
    """A full model and a delta on it."""
    store = DeltaStore(tmp_path / "store", threads=1)
    full = store.put(trained(1, elements=40), None)
    name = store.put(trained(2, elements=40), full)
    assert store.chain(name) == [name, full]
    return store, full, name


def test_any_flipped_bit_of_either_file_is_found(chain: tuple[DeltaStore, str, str]) -> None:
    store, full, name = chain
    for path in (store.path(full), store.path(name)):
        whole = path.read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            with pytest.raises(DamagedError) as caught:
                store.get(name)
            assert caught.value.path == path
        path.write_bytes(whole)
    assert same(store.get(name), trained(2, elements=40))


def test_file_cut_anywhere_or_with_more_after_it_is_damaged(
    chain: tuple[DeltaStore, str, str],
) -> None:
    store, full, name = chain
    for path in (store.path(full), store.path(name)):
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(DamagedError, match=r"cut short|claims more"):
                store.get(name)
        path.write_bytes(whole + b"\0")
        with pytest.raises(DamagedError, match="longer"):
            store.get(name)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../escape",
        "/etc/passwd",
        "a" * 63,
        "A" * 64,
        "a" * 64 + "\n",
        "a" * 63 + "/",
        "\0" * 64,
    ],
)
def test_what_is_no_digest_is_no_path(tmp_path: Path, name: str) -> None:
    store = DeltaStore(tmp_path)
    for look in (store.get, store.chain, store.path):
        with pytest.raises(DamagedError, match="not a digest"):
            look(name)
    assert store.prune([name]) == []


def test_model_that_is_not_here_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        DeltaStore(tmp_path / "none").get(UNKNOWN)
    assert caught.value.hint


@pytest.mark.parametrize("base", ["../../etc/passwd", 5, ["a"], "a" * 65, ""])
def test_base_that_is_no_digest_is_damage(chain: tuple[DeltaStore, str, str], base: Any) -> None:
    store, _, name = chain
    forged(store, name, base=base)
    with pytest.raises(DamagedError, match="not one of ours"):
        store.chain(name)


def test_missing_base_is_named(chain: tuple[DeltaStore, str, str]) -> None:
    store, full, name = chain
    store.path(full).unlink()
    with pytest.raises(DamagedError, match="missing") as caught:
        store.get(name)
    assert caught.value.path == store.path(full)


def test_delta_on_another_model_is_damaged(chain: tuple[DeltaStore, str, str]) -> None:
    store, _, name = chain
    for wrong in (trained(5, elements=40), trained(5, elements=41)):
        forged(store, name, base=store.put(wrong, None))
        with pytest.raises(DamagedError, match=r"not the digest|not those of its base") as caught:
            store.get(name)
        assert caught.value.path == store.path(name)


def test_circle_of_bases_ends(chain: tuple[DeltaStore, str, str]) -> None:
    store, full, name = chain
    forged(store, full, base=name)
    for look in (store.get, store.chain):
        with pytest.raises(DamagedError, match="rests on itself"):
            look(name)
    forged(store, full, base=full)
    with pytest.raises(DamagedError, match="rests on itself"):
        store.get(name)


def test_endless_chain_is_refused(
    chain: tuple[DeltaStore, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "CHAIN_READ_MAX", 0)
    store, _, name = chain
    with pytest.raises(DamagedError, match="chain"):
        store.get(name)


def test_file_of_one_model_under_the_name_of_another_is_damaged(
    chain: tuple[DeltaStore, str, str],
) -> None:
    store, full, name = chain
    store.path(name).write_bytes(store.path(full).read_bytes())
    with pytest.raises(DamagedError, match="it holds the model"):
        store.get(name)


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": [2**40]},
        {"shape": [2**62, 2**62]},
        {"shape": [0, 2**70]},
        {"shape": [-1]},
        {"shape": [40.0]},
        {"shape": [True]},
        {"shape": 40},
        {"shape": [1] * 65},
        {"dtype": "object"},
        {"dtype": "O"},
        {"dtype": ["float32"]},
        {"dtype": None},
        {"key": "steps"},
        {"key": "\ud800"},
        {"key": 3},
        {"sha256": None},
        {"arrays": {}},
        {"arrays": [3]},
        {"arrays": None},
        {"target": None},
    ],
    ids=repr,
)
def test_header_that_put_never_writes_is_damage(
    chain: tuple[DeltaStore, str, str], changed: dict[str, Any]
) -> None:
    store, full, _ = chain
    forged(store, full, **changed)
    with pytest.raises(DamagedError):
        store.get(full)


@pytest.mark.parametrize("text", [b"", b"[]", b"3", b"[" * 100_000, b"\xff", b'{"base": NaN}'])
def test_header_that_is_no_document_is_damage(
    chain: tuple[DeltaStore, str, str], text: bytes
) -> None:
    store, full, _ = chain
    rewritten(store.path(full), text, b"")
    with pytest.raises(DamagedError, match="not one of ours"):
        store.get(full)


def test_header_length_is_bounded_before_it_is_read(chain: tuple[DeltaStore, str, str]) -> None:
    store, full, _ = chain
    store.path(full).write_bytes(PREFIX.pack(delta_file.MAGIC, 1, 2**32 - 1, b""))
    with pytest.raises(DamagedError, match="header is longer"):
        store.get(full)


def test_short_file_cannot_claim_much_memory(tmp_path: Path) -> None:
    """Zeros compress without end: a full model of them is as long as the reader demands."""
    store = DeltaStore(tmp_path)
    name = store.put({"a": np.zeros(10**6, np.float32)}, None)
    assert size_of(store, name) > 4 * 10**6 / delta_file.EXPANSION_MAX
    assert not store.get(name)["a"].any()
    document = {"key": "a", "dtype": "float32", "shape": [10**9], "sha256": ""}
    path = forged(store, name, arrays=[document])
    with pytest.raises(DamagedError, match="more elements than its length allows"):
        store.get(name)
    assert path.stat().st_size < 10**6


@pytest.mark.parametrize("claimed", [160, 2**40, None])
def test_bomb_in_a_plane_is_refused_by_its_length(tmp_path: Path, claimed: int | None) -> None:
    """One plane of 160 bytes; the frame inflates to more, and says so or lies or says nothing."""
    store = DeltaStore(tmp_path)
    name = store.put({"a": np.zeros(160, np.uint8)}, None)
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**20))
    if claimed is not None:
        # Frame header: single segment, 8 bytes of content size, in place of a window.
        bomb = bomb[:4] + b"\xe0" + struct.pack("<Q", claimed) + bomb[6:]
    data = store.path(name).read_bytes()
    length = PREFIX.unpack_from(data)[2]
    text = data[PREFIX.size : PREFIX.size + length]
    body = struct.pack("<I", len(bomb)) + bomb
    rewritten(store.path(name), text, body)
    with pytest.raises(DamagedError, match="cannot be decompressed"):
        store.get(name)


def test_links_pipes_and_folders_are_not_followed(
    chain: tuple[DeltaStore, str, str], tmp_path: Path
) -> None:
    store, full, name = chain
    moved = tmp_path / "moved"
    store.path(full).rename(moved)
    store.path(full).symlink_to(moved)
    with pytest.raises(DamagedError, match="symbolic link"):
        store.get(name)
