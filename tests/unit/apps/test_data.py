"""Where examples come from: the digits and their shares, and what a data folder may hold."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from onefed.apps.errors import DataError, SettingsError
from onefed.apps.image_classification import data
from onefed.errors import ExitCode

NOBODY = 65534

IMAGES = np.linspace(0, 1, 3 * 64).reshape(3, 8, 8)
LABELS = np.array([0, 4, 9])


def shares(
    labels: NDArray[Any], count: int, scheme: str, alpha: float = 0.5, seed: int = 0
) -> list[NDArray[np.intp]]:
    return [data.partition(labels, one, count, scheme, alpha, seed) for one in range(count)]


class TestDigits:
    def test_are_those_of_scikit_learn(self) -> None:
        """The file is read without importing scikit-learn; a new release may move it."""
        pool, test_set = data.digits()
        images = load_digits()
        wanted = np.column_stack([images.data, images.target])

        found = np.vstack([np.column_stack([part.x * 16, part.y]) for part in (pool, test_set)])

        assert sorted(map(tuple, found)) == sorted(map(tuple, wanted))

    def test_keep_a_fifth_of_each_class_for_the_test_set(self) -> None:
        pool, test_set = data.digits()

        assert (len(pool), len(test_set)) == (1442, 355)
        assert np.bincount(test_set.y).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]

    def test_missing_package_is_one_clear_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

        with pytest.raises(DataError, match="scikit-learn is not installed"):
            data.digits.__wrapped__()


class TestPartition:
    @given(
        labels=st.lists(st.integers(0, 9), min_size=1, max_size=60).map(np.array),
        count=st.integers(1, 60),
        scheme=st.sampled_from(["iid", "dirichlet"]),
        alpha=st.floats(1e-3, 1e6),
        seed=st.integers(0, 2**63 - 1),
    )
    @settings(max_examples=150, deadline=None)
    def test_shares_are_disjoint_cover_everything_and_are_not_empty(
        self, labels: NDArray[Any], count: int, scheme: str, alpha: float, seed: int
    ) -> None:
        count = min(count, len(labels))

        parts = shares(labels, count, scheme, alpha, seed)

        assert sorted(np.concatenate(parts)) == list(range(len(labels)))
        assert all(len(part) > 0 for part in parts)
        assert all(np.all(np.diff(part) > 0) for part in parts)

    @pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
    def test_seed_decides_the_shares(self, scheme: str) -> None:
        labels = data.digits()[0].y
        first, again, other = (shares(labels, 3, scheme, seed=seed) for seed in (1, 1, 2))

        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))

    def test_iid_shares_are_equal_in_size_and_alike_in_labels(self) -> None:
        labels = data.digits()[0].y

        for part in shares(labels, 3, "iid"):
            assert len(part) in (480, 481)
            assert np.all(np.bincount(labels[part], minlength=10) > 25)

    def test_smaller_alpha_skews_the_labels_more(self) -> None:
        """Skew: mean share of the commonest label of a node. Even shares have about 0.1."""
        labels = data.digits()[0].y

        def skew(alpha: float) -> float:
            parts = shares(labels, 5, "dirichlet", alpha)
            return float(np.mean([np.bincount(labels[p]).max() / len(p) for p in parts]))

        assert skew(0.05) > 0.5
        assert 0.15 < skew(0.5) < skew(0.05)
        assert skew(1e5) < 0.15

    @pytest.mark.parametrize(("partition_id", "count"), [(3, 3), (-1, 3), (0, 0), (0, 11)])
    def test_impossible_share_is_a_settings_error(self, partition_id: int, count: int) -> None:
        with pytest.raises(SettingsError, match="FL_NODE_CONFIG"):
            data.partition(np.zeros(10, np.int64), partition_id, count, "iid", 0.5, 0)

    @given(count=st.integers(1, 40))
    def test_split_keeps_a_fifth_for_evaluation_unless_there_is_too_little(
        self, count: int
    ) -> None:
        whole = data.Dataset(np.zeros((count, 64), np.float32), np.arange(count))

        train, held_out = data.split(whole)

        if count < 5:
            assert train is held_out is whole
        else:
            assert len(held_out) == count // 5
            assert sorted([*train.y, *held_out.y]) == list(range(count))


class TestFolder:
    def test_empty_folder_means_the_digits(self, tmp_path: Path) -> None:
        """An appliance mounts its data folder whether there is data or not."""
        (tmp_path / ".gitkeep").touch()
        (tmp_path / "lost+found").mkdir(mode=0o000)

        assert data.read_folder(tmp_path) is None

    @pytest.mark.parametrize("names", [("x", "y"), ("images", "labels")])
    @pytest.mark.parametrize("shape", [(3, 8, 8), (3, 64)])
    @pytest.mark.parametrize("scale", [np.float64(1), np.float32(1), np.uint8(255)])
    def test_archives(
        self, tmp_path: Path, names: tuple[str, str], shape: tuple[int, ...], scale: np.generic
    ) -> None:
        x = (IMAGES.reshape(shape) * scale).astype(scale.dtype)
        np.savez(tmp_path / "site.npz", **{names[0]: x, names[1]: LABELS})

        found = data.read_folder(tmp_path)

        assert found is not None
        np.testing.assert_allclose(found.x, IMAGES.reshape(3, 64), atol=1 / 255)
        assert found.y.tolist() == [0, 4, 9]
        assert (found.x.dtype, found.y.dtype) == (np.float32, np.int64)

    def test_archives_and_class_folders_add_up_in_order_of_path(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "b.npz", x=IMAGES[:1], y=np.array([5], np.uint8))
        np.savez(tmp_path / "a.npz", x=IMAGES[:1], y=np.array([6]))
        for label, name in (("3", "two"), ("3", "one"), ("0", "three")):
            (tmp_path / label).mkdir(exist_ok=True)
            np.save(tmp_path / label / f"{name}.npy", IMAGES[1])

        found = data.read_folder(tmp_path)

        assert found is not None
        assert found.y.tolist() == [0, 3, 3, 6, 5]

    def test_png(self, tmp_path: Path) -> None:
        image = pytest.importorskip("PIL.Image")
        (tmp_path / "7").mkdir()
        pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
        image.fromarray(pixels).save(tmp_path / "7" / "one.png")

        found = data.read_folder(tmp_path)

        assert found is not None
        np.testing.assert_array_equal(np.rint(found.x * 255), pixels.reshape(1, 64))

    def test_png_without_pillow_names_the_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        (tmp_path / "7").mkdir()
        (tmp_path / "7" / "one.png").write_bytes(b"\x89PNG")

        with pytest.raises(DataError, match=r"one\.png: .*pip install 'onefed\[images\]'"):
            data.read_folder(tmp_path)


def save(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def truncated(path: Path) -> None:
    save(path, x=IMAGES, y=LABELS)
    path.write_bytes(path.read_bytes()[:-100])


def damaged(path: Path) -> None:
    """The directory of the zip is sound, what it points to is not."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=IMAGES, y=LABELS)
    content = bytearray(buffer.getvalue())
    content[120:180] = b"?" * 60
    path.write_bytes(content)


def boastful(path: Path) -> None:
    """A header that promises more elements than memory holds."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000, 64), }"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", array)
        archive.writestr("y.npy", array)


BAD_ARCHIVES: dict[str, Callable[[Path], object]] = {
    "truncated": truncated,
    "damaged": damaged,
    "boastful": boastful,
    "pickled": lambda path: save(path, x=IMAGES.astype(object), y=LABELS),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a zip"),
    "other names": lambda path: save(path, a=IMAGES, b=LABELS),
    "no labels": lambda path: save(path, x=IMAGES),
    "number": lambda path: save(path, x=np.array(1.0), y=np.array(1)),
    "no images": lambda path: save(path, x=IMAGES[:0], y=LABELS[:0]),
    "28x28": lambda path: save(path, x=np.zeros((3, 28, 28)), y=LABELS),
    "transposed": lambda path: save(path, x=np.zeros((64, 3)), y=LABELS),
    "fewer labels": lambda path: save(path, x=IMAGES, y=LABELS[:2]),
    "column of labels": lambda path: save(path, x=IMAGES, y=LABELS[:, np.newaxis]),
    "float labels": lambda path: save(path, x=IMAGES, y=LABELS / 1),
    "label 10": lambda path: save(path, x=IMAGES, y=LABELS + 1),
    "label -1": lambda path: save(path, x=IMAGES, y=LABELS - 1),
    "brightness 16": lambda path: save(path, x=IMAGES * 16, y=LABELS),
    "int brightness": lambda path: save(path, x=IMAGES.astype(int), y=LABELS),
    "complex": lambda path: save(path, x=IMAGES + 0j, y=LABELS),
    "not a number": lambda path: save(path, x=np.where(IMAGES > 0.5, np.nan, 0), y=LABELS),
    "strings": lambda path: save(path, x=IMAGES.astype(str), y=LABELS),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "dangling link": lambda path: path.symlink_to("nowhere"),
}


class TestBadFolder:
    @pytest.mark.parametrize("kind", BAD_ARCHIVES)
    def test_bad_archive_is_one_clear_error(self, tmp_path: Path, kind: str) -> None:
        BAD_ARCHIVES[kind](tmp_path / "site.npz")

        with pytest.raises(DataError) as caught:
            data.read_folder(tmp_path)

        assert caught.value.exit_code is ExitCode.DATA
        title, line = caught.value.message.splitlines()
        assert title == "Training data cannot be used:"
        reason = line.removeprefix(f"{tmp_path / 'site.npz'}: ")
        assert reason != line
        assert len(reason) > 10
        assert caught.value.hint is not None

    def test_pickle_is_never_opened(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
                return os.mkdir, (str(tmp_path / "gone off"),)

        save(tmp_path / "site.npz", x=np.array([Bomb()], dtype=object), y=LABELS)

        with pytest.raises(DataError, match="allow_pickle=False"):
            data.read_folder(tmp_path)
        assert not (tmp_path / "gone off").exists()

    def test_all_bad_files_are_named_together(self, tmp_path: Path) -> None:
        truncated(tmp_path / "a.npz")
        save(tmp_path / "good.npz", x=IMAGES, y=LABELS)
        (tmp_path / "notes.csv").touch()
        (tmp_path / "cats").mkdir()
        (tmp_path / "3").mkdir()
        np.save(tmp_path / "3" / "wrong.npy", np.zeros((9, 9)))
        np.save(tmp_path / "3" / "good.npy", IMAGES[0])
        (tmp_path / "3" / "photo.jpg").touch()

        with pytest.raises(DataError) as caught:
            data.read_folder(tmp_path)

        names = [line.split(": ")[0] for line in caught.value.message.splitlines()[1:]]
        bad = ["3/photo.jpg", "3/wrong.npy", "a.npz", "cats", "notes.csv"]
        assert names == [str(tmp_path / name) for name in bad]

    def test_a_thousand_bad_files_do_not_make_a_thousand_lines(self, tmp_path: Path) -> None:
        for number in range(1000):
            (tmp_path / f"{number:03}.npz").touch()

        with pytest.raises(DataError) as caught:
            data.read_folder(tmp_path)

        assert len(caught.value.message.splitlines()) == 1 + data.BAD_FILES_SHOWN_MAX + 1
        assert caught.value.message.endswith("and 980 more")

    def test_class_folders_without_images(self, tmp_path: Path) -> None:
        (tmp_path / "0").mkdir()

        with pytest.raises(DataError, match="class folders are empty"):
            data.read_folder(tmp_path)

    def test_missing_folder(self, tmp_path: Path) -> None:
        """A name that was misspelt must not train on other data without a word."""
        with pytest.raises(DataError, match=r"absent: No such file or directory"):
            data.read_folder(tmp_path / "absent")

    def test_file_in_place_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "data").touch()

        with pytest.raises(DataError, match=r"data: Not a directory"):
            data.read_folder(tmp_path / "data")

    @pytest.mark.parametrize("closed", ["", "site.npz", "3", "3/one.npy"])
    def test_denied_permission(self, readable_folder: Path, closed: str) -> None:
        save(readable_folder / "site.npz", x=IMAGES, y=LABELS)
        (readable_folder / "3").mkdir()
        np.save(readable_folder / "3" / "one.npy", IMAGES[0])
        (readable_folder / closed).chmod(0o000)

        if os.geteuid() == 0:
            os.seteuid(NOBODY)
        try:
            with pytest.raises(DataError) as caught:
                data.read_folder(readable_folder)
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            (readable_folder / closed).chmod(0o755)

        assert caught.value.message.splitlines()[1:] == [
            f"{readable_folder / closed}: Permission denied"
        ]

    @given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
    @settings(max_examples=150, deadline=None)
    def test_a_flipped_byte_is_read_or_reported(self, place: int, byte: int) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, x=IMAGES, y=LABELS)
        content = bytearray(buffer.getvalue())
        content[place % len(content)] ^= byte
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "site.npz").write_bytes(content)
            try:
                found = data.read_folder(Path(folder))
            except DataError:
                return
        assert found is not None
        assert len(found) == 3


@pytest.fixture
def readable_folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
