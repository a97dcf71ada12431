"""What must hold of containers once a server is up again: no effect twice, none lost, every commit whole, forks apart.

Everything is read from the responses and the containers as any client can; `Book` only spares reading a commit again,
which never changes.
"""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stateroom.wire.containers import container_file_id
from tests.simulation.actors import text_of
from tests.simulation.client import Client
from tests.simulation.ledger import Ledger
from tests.simulation.working import FIRST, LOG, NOTES, TICKS, Abandoned, Commanded, Forked, Owned, Restored

TOKEN: Final = re.compile(r"zq[a-z0-9]+x[a-j]+zq")
JOBS_ENDED: Final = re.compile(r"^\[what earlier commands left running has ended.*\n")
"""The first line of a cell's logs after jobs have ended: it names their commands."""
UNKNOWN: Final = "The outcome of this call is unknown"
SETTLE_SECONDS: Final = 15.0
CALLS: Final = ("shell_call", "code_interpreter_call", "apply_patch_call")
ENDED: Final = ("completed", "failed", "unknown")


@dataclass
class Effect:
    """A token that a call of a response was to add."""

    token: str
    response: str
    container: str
    file: str
    outcome: str
    """One of `ENDED`."""
    told: str | None = None
    """What the file was said to hold then."""


@dataclass
class Held:
    """A commit as it was read."""

    shown: Any
    log: list[str]
    notes: list[str]


@dataclass
class Book:
    """What was read in earlier rounds."""

    commits: dict[str, Held] = field(default_factory=dict)
    histories: dict[str, list[Any]] = field(default_factory=dict)
    """The commits of each container, oldest first."""
    outcomes: Counter[str] = field(default_factory=Counter)


async def check_workspaces(client: Client, ledger: Ledger, book: Book, responses: list[Any], data: Path) -> None:
    """Hold containers and their files against what was acknowledged. Raises AssertionError."""
    await _settle_deletions(client, ledger)
    effects = [effect for shown in responses for effect in effects_of(shown)]
    book.outcomes = Counter(f"{effect.file} {effect.outcome}" for effect in effects)
    listed = {shown["id"] for shown in await client.pages("/containers")}
    for held in ledger.of(Owned):
        assert held.deleted != (held.id in listed), f"{held.id}: deleted {held.deleted}, listed {held.id in listed}"
    for container in listed:
        await _read_history(client, book, container)
    _check_tokens(ledger, book, effects)
    for container in listed:
        _check_growth(book, container)
    _check_effects(book, effects, listed)
    _check_lineage(book, effects, responses)
    _check_commands(ledger, book, listed)
    await _check_asked(client, ledger, book)
    await _check_disk(client, book, listed, data)
    for container in listed:
        _check_growth(book, container)


# What responses tell.


def effects_of(shown: Any) -> Iterator[Effect]:
    """Every token that a response was to add, with what came of it. Raises AssertionError."""
    results = {item["call_id"]: item for item in shown["output"] if item["type"].endswith("_call_output")}
    for item in shown["output"]:
        if item["type"] not in CALLS:
            continue
        result = item if item["type"] == "code_interpreter_call" else results.get(item.get("call_id"))
        assert result is not None, f"{shown['id']}: the call {item['id']} has no outcome"
        yield from _effects_of_call(shown, item, result)


def _effects_of_call(shown: Any, item: Any, result: Any) -> Iterator[Effect]:
    where = _container_of(shown, item)
    if item["type"] == "shell_call":
        chunks = result["output"]
        for number, command in enumerate(item["action"]["commands"]):
            chunk = chunks[number] if len(chunks) == len(item["action"]["commands"]) else chunks[0]
            outcome = _outcome(shown, result, chunk["stderr"])
            if outcome == "completed" and chunk["outcome"] != {"type": "exit", "exit_code": 0}:
                outcome = "failed"
            told = chunk["stdout"] if outcome == "completed" else None
            yield Effect(_token(command), shown["id"], where, LOG, outcome, told)
    elif item["type"] == "code_interpreter_call":
        logs = "".join(output["logs"] for output in item["outputs"] or () if output["type"] == "logs")
        outcome = _outcome(shown, item, logs)
        yield Effect(_token(item["code"]), shown["id"], where, LOG, outcome)
        if outcome == "completed":
            _check_variables(shown, item, logs)
    elif (token := TOKEN.search(item["operation"].get("diff") or "")) is not None:
        outcome = _outcome(shown, result, result.get("output") or "")
        yield Effect(token.group(), shown["id"], where, NOTES, outcome)


def _outcome(shown: Any, result: Any, text: str) -> str:
    """What became of a call, by its result. One that nobody knows of must say so, to the model as well."""
    if text.startswith(UNKNOWN):
        assert result["status"] in ("incomplete", "failed"), f"{shown['id']}: an unknown outcome is {result['status']}"
        assert UNKNOWN in text_of(shown["output"][-1]), f"{shown['id']}: the model was not told of an unknown outcome"
        return "unknown"
    if result["type"] == "shell_call_output" and result["status"] == "incomplete":  # no command was carried out
        assert [chunk["outcome"]["exit_code"] for chunk in result["output"]] == [1], f"{shown['id']}: {result}"
        return "failed"
    assert result["status"] != "incomplete", f"{shown['id']}: what is unknown does not say so: {result}"
    return "completed" if result["status"] == "completed" else "failed"


def _check_variables(shown: Any, item: Any, logs: str) -> None:
    seen = TOKEN.findall(JOBS_ENDED.sub("", logs))
    assert len(set(seen)) == len(seen), f"{shown['id']}: a cell ran twice in the same interpreter: {logs}"
    assert seen, f"{shown['id']}: a completed cell says {logs!r}"
    assert seen[-1] == _token(item["code"]), f"{shown['id']}: variables are not those of this cell: {logs}"


def _container_of(shown: Any, item: Any) -> str:
    if "environment" in item:
        return str(item["environment"]["container_id"])
    if "container_id" in item:
        return str(item["container_id"])
    return next(str(each["environment"]["container_id"]) for each in shown["output"] if each.get("environment"))


def _token(text: str) -> str:
    found = TOKEN.search(text)
    assert found is not None, f"no token in {text!r}"
    return found.group()


# What containers hold.


async def _read_history(client: Client, book: Book, container: str) -> None:
    commits = await client.pages(f"/containers/{container}/commits")
    before = book.histories.get(container, [])
    assert commits[: len(before)] == before, f"{container} does not have the commits that it had: {before}"
    for number, shown in enumerate(commits):
        if number:
            parent = commits[number - 1]["id"]
            assert shown["parent_id"] == parent, f"{shown['id']} follows {shown['parent_id']}, not {parent}"
        if shown["id"] not in book.commits:
            book.commits[shown["id"]] = await _read_commit(client, container, shown)
    book.histories[container] = commits


async def _read_commit(client: Client, container: str, shown: Any) -> Held:
    files = _unpacked(await client.raw("GET", f"/containers/{container}/archive?commit={shown['id']}"))
    log, notes = files.get(LOG, ""), files.get(NOTES, "")
    _check_ticks(f"{shown['id']} of {container}", files)
    lines = notes.splitlines()
    assert not lines or lines[0] == FIRST, f"{shown['id']} of {container} has torn notes: {notes!r}"
    # A patch puts its line below the first: turned round, they grow at their end as the log does.
    return Held(shown, _lines(container, log), _lines(container, "".join(f"{line}\n" for line in lines[:0:-1])))


def _unpacked(archive: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as held:
        read = ((member.name, held.extractfile(member)) for member in held.getmembers())
        return {name: file.read().decode("utf-8", "replace") for name, file in read if file is not None}


def _check_ticks(name: str, files: dict[str, str]) -> None:
    """All files are of one moment. One that was being written then is empty."""
    for path, first in files.items():
        second = files.get(path.replace(*TICKS), "")
        if path.startswith(TICKS[0]) and first and second:
            apart = int(first) - int(second)
            assert apart in (0, 1), f"{name} has files of different moments: {first}, {second}"


def _lines(container: str, text: str) -> list[str]:
    lines = text.splitlines()
    assert all(TOKEN.fullmatch(line) for line in lines), f"{container} holds a line that nobody wrote whole: {text!r}"
    twice = [token for token, count in Counter(lines).items() if count > 1]
    assert not twice, f"{container}: an effect took place twice: {twice}"
    return lines


def _check_tokens(ledger: Ledger, book: Book, effects: list[Effect]) -> None:
    """Nothing is in a file but what somebody asked for."""
    known = {effect.token for effect in effects} | {each.token for each in ledger.of(Commanded)}
    known |= {token for held in ledger.of(Abandoned) for token in held.tokens}
    for held in book.commits.values():
        unknown = {*held.log, *held.notes} - known
        assert not unknown, f"{held.shown['id']} holds what nobody asked for: {unknown}"


def _check_growth(book: Book, container: str) -> None:
    """Each commit has what the one before had, and more; but for one that goes back to an earlier one."""
    history = [book.commits[shown["id"]] for shown in book.histories[container]]
    for number, held in enumerate(history[1:], 1):
        before = history[number - 1]
        name = f"{held.shown['id']} of {container} ({book.histories[container][number]['reason']})"
        if book.histories[container][number]["reason"] == "restore":
            earlier = [(each.log, each.notes) for each in history[:number]]
            assert (held.log, held.notes) in earlier, f"{name} goes back to what never was"
            continue
        assert held.log[: len(before.log)] == before.log, f"{name} lost {before.log}, it has {held.log}"
        assert held.notes[: len(before.notes)] == before.notes, f"{name} lost {before.notes}, it has {held.notes}"
        new = {*held.log, *held.notes} - {*before.log, *before.notes}
        undone = new & {token for each in history[:number] for token in (*each.log, *each.notes)}
        assert not undone, f"{name} has again what was undone before: {undone}"


def _check_effects(book: Book, effects: list[Effect], listed: set[str]) -> None:
    """What is completed took place, and is in a commit; what it said was there was there."""
    for effect in effects:
        if effect.outcome != "completed" or effect.container not in listed:
            continue
        history = [book.commits[shown["id"]] for shown in book.histories[effect.container]]
        files = [held.log if effect.file == LOG else held.notes for held in history]
        assert any(effect.token in lines for lines in files), (
            f"{effect.response}: the call of {effect.token} is completed, and no commit of {effect.container} has it"
        )
        if effect.told is not None:
            told = effect.told.splitlines()
            assert effect.token in told, f"{effect.response} did not see its own effect: {told}"
            assert any(lines[: len(told)] == told for lines in files), (
                f"{effect.response} was shown {told}, which no commit of {effect.container} goes on from"
            )


def _check_lineage(book: Book, effects: list[Effect], responses: list[Any]) -> None:
    """A response sees what those did that it goes on from; in a container of its own, nothing else."""
    by_id = {shown["id"]: shown for shown in responses}
    own: defaultdict[str, list[Effect]] = defaultdict(list)
    for effect in effects:
        own[effect.response].append(effect)
    for effect in effects:
        if effect.told is None:
            continue
        line, complete = [by_id[effect.response]], True
        while line[-1]["previous_response_id"]:
            before = by_id.get(line[-1]["previous_response_id"])
            if before is None:
                complete = False
                break
            line.append(before)
        told = set(effect.told.splitlines())
        ancestors = [each for shown in line[1:] for each in own[shown["id"]]]
        history = book.histories.get(effect.container, ())
        if all(shown["reason"] != "restore" for shown in history):
            wanted = {each.token for each in ancestors if each.outcome == "completed" and each.file == LOG}
            assert wanted <= told, f"{effect.response} does not see what its chain did: {wanted - told}"
        if complete and _is_auto(by_id[effect.response]):
            allowed = {each.token for each in (*ancestors, *own[effect.response])}
            assert told <= allowed, f"{effect.response} sees what others did, in {effect.container}: {told - allowed}"


def _is_auto(shown: Any) -> bool:
    return any((tool.get("environment") or {}).get("type") == "container_auto" for tool in shown["tools"])


# What clients did to them.


async def _settle_deletions(client: Client, ledger: Ledger) -> None:
    for held in ledger.of(Owned):
        if held.delete_asked and not held.deleted:
            if await client.find(f"/containers/{held.id}") is not None:
                await client.call("DELETE", f"/containers/{held.id}")
            held.deleted = True
    for chain in ledger.of(Abandoned):
        if not chain.deleted:
            for id in chain.responses:
                if await client.find(f"/responses/{id}") is not None:
                    await client.call("DELETE", f"/responses/{id}")
            chain.deleted = True
        if chain.container and not chain.unknown:
            await _until_gone(client, chain.container)


async def _until_gone(client: Client, container: str) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while await client.find(f"/containers/{container}") is not None:
        assert time.monotonic() < deadline, f"{container} outlives the chain that it was made for"
        await asyncio.sleep(0.1)


def _check_commands(ledger: Ledger, book: Book, listed: set[str]) -> None:
    for note in ledger.of(Commanded):
        if note.told is None or note.container not in listed:
            continue
        told = note.told.splitlines()
        assert note.token in told, f"{note.token} did not see its own effect: {told}"
        held = book.commits.get(note.commit)
        assert held is not None, f"{note.container} does not have the commit {note.commit} that was acknowledged"
        assert held.log[: len(told)] == told, f"{note.commit} has {held.log}, the command was shown {told}"


async def _check_asked(client: Client, ledger: Ledger, book: Book) -> None:
    for gone in ledger.of(Restored):
        if gone.container in book.histories and gone.commit in book.commits and gone.to in book.commits:
            then, now = book.commits[gone.to], book.commits[gone.commit]
            assert (then.log, then.notes) == (now.log, now.notes), f"{gone.commit} is not what {gone.to} was"
    for forked in ledger.of(Forked):
        history = book.histories.get(forked.id)
        if history is not None:
            assert history[0]["id"] == forked.commit, f"{forked.id} begins with {history[0]['id']}: {forked}"
    for held in ledger.of(Owned):
        if held.deleted or held.restored:
            continue
        if held.id in book.histories and not book.histories[held.id]:
            assert not held.files, f"{held.id} was never committed, and was given {set(held.files)}"
        for name, content in held.files.items():
            if name not in held.doubtful:
                path = f"/containers/{held.id}/files/{container_file_id(held.id, name)}/content"
                found = await client.raw("GET", path)
                assert found == content, f"{name} of {held.id} is not what was acknowledged"


# What lies on the disk.


async def _check_disk(client: Client, book: Book, listed: set[str], data: Path) -> None:
    """Files at hand are those of the latest commit, or go on from it until they are committed themselves."""
    deadline = time.monotonic() + SETTLE_SECONDS
    live = data / "workspaces" / "live"
    waiting = {path.name for path in live.glob("cntr_*")}
    while True:
        waiting = {name for name in waiting if not await _is_kept(client, book, listed, live / name)}
        if not waiting:
            return
        assert time.monotonic() < deadline, f"on the disk and in no commit: {waiting}"
        await asyncio.sleep(0.1)


async def _is_kept(client: Client, book: Book, listed: set[str], folder: Path) -> bool:
    if folder.name not in listed:
        return not await asyncio.to_thread(folder.exists)
    await _read_history(client, book, folder.name)
    history = book.histories[folder.name]
    head = book.commits[history[-1]["id"]].log if history else []
    there = await asyncio.to_thread(_log_of, folder)
    if there is None:
        return True
    assert there[: len(head)] == head, (
        f"the files of {folder.name} are no continuation of its latest commit: {there}, {head}"
    )
    return there == head


def _log_of(folder: Path) -> list[str] | None:
    """What lies in the directory of a workspace; None while it is being put there, or taken away."""
    try:
        log = (folder / "files" / LOG).read_text()
    except FileNotFoundError:
        log = ""
    return _lines(folder.name, log) if (folder / "state.json").exists() else None
