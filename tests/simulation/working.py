"""Work in containers while servers and sandboxes die: what is done leaves tokens in files, so that it can be counted.

A command, a cell or a patch adds a token of its own to a file of its workspace. What came of each call is read from the
responses afterwards (workspaces.py): nothing of it has to be written down here but what no response tells.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from tests.simulation.client import Sent
from tests.simulation.ledger import Response
from tests.simulation.load import MODEL, Actor, Round

LOG: Final = "log"
"""The file to which commands and cells add a line each."""
NOTES: Final = "notes.md"
"""The file to which patches add a line each, below its first."""
FIRST: Final = "start"
AUTO: Final[list[Any]] = [
    {"type": "shell", "environment": {"type": "container_auto"}},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "apply_patch"},
]
SHOWN: Final = ["code_interpreter_call.outputs"]
TICKS: Final = ("tick-a-", "tick-b-")
"""Two files that count begin so: the second never is ahead of the first, nor more than one behind."""
PAUSES: Final = ("0", "0", "0.02", "0.1")


@dataclass
class Owned:
    """A container whose id a client knows."""

    id: str
    files: dict[str, bytes] = field(default_factory=dict)
    """What was put there last, with acknowledgement."""
    doubtful: set[str] = field(default_factory=set)
    """Names of which nobody knows what became of them."""
    restored: bool = False
    """Somebody asked for it to go back."""
    delete_asked: bool = False
    deleted: bool = False


@dataclass
class Commanded:
    """A command that a client had carried out itself."""

    container: str
    token: str
    told: str | None = None
    """What it said, when it is known to have ended well."""
    commit: str = ""
    """Where the container stood afterwards."""


@dataclass
class Restored:
    """A container that is known to have gone back."""

    container: str
    to: str
    commit: str
    """The one that this made."""


@dataclass
class Forked:
    """A container that was made of another."""

    id: str
    container: str
    commit: str


@dataclass
class Abandoned:
    """A chain that is to be erased, and its container with it."""

    tokens: list[str]
    responses: list[str] = field(default_factory=list)
    container: str = ""
    unknown: bool = False
    """A response was asked for, and nobody knows its id: it keeps the container."""
    deleted: bool = False


@dataclass
class Struck:
    """What was killed besides servers."""

    kinds: Counter[str] = field(default_factory=Counter)


def struck(round_: Round) -> Counter[str]:
    held = round_.ledger.of(Struck)
    if not held:
        held.append(Struck())
    return held[0].kinds


def tools_in(container: str) -> list[Any]:
    """The tools, all of them in one container."""
    reference = {"type": "container_reference", "container_id": container}
    return [
        {"type": "shell", "environment": reference},
        {"type": "code_interpreter", "container": container},
        {"type": "apply_patch"},
    ]


def _line(name: str, arguments: Any) -> str:
    return f"call: {name} {msgspec.json.encode(arguments).decode()}"


def _ticking(token: str) -> str:
    first, second = (f"{prefix}{token}" for prefix in TICKS)
    return f"(for n in $(seq 8000); do echo $n > {first}; echo $n > {second}; done) >/dev/null 2>&1 & "


def add_line(token: str, rng: random.Random) -> str:
    """A command that adds a token, says what is there then, and may leave something running that may write files."""
    left = rng.choice(("", "", "", "sleep 300 >/dev/null 2>&1 & ", _ticking(token)))
    return f"{left}echo {token} >> {LOG} && cat {LOG} && sleep {rng.choice(PAUSES)}"


def _shell(round_: Round, tokens: list[str]) -> str:
    return _line("shell", {"commands": [add_line(token, round_.rng) for token in tokens]})


def _cell(round_: Round, token: str) -> str:
    code = (
        f"import time\n"
        f"with open({LOG!r}, 'a') as file: _ = file.write({token + chr(10)!r})\n"
        f"seen = [*globals().get('seen', ()), {token!r}]\n"
        f"print(seen)\n"
        f"time.sleep({round_.rng.choice(PAUSES)})"
    )
    return _line("python", {"code": code})


def _new_notes() -> str:
    return _line("apply_patch", {"operation": {"type": "create_file", "path": NOTES, "diff": f"+{FIRST}\n"}})


def _patch(token: str) -> str:
    return _line(
        "apply_patch", {"operation": {"type": "update_file", "path": NOTES, "diff": f"@@\n {FIRST}\n+{token}\n"}}
    )


def calls(round_: Round, token: str, *, first: bool) -> str:
    """What makes the model call tools: a few times, one after the other."""
    lines = [_shell(round_, [token, round_.token()] if round_.rng.random() < 0.2 else [token])]
    lines += [_new_notes()] if first else []
    for _ in range(round_.rng.randint(0, 2)):
        kind = round_.rng.random()
        if kind < 0.35:
            lines.append(_shell(round_, [round_.token()]))
        else:
            lines.append(_cell(round_, round_.token()) if kind < 0.7 else _patch(round_.token()))
    return "\n".join(lines)


async def turn(round_: Round, tools: list[Any], previous: str, *, first: bool = False) -> Response:
    """A response that works in a container."""
    token = round_.token()
    body: dict[str, Any] = {"input": calls(round_, token, first=first), "tools": tools, "include": SHOWN}
    if previous:
        body["previous_response_id"] = previous
    return await round_.create(body, "work", token)


async def working(round_: Round) -> None:
    """A chain in a container of its own, some of whose links are gone on from a second time."""
    links: list[str] = []
    for number in range(round_.rng.randint(1, 4)):
        made = await turn(round_, AUTO, links[-1] if links else "", first=not number)
        links.append(made.id)
    if round_.rng.random() < 0.5:
        await turn(round_, AUTO, round_.rng.choice(links))
    if round_.rng.random() < 0.5:
        await _both(turn(round_, AUTO, links[-1]), turn(round_, AUTO, links[-1]))


async def _both(*work: Any) -> None:
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def _create(round_: Round) -> Owned:
    made = await round_.client.call("POST", "/containers", {"name": round_.salt})
    held = Owned(made["id"])
    round_.ledger.of(Owned).append(held)
    return held


async def sharing(round_: Round) -> None:
    """Two chains in one container, while its client puts files there and has commands carried out."""
    held = await _create(round_)
    tools = tools_in(held.id)

    async def chain(first: bool) -> None:
        previous = ""
        for number in range(round_.rng.randint(1, 2)):
            previous = (await turn(round_, tools, previous, first=first and not number)).id

    async def beside() -> None:
        for _ in range(round_.rng.randint(1, 3)):
            await (upload(round_, held) if round_.rng.random() < 0.5 else command(round_, held))

    await _both(chain(True), chain(False), beside())


async def owning(round_: Round) -> None:
    """A container that one client does everything with: files, commands, going back, forks, its deletion."""
    held = await _create(round_)
    doing = (upload, command, command, restore, fork, remove, respond)
    for _ in range(round_.rng.randint(2, 6)):
        await round_.rng.choice(doing)(round_, held)
    if round_.rng.random() < 0.25:
        held.delete_asked = True
        await round_.client.call("DELETE", f"/containers/{held.id}")
        held.deleted = True


async def respond(round_: Round, held: Owned) -> None:
    await turn(round_, tools_in(held.id), "")


async def upload(round_: Round, held: Owned) -> None:
    name = f"file-{round_.rng.randint(0, 3)}.bin"
    data = f"{round_.token()} ".encode() + round_.rng.randbytes(round_.rng.choice((10, 2_000, 200_000)))
    held.doubtful.add(name)
    form: dict[str, str | Sent] = {"file": Sent(name, data)}
    shown = await round_.client.call("POST", f"/containers/{held.id}/files", form=form)
    assert shown["bytes"] == len(data), f"{held.id} took {shown['bytes']} bytes of {len(data)}"
    held.files[name] = data
    held.doubtful.discard(name)


async def remove(round_: Round, held: Owned) -> None:
    files = (await round_.client.call("GET", f"/containers/{held.id}/files"))["data"]
    names = {file["path"].rpartition("/")[2]: file["id"] for file in files}
    there = sorted(set(names) & set(held.files))
    if there:
        name = round_.rng.choice(there)
        held.doubtful.add(name)
        await round_.client.call("DELETE", f"/containers/{held.id}/files/{names[name]}")
        held.files.pop(name, None)
        held.doubtful.discard(name)


async def command(round_: Round, held: Owned) -> None:
    """Have one carried out, and follow what it says."""
    note = Commanded(held.id, round_.token())
    round_.ledger.of(Commanded).append(note)
    body = {"command": add_line(note.token, round_.rng)}
    text = ""
    async for event in round_.client.chunks(f"/containers/{held.id}/exec", body):
        if event["type"] == "container.exec.output" and event["stream"] == "stdout":
            text += event["text"]
        if event["type"] == "container.exec.done" and event["exit_code"] == 0:
            note.told, note.commit = text, event["commit_id"]


async def restore(round_: Round, held: Owned) -> None:
    commits = await round_.client.pages(f"/containers/{held.id}/commits")
    if not commits:
        return
    held.restored = True
    to = round_.rng.choice(commits)["id"]
    made = await round_.client.call("POST", f"/containers/{held.id}/restore", {"commit": to})
    round_.ledger.of(Restored).append(Restored(held.id, to, made["id"]))


async def fork(round_: Round, held: Owned) -> None:
    commits = await round_.client.pages(f"/containers/{held.id}/commits")
    if not commits:
        return
    of = round_.rng.choice(commits)["id"]
    made = await round_.client.call("POST", f"/containers/{held.id}/fork", {"commit": of})
    round_.ledger.of(Forked).append(Forked(made["id"], held.id, of))
    # It may have files already of which nobody here knows.
    forked = Owned(made["id"])
    round_.ledger.of(Owned).append(forked)
    await command(round_, forked)


async def abandoning(round_: Round) -> None:
    """A chain with a container of its own that is deleted again."""
    held = Abandoned([])
    round_.ledger.of(Abandoned).append(held)
    for _ in range(round_.rng.randint(1, 2)):
        held.tokens.append(round_.token())
        body: dict[str, Any] = {"model": MODEL, "input": _shell(round_, held.tokens[-1:]), "tools": AUTO}
        if held.responses:
            body["previous_response_id"] = held.responses[-1]
        held.unknown = True
        shown = await round_.client.call("POST", "/responses", body)
        held.unknown = False
        held.responses.append(shown["id"])
        held.container = shown["output"][0]["environment"]["container_id"]
    for id in held.responses:
        await round_.client.call("DELETE", f"/responses/{id}")
    held.deleted = True


async def sabotage(round_: Round) -> None:
    """Kill a process of a sandbox, at any moment."""
    await asyncio.sleep(round_.rng.random() * 0.6)
    if round_.strike is not None and not round_.killed.is_set():
        kind = await asyncio.to_thread(round_.strike, round_.rng)
        struck(round_)[kind] += bool(kind)


WORKERS: Final[dict[Actor, int]] = {working: 6, sharing: 3, owning: 5, abandoning: 1}
"""Who works in containers, and how often in comparison."""
