"""A conversation or chain that was exported and imported elsewhere says the same, to its readers and to the model."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stateroom.errors import InvalidRequest, RequestError, StateroomError, StorageError, TooLarge, TooMany
from stateroom.journal.entries import RunView
from stateroom.models.backend import Finished, ItemDelta, ReasoningDelta, TextDelta
from stateroom.runtime.live import LiveRun
from stateroom.runtime.moving.exports import Export, Exporter
from stateroom.runtime.moving.imports import AT_ONCE_MAX, Imported, Importer
from stateroom.settings import Limits
from stateroom.wire import tar
from stateroom.wire.responses import render_response
from tests.unit.runtime.stage import (
    USAGE,
    CountedTool,
    MovedClock,
    Stage,
    calls,
    picture,
    says,
    text_of,
    user,
)

SEALED = "reasoning.encrypted_content"


class Place(Stage):
    """An installation: a stage that exports and imports, with a key of its own."""

    def __init__(self, *answers: Any, key: int = 0, history_bytes: int = 1 << 20, **more: Any) -> None:
        super().__init__(*answers, **more)
        self.sealer._key = bytes([key]) * 32
        limits = self.limits
        self.exporter = Exporter(
            self.journal, self.journal, self.blobs, self.files, self.sealer, history_bytes=history_bytes
        )
        self.importer = Importer(
            self.journal,
            self.journal,
            blobs=self.blobs,
            held=self.held,
            records=self.all_records,
            sealer=self.sealer,
            clock=self.clock,
            limits=limits,
        )

    async def export(self, thing: str, project: str = "p") -> bytes:
        asked = self.exporter.conversation if thing.startswith("conv_") else self.exporter.response
        return await read(await asked(project, thing))

    async def take(
        self, data: bytes, *, project: str = "p", new_ids: bool = False, step: int = 1_000, **more: Any
    ) -> Imported:
        async with self.importer.incoming(project) as incoming:
            for at in range(0, len(data), step):
                await incoming.feed(data[at : at + step])
            await incoming.whole()
            return await incoming.keep(new_ids=new_ids, **more)

    async def items(self, conversation: str, project: str = "p") -> list[tuple[str, str]]:
        return [(held.id, text_of(held.item)) for held in await self.conversations.items(project, conversation)]

    async def nothing_is_left(self) -> bool:
        return not self.blobs._kept and not await self.journal.branches("p") and self.importer.going_on == 0


async def read(export: Export) -> bytes:
    data = b"".join([piece async for piece in export.read()])
    assert len(data) == export.size
    return data


def elsewhere(*answers: Any, **more: Any) -> Place:
    return Place(*answers, key=9, **more)


def parts(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]


def packed(members: dict[str, bytes]) -> bytes:
    made = [tar.header(name, len(data)) + data + tar.padding(len(data)) for name, data in members.items()]
    return b"".join(made) + tar.END


def changed(
    data: bytes, lines: Callable[[list[Any]], Any] = lambda lines: None, manifest: Callable[[Any], Any] | None = None
) -> bytes:
    """The file with other lines, and a manifest that fits them unless it is changed as well."""
    members = parts(data)
    told = [json.loads(line) for line in members["history.jsonl"].splitlines()]
    told = lines(told) or told
    history = b"".join([msgspec.json.encode(line) + b"\n" for line in told])
    said = json.loads(members["manifest.json"])
    said["history"] = {"sha256": hashlib.sha256(history).hexdigest(), "bytes": len(history)}
    bodies = [line["body"] for line in told if isinstance(line.get("body"), dict)]
    said["responses"] = sum(line["kind"] == "run.started" for line in told)
    said["items"] = sum(
        len(body.get("input", body.get("items", []))) + ("item" in body) for body in bodies if "input" not in body
    ) + sum(len(body["input"]) for body in bodies if "input" in body)
    if manifest is not None:
        manifest(said)
    return packed({**members, "manifest.json": msgspec.json.encode(said), "history.jsonl": history})


async def shown(stage: Stage, run_id: str, project: str = "p") -> Any:
    """A response as its readers see it, but for what was sealed."""
    view: RunView = await stage.runs.view(project, run_id)
    told = json.loads(render_response(view))
    for item in told["output"]:
        item.pop("encrypted_content", None)
    return told


async def talk(place: Place) -> str:
    """A conversation with something of everything."""
    place.backend.answers.extend(
        [
            says("first answer"),
            [[ReasoningDelta("thinking about it")], *says("second answer")],
            calls("counted"),
            says("counted it"),
            calls("mine"),
        ]
    )
    created = await place.conversations.create("p", metadata={"topic": "x"}, items=[user("before")])
    await place.ask("one", conversation=created.id, instructions="be brief " * 100, tools=[tool("a" * 900)])
    await place.ask([picture(), user("two")], conversation=created.id, include=[SEALED], stream=True)
    await place.ask("three", conversation=created.id, tools=[{"type": "stateroom:counted"}])
    await place.ask("four", conversation=created.id, tools=[tool()])
    await place.conversations.add_items(
        "p", created.id, [{"type": "function_call_output", "call_id": "call_mine", "output": "42"}]
    )
    return created.id


def tool(about: str = "") -> dict[str, Any]:
    return {"type": "function", "name": "mine", "description": about, "parameters": {}, "strict": False}


@pytest.fixture
def place() -> Place:
    return Place(tools=[CountedTool()])


async def test_an_imported_conversation_is_the_same_to_its_readers_and_to_the_model(place: Place) -> None:
    thing = await talk(place)
    other = elsewhere(says("there"), tools=[CountedTool()])
    made = await other.take(await place.export(thing))
    assert made == Imported(thing, made.response, 13, 4, 0)
    assert await other.items(thing) == await place.items(thing)
    assert (await other.conversations.get("p", thing)) == (await place.conversations.get("p", thing))
    rows = await place.journal.runs("p", descending=False)
    assert [row.id for row in await other.journal.runs("p", descending=False)] == [row.id for row in rows]
    for row in rows:
        assert await shown(other, row.id) == await shown(place, row.id)
    place.backend.answers.append(says("here"))
    for stage in (place, other):
        await stage.ask("and now?", conversation=thing)
    here, there = place.backend.asked[-1].items, other.backend.asked[-1].items
    assert [(held.id, held.item) for held in here[:-1]] == [
        (held.id, _like(held.item, of=mine.item)) for held, mine in zip(there[:-1], here[:-1], strict=True)
    ]
    assert await place.items(thing) != await other.items(thing)


def _like(item: Any, of: Any) -> Any:
    """What was sealed is sealed anew, and no model sees it."""
    return {**item, "encrypted_content": of["encrypted_content"]} if "encrypted_content" in of else item


async def test_exporting_what_was_imported_gives_the_same_file(place: Place) -> None:
    first = await place.export(await talk(place))
    other, third = elsewhere(), Place(key=5)
    made = await other.take(first)
    again = await other.export(made.conversation)
    assert parts(again) == parts(first)
    assert again == first
    await third.take(again)
    assert await third.export(made.conversation) == first


async def test_a_chain_is_exported_up_to_a_response_and_continued_elsewhere() -> None:
    place = Place(says("one"), says("two"), says("three"), says("aside"))
    chain = [await place.ask("1")]
    chain.append(await place.ask("2", previous=chain[0].id))
    await place.ask("3", previous=chain[1].id)
    aside = await place.ask("other", previous=chain[0].id)
    other = elsewhere(says("there"))
    data = await place.export(chain[1].id)
    assert await other.take(data) == Imported("", chain[1].id, 4, 2, 0)
    further = await other.ask("go on", previous=chain[1].id)
    assert other.backend.asked[-1].texts() == ["1", "one", "2", "two", "go on"]
    assert further.branch.branch == (await other.journal.run("p", chain[1].id)).branch  # type: ignore[union-attr]
    assert await other.export(chain[1].id) == data
    forked = await place.export(aside.id)
    with pytest.raises(RequestError) as refused:
        await other.take(forked)
    assert (refused.value.status, refused.value.code) == (409, "id_exists")
    made = await other.take(forked, new_ids=True)
    await other.ask("go on", previous=made.response)
    assert other.backend.asked[-1].texts() == ["1", "one", "other", "aside", "go on"]


async def test_a_fork_is_exported_with_what_it_shares(place: Place) -> None:
    thing = await talk(place)
    items = await place.items(thing)
    forked = await place.conversations.fork("p", thing, after_item_id=items[2][0], metadata={"of": "it"})
    other = elsewhere()
    await other.take(await place.export(forked.id))
    assert [text for _, text in await other.items(forked.id)] == [text for _, text in items[:3]]
    assert (await other.conversations.get("p", forked.id)).metadata == {"of": "it"}
    assert await other.export(forked.id) == await place.export(forked.id)


async def test_new_ids_make_a_copy_beside_the_original(place: Place) -> None:
    thing = await talk(place)
    data = await place.export(thing)
    place.backend.answers.append(says("copied"))
    with pytest.raises(RequestError) as refused:
        await place.take(data)
    assert refused.value.code == "id_exists"
    made = await place.take(data, new_ids=True)
    assert made.conversation != thing
    mine, copies = await place.items(thing), await place.items(made.conversation)
    assert [text for _, text in copies] == [text for _, text in mine]
    assert not {name for name, _ in copies} & {name for name, _ in mine}
    await place.ask("go on", conversation=made.conversation)
    assert len(await place.items(thing)) == len(mine)
    view = await place.runs.view("p", made.response)
    assert view.conversation == made.conversation


async def test_what_was_sealed_is_sealed_anew_and_opens_there(place: Place) -> None:
    thing = await talk(place)
    data = await place.export(thing)
    assert b"sr1." not in data
    other = elsewhere()
    await other.take(data, project="q")
    held = next(held for held in await other.conversations.items("q", thing) if held.item.get("type") == "reasoning")
    assert other.sealer.open("q", held.item["encrypted_content"]) == "thinking about it"
    assert place.sealer.open("p", held.item["encrypted_content"]) is None


async def test_a_compaction_goes_along_and_the_model_sees_the_same(place: Place) -> None:
    place.backend.answers.extend([says("answer " * 300), says("the summary"), says("after it")])
    created = await place.conversations.create("p", metadata={}, items=[user("what I want")])
    await place.ask("long " * 900, conversation=created.id)
    await place.ask([], conversation=created.id, compact_now=True)
    await place.ask("next", conversation=created.id)
    data = await place.export(created.id)
    assert b"the summary" in data
    for new_ids in (False, True):
        other = elsewhere(says("there"))
        made = await other.take(data, new_ids=new_ids)
        place.backend.answers.append(says("here"))
        fork = await place.conversations.fork("p", created.id)
        await place.ask("and?", conversation=fork.id)
        await other.ask("and?", conversation=made.conversation)
        assert other.backend.asked[-1].texts() == place.backend.asked[-1].texts()
        compacted = next(
            held for held in await other.conversations.items("p", made.conversation) if "compacted" in held.item
        )
        other.backend.answers.append(says("carried"))
        sealed = {"type": "compaction", "encrypted_content": compacted.item["encrypted_content"]}
        await other.ask([sealed, user("elsewhere")])
        assert "the summary" in str(other.backend.asked[-1].texts())


async def test_what_another_server_has_to_get_back_goes_along() -> None:
    thought = {"type": "reasoning", "id": "rs_up", "summary": [], "encrypted_content": "theirs"}
    search = {"type": "brand_new_call", "id": "x_1", "status": "completed", "detail": {"a": [1]}}
    place = Place(
        [
            [ReasoningDelta("hm")],
            [ItemDelta(thought, "http://up", done=True)],
            [ItemDelta(search, "http://up", done=False), ItemDelta(search, "http://up", done=True)],
            *says("done"),
        ]
    )
    run = await place.ask("hi", include=[SEALED])
    data = await place.export(run.id)
    assert b"theirs" in data
    other = elsewhere()
    await other.take(data)
    assert await other.export(run.id) == data
    state = await other.runs.fold("p", await other.journal.run("p", run.id))  # type: ignore[arg-type]
    assert [held.item.get("upstream", {}).get("at") for held in state.output[:2]] == ["http://up"] * 2


async def test_files_go_along_and_keep_their_ids() -> None:
    place = Place(says("read"), says("again"))

    async def add(text: bytes) -> str:
        async def chunks() -> AsyncIterator[bytes]:
            yield text

        file = await place.files.add("p", filename="notes.txt", purpose="user_data", chunks=chunks())
        return file.id

    kept, gone = await add(b"what is in it"), await add(b"something else")
    run = await place.ask(
        [{"role": "user", "content": [{"type": "input_file", "file_id": each}]} for each in (kept, gone)]
    )
    await place.files.delete("p", gone)
    data = await place.export(run.id)
    other = elsewhere(says("there"))
    assert (await other.take(data)).files == 1
    file = await other.files.get("p", kept)
    assert (file.filename, file.purpose, file.bytes) == ("notes.txt", "user_data", 13)
    assert b"".join([piece async for piece in other.files.chunks("p", kept)]) == b"what is in it"
    await other.ask("what was in it?", previous=run.id)
    assert "what is in it" in str(other.backend.asked[-1].items)
    assert "something else" in str(other.backend.asked[-1].items)
    await other.take(data, new_ids=True)
    assert [each.id for each in await other.files.page("p")] == [kept]


async def test_a_file_by_the_same_id_with_other_bytes_is_not_touched() -> None:
    place = Place(says("read"))

    async def chunks() -> AsyncIterator[bytes]:
        yield b"what is in it"

    file = await place.files.add("p", filename="a.txt", purpose="user_data", chunks=chunks())
    run = await place.ask([{"role": "user", "content": [{"type": "input_file", "file_id": file.id}]}])
    data = await place.export(run.id)
    other = elsewhere()

    async def others() -> AsyncIterator[bytes]:
        yield b"mine"

    await other.files.add("p", filename="mine", purpose="user_data", chunks=others(), file_id=file.id)
    with pytest.raises(RequestError) as refused:
        await other.take(data)
    assert refused.value.code == "id_exists"
    assert len(other.blobs._kept) == 1
    made = await other.take(data, new_ids=True)
    assert (await other.files.get("p", file.id)).filename == "mine"
    held = (await other.runs.input_items("p", made.response))[0]
    named = held.item["content"][0]["file_id"]
    assert named != file.id
    assert (await other.files.get("p", named)).filename == "a.txt"


async def test_what_was_erased_is_not_in_the_file(place: Place) -> None:
    thing = await talk(place)
    items = await place.items(thing)
    rows = await place.journal.runs("p", descending=False)
    await place.runs.delete("p", rows[1].id)
    await place.conversations.delete_item("p", thing, items[0][0])
    await place.conversations.delete_item("p", thing, items[2][0])
    data = await place.export(thing)
    for word in (b"before", b"first answer", b"second answer", b"thinking"):
        assert word not in data
    other = elsewhere(tools=[CountedTool()])
    await other.take(data)
    assert await other.items(thing) == await place.items(thing)
    assert await other.export(thing) == data


async def test_a_run_that_goes_on_is_left_out() -> None:
    gate = asyncio.Event()
    place = Place(says("one"), [*says("t")[:1], gate])
    created = await place.conversations.create("p", metadata={}, items=[])
    await place.ask([picture()], conversation=created.id)
    going = await place.start([picture("data:image/png;base64,AAAA")], conversation=created.id, background=True)
    data = await place.export(created.id)
    assert len(parts(data)) == 3
    other = elsewhere()
    assert (await other.take(data)).responses == 1
    with pytest.raises(InvalidRequest) as refused:
        await place.export(going.id)
    assert refused.value.code == "response_in_progress"
    gate.set()


async def test_failed_and_cancelled_responses_go_along() -> None:
    gate = asyncio.Event()
    place = Place([[TextDelta("part")], gate], [[TextDelta("x")], [Finished("length", USAGE)]])
    created = await place.conversations.create("p", metadata={}, items=[])
    run = await place.start("cancel me", conversation=created.id, background=True)
    await asyncio.sleep(0.01)
    await place.runs.cancel("p", run.id)
    await place.ask("too long", conversation=created.id)
    data = await place.export(created.id)
    other = elsewhere()
    await other.take(data)
    for row in await place.journal.runs("p"):
        assert await shown(other, row.id) == await shown(place, row.id)
    assert await other.export(created.id) == data


async def test_nothing_names_the_key_that_asked() -> None:
    place = Place()
    run = await place.ask("hi", key="key_secret")
    assert b"key_secret" not in await place.export(run.id)


async def test_strangers_find_nothing_to_export(place: Place) -> None:
    thing = await talk(place)
    run = (await place.journal.runs("p"))[0]
    chat = await place.ask("hi", surface="chat")
    for asked in (thing, run.id):
        with pytest.raises(RequestError) as refused:
            await place.export(asked, project="q")
        assert refused.value.status == 404
    with pytest.raises(RequestError) as refused:
        await place.export(chat.id)
    assert refused.value.status == 404


async def test_a_part_of_a_file_can_be_read(place: Place) -> None:
    export = await place.exporter.conversation("p", await talk(place))
    whole = await read(export)
    for first, last in ((0, 0), (511, 513), (700, 5_000), (len(whole) - 3, None)):
        some = b"".join([piece async for piece in export.read(first, last)])
        assert some == whole[first : None if last is None else last + 1]


async def test_what_is_said_during_an_export_is_not_in_it(place: Place) -> None:
    thing = await talk(place)
    whole = await place.export(thing)
    export = await place.exporter.conversation("p", thing)
    place.backend.answers.append(says("later"))
    await place.ask("later", conversation=thing)
    assert await read(export) == whole


async def test_what_is_erased_during_an_export_breaks_it_off(place: Place) -> None:
    thing = await talk(place)
    export = await place.exporter.conversation("p", thing)
    await place.conversations.delete_item("p", thing, (await place.items(thing))[0][0])
    with pytest.raises(StorageError):
        await read(export)


async def test_what_is_too_large_is_refused(place: Place) -> None:
    thing = await talk(place)
    data = await place.export(thing)
    small = Place(journal=place.journal, blobs=place.blobs, history_bytes=500)
    with pytest.raises(TooLarge) as refused:
        await small.export(thing)
    assert refused.value.code == "export_too_large"
    for limits in (Limits(import_bytes=2_000), Limits(export_history_bytes=500), Limits(image_bytes=3)):
        other = elsewhere(limits=limits)
        with pytest.raises(TooLarge) as refused:
            await other.take(data)
        assert refused.value.code == "export_too_large"
        assert await other.nothing_is_left()


async def test_only_a_few_files_come_in_at_a_time() -> None:
    place = Place()
    waiting = [place.importer.incoming("p") for _ in range(AT_ONCE_MAX)]
    for each in waiting:
        await each.__aenter__()
    with pytest.raises(TooMany):
        await place.importer.incoming("p").__aenter__()
    for each in waiting:
        await each.__aexit__(None, None, None)
    assert await place.nothing_is_left()


async def test_a_file_that_was_cut_off_leaves_nothing(place: Place) -> None:
    data = await place.export(await talk(place))
    for cut in (0, 100, 512, 3_000, len(data) // 2, len(data) - 1_024, len(data) - 600):
        other = elsewhere()
        with pytest.raises(StateroomError) as refused:
            await other.take(data[:cut])
        assert refused.value.code in ("export_damaged", "invalid_export")
        assert await other.nothing_is_left()


async def test_every_changed_byte_is_noticed_or_harmless(place: Place) -> None:
    """Members' names and sizes, the manifest, the history and the blobs: nothing comes in that was not exported."""
    thing = await talk(place)
    data = await place.export(thing)
    codes = set()
    for at in [*range(0, 2_000, 13), *range(2_000, len(data), 211)]:
        other = elsewhere(tools=[CountedTool()])
        try:
            await other.take(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        except RequestError as error:
            codes.add(error.code)
            assert await other.nothing_is_left()
        else:
            made = (await other.journal.conversations("p"))[0].id
            assert [text for _, text in await other.items(made)] == [text for _, text in await place.items(thing)]
    assert codes <= {"export_damaged", "invalid_export", "export_version_unsupported", "export_too_large"}


SAID = {"role": "user", "content": "x"}
RUN = "run.started"


def _body(kind: str, **fields: Any) -> Callable[[list[Any]], None]:
    def change(lines: list[Any]) -> None:
        next(line for line in lines if line["kind"] == kind)["body"].update(fields)

    return change


def _item(**fields: Any) -> Callable[[list[Any]], None]:
    return _body("items.added", items=[{**SAID, **fields}])


SHOT = {"type": "input_image", "media_type": "image/png"}
HOSTILE: dict[str, Callable[[list[Any]], Any]] = {
    "another kind": lambda lines: lines[0].update(kind="record.put"),
    "a kind that is none": lambda lines: lines[0].update(kind="x"),
    "no body": lambda lines: lines[0].update(body=None),
    "a time before all": lambda lines: lines[0].update(at=-1),
    "a time far ahead": lambda lines: lines[0].update(at=2**45),
    "a response that never ends": lambda lines: lines[: [line["kind"] for line in lines].index("run.ended")],
    "an end without a beginning": lambda lines: [line for line in lines if line["kind"] != RUN],
    "an item in no response": lambda lines: [lines[2], *lines],
    "responses within each other": lambda lines: [lines[0], lines[1], *lines[1:]],
    "the same response twice": lambda lines: [*lines, *lines[1:4]],
    "an id that is none": _body(RUN, id="resp_../../x"),
    "somebody else's id": _body(RUN, id="conv_01abcdefghjkmnpqrstvwxyz01"),
    "another surface": _body(RUN, surface="chat"),
    "another conversation": _body(RUN, conversation="conv_01abcdefghjkmnpqrstvwxyz01"),
    "settings that are none": _body(RUN, settings=[1]),
    "tools that are none": _body(RUN, settings={"model": "m", "tools": [1]}),
    "a format that is none": _body(RUN, settings={"model": "m", "text": {"format": {"a": 1}}}),
    "an echo that is none": _body(RUN, settings={"model": "m", "echo": {"service_tier": []}}),
    "a list of tools elsewhere": _body(RUN, settings={"model": "m", "tools_blob": "ab" * 32}),
    "instructions elsewhere": _body(RUN, settings={"model": "m", "instructions_blob": "../secret.key"}),
    "an input that is none": _body(RUN, input=[7]),
    "a status that is none": _body("run.ended", status="in_progress"),
    "an error that is none": _body("run.ended", status="failed", error={"status": "x"}),
    "an index that is none": _body("item.finished", index=-1),
    "an index beyond all": _body("item.finished", index=40_000),
    "usage below nothing": _body("item.finished", usage=[-5, 1]),
    "an outcome of nothing": lambda lines: [
        *lines[:3],
        {"kind": "tool.outcome", "at": 1, "body": {"index": 7, "output": "x"}},
        *lines[3:],
    ],
    "a role that is none": _item(role="root"),
    "a type that is none": _item(type="nothing"),
    "a reference": lambda lines: lines[0]["body"].update(items=[{"type": "item_reference", "id": "msg_x"}]),
    "content that is none": _item(content=7),
    "parts that are none": _item(content=["x"]),
    "somebody else's blob": _item(content=[{**SHOT, "blob": "ab" * 32}]),
    "a path for a blob": _item(content=[{**SHOT, "blob": "../../secret.key"}]),
    "a number for a blob": _item(content=[{**SHOT, "blob": 5}]),
    "somebody else's text": _item(content=[{"type": "input_file", "text_blob": "ab" * 32}]),
    "a type of bytes alone": _item(content=[SHOT]),
    "upstream that is none": _item(upstream="x"),
    "a message that compacts": _item(compacted={"summary": "x"}),
    "a compaction that is none": lambda lines: lines[0]["body"].update(
        items=[{"type": "compaction", "encrypted_content": "x", "compacted": {"summary": 5}}]
    ),
    "a compaction that opens to none": lambda lines: lines[0]["body"].update(
        items=[{"type": "compaction", "encrypted_content": {"opened": "x"}, "compacted": {"summary": "x"}}]
    ),
    "a compaction that keeps a blob": lambda lines: lines[0]["body"].update(
        items=[
            {
                "type": "compaction",
                "encrypted_content": "x",
                "compacted": {"summary": "x", "tail": [{"role": "user", "content": [{**SHOT, "blob": "ab" * 32}]}]},
            }
        ]
    ),
    "an opened message": _item(encrypted_content={"opened": "x"}),
    "opened to no text": lambda lines: lines[0]["body"].update(
        items=[{"type": "reasoning", "summary": [], "encrypted_content": {"opened": 5}}]
    ),
    "opened reasoning that is none": lambda lines: lines[0]["body"].update(
        items=[{"type": "reasoning", "encrypted_content": {"opened": '\0{"summary":[{"text":5}]}'}}]
    ),
    "an erased item that says something": lambda lines: lines[0]["body"].update(items=[{"type": "erased", "x": 1}]),
    "a key that is none": _body("items.added", key="../x"),
    "nesting without end": _item(x=json.loads("[" * 200 + "]" * 200)),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_history_that_no_server_writes_is_refused(place: Place, name: str) -> None:
    place.backend.answers.append(says("fine"))
    created = await place.conversations.create("p", metadata={}, items=[user("before")])
    await place.ask("hi", conversation=created.id)
    other = elsewhere()
    with pytest.raises(InvalidRequest) as refused:
        await other.take(changed(await place.export(created.id), HOSTILE[name]))
    assert refused.value.code == "invalid_export"
    assert await other.nothing_is_left()


MANIFESTS: dict[str, Callable[[Any], Any]] = {
    "another format": lambda said: said.update(format="zip"),
    "other numbers": lambda said: said.update(items=99),
    "no conversation": lambda said: said.update(conversation=None),
    "a conversation by a path": lambda said: said["conversation"].update(id="../x"),
    "metadata without end": lambda said: said["conversation"].update(metadata={"k": "x" * 600}),
    "a blob that nothing needs": lambda said: said["blobs"].append({"sha256": "ab" * 32, "bytes": 1}),
    "a blob by a path": lambda said: said["blobs"].append({"sha256": "../x", "bytes": 1}),
    "a file that nothing names": lambda said: said["files"].append(
        {
            "id": "file-01abcdefghjkmnpqrstvwxyz01",
            "filename": "x",
            "purpose": "user_data",
            "bytes": 1,
            "sha256": "ab" * 32,
        }
    ),
    "no object": lambda said: said.update(object="project"),
}


@pytest.mark.parametrize("name", MANIFESTS)
async def test_a_manifest_that_does_not_fit_is_refused(place: Place, name: str) -> None:
    created = await place.conversations.create("p", metadata={}, items=[user("before")])
    other = elsewhere()
    with pytest.raises(InvalidRequest) as refused:
        await other.take(changed(await place.export(created.id), manifest=MANIFESTS[name]))
    assert refused.value.code == "invalid_export"
    assert await other.nothing_is_left()


async def test_another_version_is_named(place: Place) -> None:
    created = await place.conversations.create("p", metadata={}, items=[])
    data = changed(await place.export(created.id), manifest=lambda said: said.update(version=2, items="more"))
    with pytest.raises(InvalidRequest) as refused:
        await elsewhere().take(data)
    assert refused.value.code == "export_version_unsupported"
    assert "version 2" in refused.value.message


def _tar(kind: bytes = tarfile.REGTYPE, name: str = "manifest.json", **more: Any) -> bytes:
    made = tarfile.TarInfo(name)
    made.type, made.size = kind, more.pop("size", 0)
    for field, value in more.items():
        setattr(made, field, value)
    return made.tobuf(format=tarfile.GNU_FORMAT) + tar.END


ARCHIVES: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "nothing": lambda members: b"",
    "something else": lambda members: b"GIF89a" * 400,
    "a zip": lambda members: b"PK\x03\x04" + bytes(2_000),
    "gzip": lambda members: b"\x1f\x8b" + bytes(2_000),
    "an empty archive": lambda members: tar.END,
    "a link": lambda members: _tar(tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a device": lambda members: _tar(tarfile.CHRTYPE),
    "a folder": lambda members: _tar(tarfile.DIRTYPE, name="blobs"),
    "a sparse file": lambda members: _tar(tarfile.GNUTYPE_SPARSE),
    "an extended header": lambda members: _tar(tarfile.XHDTYPE),
    "a member beyond all sizes": lambda members: _tar(size=2**70),
    "another first member": lambda members: packed({"history.jsonl": members["history.jsonl"], **members}),
    "a path that leads out": lambda members: packed({**members, "../x": b"x"}),
    "an absolute path": lambda members: packed({**members, "/etc/cron.d/x": b"x"}),
    "a blob by another name": lambda members: packed({**members, "blobs/" + "cd" * 32: b"x"}),
    "a blob with other bytes": lambda members: packed(
        {name: (data[:-1] + b"!" if name.startswith("blobs/") else data) for name, data in members.items()}
    ),
    "a blob too few": lambda members: packed({name: members[name] for name in list(members)[:-1]}),
    "a blob twice": lambda members: packed(members)[: -len(tar.END)] + packed(dict([list(members.items())[-1]])),
    "more behind its end": lambda members: packed(members) + packed(members),
    "a blob of another size": lambda members: packed({**members, list(members)[-1]: b""}),
}


@pytest.mark.parametrize("name", ARCHIVES)
async def test_an_archive_that_no_server_writes_is_refused(place: Place, name: str) -> None:
    members = parts(await place.export(await talk(place)))
    other = elsewhere()
    with pytest.raises(RequestError) as refused:
        await other.take(ARCHIVES[name](members))
    assert refused.value.code in ("invalid_export", "export_damaged")
    assert await other.nothing_is_left()


async def test_texts_and_tools_that_cannot_be_read_are_refused(place: Place) -> None:
    place.backend.answers.append(says("fine"))
    run = await place.ask("hi", instructions="be brief " * 100, tools=[tool("a" * 900)])
    data = await place.export(run.id)
    for field, bad in (("tools_blob", b"[1]"), ("tools_blob", b"{"), ("instructions_blob", b"\xff\xfe")):
        members = parts(data)
        digest = hashlib.sha256(bad).hexdigest()
        old = json.loads(members["history.jsonl"].splitlines()[0])["body"]["settings"][field]
        members = {
            name.replace(old, digest): bad if old in name else held.replace(old.encode(), digest.encode())
            for name, held in members.items()
        }
        history = members["history.jsonl"]
        said = json.loads(members["manifest.json"])
        said["history"] = {"sha256": hashlib.sha256(history).hexdigest(), "bytes": len(history)}
        for blob in said["blobs"]:
            blob["bytes"] = len(members[f"blobs/{blob['sha256']}"])
        other = elsewhere()
        with pytest.raises(InvalidRequest) as refused:
            await other.take(packed({**members, "manifest.json": msgspec.json.encode(said)}))
        assert refused.value.code == "invalid_export"
        assert await other.nothing_is_left()


WORDS = st.text(max_size=20)
MESSAGES = st.one_of(
    st.builds(user, WORDS),
    st.builds(lambda text: {"role": "developer", "content": text}, WORDS),
    st.builds(lambda data: picture(f"data:image/png;base64,{data}"), st.sampled_from(["AAAA", "iVBORw0KGgo="])),
    st.builds(lambda key: {"id": f"msg_{key}", "role": "user", "content": "named"}, st.integers(0, 99)),
    st.just({"type": "custom_tool_call_output", "call_id": "call_x", "output": "done"}),
    st.just({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}),
)
STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(MESSAGES, min_size=1, max_size=3)),
    st.tuples(st.just("ask"), st.lists(MESSAGES, min_size=1, max_size=2), st.booleans(), st.text(max_size=700)),
    st.tuples(st.just("think"), WORDS, WORDS.filter(bool)),
    st.tuples(st.just("fail")),
    st.tuples(st.just("delete"), st.integers(0, 30)),
    st.tuples(st.just("fork"), st.integers(0, 30)),
    st.tuples(st.just("compact")),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=8), st.booleans(), st.integers(1, 3_000))
async def test_export_import_export_is_identical(steps: list[Any], chain: bool, step: int) -> None:
    place = Place(clock=MovedClock())
    thing = (await place.conversations.create("p", metadata={"a": "b"}, items=[user("begin")])).id
    last: LiveRun | None = None
    for what, *more in steps:
        thing, last = await _do(place, thing, last, what, more)
    asked = last.id if chain and last is not None else thing
    first = await place.export(asked)
    other = elsewhere(clock=MovedClock())
    made = await other.take(first, step=step)
    assert await other.export(made.conversation or made.response) == first
    if asked == thing:
        assert await other.items(thing) == await place.items(thing)
    copy = await other.take(first, new_ids=True)
    again = await other.take(await other.export(copy.conversation or copy.response), project="q")
    assert (again.items, again.responses) == (made.items, made.responses)


async def _do(place: Place, thing: str, last: LiveRun | None, what: str, more: list[Any]) -> tuple[str, LiveRun | None]:
    answers = place.backend.answers
    items = await place.conversations.items("p", thing)
    if what == "add":
        await place.conversations.add_items("p", thing, more[0])
    elif what == "ask":
        answers.append(says("an", " answer"))
        last = await place.ask(more[0], conversation=thing, stream=more[1], instructions=more[2])
    elif what == "think":
        answers.append([[ReasoningDelta(more[1])], *says(more[0] or "x")])
        last = await place.ask("think", conversation=thing, include=[SEALED])
    elif what == "fail":
        answers.append([[TextDelta("half")], [Finished("length", USAGE)]])
        last = await place.ask("too long", conversation=thing)
    elif what == "delete" and items:
        await place.conversations.delete_item("p", thing, items[more[0] % len(items)].id)
    elif what == "fork" and items:
        thing = (await place.conversations.fork("p", thing, after_item_id=items[more[0] % len(items)].id)).id
    elif what == "compact":
        answers.append(says("in short"))
        last = await place.ask([], conversation=thing, compact_now=True)
    return thing, last
