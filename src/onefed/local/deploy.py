"""From what a user asked for to a state directory that a cloud can start from.

Everything that can be wrong with a request is found here, together and before anything is made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from onefed import apps, context
from onefed.appliance.machine import require_free_port
from onefed.checkpoint import files
from onefed.errors import ExitCode, InUseError, OnefedError, StorageError
from onefed.flower import bundle
from onefed.local import state
from onefed.local.state import Spec, StateDir

NODES_MAX = 64
"""One node takes about 300 MB of memory here; more do not fit on a laptop."""

DISK_FREE_BYTES = 128 * 2**20
"""Wanted before a start: about 2 MB a node, Flower's database and the recovery store."""

ROUNDS_KEY = "num-server-rounds"
"""What Flower's own templates call it."""

Found = TypeVar("Found")


class RequestError(OnefedError):
    """What was asked for cannot be done; every reason is named."""


@dataclass(frozen=True)
class Request:
    """The options of ``onefed up`` and ``onefed run``; None: not given."""

    nodes: int
    rounds: int | None
    strategy: str | None
    use_case: str | None
    app: Path | None
    """Directory of the user's own app, instead of a use case."""
    assignments: Sequence[str]
    """``NAME=VALUE`` of every ``--set``."""
    context_file: Path | None
    seed: int | None
    data: Path | None
    name: str | None
    folder: Path | None
    replace: bool


@dataclass(frozen=True)
class Prepared:
    """A request that can be met."""

    spec: Spec
    packed: bundle.Bundle
    notices: tuple[str, ...]
    """What the user should know and did not ask."""


def prepare(request: Request, environ: Mapping[str, str]) -> Prepared:
    """Check a request in every respect; nothing is written.

    Raises:
        OnefedError: with every reason, and the exit code of the first.
    """
    problems: list[OnefedError] = []

    def attempt(check: Callable[[], Found]) -> Found | None:
        try:
            return check()
        except OnefedError as error:
            problems.append(error)
            return None

    if request.name is not None:
        name = request.name
        attempt(lambda: state.check_name(name))
    attempt(lambda: _check_nodes(request.nodes))
    resolved = attempt(lambda: _resolve(request, environ))
    app = attempt(lambda: _app(request, resolved)) if request.app or resolved else None
    if request.data is not None:
        data = request.data
        attempt(lambda: _check_data(data, request, _use_case(request, resolved)))
    if app is not None:
        attempt(lambda: bundle.check_imports(app))
    packed = attempt(lambda: bundle.build(app)) if app is not None else None
    if resolved is not None and packed is not None:
        attempt(lambda: _check_app_keys(resolved, packed))
    if problems:
        raise _together(problems)
    assert resolved is not None
    assert packed is not None
    assert app is not None
    variables = dict(resolved.variables)
    rounds = int(variables["FL_NUM_ROUNDS"])
    if not packed.managed and "FL_NUM_ROUNDS" not in resolved.asked:
        # Its own ServerApp decides about rounds unless the user says something.
        del variables["FL_NUM_ROUNDS"]
        rounds = int(packed.run_config.get(ROUNDS_KEY, 0))
    spec = Spec(
        name=request.name or "",
        nodes=request.nodes,
        app=app.name,
        managed=packed.managed,
        rounds=rounds,
        strategy=variables["FL_STRATEGY"] if packed.managed else "the app's own",
        seed=int(variables["FL_SEED"]),
        context=variables,
        data=None if request.data is None else str(request.data.absolute()),
    )
    return Prepared(spec, packed, _notices(resolved, packed, request))


def create(prepared: Prepared, request: Request, environ: Mapping[str, str]) -> StateDir:
    """Make the state directory of a new federation.

    Raises:
        InUseError: the name or the folder is taken, and ``replace`` was not asked for.
        StorageError: there is no room.
    """
    base = state.home(environ)
    name = request.name or (request.folder.absolute().name if request.folder else None)
    name = state.check_name(name) if name else state.free_name(base)
    place = request.folder.absolute() if request.folder else base / name
    if request.replace and StateDir(place).spec_file.exists():
        remove(StateDir(place.resolve()), base)
    _require_room(place)
    directory = state.claim(base, name, request.folder)
    files.write_bytes(directory.bundle, prepared.packed.fab)
    directory.write_spec(replace(prepared.spec, name=name))
    return directory


def remove(directory: StateDir, base: Path) -> None:
    """Discard a federation that does not run, and everything it trained.

    Raises:
        InUseError: it runs.
    """
    if state.owner(directory) is not None:
        raise InUseError(
            f"The federation in {directory.folder} is running.",
            hint="Stop it first with: onefed down.",
        )
    spec = directory.read_spec()
    state.end_processes(directory)
    shutil.rmtree(directory.folder)
    link = base / spec.name
    if link.is_symlink():
        link.unlink()


def start(
    directory: StateDir, environ: Mapping[str, str], *, attached: bool
) -> subprocess.Popen[bytes]:
    """Start the cloud of a federation, in a session of its own.

    Args:
        attached: it ends with our process; else it lives on by itself.
    """
    with directory.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "onefed.local.cloud", str(directory.folder)],
            env={
                **environ,
                state.STATE_VARIABLE: str(directory.folder),
                "ONEFED_ATTACHED": "1" if attached else "0",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@dataclass(frozen=True)
class _Resolved:
    variables: Mapping[str, str]
    asked: frozenset[str]
    """Those variables that the user set; the others are what a laptop wants."""
    app_config: Mapping[str, context.ConfigValue]
    findings: tuple[context.Finding, ...]


def _resolve(request: Request, environ: Mapping[str, str]) -> _Resolved:
    """The variables of all machines: what the user said, and what a laptop wants by default."""
    given = context.parse_assignments(request.assignments)
    explicit = {**given.context}
    for name, value in (
        ("FL_NUM_ROUNDS", request.rounds),
        ("FL_STRATEGY", request.strategy),
        ("FL_USE_CASE", request.use_case),
        ("FL_SEED", request.seed),
    ):
        if value is not None:
            if explicit.get(name, str(value)) != str(value):
                raise RequestError(
                    f"{name} is given twice: {value} by its option, {explicit[name]} by --set.",
                    hint="Give it once.",
                )
            explicit[name] = str(value)
    if given.app_config:
        extra = context.render_pairs(given.app_config)
        explicit["FL_RUN_CONFIG"] = f"{explicit.get('FL_RUN_CONFIG', '')} {extra}".strip()
    written = _read_context(request.context_file)
    resolutions = [
        context.resolve(role, explicit=explicit, context_file=written, environment=environ)
        for role in context.Role
    ]
    findings = tuple(dict.fromkeys(f for each in resolutions for f in each.findings))
    if any(finding.severity.stops for finding in findings):
        raise context.ContextError(findings)
    everyone = str(request.nodes)
    asked = {
        name: found.text
        for each in resolutions
        for name, found in each.values.items()
        if found.is_set
    }
    variables = {
        "FL_NUM_ROUNDS": LAPTOP_ROUNDS,
        # All of them: then the same seed gives the same model.
        "FL_MIN_FIT_CLIENTS": everyone,
        "FL_MIN_EVALUATE_CLIENTS": everyone,
        "FL_MIN_AVAILABLE_CLIENTS": everyone,
        "FL_CHECKPOINT_ENABLED": "YES",
    }
    for name in ("FL_STRATEGY", "FL_SEED", "FL_USE_CASE"):
        variables[name] = context.VARIABLES[name].default
    variables |= asked
    _check_laptop(variables, request)
    return _Resolved(variables, frozenset(asked), given.app_config, findings)


LAPTOP_ROUNDS = "5"
"""Enough for the built-in app to reach 0.90."""


def _check_laptop(variables: Mapping[str, str], request: Request) -> None:
    """What the table cannot know: how many nodes there will be, and which ports are free."""
    for name in ("FL_MIN_AVAILABLE_CLIENTS", "FL_MIN_FIT_CLIENTS", "FL_MIN_EVALUATE_CLIENTS"):
        if int(variables[name]) > request.nodes:
            raise NodesError(
                f"{name} is {variables[name]}, but there are only {request.nodes} nodes: "
                "training would wait for ever.",
                hint=f"Start at least {variables[name]} nodes with --nodes, or lower {name}.",
            )
    if "FL_FLEET_API_ADDRESS" in variables:
        _, _, port = variables["FL_FLEET_API_ADDRESS"].rpartition(":")
        require_free_port("127.0.0.1", int(port), "FL_FLEET_API_ADDRESS")


class NodesError(RequestError):
    """The number of nodes does not fit."""

    exit_code = ExitCode.CONFIG


def _check_nodes(count: int) -> None:
    if not 1 <= count <= NODES_MAX:
        raise NodesError(
            f"{count} nodes cannot be started on one machine.",
            hint=f"Give --nodes a number from 1 to {NODES_MAX}.",
        )


def _read_context(path: Path | None) -> context.ContextFile | None:
    if path is None:
        return None
    try:
        with path.open("rb") as stream:
            return context.parse_context_file(stream.read(context.FILE_BYTES_MAX + 1))
    except OSError as error:
        raise RequestError(
            f"The context file {path} cannot be read: {error.strerror}.",
            hint="Name a file of NAME='value' lines with --context.",
        ) from error


def _app(request: Request, resolved: _Resolved | None) -> bundle.App:
    if request.app is not None:
        return bundle.load(request.app.absolute())
    use_case = _use_case(request, resolved)
    if use_case is None:
        raise RequestError(
            "FL_USE_CASE is none, so there is nothing to train.",
            hint="Choose a use case, or bring an app of your own: onefed run APP.",
        )
    return bundle.load(apps.bundle_folder(use_case))


def _use_case(request: Request, resolved: _Resolved | None) -> str | None:
    """The built-in app that was asked for; None with an app of the user's own."""
    if request.app is not None or resolved is None:
        return None
    use_case = resolved.variables["FL_USE_CASE"]
    return None if use_case == "none" else use_case


def _check_data(folder: Path, request: Request, use_case: str | None) -> None:
    """One folder per node; a built-in app reads every file now rather than in round 1."""
    missing = [str(index) for index in range(request.nodes) if not (folder / str(index)).is_dir()]
    if missing:
        raise DataFolderError(
            f"{folder} has no folder for node {', '.join(missing)}.",
            hint=f"Put the files of node 0 into {folder / '0'}, and so on.",
        )
    if use_case is None:
        return
    problems = []
    for index in range(request.nodes):
        try:
            apps.check_data(use_case, folder / str(index))
        except OnefedError as error:
            problems.append(error)
    if problems:
        raise _together(problems)


class DataFolderError(RequestError):
    """The folder given with ``--data`` is not laid out as it should be."""

    exit_code = ExitCode.DATA


def _check_app_keys(resolved: _Resolved, packed: bundle.Bundle) -> None:
    unknown = sorted(resolved.app_config.keys() - packed.run_config.keys())
    if unknown:
        known = sorted(packed.run_config.keys() - bundle.RUN_CONFIG_DEFAULTS.keys())
        raise AppKeyError(
            f"The app has no setting {', '.join(unknown)}.",
            hint=f"It has: {', '.join(known) or 'none'}.",
        )


class AppKeyError(RequestError):
    """``--set`` named a key that the app's config does not have."""

    exit_code = ExitCode.CONFIG


def _notices(resolved: _Resolved, packed: bundle.Bundle, request: Request) -> tuple[str, ...]:
    # INFO says that one role does not read what the other one does.
    notices = [
        str(finding)
        for finding in resolved.findings
        if finding.severity is context.Severity.WARNING
    ]
    if not packed.managed:
        notices.append(
            "This app runs its own ServerApp. To have onefed manage it (exact resume, rules, "
            'checkpoints), add to its pyproject.toml: [tool.onefed] initial-arrays = "module:f"'
        )
        if request.rounds is not None and ROUNDS_KEY not in packed.run_config:
            notices.append(f"The app has no setting {ROUNDS_KEY}: it decides itself about rounds.")
    return tuple(notices)


def _require_room(place: Path) -> None:
    existing = place
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        raise StorageError(
            f"{existing} cannot be written to.", hint="Give another folder with --dir."
        )
    free = shutil.disk_usage(existing).free
    if free < DISK_FREE_BYTES:
        raise StorageError(
            f"The disk of {place} has {free // 2**20} MB left; {DISK_FREE_BYTES // 2**20} MB are "
            "wanted.",
            hint="Free some space, or give another folder with --dir.",
        )


def _together(problems: Sequence[OnefedError]) -> OnefedError:
    """One error for all of them."""
    if len(problems) == 1:
        return problems[0]
    parts = []
    for problem in problems:
        parts.append(problem.message)
        if problem.hint:
            parts.append(f"  {problem.hint}")
    together = RequestError("\n".join(parts), hint=f"{len(problems)} things to mend.")
    together.exit_code = problems[0].exit_code
    return together
