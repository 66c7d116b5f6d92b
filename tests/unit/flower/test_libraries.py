"""What an app imports, read from its bundle; nothing of it runs."""

from __future__ import annotations

import io
import sys
import zipfile

from onefed.flower import libraries


def fab(**sources: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, source in sources.items():
            archive.writestr(name.replace("__", "/") + ".py", source)
    return packed.getvalue()


def test_what_modules_import_when_they_are_imported_is_found() -> None:
    client = (
        "import numpy as np, json\nfrom sklearn.linear_model import SGDClassifier\nraise SystemExit"
    )
    assert libraries.of(fab(app__client=client)) == ("json", "numpy", "sklearn.linear_model")


def test_what_an_app_imports_late_or_perhaps_is_left_to_it() -> None:
    source = """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
try:
    import tensorflow
except ImportError:
    tensorflow = None

def train():
    import jax
"""
    assert libraries.of(fab(task=source)) == ("__future__", "typing")


def test_modules_of_the_app_are_no_libraries() -> None:
    assert (
        libraries.of(fab(app__client="import app.task, helper\nfrom . import x", helper="")) == ()
    )


def test_what_is_no_python_is_the_apps_own_affair() -> None:
    assert libraries.of(fab(broken="def", nul="\0", good="import csv")) == ("csv",)
    assert len(libraries.of(fab(many="\n".join(f"import m{i}" for i in range(999))))) == 200


def test_a_broken_bundle_is_told_of_elsewhere() -> None:
    assert libraries.of(b"no zip") == libraries.of(fab(good="import csv")[:-9]) == ()


def test_what_cannot_be_imported_is_passed_over() -> None:
    sys.modules.pop("colorsys", None)
    libraries.load(["a_module_that_is_not_there", "colorsys"])
    assert "colorsys" in sys.modules
