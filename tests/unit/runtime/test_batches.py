"""Batches over a journal in memory, with a clock that a test moves and answers that a test gives."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec
import pytest

from stateroom.access.outbound import OutboundGuard
from stateroom.access.rates import Allowance, Rates
from stateroom.access.sealing import Sealer
from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.memory import MemoryBlobs
from stateroom.errors import InvalidRequest, NotFound, StorageFull, TooLarge, TooMany
from stateroom.journal.entries import Kind
from stateroom.journal.memory import MemoryJournal
from stateroom.runtime.batches import work as batch_work
from stateroom.runtime.batches.batches import Batches
from stateroom.runtime.batches.places import Places
from stateroom.runtime.batches.state import COLLECTION, Answer, Asked, Batch, BatchParts
from stateroom.runtime.files.files import Files
from stateroom.runtime.records import Records
from stateroom.runtime.webhooks import Delivery, Webhooks
from stateroom.settings import Limits
from stateroom.testing.journal_stage import OTHER, P, SetClock
from stateroom.wire.batches import WINDOW_SECONDS, LineUsage, NewBatch, OutputExpiry

RESPONSES = "/v1/responses"
USAGE = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
ENDED = ("completed", "failed", "expired", "cancelled")


class Clerk:
    """Answers what it is asked: 200 with the input, or what a test says for that input."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.forgotten: list[str] = []
        self.going = 0
        self.most = 0
        self.says: dict[str, list[Answer]] = {}
        """By input; the last one stays."""
        self.gates: dict[str, asyncio.Event] = {}
        self.left: list[str] = []
        """Inputs of those nobody waited for any more."""

    async def answer(self, asked: Asked, gone: asyncio.Event) -> Answer:
        self.asked.append(asked)
        said = json.loads(asked.body)["input"]
        self.going += 1
        self.most = max(self.most, self.going)
        try:
            await asyncio.sleep(0)
            if said in self.gates:
                waiting = {asyncio.ensure_future(each.wait()) for each in (self.gates[said], gone)}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for each in waiting:
                    each.cancel()
                if gone.is_set():
                    self.left.append(said)
        finally:
            self.going -= 1
        answers = self.says.get(said)
        if answers:
            return answers.pop(0) if len(answers) > 1 else answers[0]
        return Answer(200, "req_1", msgspec.json.encode({"said": said, "usage": USAGE}))

    async def forget(self, asked: Asked) -> None:
        self.forgotten.append(asked.name)

    def counts(self) -> Counter[str]:
        return Counter(json.loads(asked.body)["input"] for asked in self.asked)


def error(status: int, code: str = "x", retry_after: float = 0.0) -> Answer:
    body = {"error": {"message": "No.", "type": "t", "param": None, "code": code}}
    return Answer(status, "req_2", msgspec.json.encode(body), retry_after)


class Scene:
    """Everything but HTTP. `start` begins another life of the server over the same journal."""

    def __init__(self, *, concurrency: int = 4, allowance: Allowance | None = None, **limits: Any) -> None:
        self.clock = SetClock()
        self.journal = MemoryJournal(clock=self.clock)
        self.blobs = MemoryBlobs()
        self.clerk = Clerk()
        self.limits = Limits(batch_concurrency=concurrency, **limits)
        self.allowance = allowance or Allowance()
        self.lives: list[Batches] = []
        self.begin()

    def begin(self) -> None:
        held = HeldBlobs(self.blobs)
        self.records = Records(self.journal, self.journal, self.blobs, held, self.clock)
        self.files = Files(self.records, self.blobs, held, bytes_max=10**9)
        guard = OutboundGuard(allow_private=True, bytes_max=1, timeout_seconds=1)
        self.webhooks = Webhooks(self.records, guard, Sealer(bytes(32)), self.clock)
        parts = BatchParts(
            batches=self.records.collection(COLLECTION, Batch),
            files=self.files,
            blobs=self.blobs,
            held=held,
            clock=self.clock,
            webhooks=self.webhooks,
            rates=Rates(self.clock, of_project=lambda project: self.allowance),
            limits=self.limits,
            places=Places(self.limits.batch_concurrency, lambda: self.clerk.going),
            answering=self.clerk,
        )
        self.batches = Batches(parts)
        self.lives.append(self.batches)

    async def start(self) -> None:
        await self.stop()
        self.begin()
        await self.batches.start()

    async def stop(self) -> None:
        await self.batches.close()

    def die(self) -> None:
        """What is going on stops where it is; nothing of it is written any more."""
        for task in list(self.batches._tasks.values()):
            task.cancel()

    async def upload(self, data: bytes, *, project: str = P, purpose: str = "batch") -> str:
        async def chunks() -> AsyncGenerator[bytes, None]:
            yield data

        file = await self.files.add(project, filename="in.jsonl", purpose=purpose, chunks=chunks())
        return file.id

    async def create(self, inputs: Sequence[str] | bytes, *, project: str = P, **more: Any) -> str:
        file_id = await self.upload(inputs if isinstance(inputs, bytes) else lines(inputs), project=project)
        held = await self.batches.create(project, NewBatch(file_id, RESPONSES, "24h", **more))
        assert held.state.status == "validating"
        return held.id

    async def get(self, batch_id: str, project: str = P) -> Batch:
        return (await self.batches.get(project, batch_id)).state

    async def until(self, batch_id: str, *statuses: str, project: str = P) -> Batch:
        async with asyncio.timeout(10):
            while True:
                state = await self.get(batch_id, project)
                if state.status in (statuses or ENDED):
                    return state
                await asyncio.sleep(0)

    async def settled(self, batch_id: str) -> None:
        """Wait until nothing is left to be done for a batch."""
        async with asyncio.timeout(10):
            while batch_id in self.batches._tasks:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0)

    async def when(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not true():  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0)

    async def read(self, file_id: str, project: str = P) -> dict[str, Any]:
        """The lines of a file by custom_id, each once."""
        if not file_id:
            return {}
        data = b"".join([piece async for piece in self.files.chunks(project, file_id)])
        assert data.endswith(b"\n")
        read = [json.loads(line) for line in data.splitlines()]
        found = {line["custom_id"]: line for line in read}
        assert len(found) == len(read)
        return found

    async def notes(self) -> int:
        branches = list(self.journal._lines)
        entries = [entry for name in branches for entry in await self.journal.read(P, name)]
        return sum(entry.kind == Kind.RECORD_NOTED for entry in entries)


def lines(inputs: Sequence[str], **body: Any) -> bytes:
    return b"".join(
        msgspec.json.encode(
            {
                "custom_id": f"id {said}",
                "method": "POST",
                "url": RESPONSES,
                "body": {"model": "m", "input": said, **body},
            }
        )
        + b"\n"
        for said in inputs
    )


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(batch_work, "PAUSE_SECONDS_MAX", 0.004)


async def test_a_batch_goes_from_validating_to_completed_with_an_output_file() -> None:
    scene = Scene()
    batch_id = await scene.create([str(number) for number in range(30)], metadata={"a": "b"})
    state = await scene.until(batch_id)
    assert (state.status, state.total, state.completed, state.failed) == ("completed", 30, 30, 0)
    assert (state.model, state.metadata, state.error_file_id) == ("m", {"a": "b"}, "")
    assert state.usage == LineUsage(300, 0, 60, 0)
    assert 0 < state.in_progress_at <= state.finalizing_at <= state.completed_at
    output = await scene.read(state.output_file_id)
    assert {name: line["response"]["body"]["said"] for name, line in output.items()} == {
        f"id {number}": str(number) for number in range(30)
    }
    assert len({line["id"] for line in output.values()}) == 30
    file = await scene.files.get(P, state.output_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{batch_id}_output.jsonl")
    assert set(scene.clerk.counts().values()) == {1}


async def test_no_more_requests_are_on_their_way_than_there_are_places() -> None:
    scene = Scene(concurrency=3)
    batch_id = await scene.create([str(number) for number in range(40)])
    await scene.until(batch_id)
    assert scene.clerk.most == 3


async def test_a_project_keeps_half_of_its_runs_for_those_who_wait() -> None:
    scene = Scene(concurrency=8, allowance=Allowance(runs=4))
    batch_id = await scene.create([str(number) for number in range(40)])
    await scene.until(batch_id)
    assert scene.clerk.most == 2


async def test_what_a_request_is_refused_goes_into_the_error_file() -> None:
    scene = Scene()
    scene.clerk.says["bad"] = [error(400, "invalid_value")]
    batch_id = await scene.create(["good", "bad"])
    state = await scene.until(batch_id)
    assert (state.status, state.completed, state.failed) == ("completed", 1, 1)
    assert list(await scene.read(state.output_file_id)) == ["id good"]
    (line,) = (await scene.read(state.error_file_id)).values()
    assert (line["custom_id"], line["error"]) == ("id bad", None)
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"]["code"] == "invalid_value"


async def test_without_one_good_answer_there_is_no_output_file() -> None:
    scene = Scene()
    scene.clerk.says["bad"] = [error(404)]
    state = await scene.until(await scene.create(["bad"]))
    assert (state.status, state.output_file_id, state.failed) == ("completed", "", 1)
    assert state.error_file_id


async def test_a_stream_is_refused_without_being_asked() -> None:
    scene = Scene()
    state = await scene.until(await scene.create(lines(["x"], stream=True) + lines(["y"], background=True)))
    errors = await scene.read(state.error_file_id)
    assert {name: line["response"]["body"]["error"]["param"] for name, line in errors.items()} == {
        "id x": "stream",
        "id y": "background",
    }
    assert scene.clerk.asked == []


async def test_a_file_with_mistakes_fails_the_batch_and_nothing_is_asked() -> None:
    scene = Scene()
    batch_id = await scene.create(lines(["a"]) + b"{\n" + lines(["a"]))
    state = await scene.until(batch_id)
    assert state.status == "failed"
    assert [(each.line, each.code) for each in state.errors] == [(2, "invalid_json_line"), (3, "duplicate_custom_id")]
    assert state.failed_at
    assert scene.clerk.asked == []
    await scene.settled(batch_id)
    await scene.start()
    assert scene.batches._tasks == {}


@pytest.mark.parametrize("size", [10, 70_000])
async def test_the_notes_are_erased_when_the_files_hold_what_they_said(size: int) -> None:
    scene = Scene()
    scene.clerk.says["x"] = [Answer(200, "req", msgspec.json.encode({"secret": "s" * size}))]
    batch_id = await scene.create(["x", "y"])
    state = await scene.until(batch_id)
    await scene.settled(batch_id)
    assert await scene.notes() == 0
    output = await scene.read(state.output_file_id)
    assert output["id x"]["response"]["body"] == {"secret": "s" * size}
    await scene.files.delete(P, state.output_file_id)
    await scene.files.delete(P, state.input_file_id)
    assert await scene.blobs.digests() == []


@pytest.mark.parametrize("seconds", [None, 7_200])
async def test_files_are_kept_for_as_long_as_is_asked(seconds: int | None) -> None:
    scene = Scene()
    expiry = None if seconds is None else OutputExpiry("created_at", seconds)
    state = await scene.until(await scene.create(["x"], output_expires_after=expiry))
    file = await scene.files.get(P, state.output_file_id)
    assert file.expires_at - file.created_at == (seconds or 30 * 24 * 3_600) * 1_000


# What goes wrong for a moment


@pytest.mark.parametrize("status", [409, 429, 503])
async def test_while_the_model_cannot_be_reached_the_batch_waits(status: int) -> None:
    scene = Scene()
    scene.clerk.says["x"] = [*[error(status)] * 20, Answer(200, "r", b"{}")]
    state = await scene.until(await scene.create(["x"]))
    assert (state.status, state.completed) == ("completed", 1)
    assert scene.clerk.counts()["x"] == 21
    assert len(scene.clerk.forgotten) == 20


async def test_a_request_at_which_the_model_fails_is_given_up_after_a_few_tries() -> None:
    scene = Scene()
    scene.clerk.says["x"] = [error(502)]
    state = await scene.until(await scene.create(["x", "y"]))
    assert (state.status, state.completed, state.failed) == ("completed", 1, 1)
    assert scene.clerk.counts()["x"] == batch_work.TRIES


async def test_a_request_that_is_unavailable_while_others_are_answered_is_given_up() -> None:
    scene = Scene(concurrency=1)
    scene.clerk.says["x"] = [error(503)]
    state = await scene.until(await scene.create(["x", *map(str, range(20))]))
    assert (state.status, state.completed, state.failed) == ("completed", 20, 1)


async def test_after_a_failure_nothing_new_is_begun_for_a_while() -> None:
    scene = Scene(concurrency=2)
    for number in range(50):
        scene.clerk.says[str(number)] = [error(503, retry_after=60)]
    batch_id = await scene.create([str(number) for number in range(50)])
    await scene.when(lambda: scene.clerk.going == 0 and len(scene.clerk.asked) >= 2)
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(scene.clerk.asked) <= 3
    assert (await scene.batches.cancel(P, batch_id)).state.status == "cancelling"
    assert (await scene.until(batch_id)).status == "cancelled"


async def test_a_locked_conversation_is_waited_for() -> None:
    scene = Scene()
    scene.clerk.says["x"] = [error(400, "conversation_locked"), Answer(200, "r", b"{}")]
    assert (await scene.until(await scene.create(["x"]))).completed == 1


async def test_a_full_disk_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateroom.runtime.batches.batches.RETRY_SECONDS", 0.001)
    scene = Scene()
    append, left = scene.journal.append, [3]

    def failing(change: Any) -> Any:
        if left[0] and any(draft.kind == Kind.RECORD_NOTED for draft in change.entries):
            left[0] -= 1
            raise StorageFull("No room.")
        return append(change)

    scene.journal.append = failing  # type: ignore[method-assign]  # a disk that is full for a while
    state = await scene.until(await scene.create(["x", "y", "z"]))
    assert (state.status, state.completed) == ("completed", 3)
    assert len(await scene.read(state.output_file_id)) == 3
    assert left == [0]


# Cancelling, expiring, stopping


async def test_a_cancelled_batch_keeps_what_is_finished_and_waits_for_what_is_on_its_way() -> None:
    scene = Scene(concurrency=2)
    scene.clerk.gates = {"b": asyncio.Event(), "c": asyncio.Event()}
    batch_id = await scene.create(list("abcdef"))
    await scene.when(lambda: len(scene.clerk.asked) == 3 and scene.clerk.going == 2)
    held = await scene.batches.cancel(P, batch_id)
    assert (held.state.status, held.state.completed) == ("cancelling", 1)
    assert (await scene.batches.cancel(P, batch_id)).state.status == "cancelling"
    scene.clerk.gates["b"].set()
    scene.clerk.gates["c"].set()
    state = await scene.until(batch_id)
    assert (state.status, state.total, state.completed, state.failed) == ("cancelled", 6, 3, 0)
    assert 0 < state.cancelling_at <= state.cancelled_at
    assert set(await scene.read(state.output_file_id)) == {"id a", "id b", "id c"}
    assert state.error_file_id == ""
    assert (await scene.batches.cancel(P, batch_id)).state.status == "cancelled"


async def test_what_does_not_end_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "LAST_SECONDS", 0.01)
    scene = Scene()
    scene.clerk.gates = {"b": asyncio.Event()}
    batch_id = await scene.create(["a", "b"])
    await scene.when(lambda: scene.clerk.going == 1 and len(scene.clerk.asked) == 2)
    await scene.batches.cancel(P, batch_id)
    state = await scene.until(batch_id)
    assert set(await scene.read(state.output_file_id)) == {"id a"}
    assert scene.clerk.left == ["b"]
    assert (state.completed, state.failed) == (1, 0)


async def test_a_batch_that_has_ended_cannot_be_cancelled() -> None:
    scene = Scene()
    batch_id = await scene.create(["a"])
    await scene.until(batch_id, "completed")
    with pytest.raises(InvalidRequest) as caught:
        await scene.batches.cancel(P, batch_id)
    assert caught.value.code == "batch_not_cancellable"


async def test_a_batch_that_waits_for_its_turn_can_be_cancelled() -> None:
    scene = Scene()
    scene.clerk.gates = {"a": asyncio.Event()}
    first = [await scene.create(["a"]) for _ in range(4)]
    await scene.when(lambda: scene.clerk.going == 4)
    waiting = await scene.create(["b"])
    assert (await scene.get(waiting)).status == "validating"
    await scene.batches.cancel(P, waiting)
    assert (await scene.until(waiting)).status == "cancelled"
    scene.clerk.gates["a"].set()
    for batch_id in first:
        assert (await scene.until(batch_id)).status == "completed"


async def test_one_project_with_many_batches_does_not_keep_another_waiting() -> None:
    scene = Scene()
    scene.clerk.gates = {"a": asyncio.Event()}
    many = [await scene.create(["a"]) for _ in range(10)]
    await scene.when(lambda: scene.clerk.going == 4)
    other = await scene.create(["b"], project=OTHER)
    scene.clerk.gates["a"].set()
    assert (await scene.until(other, project=OTHER)).status == "completed"
    for batch_id in many:
        await scene.until(batch_id)


async def test_what_is_not_done_in_time_is_in_the_error_file() -> None:
    scene = Scene(concurrency=1)
    scene.clerk.gates = {"c": asyncio.Event()}
    scene.clerk.says["b"] = [error(400)]
    batch_id = await scene.create(list("abcd"))
    await scene.when(lambda: scene.clerk.counts()["c"] == 1)
    scene.clock.time += WINDOW_SECONDS
    await scene.start()
    state = await scene.until(batch_id)
    assert (state.status, state.total, state.completed, state.failed) == ("expired", 4, 1, 3)
    assert state.expired_at == state.expires_at
    assert set(await scene.read(state.output_file_id)) == {"id a"}
    errors = await scene.read(state.error_file_id)
    assert {name: (line["error"] or {}).get("code") for name, line in errors.items()} == {
        "id b": None,
        "id c": "batch_expired",
        "id d": "batch_expired",
    }


async def test_a_batch_expires_while_it_waits_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "_LOOK_SECONDS", 0.001)
    scene = Scene()
    scene.clerk.says["a"] = [error(503, retry_after=1_000_000)]
    batch_id = await scene.create(["a"])
    await scene.when(lambda: len(scene.clerk.asked) == 1)
    scene.clock.time += WINDOW_SECONDS
    state = await scene.until(batch_id)
    assert (state.status, state.failed) == ("expired", 1)


async def test_a_batch_whose_answers_are_all_there_does_not_expire() -> None:
    scene = Scene()
    erased = asyncio.Event()
    batch_id = await scene.create(["a", "b"])
    finalize = batch_work.BatchWork._finalize

    async def dying(self: batch_work.BatchWork, status: str) -> None:
        erased.set()
        await asyncio.Event().wait()

    batch_work.BatchWork._finalize = dying  # type: ignore[method-assign]  # dies at this point
    try:
        await erased.wait()
        scene.die()
    finally:
        batch_work.BatchWork._finalize = finalize  # type: ignore[method-assign]  # and lives again
    scene.clock.time += 2 * WINDOW_SECONDS
    await scene.start()
    state = await scene.until(batch_id)
    assert (state.status, state.completed) == ("completed", 2)
    assert set(scene.clerk.counts().values()) == {1}


async def test_a_stop_leaves_the_rest_for_the_next_start() -> None:
    scene = Scene(concurrency=2)
    scene.clerk.gates = {"c": asyncio.Event()}
    batch_id = await scene.create(list("abcdef"))
    scene.clerk.gates |= {"d": asyncio.Event()}
    await scene.when(lambda: {"c", "d"} <= set(scene.clerk.counts()))
    scene.batches.stop()
    scene.clerk.gates["c"].set()
    scene.clerk.gates["d"].set()
    await scene.stop()
    assert set(scene.clerk.counts()) == set("abcd")
    assert (await scene.get(batch_id)).status == "in_progress"
    assert await noted_of(scene, batch_id) == set("abcd")
    await scene.start()
    state = await scene.until(batch_id)
    assert (state.status, state.completed) == ("completed", 6)
    assert set(scene.clerk.counts().values()) == {1}


@pytest.mark.parametrize("steps", range(0, 120, 3))
async def test_wherever_it_dies_what_was_noted_is_not_asked_again(steps: int) -> None:
    scene = Scene(concurrency=3)
    scene.clerk.says["4"] = [error(400)]
    batch_id = await scene.create([str(number) for number in range(12)])
    for _ in range(3):
        for _ in range(steps):
            await asyncio.sleep(0)
        scene.die()
        for _ in range(20):
            await asyncio.sleep(0)
        work = scene.batches._works.get(batch_id)
        assert work is None
        before = scene.clerk.counts()
        noted = await noted_of(scene, batch_id)
        await scene.start()
        await asyncio.sleep(0)
        for said in noted:
            assert scene.clerk.counts()[said] == before[said]
    state = await scene.until(batch_id)
    await scene.settled(batch_id)
    assert (state.status, state.completed, state.failed) == ("completed", 11, 1)
    assert len(await scene.read(state.output_file_id)) == 11
    assert list(await scene.read(state.error_file_id)) == ["id 4"]
    assert {file.id for file in await scene.files.page(P)} == {
        state.input_file_id,
        state.output_file_id,
        state.error_file_id,
    }
    assert await scene.notes() == 0


async def noted_of(scene: Scene, batch_id: str) -> set[str]:
    """The inputs of the requests whose answers are written down."""
    notes = await scene.records.collection(COLLECTION, Batch).notes(P, batch_id)
    return {
        outcome["written"]["custom_id"].removeprefix("id ")
        for note in notes
        for outcome in msgspec.json.decode(note)["outcomes"]
    }


async def test_the_names_of_requests_are_the_same_in_every_life() -> None:
    scene = Scene(concurrency=1)
    scene.clerk.gates = {"b": asyncio.Event()}
    batch_id = await scene.create(["a", "b"])
    await scene.when(lambda: len(scene.clerk.asked) == 2)
    scene.die()
    await scene.start()
    await scene.when(lambda: len(scene.clerk.asked) == 3)
    scene.clerk.gates["b"].set()
    await scene.until(batch_id)
    assert [asked.name for asked in scene.clerk.asked] == [f"{batch_id}.0", f"{batch_id}.1", f"{batch_id}.1"]


async def test_what_is_stored_nowhere_has_no_name() -> None:
    scene = Scene()
    await scene.until(await scene.create(lines(["a"], store=False)))
    assert [asked.name for asked in scene.clerk.asked] == [""]


async def test_an_input_file_that_is_deleted_meanwhile_ends_the_batch_with_what_there_is() -> None:
    scene = Scene(concurrency=1)
    scene.clerk.gates = {"b": asyncio.Event()}
    batch_id = await scene.create(["a", "b"])
    await scene.when(lambda: len(scene.clerk.asked) == 2)
    state = await scene.get(batch_id)
    scene.die()
    await scene.files.delete(P, state.input_file_id)
    await scene.start()
    state = await scene.until(batch_id)
    assert (state.status, [each.code for each in state.errors]) == ("failed", ["input_file_missing"])
    assert set(await scene.read(state.output_file_id)) == {"id a"}


# What is asked for


async def test_a_batch_needs_a_file_of_its_own_project_and_purpose() -> None:
    scene = Scene(batch_bytes=1_000)
    wrong = await scene.upload(lines(["a"]), purpose="user_data")
    foreign = await scene.upload(lines(["a"]), project=OTHER)
    large = await scene.upload(b" " * 1_001)
    for file_id, kind, code in (
        ("file-none", NotFound, "file_not_found"),
        (foreign, NotFound, "file_not_found"),
        (wrong, InvalidRequest, "invalid_file_purpose"),
        (large, TooLarge, "file_too_large"),
    ):
        with pytest.raises(kind) as caught:
            await scene.batches.create(P, NewBatch(file_id, RESPONSES, "24h"))
        assert (caught.value.code, caught.value.param) == (code, "input_file_id")


async def test_a_project_has_so_many_unfinished_batches_and_no_more() -> None:
    scene = Scene(batches=2)
    scene.clerk.gates = {"a": asyncio.Event()}
    first = [await scene.create(["a"]) for _ in range(2)]
    with pytest.raises(TooMany) as caught:
        await scene.create(["b"])
    assert caught.value.code == "too_many_batches"
    other = await scene.create(["b"], project=OTHER)
    scene.clerk.gates["a"].set()
    for batch_id in first:
        await scene.until(batch_id)
        await scene.settled(batch_id)
    await scene.until(other, project=OTHER)
    await scene.until(await scene.create(["b"]))


async def test_nobody_sees_the_batches_of_another_project() -> None:
    scene = Scene()
    batch_id = await scene.create(["a"])
    await scene.until(batch_id)
    with pytest.raises(NotFound):
        await scene.batches.get(OTHER, batch_id)
    with pytest.raises(NotFound):
        await scene.batches.cancel(OTHER, batch_id)
    assert await scene.batches.page(OTHER, after="", limit=10, descending=True) == []


async def test_batches_are_listed_by_age() -> None:
    scene = Scene()
    made = [await scene.create([str(number)]) for number in range(3)]
    for batch_id in made:
        await scene.until(batch_id)
    page = await scene.batches.page(P, after="", limit=2, descending=True)
    assert [held.id for held in page] == made[::-1]
    page = await scene.batches.page(P, after=made[1], limit=2, descending=True)
    assert [held.id for held in page] == made[:1]
    with pytest.raises(InvalidRequest):
        await scene.batches.page(P, after="batch_none", limit=2, descending=True)


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "cancelled"])
async def test_whoever_asked_is_told_of_the_end(status: str) -> None:
    scene = Scene()
    await scene.webhooks.endpoints.create(
        P, name="n", url="https://127.0.0.1:1/x", event_types=[f"batch.{status}"], key="whe_1"
    )
    scene.clerk.says["a"] = [Answer(200, "r", b"{}") if status == "completed" else error(503, retry_after=999)]
    batch_id = await scene.create(b"{" if status == "failed" else lines(["a"]))
    if status == "cancelled":
        await scene.batches.cancel(P, batch_id)
    if status == "expired":
        await scene.when(lambda: len(scene.clerk.asked) == 1)
        scene.clock.time += WINDOW_SECONDS
        await scene.batches.close()
        scene.batches._stopping = False
        held = await scene.batches.get(P, batch_id)
        scene.batches._work_at(held)
    await scene.until(batch_id, status)
    (told,) = await scene.records.collection("webhook_delivery", Delivery).page(P)
    assert (told.state.type, told.state.subject) == (f"batch.{status}", batch_id)
