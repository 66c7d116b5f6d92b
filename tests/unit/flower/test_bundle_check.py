"""Bundles that no honest app makes are refused before anything of them is expanded."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from onefed.flower import bundle, bundle_check

PYPROJECT = b"""
[project]
name = "app"
version = "1.0.0"
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
clientapp = "client:app"
serverapp = "server:app"
"""


def packed(files: Mapping[str, bytes], *, mode: int = stat.S_IFREG | 0o644) -> bytes:
    """A zip with these files after a pyproject.toml."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pyproject.toml", PYPROJECT)
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = mode << 16
            archive.writestr(entry, content)
    return stream.getvalue()


def test_an_app_of_the_examples_has_no_problem(app_folder: Callable[..., Path]) -> None:
    for folder in (app_folder(), app_folder("own", managed=None)):
        assert bundle_check.problems(bundle.build(bundle.load(folder)).fab) == []


HOSTILE: Mapping[str, tuple[bytes, str]] = {
    "zip slip": (packed({"../evil.py": b""}), "leads out"),
    "deep slip": (packed({"a/../../evil.py": b""}), "leads out"),
    "absolute": (packed({"/etc/cron.d/x": b""}), "absolute"),
    "drive": (packed({"C:evil.py": b""}), "absolute"),
    "backslash": (packed({"..\\evil.py": b""}), "mean something else"),
    "control character": (packed({"a\x1b[2J.py": b""}), "mean something else"),
    "link": (packed({"link": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), "link or a device"),
    "device": (packed({"dev": b""}, mode=stat.S_IFCHR | 0o666), "link or a device"),
    "bomb": (packed({"zeros.py": bytes(80 * 2**20)}), "expands to"),
    "thousands of files": (packed({f"f{i}.py": b"" for i in range(3_000)}), "3001 files"),
    "long name": (packed({"a" * 256 + ".py": b""}), "255 bytes"),
    "too deep": (packed({"/".join("abcdefghijklmnopqr") + ".py": b""}), "folders deep"),
    "unicode clash": (packed({"na\u00efve.py": b"", "nai\u0308ve.py": b""}), "one name"),
    "case clash": (packed({"Task.py": b"", "task.py": b""}), "one name"),
    "sitecustomize": (packed({"sitecustomize.py": b""}), "shadow"),
    "flwr": (packed({"flwr/__init__.py": b""}), "shadow"),
    "onefed": (packed({"onefed.py": b""}), "shadow"),
    "pth": (packed({"x.pth": b"import os"}), "without being a source"),
    "bytecode": (packed({"__pycache__/task.cpython-311.pyc": b""}), "without being a source"),
    "no archive": (b"PK\x05\x06", "no zip archive"),
}


@pytest.mark.parametrize(("fab", "said"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_bundle_is_refused_and_says_why(fab: bytes, said: str) -> None:
    assert any(said in problem for problem in bundle_check.problems(fab))
    with pytest.raises(bundle.AppError):
        bundle.unpack(fab)


def test_many_problems_are_bounded() -> None:
    found = bundle_check.problems(packed({f"../{i}": b"" for i in range(500)}))
    assert len(found) == bundle_check.PROBLEMS_MAX + 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'name = "app"', b'name = "../x"', "name"),
        (b"1.0.0", b"1" * 2**20, "version"),
        (b"1.0.0", b"../1", "version"),
        (b"somebody", b"../x", "publisher"),
    ],
    ids=["name", "long version", "version", "publisher"],
)
def test_names_that_become_paths_are_checked(old: bytes, new: bytes, said: str) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("pyproject.toml", PYPROJECT.replace(old, new))
    with pytest.raises(bundle.AppError, match=said) as caught:
        bundle.unpack(stream.getvalue())
    assert len(str(caught.value)) < 2000
