"""The examples: scikit-learn's digits, shared out among the nodes, or a node's own files.

A data folder holds any number of

* ``NAME.npz`` with ``x`` and ``y`` or ``images`` and ``labels``: images of shape (n, 8, 8) or
  (n, 64), labels of shape (n,);
* folders ``0`` to ``9``, one per class, of ``.npy`` files of shape (8, 8) or (64,) or of 8x8
  ``.png`` files (these need Pillow: ``pip install 'onefed[images]'``).

Labels are whole numbers from 0 to 9.
Brightness is uint8 from 0 to 255, or floating point from 0 to 1.
Names that begin with a dot and ``lost+found`` are passed over; every other file has to fit.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onefed.apps.errors import DataError, SettingsError
from onefed.apps.image_classification import randomness
from onefed.apps.image_classification.model import CLASSES, FEATURES
from onefed.apps.image_classification.randomness import Stream

HELD_OUT_EVERY = 5
"""One example in this many is kept from training and used to evaluate."""
BAD_FILES_SHOWN_MAX = 20
"""Bad files that one error names; the rest is counted."""

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Dataset:
    """Examples in a fixed order."""

    x: NDArray[np.float32]
    """Brightness from 0 to 1, shape (n, 64), rows of the image one after the other."""
    y: NDArray[np.int64]
    """Class from 0 to 9, shape (n,)."""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Indices) -> Dataset:
        return Dataset(self.x[indices], self.y[indices])


@functools.cache
def digits() -> tuple[Dataset, Dataset]:
    """The training pool (1442 images) and the test set (355), the same in every run.

    The file that comes with scikit-learn is read without importing it, which would cost every
    fresh client process a second.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("scikit-learn is not installed.", hint="Run: pip install scikit-learn")
    package = Path(spec.submodule_search_locations[0])
    table = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = Dataset((table[:, :-1] / 16).astype(np.float32), table[:, -1].astype(np.int64))
    is_test = np.zeros(len(images), bool)
    generator = randomness.generator(Stream.TEST_SET)
    for members in _by_class(images.y, generator):
        is_test[members[: len(members) // HELD_OUT_EVERY]] = True
    return images.take(np.flatnonzero(~is_test)), images.take(np.flatnonzero(is_test))


def partition(
    labels: NDArray[np.integer],
    partition_id: int,
    num_partitions: int,
    scheme: str,
    alpha: float,
    seed: int,
) -> Indices:
    """Indices of one node's share, ascending.

    The shares of the ids from 0 to num_partitions - 1 are disjoint, cover all labels, and none is
    empty.

    iid: equal shares of a random order.
    dirichlet: each class is cut by proportions from Dirichlet(alpha, ..., alpha) (Hsu et al. 2019,
    arXiv:1909.06335); a share that got nothing gets one example of the largest.
    """
    if not 0 <= partition_id < num_partitions <= len(labels):
        raise SettingsError(
            f"partition-id {partition_id} of num-partitions {num_partitions} is no share of "
            f"{len(labels)} examples.",
            hint="In the node's configuration (FL_NODE_CONFIG) num-partitions has to be at most "
            "the number of examples, and partition-id from 0 to num-partitions - 1.",
        )
    generator = randomness.generator(Stream.PARTITION, seed)
    if scheme == "iid":
        shares = np.array_split(generator.permutation(len(labels)), num_partitions)
    else:
        assert scheme == "dirichlet", scheme
        shares = _dirichlet_shares(labels, num_partitions, alpha, generator)
    return np.sort(shares[partition_id])


def split(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """What a node trains on and what it evaluates on: every fifth example is held out.

    Fewer than five examples serve as both.
    """
    held_out = np.arange(len(dataset)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if not held_out.any():
        return dataset, dataset
    return dataset.take(np.flatnonzero(~held_out)), dataset.take(np.flatnonzero(held_out))


def read_folder(folder: Path) -> Dataset | None:
    """All examples of a data folder, in order of path; None when the folder is empty."""
    parts: list[Dataset] = []
    problems: list[str] = []
    with _noting(problems, folder):
        entries = _entries(folder)
        if not entries:
            return None
        for entry in entries:
            with _noting(problems, entry):
                if entry.is_dir():
                    label = _label(entry)
                    for image in _entries(entry):
                        with _noting(problems, image):
                            parts.append(_read_image(image, label))
                else:
                    parts.append(_read_archive(entry))
        if not parts and not problems:
            raise ValueError("its class folders are empty")
    if problems:
        shown = problems[:BAD_FILES_SHOWN_MAX]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise DataError(
            "Training data cannot be used:\n" + "\n".join(shown),
            hint="Repair or remove these files, or empty the folder to train on the built-in "
            "digits. A good file: numpy.savez('site.npz', x=images, y=labels) with images of "
            "shape (n, 8, 8), uint8 or from 0 to 1, and labels from 0 to 9.",
        )
    return Dataset(
        np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
    )


@contextlib.contextmanager
def _noting(problems: list[str], path: Path) -> Iterator[None]:
    """Note what is wrong with a file and go on: all bad files are reported together."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # parsers raise anything on foreign bytes
        reason = error.strerror if isinstance(error, OSError) else None
        problems.append(f"{path}: {reason or str(error) or type(error).__name__}")


def _entries(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name != "lost+found"
    )


def _label(folder: Path) -> int:
    if folder.name not in map(str, range(CLASSES)):
        raise ValueError(f"a class folder is named by its label, 0 to {CLASSES - 1}")
    return int(folder.name)


def _read_archive(path: Path) -> Dataset:
    _expect_file(path, ".npz")
    with zipfile.ZipFile(path):  # numpy would take any file for a pickle and say so
        pass
    with np.load(path, allow_pickle=False) as archive:
        for x, y in (("x", "y"), ("images", "labels")):
            if x in archive and y in archive:
                return _dataset(archive[x], archive[y])
    raise ValueError("holds neither x and y nor images and labels")


def _read_image(path: Path, label: int) -> Dataset:
    _expect_file(path, ".npy", ".png")
    pixels = _read_png(path) if path.suffix == ".png" else np.load(path, allow_pickle=False)
    return _dataset(pixels[np.newaxis], np.array([label]))


def _read_png(path: Path) -> NDArray[np.uint8]:
    try:
        pillow: Any = importlib.import_module("PIL.Image")
    except ImportError:
        raise ValueError("reading .png needs Pillow: pip install 'onefed[images]'") from None
    with pillow.open(path, formats=["PNG"]) as image:
        if image.size != (8, 8):
            raise ValueError(f"is {image.size[0]}x{image.size[1]} pixels; 8x8 are needed")
        return np.asarray(image.convert("L"))


def _expect_file(path: Path, *suffixes: str) -> None:
    if path.suffix not in suffixes:
        raise ValueError(f"is no {' or '.join(suffixes)} file")
    if not path.is_file():  # a named pipe would block, a dangling link has nothing to read
        raise ValueError("is not a regular file")


def _dataset(x: NDArray[Any], y: NDArray[Any]) -> Dataset:
    """Check what was read and bring it to the one form."""
    if x.shape[1:] not in ((8, 8), (FEATURES,)):
        raise ValueError(f"images have shape {x.shape}; (n, 8, 8) or (n, {FEATURES}) is needed")
    if y.shape != x.shape[:1]:
        raise ValueError(f"labels have shape {y.shape} for {len(x)} images")
    if len(x) == 0:
        raise ValueError("holds no images")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= CLASSES:
        raise ValueError(f"labels have to be whole numbers from 0 to {CLASSES - 1}")
    if x.dtype == np.uint8:
        x = x / 255
    elif not np.issubdtype(x.dtype, np.floating) or not np.all((x >= 0) & (x <= 1)):
        raise ValueError("brightness has to be uint8, or floating point from 0 to 1")
    return Dataset(x.reshape(-1, FEATURES).astype(np.float32), y.astype(np.int64))


def _by_class(labels: NDArray[np.integer], generator: np.random.Generator) -> list[Indices]:
    """The indices of each class, in ascending order of class, each in random order."""
    return [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]


def _dirichlet_shares(
    labels: NDArray[np.integer],
    share_count: int,
    alpha: float,
    generator: np.random.Generator,
) -> list[Indices]:
    pieces: list[list[Indices]] = [[] for _ in range(share_count)]
    for members in _by_class(labels, generator):
        proportions = generator.dirichlet(np.full(share_count, alpha))
        cuts = np.rint(np.cumsum(proportions)[:-1] * len(members)).astype(np.intp)
        for share_pieces, piece in zip(pieces, np.split(members, cuts), strict=True):
            share_pieces.append(piece)
    shares = [np.concatenate(share_pieces) for share_pieces in pieces]
    for receiver, share in enumerate(shares):
        if len(share) == 0:
            giver = max(range(share_count), key=lambda one: len(shares[one]))
            shares[receiver], shares[giver] = shares[giver][-1:], shares[giver][:-1]
    return shares
