"""onefed nodes: who may connect to a running federation."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from onefed.appliance import ownership as appliance_ownership
from onefed.appliance import stages
from onefed.appliance.paths import Paths
from onefed.cli import parsing, tables
from onefed.cli.screen import say, table_console
from onefed.errors import ExitCode, NotFoundError, OnefedError
from onefed.flower import mailbox
from onefed.local import ownership, state
from onefed.local.state import SUPERLINK
from onefed.tls import enrolment

MACHINE = Paths(Path("/"))
"""A virtual machine, when this is one."""

KEY_BYTES_MAX = 4096
FINGERPRINT_SHOWN = 16

app = parsing.Typer(
    help="Who may connect: node keys of a running federation.",
    no_args_is_help=True,
    suggest_commands=False,
)

Name = Annotated[
    str | None,
    typer.Option("--name", help="Name of the federation.", show_default="the one that runs"),
]
Node = Annotated[
    str,
    typer.Argument(metavar="NODE", help="A client key, or the beginning of a fingerprint."),
]
Json = Annotated[bool, typer.Option("--json", "-j", help="As JSON.")]


class KeyFileError(OnefedError):
    """The file of a public key cannot be used."""

    exit_code = ExitCode.USAGE


@app.command("list")
def list_(name: Name = None, json_: Json = False) -> None:
    """Show every node key, its client, its state and when it was seen last."""
    rows = ask(name, "nodes")["nodes"]
    if json_:
        tables.print_json(rows)
        return
    table = tables.table("client", "key", "from", "state", "last seen", numbers=())
    for row in rows:
        tables.add_row(
            table,
            row["client"],
            row["fingerprint"][:FINGERPRINT_SHOWN],
            row["source"],
            row["state"],
            row["seen_at"][:19] or "never",
        )
    table_console().print(table)


@app.command()
def revoke(node: Node, name: Name = None) -> None:
    """Refuse a node from now on, over restarts as well; its key never gets in again."""
    done = ask(name, "revoke", node=node)
    say(f"Node {done['client']} ({done['fingerprint'][:FINGERPRINT_SHOWN]}) is revoked.")


@app.command()
def replace(
    node: Node,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            help="File with its new public key (OpenSSH).",
            show_default="the key that its machine publishes",
        ),
    ] = None,
    name: Name = None,
) -> None:
    """Give a node another key: it stays the same client, and its old key is refused."""
    done = ask(name, "replace", node=node, public_key="" if key is None else _read_key(key))
    say(f"Node {done['client']} has the key {done['fingerprint'][:FINGERPRINT_SHOWN]} now.")


@app.command()
def token(
    hours: Annotated[
        int,
        typer.Option(
            "--hours", min=1, max=enrolment.LIFETIME_S_MAX // 3600, help="How long it is valid."
        ),
    ] = enrolment.LIFETIME_S_DEFAULT // 3600,
    partition: Annotated[
        int | None,
        typer.Option("--partition", min=0, help="Partition of its node.", show_default="none"),
    ] = None,
    name: Name = None,
) -> None:
    """Print a token with which one node elsewhere gets in, once: its FL_ENROLMENT_TOKEN."""
    made = enrolment.new_token()
    ask(
        name,
        "token",
        sha256=enrolment.digest(made),
        lifetime_s=hours * 3600,
        client="" if partition is None else str(partition),
    )
    say(made)


def ask(name: str | None, kind: str, **what: Any) -> Mapping[str, Any]:
    """Ask the supervisor of a federation that runs.

    Raises:
        NotFoundError: it does not run.
    """
    return mailbox.ask(mailbox_of(name), kind, what, clock=time.monotonic, sleep=time.sleep)


def mailbox_of(name: str | None, machine: Paths = MACHINE) -> Path:
    """Where the supervisor of a federation that runs looks for requests.

    On a coordinator's own machine that is the one meant, unless a name is given. Its folder is the
    programs' own, so root asks as their user: whatever that user planted there, root never writes.
    """
    if name is None and _is_coordinator(machine):
        appliance_ownership.become(machine.state)
        return machine.requests
    directory = state.find(state.home(os.environ), name)
    if ownership.owner(directory) is None:
        name = directory.read_spec().name
        raise NotFoundError(
            f"The federation {name!r} is not running.", hint=f"Start it: onefed resume {name}"
        )
    return Paths(directory.root(SUPERLINK)).requests


def events_of(name: str | None, machine: Paths = MACHINE) -> Path:
    """Where that federation writes what happens; see ``mailbox_of``."""
    if name is None and _is_coordinator(machine):
        return stages.events(machine)
    return state.find(state.home(os.environ), name).events


def _is_coordinator(machine: Paths) -> bool:
    """Whether the supervisor of a machine was told what to do; nobody but root may look."""
    return os.path.lexists(machine.supervisor)


def _read_key(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(KEY_BYTES_MAX).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(
            f"The public key {path} cannot be read: {getattr(error, 'strerror', None) or error}.",
            hint="Name a file that holds one line: ecdsa-sha2-nistp384 AAAA...",
        ) from error
