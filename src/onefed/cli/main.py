"""The commands, and what becomes of errors."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.text import Text

from onefed import context as variables
from onefed.cli import (
    appliance,
    chaos,
    checkpoint,
    completion,
    doctor,
    gpu,
    look,
    nodes,
    parsing,
    peer,
    runs,
    start,
)
from onefed.cli import context as context_commands
from onefed.cli.screen import LogFormat, error_console
from onefed.context.completion import complete as complete_set
from onefed.errors import ExitCode, OnefedError, StorageError
from onefed.local.chaos import KILLS_MAX
from onefed.local.request import Request
from onefed.local.variables import LAPTOP_ROUNDS
from onefed.telemetry import sentences

ROUNDS_MAX = 2**31 - 1
"""As in the table of context variables."""

app = parsing.Typer(
    name="onefed",
    help="Federated learning on OpenNebula that does not lose a round.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # click suggests by itself
    context_settings={"help_option_names": ["-h", "--help"]},
)
model = parsing.Typer(
    help="Models that federations have trained.", no_args_is_help=True, suggest_commands=False
)
app.add_typer(model, name="model")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(nodes.app, name="nodes")
app.add_typer(runs.app, name="runs")
app.add_typer(context_commands.app, name="context")
app.add_typer(appliance.app, name="appliance")
app.add_typer(peer.app, name="peer")
app.add_typer(gpu.app, name="gpu")

Nodes = Annotated[int, typer.Option("--nodes", "-n", help="Number of nodes (SuperNodes).")]
Rounds = Annotated[
    int | None,
    typer.Option("--rounds", "-r", help="Rounds to train.", show_default=LAPTOP_ROUNDS),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        help="Aggregation rule.",
        show_default=variables.VARIABLES["FL_STRATEGY"].default,
    ),
]
UseCase = Annotated[
    str | None,
    typer.Option(
        "--use-case",
        help="Built-in app.",
        show_default=variables.VARIABLES["FL_USE_CASE"].default,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Set a context variable (FL_...) or a setting of the app; may be repeated.",
        autocompletion=complete_set,
    ),
]
ContextFile = Annotated[
    Path | None, typer.Option("--context", help="File of context variables, NAME='value' lines.")
]
Name = Annotated[
    str | None,
    typer.Option("--name", help="Name of the federation.", show_default="fed-1, fed-2, ..."),
]
Dir = Annotated[
    Path | None,
    typer.Option("--dir", help="Folder that holds all of it.", show_default="NAME in ONEFED_HOME"),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", help="Seed of the run.", show_default=variables.VARIABLES["FL_SEED"].default
    ),
]
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
ResumeFrom = Annotated[
    Path | None,
    typer.Option(
        "--resume-from",
        help="Go on from a copied recovery store, folder of checkpoints, or federation.",
    ),
]
Format = Annotated[
    LogFormat, typer.Option("--log-format", help="What is printed: for people, or JSON lines.")
]
Federation = Annotated[
    str | None, typer.Argument(help="Name of the federation.", show_default="the one that runs")
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
    resume_from: ResumeFrom = None,
    log_format: Format = LogFormat.TEXT,
    chaos_: Annotated[
        bool,
        typer.Option(
            "--chaos",
            help="Kill processes of it while it trains, and compare every round with the same "
            "federation undisturbed.",
        ),
    ] = False,
    chaos_seed: Annotated[
        int, typer.Option("--chaos-seed", help="With --chaos: draws who is killed, and when.")
    ] = 0,
    kills: Annotated[
        int, typer.Option("--kills", min=1, max=KILLS_MAX, help="With --chaos: how many.")
    ] = 5,
) -> None:
    """Start a federation on this machine, train a built-in app, and show it live."""
    request = Request(
        nodes=nodes,
        rounds=rounds,
        strategy=strategy,
        use_case=use_case,
        app=None,
        assignments=set_ or [],
        context_file=context,
        seed=seed,
        data=data,
        name=name,
        folder=dir_,
        replace=replace,
    )
    if chaos_:
        if detach:
            raise typer.BadParameter("--chaos is there to be looked at: leave --detach out.")
        if resume_from is not None:
            raise typer.BadParameter("--chaos begins anew: leave --resume-from out.")
        options = chaos.Options(chaos_seed, kills)
        raise typer.Exit(chaos.run(request, options, summary=summary, log_format=log_format))
    code = start.run(
        request, resume_from=resume_from, summary=summary, detach=detach, log_format=log_format
    )
    raise typer.Exit(code)


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
    resume_from: ResumeFrom = None,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Start a federation on this machine and train a Flower app of your own."""
    request = Request(
        nodes=nodes,
        rounds=rounds,
        strategy=strategy,
        use_case=None,
        app=app_folder,
        assignments=set_ or [],
        context_file=context,
        seed=seed,
        data=data,
        name=name,
        folder=dir_,
        replace=replace,
    )
    code = start.run(
        request, resume_from=resume_from, summary=summary, detach=detach, log_format=log_format
    )
    raise typer.Exit(code)


@app.command()
def submit(
    app_folder: Annotated[Path, typer.Argument(metavar="APP", help="A Flower app directory.")],
    name: Federation = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            "-r",
            min=1,
            max=ROUNDS_MAX,
            help="Rounds to train.",
            show_default="those of the federation",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the app; may be repeated."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print what happens until the run has ended.")
    ] = False,
) -> None:
    """Train an app on a federation that runs already and waits for one (--use-case none)."""
    runs.submit(app_folder, name, rounds=rounds, assignments=set_ or [], follow=follow)


@app.command()
def resume(
    name: Annotated[str, typer.Argument(help="Name of the federation.")],
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", "-r", min=1, max=ROUNDS_MAX, help="New total, to train longer."),
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
            metavar="[ROLE[/N]]",
            help="The machines: superlink, supernode or supernode/N.",
            show_default="what happened, in one line per event",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the federation.", show_default="the one that runs"),
    ] = None,
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


@app.command("completion")
def completion_(
    shell: Annotated[completion.Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print what makes a shell complete commands, options and variables.

    For bash: onefed completion bash > ~/.local/share/bash-completion/completions/onefed
    """
    sys.stdout.write(completion.script(command(), shell))


@app.command("doctor")
def doctor_(
    json_: Annotated[bool, typer.Option("--json", "-j", help="As JSON.")] = False,
) -> None:
    """Show what is missing on this machine, and how to get it."""
    raise typer.Exit(doctor.run(as_json=json_))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; every error ends in one message and its exit code (docs/exit-codes.md)."""
    _prepare_streams()
    code = _run(sys.argv[1:] if arguments is None else list(arguments))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
    raise SystemExit(int(code))


def command() -> click.Command:
    """The whole program."""
    return typer.main.get_command(app)


def _run(arguments: list[str]) -> int:
    program = command()
    if (instruction := completion.asked(os.environ)) is not None:
        return completion.answer(program, instruction)
    try:
        with program.make_context("onefed", arguments) as context:
            program.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.exceptions.NoArgsIsHelpError:
        return ExitCode.USAGE  # the help is printed by now
    except click.ClickException as error:
        return _show(_in_our_words(error))
    except (click.exceptions.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except OnefedError as error:
        return _show(error)
    except BrokenPipeError:
        _forget_output()  # the reader has gone, and with it the wish for more
    except OSError as error:
        return _show(StorageError(f"The system refused: {error}", hint="See: onefed doctor"))
    return ExitCode.OK


def _show(error: OnefedError) -> int:
    """Print the message, and what to do next, on standard error; returns the exit code."""
    console = error_console()
    with contextlib.suppress(BrokenPipeError):
        console.print(Text.assemble(("error: ", "bold red"), _visible(error.message)))
        if error.hint:
            console.print(Text.assemble(("next:  ", "bold"), _visible(error.hint)))
    return error.exit_code


def _visible(text: str) -> str:
    """What an app or a path holds may not move the cursor; lines stay lines."""
    return "\n".join(sentences.visible(line) for line in text.split("\n"))


def _in_our_words(error: click.ClickException) -> OnefedError:
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "onefed"
    ours = OnefedError(error.format_message(), hint=f"See: {path} --help")
    ours.exit_code = ExitCode.USAGE
    return ours


def _prepare_streams() -> None:
    """Have three streams that can print any path, whatever we were started with."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It was closed. Without this the next file that is opened would take its number.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _forget_output() -> None:
    """Let what is left to print, even the last flush, go nowhere."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
