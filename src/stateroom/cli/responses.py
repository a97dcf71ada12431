"""`stateroom responses`: look at, fork, cancel and delete the responses of a running server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from stateroom.cli.client import DEFAULT_URL, AsJson, Client, Url, segment
from stateroom.cli.export import export_response
from stateroom.cli.terminal import is_terminal, moment, one_line, say, show_fields, show_json, show_table
from stateroom.cli.transcript import preview, show_item, tokens

Id = Annotated[str, typer.Argument(metavar="ID", help="A response's id, resp_…")]


def commands() -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help="List, show, fork, cancel and delete responses.")
    group.command("list")(list_responses)
    group.command("show")(show_response)
    group.command("fork")(fork_response)
    group.command("cancel")(cancel_response)
    group.command("export")(export_response)
    group.command("delete")(delete_response)
    return group


def list_responses(
    limit: Annotated[int, typer.Option(min=1, help="How many; newest first.")] = 20,
    after: Annotated[str, typer.Option(help="Begin behind this id.")] = "",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the responses, newest first."""
    found = list(Client(url).pages("/responses", order="desc", limit=limit, after=after))
    if as_json:
        show_json(found)
        return
    columns = ("id", "status", "created", "model", "answer")
    rows = (_row(response) for response in found)
    show_table(columns, rows, empty="No responses yet. Try `stateroom chat`.", spare="model")
    show_more(found, limit)


def show_more(found: Sequence[Any], limit: int) -> None:
    """How to go on behind a page that is full, for whoever looks at it."""
    if len(found) == limit and is_terminal():
        say(f"Older ones:  --after {found[-1]['id']}", style="dim", err=True)


def _row(response: Any) -> tuple[str, ...]:
    return (
        response["id"],
        response.get("status") or "",
        moment(response.get("created_at"), short=is_terminal()),
        response.get("model") or "",
        preview(response),
    )


def show_response(identifier: Id, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a response with its input and output."""
    client = Client(url)
    response = client.call("GET", f"/responses/{segment(identifier)}")
    if as_json:
        show_json(response)
        return
    conversation = response.get("conversation") or {}
    error = response.get("error") or {}
    instructions = response.get("instructions")
    show_fields(
        [
            ("response", response["id"]),
            ("status", response.get("status") or ""),
            ("why", (response.get("incomplete_details") or {}).get("reason") or error.get("message") or ""),
            ("created", moment(response.get("created_at"))),
            ("ended", moment(response.get("completed_at"))),
            ("model", response.get("model") or ""),
            ("follows", response.get("previous_response_id") or ""),
            ("conversation", conversation.get("id") or ""),
            ("tokens", tokens(response.get("usage"))),
            ("metadata", ", ".join(f"{name}={value}" for name, value in (response.get("metadata") or {}).items())),
            ("instructions", one_line(instructions, 200) if isinstance(instructions, str) else ""),
        ]
    )
    say()
    for item in client.pages(f"/responses/{segment(identifier)}/input_items"):
        show_item(item)
    for item in response.get("output") or []:
        show_item(item)


def fork_response(identifier: Id, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Begin a new conversation whose history is the chain up to this response."""
    client = Client(url)
    show_fork(client, client.call("POST", f"/responses/{segment(identifier)}/fork", {}), identifier, as_json)


def show_fork(client: Client, conversation: Any, origin: str, as_json: bool) -> None:
    if as_json:
        show_json(conversation)
        return
    say(conversation["id"], style="bold")
    say(f"It shares the history of {origin} and changes nothing in it.", style="dim", err=True)
    say(client.go_on(f"--conversation {conversation['id']}"), style="dim", err=True)


def cancel_response(identifier: Id, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Stop a running background response; what it has said so far is kept."""
    response = Client(url).call("POST", f"/responses/{segment(identifier)}/cancel", {})
    if as_json:
        show_json(response)
        return
    say(f"{response['id']}  {response.get('status') or ''}")


def delete_response(identifier: Id, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Delete a response and erase its content. This cannot be undone."""
    answer = Client(url).call("DELETE", f"/responses/{segment(identifier)}")
    if as_json:
        show_json(answer)
        return
    say(f"{identifier}  deleted")
