"""A program that is run in segments does what it does when it is run in one go."""

from __future__ import annotations

import asyncio
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stateroom.tools.program.contract import (
    Answered,
    Failed,
    Finished,
    Outcome,
    Pending,
    ProgramAnswer,
    ProgramCall,
    Waiting,
)
from stateroom.tools.program.engine import Programs
from tests.unit.tools.program.stage import KEY, Tools, answer_to, answered, mine, run

STATEMENTS = (
    "out(await a({step: STEP, r: Math.random()}));",
    "out(await b({step: STEP, at: Date.now()}));",
    "out(await Promise.all([a({step: STEP}), b({step: STEP}), a({again: STEP})]));",
    "out(await Promise.race([a({race: STEP}), b({race: STEP})]));",
    "out(await Promise.allSettled([a({s: STEP}), fails({s: STEP}), b({s: STEP})]));",
    "out(await Promise.all([1, 2, 3].map(async x => { const y = await a({x, step: STEP}); return b({x, y}) })));",
    "try { await fails({step: STEP}) } catch (e) { out(e.message) }",
    "a({floating: STEP}); b({floating: STEP}).then(out);",
    "if (seen.length % 2) out(await b({odd: seen.length})); else a({even: seen.length}).then(x => a({x}).then(out));",
    "for (let i = 0; i < Math.floor(Math.random() * 4); i++) out(await b({i, step: STEP}));",
    "await new Promise(done => setTimeout(done, 10 * STEP));",
    "setTimeout(() => a({timer: STEP}).then(out), 5);",
    "await Promise.race([b({limit: STEP}), new Promise(done => setTimeout(done, 1, 'late'))]).then(out);",
    "for await (const x of [a({f: STEP}), b({f: STEP})]) out(x);",
    "out([...seen].sort().length, new Map([[STEP, seen.at(-1)]]).get(STEP));",
)
ENDS = ("return seen", "text(seen)", "throw new Error(`with ${seen.length}`)", "return await a({last: seen})", "")


@st.composite
def programs(draw: st.DrawFn) -> str:
    body = draw(st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=5))
    lines = [line.replace("STEP", str(step)) for step, line in enumerate(body, 1)]
    return "\n".join(["const seen = [], out = (...x) => { seen.push(...x) };", *lines, draw(st.sampled_from(ENDS))])


async def in_one_go(engine: Programs, code: str, order: random.Random) -> tuple[Outcome, list[ProgramCall]]:
    tools = Tools()

    async def call(call: ProgramCall) -> ProgramAnswer:
        for _ in range(order.randrange(5)):
            await asyncio.sleep(0)
        return await tools(call)

    outcome = await run(code, call, programs=engine)
    return outcome, sorted(tools.calls, key=lambda call: call.position)


async def in_segments(engine: Programs, code: str, choice: random.Random) -> tuple[Outcome, list[ProgramCall]]:
    """Some calls are answered at once, others later, in any order, and not all of them at the same time."""
    made: dict[int, ProgramCall] = {}
    known: list[Answered] = []

    async def call(call: ProgramCall) -> ProgramAnswer | Pending:
        assert call.call_id not in {answer.call_id for answer in known}, "what was answered is never called again"
        assert made.setdefault(call.position, call) == call
        for _ in range(choice.randrange(5)):
            await asyncio.sleep(0)
        if choice.random() < 0.5:
            return Pending()
        known.append(answered(call, answer_to(call)))
        return answer_to(call)

    while True:
        outcome = await run(code, call, programs=engine, answers=choice.sample(known, len(known)))
        if not isinstance(outcome, Waiting):
            return outcome, [made[position] for position in sorted(made)]
        assert outcome.calls
        given = [one for one in outcome.calls if choice.random() < 0.6] or [choice.choice(outcome.calls)]
        known += [answered(one, answer_to(one)) for one in given]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs(), st.integers(0, 2**32))
def test_any_split_into_segments_makes_the_same_calls_and_comes_to_the_same_end(code: str, seed: int) -> None:
    # Not drawn from by hypothesis: how often it is asked differs with the time that processes take.
    choice = random.Random(seed)

    async def both() -> None:
        engine = Programs(KEY)
        whole, calls = await in_one_go(engine, code, choice)
        assert isinstance(whole, Finished) or "Error: with" in str(whole)
        assert await in_segments(engine, code, choice) == (whole, calls)
        assert mine() == []

    asyncio.run(both())


async def test_a_replay_that_makes_another_call_is_refused_before_anything_is_called() -> None:
    tools = Tools()
    code = "await Promise.all([b({}), a({x: 1})])"
    engine = Programs(KEY)
    identity = engine.fingerprints.read(
        engine.fingerprints.make(code, project="p", seed="seed", time=0), code, project="p"
    )
    for name, arguments in [("b", '{"x":1}'), ("a", '{"x":2}')]:
        outcome = await run(code, tools, programs=engine, answers=[Answered(identity.call_id(1), name, arguments, "1")])
        assert isinstance(outcome, Failed)
        assert outcome.why == "diverged"
        assert "call 2 was" in outcome.error
        assert tools.calls == []


async def test_an_answer_to_a_call_that_is_not_made_is_refused() -> None:
    for code in ("return 1", "await b({})"):
        outcome = await run(code, answers=[Answered("call_of_another", "a", "{}", "1")])
        assert isinstance(outcome, Failed)
        assert outcome.why == "diverged"


async def test_two_programs_never_share_the_id_of_a_call() -> None:
    ids = []
    for seed in ("one", "two"):
        tools = Tools()
        await run("await a({}); await a({})", tools, seed=seed)
        ids += [call.call_id for call in tools.calls]
    assert len(set(ids)) == 4
    assert all(len(one) <= 64 for one in ids)


async def test_a_program_that_has_failed_still_waits_for_what_it_has_called() -> None:
    async def call(call: ProgramCall) -> Pending:
        return Pending()

    code = "a({}); throw new Error('no')"
    outcome = await run(code, call)
    assert isinstance(outcome, Waiting)
    known = [answered(one, answer_to(one)) for one in outcome.calls]
    outcome = await run(code, call, answers=known)
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("Error: no")


async def test_a_failure_that_was_recorded_is_thrown_again() -> None:
    tools = Tools()
    code = "try { await fails({}) } catch (e) { return e.message }"
    first = await run(code, tools)
    known = [answered(call, answer_to(call)) for call in tools.calls]
    assert await run(code, tools, answers=known) == first == Finished("no luck with {}")
    assert len(tools.calls) == 1
