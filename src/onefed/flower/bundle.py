"""A Flower app directory, checked before anything starts, and packed for the SuperLink.

An app is *managed* when its ``pyproject.toml`` says where a fresh model comes from::

    [tool.onefed]
    initial-arrays = "module:function"   # f(run_config) -> {name: array}
    evaluate = "module:function"         # optional: f(arrays, run_config) -> {"accuracy": x, ...}

A managed app runs under our ServerApp, with everything onefed offers.
Any other app runs its own ServerApp, untouched, inside our federation.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from onefed.errors import ExitCode, OnefedError
from onefed.flower import adapter, bundle_check, strategy

SERVER_MODULE = "onefed_server_app"
"""Module that ``build`` adds to a managed app; it holds the ServerApp."""

IMPORT_CHECK_TIMEOUT_S = 120.0
"""Importing torch from a cold disk takes up to a minute."""

FROZEN = "<frozen importlib"
"""In the lines of a traceback that are Python's own way of importing."""

RESERVED = ("flwr", "onefed", "sitecustomize", "usercustomize", SERVER_MODULE)
"""Modules at the top of an app that would shadow those of the programs which load it."""

SAID_LINES_MAX = 6
"""Last lines of a traceback that are shown for a module that does not import."""
SAID_BYTES_MAX = 8192
"""Of all that was printed while the app was imported."""

RUN_CONFIG_DEFAULTS: Mapping[str, bool | int | float | str] = {
    "run": "",
    "strategy": "FedAvg",
    "num-server-rounds": 3,
    "min-fit-clients": 2,
    "min-evaluate-clients": 2,
    "min-available-clients": 2,
    "seed": 0,
    "round-timeout-s": 600,
    "round-timeout-min-s": 60,
    "checkpoint-enabled": False,
    "checkpoint-interval": 5,
    "checkpoint-keep-last": 0,
    "checkpoint-keep-every": 0,
    "checkpoint-path": "",
    **strategy.DEFAULTS,
}
"""Keys of the run_config bridge (``context.run_config``) and ``run``, the identity of the run.

Flower lets a submission override only keys that the app's config names, so ``build`` adds these.
"""

BUILT_IN = "onefed.apps"
"""The room of the use cases; it imports machine-learning libraries, so it is met by name only."""

_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!_-]{0,63}")
_PUBLISHER = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")

_REFERENCE = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")

_IMPORT_PROGRAM = """
import importlib, json, operator, sys, traceback
folder, references, lines_max = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, folder)
said = {}
for reference in references:
    module, _, names = reference.partition(":")
    try:
        found = operator.attrgetter(names)(importlib.import_module(module))
        if not callable(found):
            raise TypeError(f"{names} is a {type(found).__name__}, not an app or a function")
    except BaseException:
        lines = "".join(traceback.format_exc()).splitlines()[-lines_max:]
        said.setdefault("\\n".join(lines), []).append(reference)
for lines, affected in said.items():
    print(f"{', '.join(affected)}:", lines, sep="\\n", file=sys.stderr)
sys.exit(1 if said else 0)
"""


class AppError(OnefedError):
    """The Flower app cannot be used as it is."""

    exit_code = ExitCode.APP


@dataclass(frozen=True)
class Managed:
    """The ``[tool.onefed]`` table of an app."""

    initial_arrays: str
    """``module:function`` that makes the first global model."""
    evaluate: str | None
    """``module:function`` that judges a global model on the coordinator, or None."""


@dataclass(frozen=True)
class App:
    """A Flower app directory whose configuration is sound."""

    folder: Path
    name: str
    version: str
    client_app: str
    """``module:attribute`` of the ClientApp."""
    server_app: str | None
    """``module:attribute`` of the app's own ServerApp; a managed app needs none."""
    managed: Managed | None
    run_config: Mapping[str, bool | int | float | str]
    """``[tool.flwr.app.config]``, nested tables joined with dots as Flower does."""
    pyproject: Mapping[str, Any]


@dataclass(frozen=True)
class Bundle:
    """A packed app."""

    fab: bytes
    sha256: str
    managed: bool
    run_config: Mapping[str, bool | int | float | str]
    """Every key a submission may override, with the value that holds otherwise."""


def load(folder: Path) -> App:
    """Read and check an app directory; nothing of it is imported.

    Raises:
        AppError: names every problem found.
    """
    pyproject = _read_pyproject(folder)
    settings = _table(pyproject, "tool", "flwr", "app")
    if not settings:
        raise AppError(
            f"{folder / 'pyproject.toml'} has no [tool.flwr.app] table, so it is not a Flower app.",
            hint="Add one (Flower's app documentation shows how), or name another directory.",
        )
    components = _table(settings, "components")
    run_config = _flat(_table(settings, "config"))
    problems: list[str] = []
    ours = _table(pyproject, "tool", "onefed")
    managed = _managed(ours, problems)
    problems += [
        *_project_problems(_table(pyproject, "project")),
        *_publisher_problems(settings),
        *_component_problems(components, managed=bool(ours)),
        *_config_problems(run_config, managed=bool(ours)),
        *adapter.config_errors(_with_stand_ins(pyproject, settings)),
        *(
            f"{name} at the top of the app would shadow the module of that name"
            for name in RESERVED
            if (folder / name).exists() or (folder / f"{name}.py").exists()
        ),
    ]
    if problems:
        raise AppError(
            f"{folder} is not a usable Flower app:\n"
            + "\n".join(f"  - {line}" for line in problems),
            hint=f"Correct {folder / 'pyproject.toml'} and try again.",
        )
    return App(
        folder=folder,
        name=str(pyproject["project"]["name"]),
        version=str(pyproject["project"]["version"]),
        client_app=str(components["clientapp"]),
        server_app=str(components["serverapp"]) if "serverapp" in components else None,
        managed=managed,
        run_config=run_config,
        pyproject=pyproject,
    )


def check_imports(app: App) -> None:
    """Import what the run will import, in a process of its own, before anything is started.

    Raises:
        AppError: names every reference that fails, with the last lines of what Python said.
    """
    references = [app.client_app]
    if app.managed is None:
        references += [app.server_app] if app.server_app else []
    else:
        references += [app.managed.initial_arrays]
        references += [app.managed.evaluate] if app.managed.evaluate else []
    arguments = [str(app.folder), json.dumps(references), str(SAID_LINES_MAX)]
    with tempfile.TemporaryFile() as said:
        importing = subprocess.Popen(
            # Without -P, what lies in the working directory would import here, and not on a node.
            [sys.executable, "-B", "-P", "-c", _IMPORT_PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            code = importing.wait(IMPORT_CHECK_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise AppError(
                f"{app.folder} took more than {IMPORT_CHECK_TIMEOUT_S:g} s to import.",
                hint=f"Import {' and '.join(references)} by hand to see where it stays.",
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(importing.pid, signal.SIGKILL)  # with whatever it has started itself
            importing.wait()
        said.seek(max(0, said.seek(0, os.SEEK_END) - SAID_BYTES_MAX))
        told = said.read().decode(errors="replace").rstrip().split("\n")
        lines = [line for line in told if FROZEN not in line]
    if code != 0:
        raise AppError(
            f"{app.folder} does not import:\n" + "\n".join(f"  {line}" for line in lines),
            hint=f"Correct the app, or install what it needs for {sys.executable}.",
        )


def build(app: App) -> Bundle:
    """Pack an app; the same files give the same bytes.

    Raises:
        AppError: the bundle would be too large, too deep or invalid.
    """
    files: dict[str, bytes | Path] = dict(adapter.app_files(app.folder))
    run_config = dict(app.run_config)
    if app.managed is not None:
        run_config = {**RUN_CONFIG_DEFAULTS, **run_config}
        settings = {**_table(app.pyproject, "tool", "flwr", "app")}
        settings["components"] = {**settings["components"], "serverapp": f"{SERVER_MODULE}:app"}
        settings["config"] = run_config
        files["pyproject.toml"] = tomli_w.dumps(_with(app.pyproject, settings)).encode()
        files[f"{SERVER_MODULE}.py"] = _server_module(app.managed).encode()
    try:
        fab = adapter.build_fab(files)
    except (ValueError, OSError) as error:
        raise AppError(
            f"{app.folder} cannot be packed: {error}",
            hint="An app holds its sources; training data belongs into the nodes' data folders.",
        ) from error
    if problems := bundle_check.problems(fab):
        raise AppError(
            f"{app.folder} cannot be packed:\n" + "\n".join(f"  - {line}" for line in problems),
            hint="An app holds its sources; training data belongs into the nodes' data folders.",
        )
    return Bundle(
        fab=fab,
        sha256=hashlib.sha256(fab).hexdigest(),
        managed=app.managed is not None,
        run_config=run_config,
    )


def unpack(fab: bytes) -> Bundle:
    """What a packed app is.

    Raises:
        AppError: it is not a bundle.
    """
    settings: Mapping[str, Any] = {}
    problems = bundle_check.problems(fab)
    if not problems:
        try:
            config = adapter.fab_config(fab)
        except ValueError as error:
            raise AppError(f"The app cannot be read: {error}", hint="Pack it again.") from error
        settings = _table(config, "tool", "flwr", "app")
        problems = [
            *_project_problems(_table(config, "project")),
            *_publisher_problems(settings),
        ]
    if problems:
        raise AppError(
            "The app cannot be read:\n" + "\n".join(f"  - {line}" for line in problems),
            hint="Correct the app, and pack it again.",
        )
    return Bundle(
        fab=fab,
        sha256=hashlib.sha256(fab).hexdigest(),
        managed=_table(settings, "components").get("serverapp") == f"{SERVER_MODULE}:app",
        run_config=_flat(_table(settings, "config")),
    )


def managed_functions(fab: bytes) -> Managed | None:
    """What a packed app says in its ``[tool.onefed]`` table; None where it has none."""
    return _managed(_table(adapter.fab_config(fab), "tool", "onefed"), [])


def built_in(use_case: str) -> App:
    """A built-in app, by the name that ``FL_USE_CASE`` takes; looked up only when wanted.

    Raises:
        AppError: there is none of that name.
    """
    apps = importlib.import_module(BUILT_IN)
    if use_case not in apps.USE_CASES:
        raise AppError(
            f"There is no built-in app for the use case {use_case!r}.",
            hint=f"Choose one of: {', '.join(apps.USE_CASES)} (FL_USE_CASE).",
        )
    return load(apps.bundle_folder(use_case))


def _server_module(managed: Managed) -> str:
    return (
        '"""The ServerApp that onefed adds to a managed app."""\n\n'
        "from onefed.flower.server_app import managed\n\n"
        f"app = managed({managed.initial_arrays!r}, {managed.evaluate!r})\n"
    )


def _read_pyproject(folder: Path) -> dict[str, Any]:
    path = folder / "pyproject.toml"
    if not folder.is_dir():
        raise AppError(
            f"{folder} is not a directory.",
            hint="Name the directory that holds the app's pyproject.toml.",
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AppError(
            f"{folder} holds no pyproject.toml, so it is not a Flower app.",
            hint="Name the directory of a Flower app, for example examples/sklearn-logreg.",
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AppError(
            f"{path} cannot be read: {error}", hint="Correct the file and try again."
        ) from error


def _managed(table: Mapping[str, Any], problems: list[str]) -> Managed | None:
    if not table:
        return None
    unknown = sorted(set(table) - {"initial-arrays", "evaluate"})
    problems += [
        f"[tool.onefed] knows no key {key!r}: initial-arrays and evaluate are known"
        for key in unknown
    ]
    if "initial-arrays" not in table:
        problems.append('[tool.onefed] needs initial-arrays = "module:function"')
        return None
    for key in ("initial-arrays", "evaluate"):
        if key in table and not _is_reference(table[key]):
            problems.append(f'[tool.onefed] {key} must read "module:function", not {table[key]!r}')
    return Managed(initial_arrays=str(table["initial-arrays"]), evaluate=table.get("evaluate"))


def _is_reference(value: object) -> bool:
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def _project_problems(project: Mapping[str, Any]) -> list[str]:
    problems = []
    for key in ("name", "version"):
        value = project.get(key)
        if not isinstance(value, str) or not value.strip():
            problems.append(f"[project] needs a {key}, as text")
        elif key == "name" and (reason := adapter.name_error(value)):
            problems.append(reason)
        elif key == "version" and not _VERSION.fullmatch(value):
            problems.append("[project] version must be 1 to 64 letters, digits, dots, plus, dashes")
    return problems


def _publisher_problems(settings: Mapping[str, Any]) -> list[str]:
    """It becomes a part of a path on every machine."""
    publisher = settings.get("publisher", "publisher")
    if isinstance(publisher, str) and _PUBLISHER.fullmatch(publisher):
        return []
    return ["[tool.flwr.app] publisher must be 1 to 64 letters, digits, dashes, underscores"]


def _component_problems(components: Mapping[str, Any], *, managed: bool) -> list[str]:
    """A ClientApp is always needed, a ServerApp where ours does not take its place."""
    table = "[tool.flwr.app.components]"
    wanted = {"clientapp", *(() if managed else ("serverapp",))}
    return [
        f'{table} {key} must read "module:attribute", not {components[key]!r}'
        if key in components
        else f'{table} needs {key} = "module:attribute"'
        for key in ("clientapp", "serverapp")
        if (key in wanted or key in components) and not _is_reference(components.get(key))
    ]


def _config_problems(run_config: Mapping[str, object], *, managed: bool) -> list[str]:
    """Flower carries four types only, and our ServerApp reads its own keys with theirs."""
    problems = []
    for key, value in run_config.items():
        default = RUN_CONFIG_DEFAULTS.get(key) if managed else None
        if not isinstance(value, bool | int | float | str):
            problems.append(
                f"[tool.flwr.app.config] {key} must be text, a number, true or false, not {value!r}"
            )
        elif default is not None and not _is_like(value, default):
            wanted = _WANTED[type(default)]
            problems.append(f"[tool.flwr.app.config] {key} must be {wanted}, not {value!r}")
    return problems


def _is_like(value: object, default: object) -> bool:
    """Of the same type; a whole number is a number, too."""
    return type(value) is type(default) or (type(value) is int and type(default) is float)


def _with_stand_ins(pyproject: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """For Flower's checks, which stop at the first fault: what is checked here is faultless."""
    project = {**_table(pyproject, "project"), "name": "app", "version": "1.0.0"}
    components = {"clientapp": "module:app", "serverapp": "module:app"}
    rest = {key: value for key, value in settings.items() if key != "config"}
    return _with({**pyproject, "project": project}, {**rest, "components": components})


def _table(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The table at ``path``, empty when absent or not a table."""
    for key in path:
        found = config.get(key)
        config = found if isinstance(found, dict) else {}
    return config


def _with(pyproject: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``pyproject`` whose ``[tool.flwr.app]`` is ``settings``."""
    tool = _table(pyproject, "tool")
    return {**pyproject, "tool": {**tool, "flwr": {**_table(tool, "flwr"), "app": dict(settings)}}}


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    flat: dict[str, bool | int | float | str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
