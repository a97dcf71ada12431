"""The console command `stateroom`: its tree of commands, and how a failure leaves it.

Each command lives in the file of its name. Nothing heavy is loaded until a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from stateroom.cli import conversations, keys, projects, responses, workspace
from stateroom.cli.chat import chat
from stateroom.cli.data import backup, rebuild, restore, verify
from stateroom.cli.doctor import doctor
from stateroom.cli.failure import INTERRUPTED, CommandFailed
from stateroom.cli.health import health
from stateroom.cli.serve import serve
from stateroom.cli.terminal import safe, say

EPILOG = "Exit codes: 0 done, 1 error, 2 wrong option or setting, 3 the data directory is in use, 4 it was taken over."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        program()(args=None if arguments is None else list(arguments), prog_name="stateroom")
    except CommandFailed as failure:
        say(f"error: {safe(failure.message)}", style="red", err=True)
        if failure.remedy:
            say(failure.remedy, err=True)
        sys.exit(failure.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def program() -> typer.Typer:
    """The tree of commands."""
    tree = typer.Typer(
        name="stateroom",
        help="The open, self-hosted stateful runtime for AI agents: OpenAI's API over any model on any hardware.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    tree.callback()(_options)
    tree.command()(serve)
    tree.command()(chat)
    tree.add_typer(responses.commands(), name="responses")
    tree.add_typer(conversations.commands(), name="conversations")
    tree.add_typer(workspace.commands(), name="workspace")
    tree.add_typer(keys.commands(), name="keys")
    tree.command()(verify)
    tree.command()(backup)
    tree.command()(restore)
    tree.command()(rebuild)
    tree.command()(projects.compact)
    tree.add_typer(projects.commands(), name="projects")
    tree.command()(doctor)
    tree.command()(health)
    return tree


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # lazy: slow to load, and needed here only

        say(f"stateroom {version('stateroom')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command as a whole."""


if __name__ == "__main__":
    main()
