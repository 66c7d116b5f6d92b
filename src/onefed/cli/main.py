"""The commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import Console
from rich.text import Text

from onefed.cli import doctor, look, start
from onefed.cli.screen import LogFormat
from onefed.errors import ExitCode, OnefedError
from onefed.local import deploy

app = typer.Typer(
    name="onefed",
    help="Federated learning on OpenNebula that does not lose a round.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
model = typer.Typer(help="Models that federations have trained.", no_args_is_help=True)
app.add_typer(model, name="model")

Nodes = Annotated[int, typer.Option("--nodes", "-n", help="Number of nodes (SuperNodes).")]
Rounds = Annotated[int | None, typer.Option("--rounds", "-r", help="Rounds to train. [default: 5]")]
Strategy = Annotated[
    str | None, typer.Option("--strategy", help="Aggregation rule. [default: FedAvg]")
]
UseCase = Annotated[
    str | None, typer.Option("--use-case", help="Built-in app. [default: image-classification]")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Set a context variable (FL_...) or a setting of the app; may be repeated.",
    ),
]
ContextFile = Annotated[
    Path | None, typer.Option("--context", help="File of context variables, NAME='value' lines.")
]
Name = Annotated[
    str | None, typer.Option("--name", help="Name of the federation. [default: fed-1, fed-2, ...]")
]
Dir = Annotated[
    Path | None,
    typer.Option("--dir", help="Folder that holds all of it. [default: NAME in ONEFED_HOME]"),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the run. [default: 0]")]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder with a folder of training files per node: 0, 1, ..."),
]
SummaryFile = Annotated[
    Path | None, typer.Option("--summary", help="Write the outcome to this file as JSON.")
]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Return once training has started.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Discard a federation that has the name or folder.")
]
Format = Annotated[
    LogFormat, typer.Option("--log-format", help="What is printed: for people, or JSON lines.")
]
Federation = Annotated[
    str | None, typer.Argument(help="Name of the federation. [default: the one that runs]")
]


@app.command()
def up(
    nodes: Nodes = 3,
    rounds: Rounds = None,
    strategy: Strategy = None,
    use_case: UseCase = None,
    set_: Set = None,
    context: ContextFile = None,
    name: Name = None,
    dir_: Dir = None,
    seed: Seed = None,
    data: Data = None,
    summary: SummaryFile = None,
    detach: Detach = False,
    replace: Replace = False,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Start a federation on this machine, train a built-in app, and show it live."""
    request = deploy.Request(
        nodes, rounds, strategy, use_case, None, set_ or [], context, seed, data, name, dir_,
        replace,
    )  # fmt: skip
    raise typer.Exit(start.run(request, summary=summary, detach=detach, log_format=log_format))


@app.command()
def run(
    app_folder: Annotated[Path, typer.Argument(metavar="APP", help="A Flower app directory.")],
    nodes: Nodes = 3,
    rounds: Rounds = None,
    strategy: Strategy = None,
    set_: Set = None,
    context: ContextFile = None,
    name: Name = None,
    dir_: Dir = None,
    seed: Seed = None,
    data: Data = None,
    summary: SummaryFile = None,
    detach: Detach = False,
    replace: Replace = False,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Start a federation on this machine and train a Flower app of your own."""
    request = deploy.Request(
        nodes, rounds, strategy, None, app_folder, set_ or [], context, seed, data, name, dir_,
        replace,
    )  # fmt: skip
    raise typer.Exit(start.run(request, summary=summary, detach=detach, log_format=log_format))


@app.command()
def resume(
    name: Annotated[str, typer.Argument(help="Name of the federation.")],
    rounds: Annotated[
        int | None, typer.Option("--rounds", "-r", min=1, help="New total, to train longer.")
    ] = None,
    summary: SummaryFile = None,
    detach: Detach = False,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Continue a federation that was stopped, from its last saved round."""
    code = start.resume(name, rounds=rounds, summary=summary, detach=detach, log_format=log_format)
    raise typer.Exit(code)


@app.command()
def status(
    name: Federation = None,
    json_: Annotated[bool, typer.Option("--json", "-j", help="As JSON.")] = False,
) -> None:
    """Show a federation as it is now."""
    look.status(name, as_json=json_)


@app.command("list")
def list_(
    json_: Annotated[bool, typer.Option("--json", "-j", help="As JSON.")] = False,
) -> None:
    """List the federations of this machine."""
    look.list_all(as_json=json_)


@app.command()
def logs(
    part: Annotated[
        str | None,
        typer.Argument(
            metavar="[ROLE[/N]]", help="superlink, supernode or supernode/N. [default: events]"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the federation.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
) -> None:
    """Print what happened, or what the programs of a machine wrote."""
    look.logs(part, name, follow=follow)


@app.command()
def down(
    name: Federation = None,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for the round in flight.")
    ] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="Discard everything it trained, too.")
    ] = False,
) -> None:
    """Stop a federation after the round in flight is saved; resume continues it."""
    start.down(name, now=now, purge=purge)


@model.command("export")
def export(
    name: Annotated[str, typer.Argument(help="Name of the federation.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .npz or .safetensors.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write the last saved model of a federation to a file, with its metadata."""
    look.export(name, output, overwrite=overwrite)


@app.command()
def version(
    json_: Annotated[bool, typer.Option("--json", "-j", help="As JSON.")] = False,
) -> None:
    """Show the versions of everything that matters."""
    doctor.version(as_json=json_)


@app.command("doctor")
def doctor_() -> None:
    """Show what is missing on this machine, and how to get it."""
    raise typer.Exit(doctor.run())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; every error ends in one message and its exit code (docs/exit-codes.md)."""
    try:
        code = app(arguments, standalone_mode=False)
    except click.exceptions.Abort:
        code = ExitCode.INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except OnefedError as error:
        show_error(error)
        code = error.exit_code
    except BrokenPipeError:
        # The reader has gone, and with it the wish for more; not even a flush may complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.OK
    raise SystemExit(int(code or ExitCode.OK))


def show_error(error: OnefedError) -> None:
    """The message, and what to do next, on standard error."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), error.message))
    if error.hint:
        console.print(Text.assemble(("next:  ", "bold"), error.hint))


if __name__ == "__main__":
    main()
