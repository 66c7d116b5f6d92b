"""State directories: the folder that holds all of a federation, its name, and its place.

Those of a user lie in one home folder, or are linked to from there by their names.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onefed.checkpoint import files
from onefed.errors import ExitCode, InUseError, NotFoundError, OnefedError, StorageError
from onefed.local import ownership
from onefed.local import spec as specs
from onefed.local.spec import Spec
from onefed.telemetry.log import Follower

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""Names of federations: they become folder names and parts of messages."""

SUPERLINK = "superlink"


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
        return specs.read(self.spec_file)

    def write_spec(self, spec: Spec) -> None:
        """Make this what the federation was asked to be."""
        specs.write(self.spec_file, spec)


def news(events: Path) -> Follower:
    """Gives the events from now on: what earlier starts said is not the next one's."""
    follower = Follower(events)
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
    every = ownership.running(every) or every
    if not every:
        raise NotFoundError("There is no federation yet.", hint="Start one with: onefed up")
    return max(every, key=_written_at)


def all_of(base: Path) -> list[StateDir]:
    """Every federation below ``base``, by name."""
    if not base.is_dir():
        return []
    found = [_real(entry) for entry in sorted(base.iterdir())]
    return [each for each in found if each.spec_file.exists()]


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
    if ownership.owner(place) is not None:
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
