"""The state directory of a federation: what it is, where its parts lie, and who holds it.

One folder holds all of a federation, and one process at a time owns it: the cloud, which keeps a
lock on it as long as it lives.
Every process of the federation carries the folder in ``ONEFED_STATE_DIR``, so all of them can be
found, whoever their parent is by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import re
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from onefed.checkpoint import files
from onefed.errors import ExitCode, InUseError, NotFoundError, OnefedError, StorageError
from onefed.telemetry.log import Follower

STATE_VARIABLE = "ONEFED_STATE_DIR"

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""Names of federations: they become folder names and parts of messages."""

SUPERLINK = "superlink"

FORMAT = 1
"""Of ``federation.json``; raised with every change that an older program would misread."""

END_WAIT_S = 3.0
"""Between SIGTERM and SIGKILL when left-over processes are ended, and again after it."""

END_POLL_S = 0.05

END_PASSES_MAX = 3
"""A process may be born while the others are ended; so they are looked for again."""

HOLD_TRIES_MAX = 100
HOLD_POLL_S = 0.01
"""Others who look at the lock hold it for microseconds, and one may be asleep just then."""


class BadNameError(OnefedError):
    """Not a name for a federation."""

    exit_code = ExitCode.USAGE

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} is not a name for a federation.",
            hint="Use 1 to 63 lower-case letters, digits, dots, dashes and underscores, "
            "a letter or digit first.",
        )
        self.name = name


@dataclass(frozen=True)
class Spec:
    """What a federation was asked to be. Written once, read by every start of it."""

    name: str
    nodes: int
    app: str
    """For people: the use case, or the app's name and version."""
    managed: bool
    """Whether the app runs under our ServerApp, and so can be resumed."""
    rounds: int
    """Wanted in all; 0 when the app alone knows."""
    strategy: str
    seed: int
    context: Mapping[str, str]
    """Context variables of all machines, by canonical name."""
    data: str | None = None
    """Folder with one folder of training files per node, or None."""
    format: int = field(default=FORMAT)


@dataclass(frozen=True)
class StateDir:
    """The files of one federation."""

    folder: Path

    @property
    def spec_file(self) -> Path:
        return self.folder / "federation.json"

    @property
    def lock_file(self) -> Path:
        """Held by the cloud; holds its process id."""
        return self.folder / "cloud.lock"

    @property
    def events(self) -> Path:
        """Everything that happened, one JSON object a line, oldest first."""
        return self.folder / "events.jsonl"

    @property
    def summary(self) -> Path:
        """The outcome of the last start, in the form that ``--summary`` writes."""
        return self.folder / "summary.json"

    @property
    def bundle(self) -> Path:
        """The app, packed."""
        return self.folder / "app.fab"

    @property
    def log(self) -> Path:
        """What the cloud itself and the machines' own processes print."""
        return self.folder / "cloud.log"

    def root(self, machine: str) -> Path:
        """Root folder of a machine, by its name: ``superlink`` or ``supernode/2``."""
        return self.folder / "vms" / machine.replace("/", "-")

    def read_spec(self) -> Spec:
        """What this federation was asked to be.

        Raises:
            NotFoundError: the folder holds no federation.
            StorageError: its file is damaged, or of a newer onefed.
        """
        if not self.spec_file.exists():
            raise NotFoundError(
                f"{self.folder} holds no federation.", hint="See the ones there are: onefed list"
            )
        try:
            return _spec(files.read_json(self.spec_file))
        except ValueError as error:
            raise files.DamagedError(self.spec_file, str(error)) from error

    def write_spec(self, spec: Spec) -> None:
        """Make this what the federation was asked to be."""
        files.write_bytes(self.spec_file, json.dumps(asdict(spec), indent=1).encode())


def news(state: StateDir) -> Follower:
    """Gives the events from now on: what earlier starts said is not the next one's."""
    follower = Follower(state.events)
    while follower.poll():
        pass
    return follower


def supernodes(count: int) -> tuple[str, ...]:
    """Names of the machines of the supernode role."""
    return tuple(f"supernode/{index}" for index in range(count))


def home(environ: Mapping[str, str]) -> Path:
    """Where federations lie: ``ONEFED_HOME``, else ``onefed`` in the user's state folder (XDG).

    Raises:
        StorageError: neither is set and the user has no home folder.
    """
    given = environ.get("ONEFED_HOME", "")
    if given:
        return _expanded(given, environ).absolute()
    base = environ.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):  # a relative one is to be ignored, says the specification
        base = "~/.local/state"
    return _expanded(base, environ) / "onefed"


def check_name(name: str) -> str:
    """The name, if it is one.

    Raises:
        BadNameError: it is not.
    """
    if not NAME.fullmatch(name):
        raise BadNameError(name)
    return name


def free_name(base: Path) -> str:
    """``fed-1``, or the next number that is not taken."""
    number = 1
    while os.path.lexists(base / f"fed-{number}"):
        number += 1
    return f"fed-{number}"


def require_free(base: Path, name: str, folder: Path | None, *, replace: bool = False) -> None:
    """Whether ``claim`` would find name and folder free; nothing is changed.

    Args:
        replace: a federation that is in this place may be discarded.

    Raises:
        InUseError: the name or the folder is taken.
    """
    place, named = _place(base, name, folder), _real(base / name)
    if named.folder != place.folder and named.spec_file.exists():
        raise InUseError(
            f"The name {name!r} belongs to the federation in {named.folder}.",
            hint=f"Give another --name, or discard that federation: onefed down {name} --purge",
        )
    if place.spec_file.exists():
        _require_replaceable(place, name, replace=replace)
    elif place.folder.is_dir():
        if place.folder.stat().st_uid != os.geteuid():
            raise InUseError(
                f"{place.folder} belongs to another user.", hint="Give another folder as --dir."
            )
        if any(place.folder.iterdir()):
            raise InUseError(
                f"{place.folder} is not empty and holds no federation of ours.",
                hint="Give an empty or a new folder as --dir, or another --name.",
            )
    elif os.path.lexists(place.folder):
        raise InUseError(f"{place.folder} is not a folder.", hint="Give another folder as --dir.")


def claim(base: Path, name: str, folder: Path | None) -> StateDir:
    """A new, empty state directory of that name.

    Of two that claim the same place at the same time, one gets it.

    Args:
        folder: where to put it; None: below ``base``. A link below ``base`` leads to it.

    Raises:
        InUseError: the name or the folder is taken.
        StorageError: the folder cannot be made.
    """
    require_free(base, name, folder)
    link = base / name
    files.make_folder(base, mode=0o700)
    if link.is_symlink() and not _real(link).spec_file.exists():
        link.unlink()  # its federation was deleted by hand
    place = _place(base, name, folder)
    files.make_folder(place.folder, mode=0o700)
    try:
        os.close(os.open(place.lock_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise InUseError(
            f"Another federation is being made in {place.folder}.",
            hint="Give another --name or --dir.",
        ) from None
    except OSError as error:
        raise StorageError(
            f"{place.folder} cannot be written to: {error.strerror}.",
            hint="Give another folder with --dir.",
        ) from error
    if _real(link) != place:
        try:
            link.symlink_to(place.folder)
        except OSError as error:
            place.lock_file.unlink(missing_ok=True)
            raise InUseError(
                f"The name {name!r} cannot be given to {place.folder}: {error.strerror}.",
                hint="Give another --name.",
            ) from error
    return place


def find(base: Path, name: str | None) -> StateDir:
    """The federation of that name; without a name, the newest of those that run, else of all.

    Raises:
        NotFoundError: there is none.
    """
    if name is not None:
        found = _real(base / check_name(name))
        if not found.spec_file.exists():
            raise NotFoundError(
                f"There is no federation {name!r}.", hint="See the ones there are: onefed list"
            )
        return found
    every = all_of(base)
    every = running(every) or every
    if not every:
        raise NotFoundError("There is no federation yet.", hint="Start one with: onefed up")
    return max(every, key=_written_at)


def all_of(base: Path) -> list[StateDir]:
    """Every federation below ``base``, by name."""
    if not base.is_dir():
        return []
    found = [_real(entry) for entry in sorted(base.iterdir())]
    return [each for each in found if each.spec_file.exists()]


def running(states: Iterable[StateDir]) -> list[StateDir]:
    """Those whose cloud lives."""
    return [each for each in states if owner(each) is not None]


@contextlib.contextmanager
def hold(state: StateDir) -> Iterator[None]:
    """Own the federation while the block runs; the lock ends with the process at the latest.

    Raises:
        InUseError: another process owns it.
        StorageError: the folder is gone, or not ours.
    """
    try:
        descriptor = os.open(state.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"{state.lock_file} cannot be opened: {error.strerror}.",
            hint="Look at the owner of that folder.",
        ) from error
    try:
        if not _lock(descriptor):
            raise InUseError(
                f"{state.folder} is in use: its federation is running.",
                hint="Look at it with: onefed status; stop it with: onefed down",
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def owner(state: StateDir) -> int | None:
    """Process id of the cloud that owns the federation, or None when nobody does.

    0 while its id is not written yet. An earlier owner's id may still be there at that moment, so
    nobody is signalled by this number alone: see ``signal_owner``.
    """
    try:
        descriptor = os.open(state.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared: two that look at the same time do not take each other for the owner.
        if _try_lock(descriptor, fcntl.LOCK_SH):
            return None
        text = os.read(descriptor, 32)
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)


def signal_owner(state: StateDir, number: signal.Signals) -> bool:
    """Send the cloud a signal; False when there is none, or none that is surely ours."""
    pid = owner(state)
    if not pid:
        return False
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if _carries(process, state):
            process.send_signal(number)
            return True
    return False


def processes(state: StateDir) -> list[psutil.Process]:
    """Every process that carries this state directory in its environment.

    Left out are our own process and those above it, such as a shell that has the variable set.
    """
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [
        process
        for process in psutil.process_iter()
        if process.pid not in mine and _carries(process, state)
    ]


def end_processes(state: StateDir) -> int:
    """End what is left of a federation whose cloud is gone; returns how many there were."""
    ended = 0
    for _ in range(END_PASSES_MAX):
        left = processes(state)
        if not left:
            break
        ended += len(left)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)
            left = _wait(left)
    return ended


def _wait(left: list[psutil.Process]) -> list[psutil.Process]:
    """Those that live on after END_WAIT_S; one that nobody reaps is as good as gone."""
    limit = time.monotonic() + END_WAIT_S
    while (left := [each for each in left if _lives(each)]) and time.monotonic() < limit:
        time.sleep(END_POLL_S)
    return left


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _carries(process: psutil.Process, state: StateDir) -> bool:
    """Whether a process belongs to this federation."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(STATE_VARIABLE) == str(state.folder)
    return False


def _lock(descriptor: int) -> bool:
    """Take the lock for good. Those who only look at it, for a moment, are no reason to fail."""
    for _ in range(HOLD_TRIES_MAX):
        if _try_lock(descriptor, fcntl.LOCK_EX):
            return True
        if not _try_lock(descriptor, fcntl.LOCK_SH):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(HOLD_POLL_S)
    return False


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _place(base: Path, name: str, folder: Path | None) -> StateDir:
    return _real(base / name if folder is None else folder)


def _real(folder: Path) -> StateDir:
    """The folder without links on the way: it is compared with what processes carry."""
    return StateDir(Path(os.path.realpath(folder)))


def _require_replaceable(place: StateDir, name: str, *, replace: bool) -> None:
    if not replace:
        with contextlib.suppress(OnefedError):
            name = place.read_spec().name
        raise InUseError(
            f"{place.folder} holds the federation {name!r} already.",
            hint=f"Continue it: onefed resume {name}; "
            "or give another --name or --dir; or discard it with --replace.",
        )
    if owner(place) is not None:
        raise InUseError(
            f"The federation in {place.folder} is running and cannot be replaced.",
            hint=f"Stop it first: onefed down {name}",
        )


def _written_at(state: StateDir) -> float:
    try:
        return state.spec_file.stat().st_mtime
    except OSError:  # deleted meanwhile
        return 0.0


def _expanded(text: str, environ: Mapping[str, str]) -> Path:
    """The path, with ``~/`` replaced by the home folder."""
    if text != "~" and not text.startswith("~/"):
        return Path(text)
    user_home = environ.get("HOME")
    if not user_home:
        try:
            user_home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            raise StorageError(
                f"User {os.getuid()} has no home folder to keep federations in.",
                hint="Name a folder for them in ONEFED_HOME.",
            ) from None
    return Path(user_home, text.removeprefix("~").removeprefix("/"))


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "nodes": int,
    "app": str,
    "managed": bool,
    "rounds": int,
    "strategy": str,
    "seed": int,
    "context": dict,
    "data": (str, type(None)),
    "format": int,
}


def _spec(document: Any) -> Spec:
    """Read what ``write_spec`` wrote; ``ValueError`` with a reason for anything else."""
    if not isinstance(document, dict):
        raise ValueError("it is not a federation's")
    found = document.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise ValueError(f"it has format {found} of a newer onefed, and this one reads {FORMAT}")
    if document.keys() != _KINDS.keys():
        wrong = sorted(document.keys() ^ _KINDS.keys())
        raise ValueError(f"it has other fields than a federation's: {', '.join(wrong)}")
    for name, kind in _KINDS.items():
        if not isinstance(document[name], kind):
            raise ValueError(f"its {name} is of a wrong type")
    if not all(isinstance(text, str) for text in document["context"].values()):
        raise ValueError("its context holds values that are not text")
    return Spec(**document)
