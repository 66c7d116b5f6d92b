"""What a user asked for, and whether it can be met.

Everything that can be wrong with a request is found here, together and before anything is made.
Importing Flower takes half a second, so only what looks at apps does: stopping or listing
federations need not wait for it.
"""

from __future__ import annotations

import difflib
import functools
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onefed import apps, context
from onefed.appliance.machine import require_free_port
from onefed.checkpoint import holds_checkpoints
from onefed.errors import Attempts, ExitCode, InUseError, OnefedError, StorageError
from onefed.local import state
from onefed.local.spec import NO_APP, Spec
from onefed.local.variables import Resolved, resolve

if TYPE_CHECKING:
    from onefed.flower import bundle

NODES_MAX = 64
"""One node takes about 300 MB of memory here; more do not fit on a laptop."""

DISK_FREE_BYTES = 128 * 2**20
"""Wanted before a start: about 2 MB a node, Flower's database and the recovery store."""

ROUNDS_KEY = "num-server-rounds"
"""What Flower's own templates call it."""


class RequestError(OnefedError):
    """What was asked for cannot be done; every reason is named."""

    exit_code = ExitCode.CONFIG


class NodesError(RequestError):
    """The number of nodes does not fit."""


class AppKeyError(RequestError):
    """A setting that the app does not have, or not with such a value."""


class ContextFileError(RequestError):
    """The file given with ``--context`` cannot be read."""

    exit_code = ExitCode.STORAGE


class DataFolderError(RequestError):
    """The folder given with ``--data`` is not laid out as it should be."""

    exit_code = ExitCode.DATA


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

    def federation_name(self) -> str | None:
        """The name that was given, or that of the folder that was given; None: any will do.

        Raises:
            OnefedError: it is no name for a federation.
        """
        if self.name is not None:
            return state.check_name(self.name)
        if self.folder is None:
            return None
        name = self.folder.absolute().name
        if not state.NAME.fullmatch(name):
            raise RequestError(
                f"The folder {str(self.folder)!r} does not give a name for the federation.",
                hint="Give one with --name: lower-case letters, digits, dots, dashes, underscores.",
            )
        return name


@dataclass(frozen=True)
class Prepared:
    """A request that can be met."""

    spec: Spec
    packed: bundle.Bundle | None
    """None: apps are submitted later."""
    notices: tuple[str, ...]
    """What the user should know and did not ask."""


def prepare(request: Request, environ: Mapping[str, str]) -> Prepared:
    """Check a request in every respect; nothing is written.

    Raises:
        OnefedError: with every reason, and the exit code of the first.
    """
    from onefed.flower import bundle

    attempts = Attempts()
    attempt = attempts.make
    attempt(lambda: _check_place(request, environ))
    nodes = attempt(lambda: _check_nodes(request.nodes))
    resolved = attempt(lambda: _resolved(request, environ))
    if resolved is not None:
        variables = resolved.variables
        if nodes is not None:
            attempt(lambda: _check_minimums(variables, nodes))
        attempt(lambda: _check_port(variables))
        attempt(lambda: _check_checkpoints(variables))
    use_case = _use_case(request, resolved)
    waits = request.app is None and resolved is not None and use_case is None
    if waits:
        attempt(lambda: _check_nothing_for_an_app(request, resolved))
    app = attempt(lambda: _app(request, use_case)) if request.app or use_case else None
    if app is not None:
        attempt(lambda: bundle.check_imports(app))
    if request.data is not None and nodes is not None:
        data = request.data
        attempt(lambda: _check_data(data, nodes, use_case))
    packed = attempt(lambda: bundle.build(app)) if app is not None else None
    if resolved is not None and packed is not None:
        attempt(lambda: check_app_keys(resolved.app_config, packed))
    attempts.conclude()
    assert resolved is not None
    if waits:
        return Prepared(_without_app(request, resolved), None, _warnings(resolved))
    assert packed is not None
    assert app is not None
    chosen = dict(resolved.variables)
    rounds = int(chosen["FL_NUM_ROUNDS"])
    if not packed.managed and "FL_NUM_ROUNDS" not in resolved.asked:
        # Its own ServerApp decides about rounds unless the user says something.
        del chosen["FL_NUM_ROUNDS"]
        rounds = int(packed.run_config.get(ROUNDS_KEY, 0))
    spec = Spec(
        name=request.name or "",
        nodes=request.nodes,
        app=app.name,
        managed=packed.managed,
        rounds=rounds,
        strategy=chosen["FL_STRATEGY"] if packed.managed else "the app's own",
        seed=int(chosen["FL_SEED"]),
        context=chosen,
        data=None if request.data is None else str(request.data.absolute()),
    )
    return Prepared(spec, packed, _notices(resolved, packed))


def _check_place(request: Request, environ: Mapping[str, str]) -> None:
    """The name and the folder are free, usable, and have room."""
    base = state.home(environ)
    for option, path in (
        ("--dir", request.folder),
        ("--data", request.data),
        ("ONEFED_HOME", base),
    ):
        if path is not None:
            _check_path(option, path)
    name = request.federation_name()
    if name is not None:
        state.require_free(base, name, request.folder, replace=request.replace)
    _require_room(base if request.folder is None else request.folder.absolute())


def _check_path(option: str, path: Path) -> None:
    """Paths go through configuration files, addresses and logs of several programs."""
    if not str(path.absolute()).isprintable():
        raise RequestError(
            f"{option}: the path {str(path.absolute())!r} holds characters that are not printable.",
            hint="Rename the folder, or give another one.",
        )


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


def _check_nodes(count: int) -> int:
    if not 1 <= count <= NODES_MAX:
        raise NodesError(
            f"{count} nodes cannot be started on one machine.",
            hint=f"Give --nodes a number from 1 to {NODES_MAX}.",
        )
    return count


def _resolved(request: Request, environ: Mapping[str, str]) -> Resolved:
    return resolve(
        request.assignments,
        {
            "FL_NUM_ROUNDS": request.rounds,
            "FL_STRATEGY": request.strategy,
            "FL_USE_CASE": request.use_case,
            "FL_SEED": request.seed,
        },
        read_context(request.context_file),
        environ,
        nodes=request.nodes,
    )


def read_context(path: Path | None) -> context.ContextFile | None:
    """What a file of context variables says; None when none was named."""
    if path is None:
        return None
    try:
        with path.open("rb") as stream:
            return context.parse_context_file(stream.read(context.FILE_BYTES_MAX + 1))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ContextFileError(
            f"The context file {path} cannot be read: {getattr(error, 'strerror', None) or error}.",
            hint="Name a file of NAME='value' lines with --context.",
        ) from error


def _check_minimums(variables: Mapping[str, str], nodes: int) -> None:
    """What the table cannot know: how many nodes there will be."""
    minimums = ("FL_MIN_AVAILABLE_CLIENTS", "FL_MIN_FIT_CLIENTS", "FL_MIN_EVALUATE_CLIENTS")
    short = {name: int(variables[name]) for name in minimums if int(variables[name]) > nodes}
    if short:
        wanted = " and ".join(f"{name} is {count}" for name, count in short.items())
        raise NodesError(
            f"{wanted}, but --nodes is {nodes}: training would wait for ever.",
            hint=f"Start at least {max(short.values())} nodes with --nodes, or lower the minimum.",
        )


def _check_port(variables: Mapping[str, str]) -> None:
    """A port that was asked for is free; else each start takes one that is."""
    if "FL_FLEET_API_ADDRESS" in variables:
        _, _, port = variables["FL_FLEET_API_ADDRESS"].rpartition(":")
        require_free_port("127.0.0.1", int(port), "FL_FLEET_API_ADDRESS")


def _check_checkpoints(variables: Mapping[str, str]) -> None:
    """A new run finds nobody's checkpoints where it was told to put its own."""
    folder = variables.get("FL_CHECKPOINT_PATH")
    if variables["FL_CHECKPOINT_ENABLED"] == "NO" or folder is None:
        return
    if holds_checkpoints(Path(folder)):
        raise InUseError(
            f"{folder} holds the checkpoints of another run.",
            hint="Resume that run, choose another FL_CHECKPOINT_PATH, or move its checkpoint_* "
            "files away.",
        )


def _app(request: Request, use_case: str | None) -> bundle.App:
    from onefed.flower import bundle

    if request.app is not None:
        return bundle.load(request.app.absolute())
    assert use_case is not None, "a federation that waits has no app to load"
    return bundle.load(apps.bundle_folder(use_case))


def _use_case(request: Request, resolved: Resolved | None) -> str | None:
    """The built-in app that was asked for; None with an app of the user's own."""
    if request.app is not None or resolved is None:
        return None
    use_case = resolved.variables["FL_USE_CASE"]
    return None if use_case == "none" else use_case


def _check_data(folder: Path, nodes: int, use_case: str | None) -> None:
    """One folder per node; a built-in app reads every file now rather than in round 1."""
    if not folder.is_dir():
        raise DataFolderError(
            f"{folder} is not a folder.",
            hint="Name a folder that holds one folder of training files per node: 0, 1, ...",
        )
    missing = [str(index) for index in range(nodes) if not (folder / str(index)).is_dir()]
    if missing:
        raise DataFolderError(
            f"{folder} has no folder for node {', '.join(missing)}.",
            hint=f"Put the files of node 0 into {folder / '0'}, and so on.",
        )
    if use_case is None:
        return
    attempts = Attempts()
    for index in range(nodes):
        attempts.make(functools.partial(apps.check_data, use_case, folder / str(index)))
    attempts.conclude()


def check_app_keys(given: Mapping[str, context.ConfigValue], packed: bundle.Bundle) -> None:
    """Raise ``AppKeyError`` where the app has no such settings, or not with such values."""
    from onefed.flower import bundle

    problems = []
    known = sorted(packed.run_config.keys() - bundle.RUN_CONFIG_DEFAULTS.keys())
    for key in sorted(given):
        if key not in packed.run_config:
            close = difflib.get_close_matches(key, known, n=1)
            advice = f": did you mean {close[0]}?" if close else "."
            problems.append(f"The app has no setting {key}{advice}")
        elif not _fits(given[key], packed.run_config[key]):
            default = context.render_pairs({key: packed.run_config[key]})
            problems.append(
                f"The app's setting {key} cannot be {given[key]!r}: its default is {default}."
            )
    if problems:
        raise AppKeyError(
            "\n".join(problems), hint=f"The app has the settings: {', '.join(known) or 'none'}."
        )


def _fits(value: context.ConfigValue, default: context.ConfigValue) -> bool:
    """Of the same kind as the default: text, truth value, or number."""
    if isinstance(default, str) or isinstance(value, str):
        return isinstance(default, str) and isinstance(value, str)
    return isinstance(default, bool) == isinstance(value, bool)


def _without_app(request: Request, resolved: Resolved) -> Spec:
    """A federation to which apps are submitted, each with its own rounds."""
    return Spec(
        name=request.name or "",
        nodes=request.nodes,
        app=NO_APP,
        managed=True,
        rounds=0,
        strategy=resolved.variables["FL_STRATEGY"],
        seed=int(resolved.variables["FL_SEED"]),
        context=dict(resolved.variables),
        data=None if request.data is None else str(request.data.absolute()),
    )


def _check_nothing_for_an_app(request: Request, resolved: Resolved | None) -> None:
    if resolved is not None and resolved.app_config:
        raise RequestError(
            f"There is no app yet that {', '.join(sorted(resolved.app_config))} could be set of.",
            hint="Give settings of the app with it: onefed submit APP --set KEY=VALUE",
        )


def _warnings(resolved: Resolved) -> tuple[str, ...]:
    # INFO says that one role does not read what the other one does.
    return tuple(
        str(finding)
        for finding in resolved.findings
        if finding.severity is context.Severity.WARNING
    )


def _notices(resolved: Resolved, packed: bundle.Bundle) -> tuple[str, ...]:
    notices = list(_warnings(resolved))
    if not packed.managed:
        notices.append(
            "This app runs its own ServerApp. To have onefed manage it (exact resume, rules, "
            'checkpoints), add to its pyproject.toml: [tool.onefed] initial-arrays = "module:f"'
        )
        notices += [
            f"{name} is set, but this app has no setting {key}: its own ServerApp decides."
            for key, name in context.RUN_CONFIG_NAMES.items()
            if name in resolved.asked and key not in packed.run_config
        ]
    return tuple(notices)
