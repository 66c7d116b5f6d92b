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
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from onefed.checkpoint import files
from onefed.errors import ExitCode, InUseError, NotFoundError, OnefedError, StorageError

STATE_VARIABLE = "ONEFED_STATE_DIR"

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""Names of federations: they become folder names and parts of messages."""

SUPERLINK = "superlink"

END_WAIT_S = 3.0
"""Between SIGTERM and SIGKILL when left-over processes are ended."""


class BadNameError(OnefedError):
    """Not a name for a federation."""

    exit_code = ExitCode.USAGE


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
    format: int = field(default=1)


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
        """
        try:
            document = json.loads(self.spec_file.read_text(encoding="utf-8"))
            return Spec(**document)
        except FileNotFoundError:
            raise NotFoundError(
                f"{self.folder} holds no federation.", hint="See the ones there are: onefed list."
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise StorageError(
                f"{self.spec_file} cannot be read: {error}",
                hint="Start a federation of another name; this folder can be deleted.",
            ) from error

    def write_spec(self, spec: Spec) -> None:
        files.write_bytes(self.spec_file, json.dumps(asdict(spec), indent=1).encode())


def supernodes(count: int) -> tuple[str, ...]:
    """Names of the machines of the supernode role."""
    return tuple(f"supernode/{index}" for index in range(count))


def home(environ: Mapping[str, str]) -> Path:
    """Where federations lie: ``ONEFED_HOME``, else ``onefed`` in the user's state folder (XDG)."""
    if environ.get("ONEFED_HOME"):
        return Path(environ["ONEFED_HOME"]).expanduser().absolute()
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path("~/.local/state").expanduser()) / "onefed"


def check_name(name: str) -> str:
    """The name, if it is one.

    Raises:
        BadNameError: it is not.
    """
    if not NAME.fullmatch(name):
        raise BadNameError(
            f"{name!r} is not a name for a federation.",
            hint="Use lower-case letters, digits, dot, dash and underscore; 63 at most.",
        )
    return name


def free_name(base: Path) -> str:
    """``fed-1``, or the next number that is not taken."""
    number = 1
    while os.path.lexists(base / f"fed-{number}"):
        number += 1
    return f"fed-{number}"


def claim(base: Path, name: str, folder: Path | None) -> StateDir:
    """A new, empty state directory of that name.

    Args:
        folder: where to put it; None: below ``base``. A link below ``base`` leads to it.

    Raises:
        InUseError: the name or the folder is taken.
        StorageError: the folder cannot be made.
    """
    link = base / name
    place = link if folder is None else folder.absolute()
    if StateDir(place).spec_file.exists() or (folder is None and os.path.lexists(place)):
        raise InUseError(
            f"{place} holds the federation {_name_in(place, name)!r} already.",
            hint=f"Continue it with: onefed resume {name}; "
            "or give another --name or --dir; or discard it with --replace.",
        )
    if folder is not None and os.path.lexists(link) and link.resolve() != place.resolve():
        raise InUseError(
            f"The name {name!r} belongs to the federation in {link.resolve()}.",
            hint="Give another --name, or discard that federation with: "
            f"onefed down {name} --purge.",
        )
    if place.is_dir() and any(place.iterdir()):
        raise InUseError(
            f"{place} is not empty and holds no federation of ours.",
            hint="Give an empty or a new folder as --dir.",
        )
    files.make_folder(place, mode=0o700)
    if folder is not None and not os.path.lexists(link):
        files.make_folder(base, mode=0o700)
        link.symlink_to(place)
    return StateDir(place)


def find(base: Path, name: str | None) -> StateDir:
    """The federation of that name; without a name, the only one that runs, else the newest.

    Raises:
        NotFoundError: there is none.
    """
    if name is not None:
        check_name(name)
        found = StateDir((base / name).resolve())
        found.read_spec()
        return found
    every = all_of(base)
    running = [each for each in every if owner(each) is not None]
    if running:
        every = running
    if not every:
        raise NotFoundError("There is no federation yet.", hint="Start one with: onefed up.")
    return max(every, key=lambda each: each.spec_file.stat().st_mtime)


def all_of(base: Path) -> list[StateDir]:
    """Every federation below ``base``, by name."""
    if not base.is_dir():
        return []
    found = [StateDir(entry.resolve()) for entry in sorted(base.iterdir())]
    return [each for each in found if each.spec_file.exists()]


@contextlib.contextmanager
def hold(state: StateDir) -> Iterator[None]:
    """Own the federation while the block runs; the lock ends with the process at the latest.

    Raises:
        InUseError: another process owns it.
    """
    descriptor = os.open(state.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"{state.folder} is in use: its federation is running.",
                hint="Look at it with: onefed status; stop it with: onefed down.",
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def owner(state: StateDir) -> int | None:
    """Process id of the cloud that owns the federation, or None when nobody does."""
    try:
        descriptor = os.open(state.lock_file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32)
        return int(text) if text.isdigit() else 0
    else:
        return None
    finally:
        os.close(descriptor)


def processes(state: StateDir) -> list[psutil.Process]:
    """Every process that carries this state directory in its environment, but for our own."""
    wanted, mine = str(state.folder), os.getpid()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != mine and process.environ().get(STATE_VARIABLE) == wanted:
                found.append(process)
    return found


def end_processes(state: StateDir) -> int:
    """End what is left of a federation whose cloud is gone; returns how many there were."""
    left = processes(state)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(left, timeout=END_WAIT_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=END_WAIT_S)
    return len(left)


def _name_in(place: Path, fallback: str) -> str:
    with contextlib.suppress(OnefedError):
        return StateDir(place.resolve()).read_spec().name
    return fallback
