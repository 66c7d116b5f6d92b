"""The final model, in files that other programs read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import deserialize, safe_open

from onefed import arrays
from onefed.checkpoint import ModelFileError, write_model
from onefed.errors import InUseError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

MODEL = {
    "layer/weight": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "file": np.array(7),
    "größe": np.zeros((0, 2), np.float16),
    **{f"of {name}": np.arange(3).astype(arrays.dtype_of(name)) for name in arrays.DTYPES},
}
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "BF16": arrays.BFLOAT16,
    **{f"{kind}{8 * n}": np.dtype(f"{kind.lower()}{n}") for kind in "IU" for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
}
METADATA = {"run": "run-1", "app": "größe"}


def read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as found:
            model = dict(found)
        return model, json.loads(str(model.pop("__metadata__")))
    tensors = {
        key: np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        for key, tensor in deserialize(path.read_bytes())
    }
    with safe_open(path, "np") as opened:
        return tensors, opened.metadata()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_model_and_metadata_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    assert write_model(path, MODEL, METADATA) == path.stat().st_size
    model, metadata = read(path)
    assert metadata == METADATA
    assert arrays.digest(model) == arrays.digest(MODEL)


def test_unknown_suffix_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"suffix '\.pt'") as caught:
        write_model(tmp_path / "model.pt", MODEL, METADATA)
    assert caught.value.hint == "Use one of: .npz, .safetensors."


def test_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(b"mine")
    with pytest.raises(InUseError, match="exists already"):
        write_model(path, MODEL, METADATA)
    assert path.read_bytes() == b"mine"
    write_model(path, MODEL, METADATA, overwrite=True)
    assert read(path)[1] == METADATA


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_failed_write_leaves_the_old_file(tmp_path: Path, suffix: str, disks: Any) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match="No space left"):
        write_model(path, MODEL, METADATA, overwrite=True, system=disks.failing(3))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("key", ["__metadata__", "a.npy", "nul\0", "x" * 70_000])
def test_array_name_that_does_not_fit_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ModelFileError, match="cannot be written"):
        write_model(tmp_path / "model.npz", {key: np.zeros(1)}, METADATA)
    assert not list(tmp_path.iterdir())
