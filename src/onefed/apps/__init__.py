"""Built-in Flower apps, one package per use case.

Each package holds a ``bundle`` folder, which is a Flower app directory: a pyproject.toml whose
components name modules of the package.
The modules are installed wherever onefed is, so nothing but the pyproject.toml travels.

An app that onefed manages says in its pyproject.toml what the coordinator calls::

    [tool.onefed]
    initial-arrays = "module:function"  # f(run_config) -> arrays by name, or an ArrayRecord
    evaluate = "module:function"        # optional: f(arrays, run_config) -> numbers by name
"""

from __future__ import annotations

import importlib
import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

USE_CASES: Mapping[str, str] = MappingProxyType(
    {"image-classification": "onefed.apps.image_classification"}
)
"""The package of each use case, by the name that ``FL_USE_CASE`` takes."""


def bundle_folder(use_case: str) -> Path:
    """The Flower app directory of a use case; its modules are not imported."""
    return Path(str(importlib.resources.files(USE_CASES[use_case]) / "bundle"))


def check_data(use_case: str, folder: Path) -> None:
    """Read every training file in a node's folder, as the node itself will.

    Raises:
        DataError: names each file that cannot be used.
    """
    importlib.import_module(f"{USE_CASES[use_case]}.data").read_folder(folder)
