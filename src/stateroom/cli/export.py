"""Exporting conversations and chains of responses into files, and importing such files: commands of both groups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from stateroom.cli.client import DEFAULT_URL, AsJson, Client, Url, segment
from stateroom.cli.failure import CommandFailed
from stateroom.cli.saving import save_download
from stateroom.cli.terminal import safe, say, show_json

Output: TypeAlias = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it; ID.tar when not given.")
]


def export_conversation(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="A conversation's id, conv_…")],
    output: Output = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Write a conversation into a file, to be imported elsewhere: items, images, files, settings; no secrets."""
    _export(Client(url), f"/conversations/{segment(identifier)}/export", output or Path(f"{identifier}.tar"))


def export_response(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="A response's id, resp_…")],
    output: Output = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Write a response and all that it continues into a file, to be imported elsewhere."""
    _export(Client(url), f"/responses/{segment(identifier)}/export", output or Path(f"{identifier}.tar"))


def import_conversation(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What was exported: a conversation or a chain.")],
    new_ids: Annotated[
        bool, typer.Option("--new-ids", help="Give everything in it ids of its own, for a copy beside the original.")
    ] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Import an exported file. All of it comes in, or nothing does."""
    client = Client(url)
    try:
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            made: Any = client.upload(
                "/conversations/import", file, size, "application/x-tar", query={"ids": "new" if new_ids else ""}
            )
    except OSError as error:
        raise CommandFailed(f"{source} cannot be read: {error.strerror}.") from None
    if as_json:
        show_json(made)
        return
    say(safe(made["conversation_id"] or made["response_id"] or ""), style="bold")
    say(f"items {made['items']:,}, responses {made['responses']:,}, files {made['files']:,}", style="dim", err=True)
    if made["conversation_id"]:
        say(client.go_on(f"--conversation {safe(made['conversation_id'])}"), style="dim", err=True)


def _export(client: Client, path: str, target: Path) -> None:
    save_download(client, path, target)
    say("It holds everything that was said: keep it from others.", style="dim", err=True)
