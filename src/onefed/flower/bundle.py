"""A Flower app directory, checked before anything starts, and packed for the SuperLink.

An app is *managed* when its ``pyproject.toml`` says where a fresh model comes from::

    [tool.onefed]
    initial-arrays = "module:function"   # f(run_config) -> {name: array}
    evaluate = "module:function"         # optional: f(arrays, run_config) -> {"accuracy": x, ...}

A managed app runs under our ServerApp, with everything onefed offers.
Any other app runs its own ServerApp, untouched, inside our federation.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from onefed.errors import ExitCode, OnefedError
from onefed.flower import adapter

SERVER_MODULE = "onefed_server_app"
"""Module that ``build`` adds to a managed app; it holds the ServerApp."""

IMPORT_CHECK_TIMEOUT_S = 120.0
"""Importing torch from a cold disk takes up to a minute."""

RESERVED = ("flwr", "onefed", "sitecustomize.py", "usercustomize.py")
"""Names at the top of an app that would shadow the programs which load it."""

RUN_CONFIG_DEFAULTS: Mapping[str, bool | int | float | str] = {
    "run": "",
    "strategy": "FedAvg",
    "num-server-rounds": 3,
    "min-fit-clients": 2,
    "min-evaluate-clients": 2,
    "min-available-clients": 2,
    "seed": 0,
    "round-timeout-s": 600,
    "checkpoint-enabled": False,
    "checkpoint-interval": 5,
    "checkpoint-path": "",
    "checkpoint-resume": True,
}
"""Keys of the run_config bridge (training.md, section 2) and ``run``, the identity of the run.

Flower lets a submission override only keys that the app's config names, so ``build`` adds these.
"""

BUILT_IN = "onefed.apps"
"""The room of the use cases; it imports machine-learning libraries, so it is met by name only."""

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


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
    """Read and check an app directory; nothing is imported.

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
    problems: list[str] = []
    managed = _managed(_table(pyproject, "tool", "onefed"), problems)
    checked = {**pyproject}
    if managed is not None and "clientapp" in components:
        # Our ServerApp joins in build(); until then Flower's checks see the ClientApp in its place.
        stand_in = {**components, "serverapp": components["clientapp"]}
        checked = _with(pyproject, {**settings, "components": stand_in})
    problems += adapter.config_errors(checked, folder)
    problems += [
        f"{name} at the top of the app would shadow the program of that name"
        for name in RESERVED
        if (folder / name).exists() or (folder / f"{name}.py").exists()
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
        run_config=_flat(_table(settings, "config")),
        pyproject=pyproject,
    )


def check_imports(app: App) -> None:
    """Import what the run will import, in a process of its own, before anything is started.

    Raises:
        AppError: with the last lines of what Python said.
    """
    references = [app.client_app]
    if app.managed is None:
        references += [app.server_app] if app.server_app else []
    else:
        references += [app.managed.initial_arrays]
        references += [app.managed.evaluate] if app.managed.evaluate else []
    program = (
        "import importlib, json, sys\n"
        "folder, references = sys.argv[1], json.loads(sys.argv[2])\n"
        "sys.path.insert(0, folder)\n"
        "for reference in references:\n"
        "    module, _, name = reference.partition(':')\n"
        "    getattr(importlib.import_module(module), name)\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-c", program, str(app.folder), json.dumps(references)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=IMPORT_CHECK_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise AppError(
            f"{app.folder} took more than {IMPORT_CHECK_TIMEOUT_S:.0f} s to import.",
            hint=f"Import {' and '.join(references)} by hand to see where it stays.",
        ) from None
    if done.returncode != 0:
        last_lines = done.stderr.strip().splitlines()[-6:]
        raise AppError(
            f"{app.folder} does not import:\n" + "\n".join(f"  {line}" for line in last_lines),
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
    except ValueError as error:
        raise AppError(f"{app.folder} cannot be packed: {error}") from error
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
    try:
        settings = _table(adapter.fab_config(fab), "tool", "flwr", "app")
    except ValueError as error:
        raise AppError(f"The app cannot be read: {error}", hint="Pack it again.") from error
    return Bundle(
        fab=fab,
        sha256=hashlib.sha256(fab).hexdigest(),
        managed=_table(settings, "components").get("serverapp") == f"{SERVER_MODULE}:app",
        run_config=_flat(_table(settings, "config")),
    )


def built_in(use_case: str) -> App:
    """A built-in app, by the name that ``FL_USE_CASE`` takes; looked up only when wanted."""
    return load(importlib.import_module(BUILT_IN).bundle_folder(use_case))


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
        if key in table and not (isinstance(table[key], str) and _REFERENCE.fullmatch(table[key])):
            problems.append(f'[tool.onefed] {key} must read "module:function", not {table[key]!r}')
    return Managed(initial_arrays=str(table["initial-arrays"]), evaluate=table.get("evaluate"))


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
