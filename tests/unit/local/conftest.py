"""Requests, apps and state directories made by hand, and programs that carry or hold one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from onefed.errors import OnefedError
from onefed.local import ownership, state
from onefed.local.request import Request, prepare
from onefed.local.spec import Spec
from onefed.local.state import StateDir

PYPROJECT = """\
[project]
name = "small"
version = "1.0"

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "small:app"
clientapp = "small:app"

[tool.flwr.app.config]
local-epochs = 1
learning-rate = 0.1
shuffle = true
tag = ""
"""
"""An app that imports nothing, so that checking it takes no time."""

MANAGED = '\n[tool.onefed]\ninitial-arrays = "small:initial"\n'

MODULE = "def app(): ...\ndef initial(run_config): ...\n"

HOLDER = """
import sys
from pathlib import Path
from onefed.local import ownership, state
with ownership.hold(state.StateDir(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""
"""Holds the state directory until its standard input is closed."""

Starter = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The state home; nothing is there yet."""
    return tmp_path / "home"


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    return {"ONEFED_HOME": str(home)}


@pytest.fixture
def write_app() -> Callable[..., Path]:
    """Writes an app of the user's own; with nothing said, one that runs its own ServerApp."""

    def write(
        folder: Path,
        *,
        pyproject: str = PYPROJECT,
        module: str = MODULE,
        managed: bool = False,
    ) -> Path:
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(pyproject + (MANAGED if managed else ""))
        (folder / "small.py").write_text(module)
        return folder

    return write


@pytest.fixture
def app(tmp_path: Path, write_app: Callable[..., Path]) -> Path:
    """A managed app of the user's own."""
    return write_app(tmp_path / "small", managed=True)


@pytest.fixture
def ask(app: Path) -> Callable[..., Request]:
    """A request that can be met, but for what a test changes."""

    def build(**changed: Any) -> Request:
        request = Request(
            nodes=2,
            rounds=None,
            strategy=None,
            use_case=None,
            app=app,
            assignments=(),
            context_file=None,
            seed=None,
            data=None,
            name=None,
            folder=None,
            replace=False,
        )
        return dataclasses.replace(request, **changed)

    return build


@pytest.fixture
def refuse(
    ask: Callable[..., Request], environ: dict[str, str], home: Path
) -> Callable[..., OnefedError]:
    """What ``prepare`` raises for a request; nothing may have been written."""

    def attempt(more: Mapping[str, str] | None = None, **changed: Any) -> OnefedError:
        with pytest.raises(OnefedError) as caught:
            prepare(ask(**changed), {**environ, **(more or {})})
        assert not home.exists()
        assert caught.value.hint
        return caught.value

    return attempt


@pytest.fixture
def make(home: Path) -> Callable[..., StateDir]:
    """A federation as ``onefed up`` leaves it before its start."""

    def build(name: str = "demo", folder: Path | None = None, **changed: Any) -> StateDir:
        spec = Spec(
            name=name,
            nodes=2,
            app="image-classification",
            managed=True,
            rounds=5,
            strategy="FedAvg",
            seed=0,
            context={"FL_NUM_ROUNDS": "5"},
        )
        made = state.claim(home, name, folder)
        made.write_spec(dataclasses.replace(spec, **changed))
        return made

    return build


@pytest.fixture
def program() -> Iterator[Starter]:
    """Starts a Python program and waits until it has said its first word."""
    started = []

    def start(code: str, *arguments: object, carries: Path | None = None) -> subprocess.Popen[str]:
        carried = [] if carries is None else [f"{ownership.STATE_VARIABLE}={carries}"]
        process = subprocess.Popen(
            ["env", *carried, sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline(), "it ended without a word"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def held(program: Starter) -> Starter:
    """Has a process hold a federation, as the cloud of one that runs."""

    def hold(directory: StateDir, *, carries: Path | None = None) -> subprocess.Popen[str]:
        return program(HOLDER, directory.folder, carries=carries)

    return hold
