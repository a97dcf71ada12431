"""What Stateroom is for, in two minutes: it remembers, it survives kill -9 in mid-answer, and it forks.

Run it with `make demo`. It starts a real server on a temporary data directory with the embedded model, speaks to it
with the `openai` package, and checks what it shows: it exits 0 only if every promise held.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openai import APIError, OpenAI
from openai.types.conversations import Conversation
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

BRIEF = "Answer in one short sentence."
FACT, ASIDE, QUESTION = "My dog is called Biscuit.", "What is the capital of France?", "What is my dog called?"
OTHER_ASIDE = "What is the capital of Japan?"
REMEMBERED = "Biscuit"
LIST = "List eight facts about the sea, one short sentence each."
EVENTS_BEFORE_THE_KILL = 60
START_SECONDS = 150
BEFORE, AFTER = "cyan", "green"

console = Console(highlight=False)


class PromiseBroken(Exception):
    """Stateroom did not do what it says it does."""


class Server:
    """`stateroom serve` as a process of its own, on one data directory and one port through all its lives."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log = home / "server.log"
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it and wait until it is ready; the seconds that took."""
        command = [sys.executable, "-m", "stateroom.cli.main", "serve"]
        options = ["--port", str(self.port), "--data", str(self.home / "data")]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("STATEROOM_")}
        cache = {name: value for name, value in os.environ.items() if name == "STATEROOM_EMBEDDED__CACHE_DIR"}
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.home, env=kept | cache
            )
        self._wait(began)
        return time.monotonic() - began

    def _wait(self, began: float) -> None:
        assert self.process is not None
        process = self.process

        def is_ready() -> bool:
            if process.poll() is not None:
                raise PromiseBroken(f"the server did not start (exit code {process.returncode})")
            if time.monotonic() - began > START_SECONDS:
                raise PromiseBroken(f"the server was not ready within {START_SECONDS} seconds")
            return self._is_ready()

        self.show_progress("starting the server …", is_ready)

    def show_progress(self, title: str, is_done: Callable[[], bool]) -> None:
        """Wait, and show what the server says meanwhile: the line that it is at, or every few seconds a new one."""
        shown, shown_at = "", float("-inf")
        with console.status(title) as status:
            while not is_done():
                line = self.last_lines(1)
                if line != shown and line.startswith("Fetching"):
                    status.update(line)
                    if not console.is_terminal and time.monotonic() - shown_at > 2:
                        console.print(f"  {line}", style="dim", markup=False)
                        shown_at = time.monotonic()
                    shown = line
                time.sleep(0.02)

    def _is_ready(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.port}/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9: no warning, no time to save anything."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def last_lines(self, count: int) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([line for line in lines if line.strip()][-count:])


class Typewriter:
    """Prints streamed text as it comes, wrapped at words."""

    def __init__(self) -> None:
        self.column = 0
        self.width = min(console.width, 100) - 6

    def start_anew(self) -> None:
        """Something else was printed in between."""
        self.column = 0

    def write(self, text: str, style: str) -> None:
        if text.startswith(" ") and self.column + len(text) > self.width:
            text = "\n" + text[1:]
        for line in (text if self.column else text.removeprefix(" ")).splitlines(keepends=True):
            lead = "   " if self.column == 0 and line != "\n" else ""
            console.print(Text(lead + line, style), end="", soft_wrap=True)
            self.column = 0 if line.endswith("\n") else self.column + len(lead + line)


def main() -> int:
    os.environ["NO_PROXY"] = "127.0.0.1"
    home = Path(tempfile.mkdtemp(prefix="stateroom-demo-"))
    server = Server(home)
    try:
        tell(server)
    except PromiseBroken as broken:
        return give_up(server, f"A promise was broken: {broken}.")
    except APIError as error:
        return give_up(server, f"The server could not do what it was asked: {error}")
    except KeyboardInterrupt:
        return 130
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)
    return 0


def give_up(server: Server, why: str) -> int:
    console.print()
    console.print(Panel(Text(why), style="red"))
    console.print("The last that the server said:", style="dim")
    console.print(server.last_lines(12), style="dim", markup=False)
    return 1


def tell(server: Server) -> None:
    began = time.monotonic()
    figures: list[tuple[str, str]] = []
    console.print()
    console.print(
        Panel(
            "[bold]Stateroom[/] keeps what an agent needs between calls, behind OpenAI's API.\n"
            "This demo uses the [bold]openai[/] package against a real server on this machine.\n"
            "[dim]Its model is tiny, made for smoke tests: watch the state, not the wit.[/]",
            expand=False,
        )
    )
    figures.append(("server start", seconds(server.start())))
    client = OpenAI(base_url=server.base_url, api_key="unused", max_retries=0, timeout=120)
    model = client.models.list().data[0].id
    console.print(f"  server at {server.base_url}", style="dim")
    figures.append(("first answer of the model", seconds(warm_up(server, client, model))))
    console.print(f"  model {model}", style="dim")

    conversation, first = remember(client, model, figures)
    crash(server, client, model, figures)
    fork(client, model, conversation, first, figures)

    figures.append(("the whole story", seconds(time.monotonic() - began)))
    closing(figures)


def warm_up(server: Server, client: OpenAI, model: str) -> float:
    """Have the model say something, unstored; at the very first start its weights are fetched for that."""
    began = time.monotonic()
    patient = client.with_options(timeout=START_SECONDS)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(patient.responses.create, model=model, input="Hello", store=False, max_output_tokens=16)
        server.show_progress("waking the model …", answer.done)
        answer.result()
    return time.monotonic() - began


# -- 1 ----------------------------------------------------------------------------------------------------------------


def remember(client: OpenAI, model: str, figures: list[tuple[str, str]]) -> tuple[str, str]:
    chapter(1, "A conversation that remembers")
    console.print("  Each turn sends one line. The server holds the rest.\n", style="dim")
    conversation = client.conversations.create(metadata={"topic": "demo"}).id
    ids = []
    for text in (FACT, ASIDE, QUESTION):
        began = time.monotonic()
        ids.append(turn(client, model, conversation, text))
        figures.append((f"turn {len(ids)}", seconds(time.monotonic() - began)))
    texts = transcript(client, conversation)
    check(texts[0] == FACT and texts[4] == QUESTION, f"the conversation holds something else than was said: {texts}")
    proof(f"{len(texts)} items kept under {conversation}")
    return conversation, ids[0]


def turn(client: OpenAI, model: str, conversation: str, text: str) -> str:
    """Ask and show one turn; the id of its response."""
    console.print(Text.assemble(("  you    ", "bold"), text))
    with console.status("the model answers …"):
        response = client.responses.create(
            model=model, conversation=conversation, input=text, instructions=BRIEF, temperature=0, max_output_tokens=60
        )
    check(response.status in ("completed", "incomplete"), f"a turn ended as {response.status}: {response.error}")
    console.print(Text.assemble(("  model  ", "bold"), (response.output_text.strip(), "green")))
    if text == QUESTION and REMEMBERED not in response.output_text:
        console.print("         (the tiny model slipped; what it was given is checked below)", style="yellow")
    return response.id


def transcript(client: OpenAI, conversation: str) -> list[str]:
    """What was said, oldest first."""
    items: list[Any] = list(client.conversations.items.list(conversation, order="asc", limit=100))
    return ["".join(part.text for part in item.content) for item in items if item.type == "message"]


# -- 2 ----------------------------------------------------------------------------------------------------------------


def crash(server: Server, client: OpenAI, model: str, figures: list[tuple[str, str]]) -> None:
    chapter(2, "kill -9 in the middle of an answer")
    console.print("  A background response, streamed to this terminal.\n", style="dim")
    console.print(Text.assemble(("  you    ", "bold"), LIST, "\n"))
    writer = Typewriter()
    began = time.monotonic()
    stream = client.responses.create(
        model=model, input=LIST, background=True, stream=True, temperature=0, max_output_tokens=300
    )
    seen: list[dict[str, Any]] = []
    for event in until_it_breaks(stream):
        if not texts_of(seen) and event.type == "response.output_text.delta":
            figures.append(("first word of the answer", seconds(time.monotonic() - began)))
        seen.append(event.to_dict())
        show(writer, event, BEFORE)
        if len(seen) == EVENTS_BEFORE_THE_KILL:
            server.kill()
            killed = time.monotonic()
    check(len(seen) >= EVENTS_BEFORE_THE_KILL, "the answer ended before the server could be killed")
    check(not is_end(seen[-1]), "the answer ended before the server could be killed")
    response_id, last = seen[0]["response"]["id"], seen[-1]["sequence_number"]
    console.print("\n")
    console.rule(f"[bold red]kill -9[/]  [dim]the last event seen was number {last}[/]", style="red")
    figures.append(("restart after kill -9", seconds(server.start())))

    resumed = client.responses.retrieve(response_id, stream=True, starting_after=last)
    rest: list[dict[str, Any]] = []
    for event in resumed:
        if not rest:
            came = time.monotonic() - killed
            console.rule(
                f"[bold green]resumed[/]  [dim]at number {event.sequence_number}, {came:.1f} s after the kill[/]",
                style="green",
            )
            console.print()
            writer.start_anew()
            figures.append(("kill -9 to the next event", seconds(came)))
        rest.append(event.to_dict())
        show(writer, event, AFTER)
    console.print("\n")
    prove_stream(client, response_id, seen, rest)


def until_it_breaks(stream: Any) -> Iterator[Any]:
    """The events of a stream, up to the moment its server dies."""
    try:
        yield from stream
    except Exception as error:  # what the package raises for a dead server depends on where it was reading
        console.print(f"\n\n  [dim]the client sees: {type(error).__name__}[/]", end="")


def show(writer: Typewriter, event: Any, style: str) -> None:
    if event.type == "response.output_text.delta":
        writer.write(event.delta, style)
    elif event.type == "response.output_item.added" and event.output_index > 0:
        writer.write("\n(the model begins again)\n", "yellow")


def prove_stream(client: OpenAI, response_id: str, seen: list[dict[str, Any]], rest: list[dict[str, Any]]) -> None:
    """No gap, no duplicate, and a third reader gets exactly what the first two got."""
    check(bool(rest), "the resumed stream was empty")
    numbers = [event["sequence_number"] for event in seen + rest]
    check(numbers == list(range(len(numbers))), f"the numbers of the events are not 0, 1, 2, …: {numbers}")
    check(is_end(rest[-1]), "the resumed stream did not reach the end of the answer")
    proof(f"{len(seen)} events before, {len(rest)} after: numbers 0 to {numbers[-1]}, no gap, none twice")

    with console.status("reading the whole stream again …"):
        replay = [event.to_dict() for event in client.responses.retrieve(response_id, stream=True)]
    check(replay == seen + rest, "a second reading of the stream differs from the first")
    final = client.responses.retrieve(response_id)
    check(final.status in ("completed", "incomplete"), f"the answer ended as {final.status}: {final.error}")
    streamed = "".join(texts_of(seen + rest, final.output[-1].id or ""))
    check(bool(streamed) and streamed == final.output_text, "the stream and the stored answer differ")
    proof("read again: the same events, and they add up to the stored answer")


def texts_of(events: list[dict[str, Any]], item: str = "") -> list[str]:
    deltas = (event for event in events if event["type"] == "response.output_text.delta")
    return [event["delta"] for event in deltas if item in ("", event["item_id"])]


def is_end(event: dict[str, Any]) -> bool:
    return event["type"] in ("response.completed", "response.incomplete", "response.failed")


# -- 3 ----------------------------------------------------------------------------------------------------------------


def fork(client: OpenAI, model: str, conversation: str, first: str, figures: list[tuple[str, str]]) -> None:
    chapter(3, "A fork of the conversation, at its first turn")
    console.print("  Same past, another future; and in between the server was killed.\n", style="dim")
    original = transcript(client, conversation)
    began = time.monotonic()
    path = f"/conversations/{conversation}/fork"
    forked = client.post(path, body={"response_id": first}, cast_to=Conversation).id
    figures.append(("fork", seconds(time.monotonic() - began)))
    check(transcript(client, forked) == original[:2], "the fork does not begin with the first turn of its parent")
    console.print(f"  It begins with “{FACT}”\n", style="dim")
    for text in (OTHER_ASIDE, QUESTION):
        turn(client, model, forked, text)
    told = transcript(client, forked)
    check(told[:3] == [*original[:2], OTHER_ASIDE], f"the fork holds something else than was said: {told}")
    check(transcript(client, conversation) == original, "the fork changed the conversation that it came from")
    proof(f"the fork knows {REMEMBERED} and Japan, not France; its parent is as it was")


# -- showing ----------------------------------------------------------------------------------------------------------


def chapter(number: int, title: str) -> None:
    console.print()
    console.rule(f"[bold]{number}  {title}", align="left")
    console.print()


def proof(text: str) -> None:
    console.print(Text.assemble(("\n  ✓ ", "bold green"), text))


def check(held: bool, otherwise: str) -> None:
    if not held:
        raise PromiseBroken(otherwise)


def closing(figures: list[tuple[str, str]]) -> None:
    console.print()
    console.rule("[bold]What it took", align="left")
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(justify="right", style="bold")
    for what, value in figures:
        table.add_row(value, what)
    console.print()
    console.print(table)
    console.print(
        Panel(
            "[bold]Now yours[/]\n"
            ".venv/bin/stateroom serve    this server, on ./stateroom-data\n"
            ".venv/bin/stateroom chat     talk to it, and kill it while it answers\n"
            ".venv/bin/stateroom serve --backend http://host:9001/v1\n"
            "                             the same over a real model",
            expand=False,
        )
    )


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
