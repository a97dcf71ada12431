"""Idempotency keys in the runtime: what is remembered, for how long, and together with what."""

from __future__ import annotations

import asyncio

import pytest

from stateroom import ids
from stateroom.errors import InvalidRequest
from stateroom.journal.entries import RecordPut
from stateroom.runtime import idempotency as module
from stateroom.runtime.idempotency import COLLECTION, KEPT_SECONDS, Claim, Idempotency
from stateroom.runtime.records import Records
from tests.unit.runtime.stage import PROJECT, MovedClock, Stage, until


def of(stage: Stage) -> tuple[Idempotency, Records]:
    records = Records(stage.journal, stage.journal, stage.blobs, stage.held, stage.clock)
    return Idempotency(records), records


async def made_under(keys: Idempotency, stage: Stage, key: str, said: str = "hi") -> str:
    """The run that the key makes, or has made."""
    async with keys.claim(PROJECT, key, "POST", "/responses", said) as claim:
        if claim.made:
            return claim.made
        run_id = ids.new_id("resp")
        run = await stage.start(said, id=run_id, also=claim.also(run_id))
    await run.done
    return run_id


async def test_a_run_and_its_key_are_in_one_append() -> None:
    stage = Stage()
    keys, _ = of(stage)
    run_id = await made_under(keys, stage, "k")
    row = await stage.journal.run(PROJECT, run_id)
    assert row is not None
    record = await stage.journal.record(PROJECT, COLLECTION, f"idem_{module._hash(['k'])}")
    assert record is not None
    assert (record.branch, record.seq) == (row.branch, row.start + 1)
    assert await made_under(keys, stage, "k") == run_id
    assert len(stage.backend.asked) == 1


async def test_what_is_remembered_outlives_the_process_and_says_nothing_of_the_request() -> None:
    stage = Stage()
    run_id = await made_under(of(stage)[0], stage, "a secret of its client", "something private")
    entries = await stage.journal.read(PROJECT, (await stage.journal.run(PROJECT, run_id)).branch)  # type: ignore[union-attr]  # it was made
    [said] = [entry.body for entry in entries if entry.kind == "record.put"]
    assert b"secret" not in said
    assert b"private" not in said
    after = stage.after_crash()
    assert await made_under(of(after)[0], after, "a secret of its client", "something private") == run_id


async def test_the_branch_goes_on_from_a_run_with_a_key_as_from_any_other() -> None:
    stage = Stage()
    keys, _ = of(stage)
    run_id = await made_under(keys, stage, "k")
    await stage.ask("more", previous=run_id)
    assert stage.backend.asked[1].texts() == ["hi", "ok", "more"]
    after = stage.after_crash()
    await after.ask("and more", previous=run_id)
    assert after.backend.asked[0].texts() == ["hi", "ok", "and more"]


async def test_a_key_is_free_again_after_a_day_and_the_sweep_takes_its_record() -> None:
    stage = Stage()
    assert isinstance(stage.clock, MovedClock)
    keys, records = of(stage)
    first = await made_under(keys, stage, "k")
    stage.clock.seconds += KEPT_SECONDS - 60
    assert await records.drop_expired() == 0
    assert await made_under(keys, stage, "k") == first
    stage.clock.seconds += 61
    second = await made_under(keys, stage, "k", "anything else")
    assert second != first
    stage.clock.seconds += KEPT_SECONDS + 1
    assert await records.drop_expired() == 1
    assert await stage.journal.records(PROJECT, COLLECTION) == []
    for run_id in (first, second):
        assert (await stage.runs.view(PROJECT, run_id)).status == "completed"
    await stage.ask("more", previous=second)
    assert stage.backend.asked[-1].texts() == ["anything else", "ok", "more"]


async def test_who_comes_second_waits_for_the_first_and_makes_it_when_the_first_failed() -> None:
    keys, _ = of(Stage())
    order: list[str] = []
    inside = asyncio.Event()
    leave = asyncio.Event()

    async def first() -> None:
        async with keys.claim(PROJECT, "k", "same"):
            inside.set()
            await leave.wait()
            order.append("first failed")
            raise InvalidRequest("no")

    async def second() -> None:
        await inside.wait()
        async with keys.claim(PROJECT, "k", "same") as claim:
            order.append(f"second made {claim.made!r}")

    async def elsewhere() -> None:
        await inside.wait()
        async with keys.claim("another project", "k", "same"), keys.claim(PROJECT, "another key", "same"):
            order.append("others went on")
        leave.set()

    await asyncio.gather(first(), second(), elsewhere(), return_exceptions=True)
    assert order == ["others went on", "first failed", "second made ''"]


async def test_a_refused_claim_does_not_keep_the_key() -> None:
    stage = Stage()
    keys, _ = of(stage)
    await made_under(keys, stage, "k")
    for _ in range(2):
        with pytest.raises(InvalidRequest) as refused:
            await asyncio.wait_for(made_under(keys, stage, "k", "other"), 2)
        assert refused.value.code == "idempotency_conflict"
    assert await asyncio.wait_for(made_under(keys, stage, "k"), 2)


async def test_parts_of_a_request_cannot_run_into_each_other() -> None:
    keys, _ = of(Stage())
    async with keys.claim(PROJECT, "k", "ab", "c") as claim:
        claim.keep("thing", asyncio.get_running_loop().create_future())
    with pytest.raises(InvalidRequest):
        async with keys.claim(PROJECT, "k", "a", "bc"):
            raise AssertionError("not reached")


async def test_no_key_is_no_claim() -> None:
    keys, _ = of(Stage())
    claim = keys.claim(PROJECT, "", "anything")
    async with claim, claim:
        assert (claim.made, claim.kept, claim.also("resp_1")) == ("", None, ())
        claim.keep("thing", asyncio.get_running_loop().create_future())
    async with keys.claim(PROJECT, "", "anything") as again:
        assert again.kept is None


async def test_what_is_stored_nowhere_is_forgotten_soon_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSTORED_SECONDS", 0.0)
    monkeypatch.setattr(module, "UNSTORED_MAX", 2)
    keys, _ = of(Stage())
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for key in ("a", "b", "c"):
        async with keys.claim(PROJECT, key, "x") as claim:
            claim.keep(f"thing {key}", ended)
    held = [await found(keys, key) for key in ("a", "b", "c")]
    assert held == [None, "thing b", "thing c"]
    ended.set_result(None)
    await until(lambda: not keys._unstored)


async def found(keys: Idempotency, key: str) -> object:
    async with keys.claim(PROJECT, key, "x") as claim:
        kept: object = claim.kept
        return kept


def test_a_record_goes_with_an_end_and_no_content() -> None:
    stage = Stage()
    keys, records = of(stage)
    claim = keys.claim(PROJECT, "k", "x")
    assert isinstance(claim, Claim)
    [record] = claim.also("resp_1")
    assert isinstance(record, RecordPut)
    assert record.expires_at == records.now() + KEPT_SECONDS * 1000
    assert (record.open, record.blobs) == (False, [])
