"""`stateroom conversations`: look at, fork and delete the conversations of a running server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stateroom.cli.client import DEFAULT_URL, AsJson, Client, Url, segment
from stateroom.cli.export import export_conversation, import_conversation
from stateroom.cli.responses import show_fork, show_more
from stateroom.cli.terminal import is_terminal, moment, say, show_fields, show_json, show_table
from stateroom.cli.transcript import show_item

Id = Annotated[str, typer.Argument(metavar="ID", help="A conversation's id, conv_…")]


def commands() -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help="List, show, fork, move and delete conversations.")
    group.command("list")(list_conversations)
    group.command("show")(show_conversation)
    group.command("fork")(fork_conversation)
    group.command("export")(export_conversation)
    group.command("import")(import_conversation)
    group.command("delete")(delete_conversation)
    return group


def list_conversations(
    limit: Annotated[int, typer.Option(min=1, help="How many; newest first.")] = 20,
    after: Annotated[str, typer.Option(help="Begin behind this id.")] = "",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the conversations, newest first."""
    found = list(Client(url).pages("/conversations", order="desc", limit=limit, after=after))
    if as_json:
        show_json(found)
        return
    short = is_terminal()
    rows = ((each["id"], moment(each.get("created_at"), short=short), _metadata(each)) for each in found)
    show_table(("id", "created", "metadata"), rows, empty="No conversations yet.")
    show_more(found, limit)


def show_conversation(identifier: Id, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a conversation with all its items."""
    client = Client(url)
    path = f"/conversations/{segment(identifier)}"
    conversation = client.call("GET", path)
    items = client.pages(f"{path}/items")
    if as_json:
        show_json({**conversation, "items": list(items)})
        return
    show_fields(
        [
            ("conversation", conversation["id"]),
            ("created", moment(conversation.get("created_at"))),
            ("metadata", _metadata(conversation)),
        ]
    )
    say()
    for item in items:
        show_item(item)


def fork_conversation(
    identifier: Id,
    after: Annotated[str, typer.Option("--after", metavar="ITEM_ID", help="Share up to this item.")] = "",
    response: Annotated[str, typer.Option("--response", metavar="ID", help="Share up to this response.")] = "",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Begin a new conversation that shares this one's history, up to its end or an earlier place."""
    if after and response:
        raise typer.BadParameter("give --after or --response, not both")
    place = {"after_item_id": after} if after else {"response_id": response} if response else {}
    client = Client(url)
    show_fork(client, client.call("POST", f"/conversations/{segment(identifier)}/fork", place), identifier, as_json)


def delete_conversation(identifier: Id, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Delete a conversation and erase its content. This cannot be undone."""
    answer = Client(url).call("DELETE", f"/conversations/{segment(identifier)}")
    if as_json:
        show_json(answer)
        return
    say(f"{identifier}  deleted")


def _metadata(conversation: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in (conversation.get("metadata") or {}).items())
