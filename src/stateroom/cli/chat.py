"""`stateroom chat`: a conversation in the terminal that survives the server's death and can be taken up by id.

Every answer is a background response that is streamed: when the connection breaks in the middle of it, the same
stream is read on from the last event that was seen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from stateroom.cli.answer import Answer
from stateroom.cli.client import DEFAULT_URL, Client, Url, segment
from stateroom.cli.failure import CommandFailed
from stateroom.cli.terminal import is_terminal, safe, say, show_fields
from stateroom.cli.transcript import show_item, tokens

HELP = """\
/id          ids of this conversation and of the last answer
/fork [ID]   go on in a new conversation that shares the history up to here,
             or up to the response ID
/quit        leave; so does the end of the input
Ctrl-C       stops the answer that is being given"""


def chat(
    url: Url = DEFAULT_URL,
    model: Annotated[str, typer.Option(envvar="STATEROOM_MODEL", help="Model; the server's default if empty.")] = "",
    conversation: Annotated[str, typer.Option(metavar="ID", help="Go on with this conversation.")] = "",
    resume: Annotated[str, typer.Option(metavar="RESPONSE_ID", help="Go on from this response.")] = "",
    instructions: Annotated[str, typer.Option(help="Instructions for the model.")] = "",
) -> None:
    """Talk to a model: streamed, over many turns, resumable by id.

    Lines typed or piped in are the turns; /help lists what else can be typed.
    --resume takes up a response by its id, even one that is still being written.
    """
    if conversation and resume:
        raise typer.BadParameter("give --conversation or --resume, not both")
    client = Client(url)
    talk = Talk(client, model=model or _default_model(client), instructions=instructions)
    if conversation:
        talk.enter(conversation)
    elif resume:
        talk.resume(resume)
    else:
        say(f"{talk.model} at {client.url}. /help for help.", style="dim", err=True)
    _converse(talk)


def _default_model(client: Client) -> str:
    models = client.call("GET", "/models")["data"]
    if not models:
        raise CommandFailed("The server serves no model.", remedy="`stateroom doctor` says what it lacks.")
    return str(models[0]["id"])


def _converse(talk: Talk) -> None:
    failed = False
    for line in _lines():
        try:
            if line.startswith("/"):
                if _command(talk, line):
                    break
            else:
                failed = not talk.turn(line)
        except CommandFailed as failure:
            if not is_terminal(sys.stdin):
                raise
            failed = False
            say(f"error: {safe(failure.message)}", style="red", err=True)
            if failure.remedy:
                say(failure.remedy, err=True)
    talk.farewell()
    if failed:
        raise typer.Exit(1)


def _lines() -> Iterator[str]:
    """What the user types or pipes in, line by line, without empty ones."""
    if not is_terminal(sys.stdin):
        while line := sys.stdin.readline():
            if line.strip():
                yield line.strip()
        return
    import readline  # noqa: F401  # lazy: gives input() its history and editing

    while True:
        try:
            line = input("\n› ").strip()
        except (EOFError, KeyboardInterrupt):
            say(err=True)
            return
        if line:
            yield line


def _command(talk: Talk, line: str) -> bool:
    """Do what a line with a slash says; True: leave."""
    word, _, argument = line.partition(" ")
    match word:
        case "/quit" | "/exit":
            return True
        case "/help":
            say(HELP, style="dim")
        case "/id":
            talk.show_ids()
        case "/fork":
            talk.fork(argument.strip())
        case _:
            say(f"There is no {safe(word)}; /help lists what there is.", style="yellow", err=True)
    return False


class Talk:
    """Where a chat stands: a conversation, or the last response of a chain."""

    def __init__(self, client: Client, *, model: str, instructions: str = "") -> None:
        self.client = client
        self.model = model
        self.instructions = instructions
        self.conversation = ""
        self.last = ""
        """The last response that can be gone on from."""

    def enter(self, conversation: str) -> None:
        """Go on with a conversation; its last items are shown."""
        path = f"/conversations/{segment(conversation)}"
        self.conversation = self.client.call("GET", path)["id"]
        items = list(self.client.pages(f"{path}/items", order="desc", limit=4))
        for item in reversed(items):
            show_item(item, ids=False)

    def resume(self, identifier: str) -> None:
        """Go on from a response, read to its end first if it is still being written."""
        response = self.client.call("GET", f"/responses/{segment(identifier)}")
        self.conversation = (response.get("conversation") or {}).get("id", "")
        for item in self.client.pages(f"/responses/{segment(identifier)}/input_items", order="desc", limit=1):
            show_item(item, ids=False)
        if response.get("status") in ("queued", "in_progress"):
            self._give(Answer(self.client, response["id"]), {})
            return
        for item in response.get("output") or []:
            show_item(item, ids=False)
        self.last = response["id"]

    def turn(self, text: str) -> bool:
        """One question and its answer; False when the answer failed."""
        body: dict[str, Any] = {"model": self.model, "input": text}
        if self.instructions:
            body["instructions"] = self.instructions
        if self.conversation:
            body["conversation"] = self.conversation
        elif self.last:
            body["previous_response_id"] = self.last
        return self._give(Answer(self.client), body)

    def _give(self, answer: Answer, body: dict[str, Any]) -> bool:
        began = time.monotonic()
        try:
            if answer.id:
                answer.read()
            else:
                answer.ask(body)
        except KeyboardInterrupt:
            answer.stop()
            say("\n[stopped]", style="yellow", err=True)
            return True
        final = answer.final
        status = final.get("status")
        say(f"{answer.id}  {tokens(final.get('usage'))}  {time.monotonic() - began:.1f} s", style="dim", err=True)
        if status in ("completed", "incomplete"):
            self.last = answer.id
        if status == "incomplete":
            reason = (final.get("incomplete_details") or {}).get("reason", "unknown")
            say(f"[the answer is incomplete: {reason}]", style="yellow", err=True)
        if status == "failed":
            error = final.get("error") or {}
            say(f"error: {safe(str(error.get('message')))} ({error.get('code')})", style="red", err=True)
        return bool(status != "failed")

    def fork(self, identifier: str) -> None:
        """Go on in a fork that leaves this conversation as it is."""
        if self.conversation:
            path = f"/conversations/{segment(self.conversation)}/fork"
            forked = self.client.call("POST", path, {"response_id": identifier} if identifier else {})
        elif identifier or self.last:
            forked = self.client.call("POST", f"/responses/{segment(identifier or self.last)}/fork", {})
        else:
            say("Nothing has been said that could be forked.", style="yellow", err=True)
            return
        self.conversation = forked["id"]
        say(f"Now in {self.conversation}, a fork; its origin stays as it is.", style="dim", err=True)

    def show_ids(self) -> None:
        show_fields([("conversation", self.conversation), ("last answer", self.last), ("model", self.model)])

    def farewell(self) -> None:
        """How to come back."""
        if self.conversation:
            say(self.client.go_on(f"--conversation {self.conversation}"), style="dim", err=True)
        elif self.last:
            say(self.client.go_on(f"--resume {self.last}"), style="dim", err=True)
