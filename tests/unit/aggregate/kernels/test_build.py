"""The package installs with a compiler and without one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(("environment", "built"), [(["env", "CC=false"], False), ([], True)])
def test_a_build_succeeds_and_compiles_where_it_can(
    environment: list[str], built: bool, tmp_path: Path
) -> None:
    """``false`` is a compiler that fails at everything, as one that is not there does."""
    if built and shutil.which("gcc") is None:
        pytest.skip("no compiler")
    folders = ("--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp"))
    subprocess.run(
        [*environment, sys.executable, "setup.py", "-q", "build_ext", *folders],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=50,
    )
    assert [path.name[:8] for path in (tmp_path / "lib").rglob("_native*")] == ["_native."] * built
