"""What a program can do, and what comes of it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from stateroom.errors import InvalidRequest
from stateroom.tools.program.contract import (
    Failed,
    Finished,
    Pending,
    ProgramAnswer,
    ProgramCall,
    ProgramLimits,
    ProgramTool,
    Waiting,
)
from stateroom.tools.program.engine import Programs
from tests.unit.tools.program.stage import KEY, Tools, answered, mine, run, until


async def test_the_engine_works_here() -> None:
    assert await Programs(KEY).probe() == ""


async def test_what_a_program_returns_is_its_result() -> None:
    assert await run("return 6 * 7") == Finished("42")
    assert await run("return 'as it is'") == Finished("as it is")
    assert await run("return {a: [1, null]}") == Finished('{"a":[1,null]}')
    assert await run("") == Finished("")


async def test_what_it_puts_out_comes_before_what_it_returns() -> None:
    assert await run("text('one'); text({two: 2}); return 3") == Finished('one\n{"two":2}\n3')


async def test_the_console_is_kept_apart_unless_there_is_nothing_else() -> None:
    assert await run("console.log('a', 1); return 'r'") == Finished("r", "a 1")
    assert await run("print('only this')") == Finished("only this", "only this")


async def test_a_tool_is_called_and_its_answer_read() -> None:
    tools = Tools()
    outcome = await run("const {n} = await tools.a({x: 2}); return n > -1", tools)
    assert [(call.position, call.name, call.arguments) for call in tools.calls] == [(0, "a", '{"x":2}')]
    assert isinstance(outcome, Finished)


async def test_tools_can_be_called_as_plain_functions() -> None:
    tools = Tools()
    await run("await a({}); await b()", tools)
    assert [(call.name, call.arguments) for call in tools.calls] == [("a", "{}"), ("b", "{}")]


async def test_a_program_may_use_the_name_of_a_tool_for_something_of_its_own() -> None:
    assert await run("const a = 1; return a") == Finished("1")


async def test_a_tool_whose_name_is_no_identifier_is_reached_in_brackets() -> None:
    tools = Tools()
    await run("await tools['get-it']({}); await tools.label__name({})", tools, tools=["get-it", "label__name"])
    assert [call.name for call in tools.calls] == ["get-it", "label__name"]


async def test_a_tool_named_like_something_built_in_does_not_replace_it() -> None:
    names = ["JSON", "Promise", "text", "tools", "constructor", "__proto__", "then"]
    tools = Tools()
    code = "for (const name of Object.keys(tools)) await tools[name]({name}); return JSON.stringify(1)"
    assert await run(code, tools, tools=names) == Finished("1")
    assert sorted(call.name for call in tools.calls) == sorted(names)


async def test_calls_in_parallel_are_carried_out_at_the_same_time() -> None:
    started = asyncio.Semaphore(0)
    all_started = asyncio.Event()
    count = 0

    async def call(call: ProgramCall) -> ProgramAnswer:
        nonlocal count
        count += 1
        if count == 5:
            all_started.set()
        await all_started.wait()
        started.release()
        return ProgramAnswer(str(call.position))

    outcome = await run("return await Promise.all([0, 1, 2, 3, 4].map(x => a({x})))", call)
    assert outcome == Finished('["0","1","2","3","4"]')


async def test_no_more_calls_at_the_same_time_than_are_allowed() -> None:
    at_work, most = 0, 0

    async def call(call: ProgramCall) -> ProgramAnswer:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        at_work -= 1
        return ProgramAnswer("x")

    await run("await Promise.all([...Array(20).keys()].map(x => a({x})))", call, limits=ProgramLimits(parallel=3))
    assert most == 3


async def test_answers_come_in_the_order_of_the_calls_however_fast_tools_are() -> None:
    second_done = asyncio.Event()

    async def call(call: ProgramCall) -> ProgramAnswer:
        if call.position == 0:
            await second_done.wait()
        else:
            second_done.set()
        return ProgramAnswer(str(call.position))

    assert await run("return await Promise.race([a({}), b({})])", call) == Finished("0")


async def test_a_tool_that_fails_throws() -> None:
    assert await run("try { await fails({}) } catch (e) { return `${e.name}: ${e.message}` }") == Finished(
        "ToolError: no luck with {}"
    )
    outcome = await run("text('before'); await fails({})")
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("ToolError: no luck with {}")
    assert outcome.result == "before"


async def test_an_error_says_where_it_is_and_shows_nothing_of_the_bridge() -> None:
    outcome = await run("const x = 1;\n\nnull.x;")
    assert isinstance(outcome, Failed)
    assert "TypeError" in outcome.error
    assert "program:3:" in outcome.error
    assert "start" not in outcome.error


async def test_code_that_does_not_parse_is_an_error_with_its_line() -> None:
    outcome = await run("let a = 1;\nlet b = ;")
    assert isinstance(outcome, Failed)
    assert "SyntaxError" in outcome.error
    assert "program:2:" in outcome.error


async def test_a_tool_that_is_not_there_is_named_with_those_that_are() -> None:
    outcome = await run("await tools.c({})")
    assert isinstance(outcome, Failed)
    assert "There is no tool c. There are: a, b, fails" in outcome.error


@pytest.mark.parametrize("given", ["5", "'x'", "[1]", "null", "() => 1"])
async def test_a_tool_takes_one_object(given: str) -> None:
    outcome = await run(f"await a({given})")
    assert isinstance(outcome, Failed)
    assert "a takes one object" in outcome.error


async def test_a_tool_that_takes_text_is_given_the_text_as_it_is() -> None:
    tools = Tools()
    await run("await free('any\\ntext \u00fc')", tools, tools=[ProgramTool("free")])
    assert tools.calls[0].arguments == "any\ntext \u00fc"


@pytest.mark.parametrize(
    ("answer", "schema", "seen"),
    [
        ('{"a": 1}', None, "object"),
        (" [1]", None, "object"),
        ("5", None, "string"),
        ("5", {"type": "number"}, "number"),
        ("not json", {"type": "number"}, "string"),
        ("{not json", None, "string"),
    ],
)
async def test_answers_are_json_where_that_is_what_they_are(
    answer: str, schema: dict[str, str] | None, seen: str
) -> None:
    async def call(call: ProgramCall) -> ProgramAnswer:
        return ProgramAnswer(answer)

    tool = ProgramTool("t", parameters={}, output_schema=schema)
    assert await run("return typeof await t({})", call, tools=[tool]) == Finished(seen)


async def test_any_text_gets_through_in_both_directions() -> None:
    text = 'a\0b\u2028\U0001f600"\\\n' + "ü" * 70_000

    async def call(call: ProgramCall) -> ProgramAnswer:
        return ProgramAnswer(text)

    assert await run("return await a({})", call) == Finished(text)


@pytest.mark.parametrize("length", [0, 1, 255, 256, 511, 512, 513, 1023, 4095, 4096, 8191, 8192, 8193, 65_535, 120_000])
async def test_text_that_was_put_together_gets_through_whole(length: int) -> None:
    code = f"let s = ''; for (let i = 0; i < {length}; i++) s += i % 10; text(s); text(s + s.length); throw s"
    whole = ("0123456789" * (length // 10 + 1))[:length]
    outcome = await run(code)
    assert outcome == Failed(f"uncaught: {whole}"[:4000].strip(), "error", f"{whole}\n{whole}{length}")


async def test_half_a_character_does_no_harm() -> None:
    assert await run("return '\\ud800x'") == Finished("\ufffdx")
    tools = Tools()
    await run("await a({x: '\\ud800'})", tools)
    assert tools.calls[0].arguments == '{"x":"\\ud800"}'


async def test_calls_that_nobody_waits_for_are_carried_out_all_the_same() -> None:
    tools = Tools()
    assert await run("a({}); b({}); return 'done'", tools) == Finished("done")
    assert [call.name for call in tools.calls] == ["a", "b"]


async def test_no_call_is_made_after_the_program_has_come_to_its_end() -> None:
    tools = Tools()
    assert await run("a({}).then(() => b({})); return 1", tools) == Finished("1")
    assert [call.name for call in tools.calls] == ["a"]


async def test_a_program_that_needs_somebody_else_waits_and_says_for_whom() -> None:
    tools = Tools()

    async def call(call: ProgramCall) -> ProgramAnswer | Pending:
        return Pending() if call.name == "b" else await tools(call)

    code = "console.log('x'); return await Promise.all([b({i: 1}), a({}), b({i: 2})])"
    outcome = await run(code, call)
    assert isinstance(outcome, Waiting)
    assert [(one.position, one.name, one.arguments) for one in outcome.calls] == [
        (0, "b", '{"i":1}'),
        (2, "b", '{"i":2}'),
    ]
    assert [one.position for one in tools.calls] == [1]

    known = [answered(one, ProgramAnswer(f"[{one.position}]")) for one in (*outcome.calls, *tools.calls)]
    assert await run(code, call, answers=known) == Finished("[[0],[1],[2]]", "x")
    assert len(tools.calls) == 1


async def test_time_stands_still_and_chance_is_the_seeds() -> None:
    code = "return [Date.now(), new Date().toISOString(), Date(), new Date(0).getHours(), Math.random(), Math.random()]"
    first = await run(code)
    assert first == await run(code)
    assert isinstance(first, Finished)
    assert first.result.startswith('[1790000000250,"2026-09-21T14:13:20.250Z","Mon Sep 21 2026 14:13:20 GMT+0000",0,0.')
    assert first != await run(code, seed="another")


async def test_dates_work_as_ever_but_for_what_now_is() -> None:
    code = """
    class Mine extends Date {}
    return [new Mine() instanceof Mine, new Date() instanceof Date, new Date(2020, 1, 3).toISOString(),
            new Date('2020-01-01').getTime() === Date.UTC(2020, 0, 1), new Date(0).constructor === Date,
            Object.keys(new Date()).length]
    """
    assert await run(code) == Finished('[true,true,"2020-02-03T00:00:00.000Z",true,true,0]')


async def test_chance_is_spread_evenly() -> None:
    code = """
    const bins = Array(10).fill(0);
    for (let i = 0; i < 10000; i++) bins[Math.floor(Math.random() * 10)]++;
    return bins.every(x => x > 800 && x < 1200)
    """
    assert await run(code) == Finished("true")


async def test_timers_take_no_time_and_never_get_ahead_of_a_tool() -> None:
    code = """
    const late = new Promise((_, no) => setTimeout(() => no(new Error('late')), 1000));
    const first = await Promise.race([late, a({}).then(() => 'tool')]);
    late.catch(() => 0);
    const order = [];
    setTimeout(() => order.push(3), 30); setTimeout(() => order.push(2), 20); setTimeout(() => order.push(1));
    clearTimeout(setTimeout(() => order.push(0), 5));
    await new Promise(done => setTimeout(done, 3_600_000));
    return [first, order]
    """
    assert await run(code) == Finished('["tool",[1,2,3]]')


async def test_a_program_that_waits_for_nothing_fails() -> None:
    outcome = await run("await new Promise(() => {})")
    assert outcome == Failed("The program waits for something that will never happen")


async def test_an_error_of_the_caller_goes_up_and_the_other_calls_are_ended() -> None:
    ended = []

    async def call(call: ProgramCall) -> ProgramAnswer:
        if call.name == "b":
            raise RuntimeError("lost the journal")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(call.name)
        raise AssertionError

    with pytest.raises(RuntimeError, match="lost the journal"):
        await run("await Promise.all([a({}), b({})])", call)
    assert ended == ["a"]
    assert mine() == []


async def test_cancelling_ends_the_process_and_the_calls() -> None:
    called = asyncio.Event()

    async def call(call: ProgramCall) -> ProgramAnswer:
        called.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(run("await a({})", call))
    await called.wait()
    assert len(mine()) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert mine() == []


async def test_a_process_that_is_killed_costs_the_program_and_nothing_else() -> None:
    programs = Programs(KEY)

    async def call(call: ProgramCall) -> ProgramAnswer:
        for pid in mine():
            os.kill(pid, signal.SIGKILL)
        return ProgramAnswer("x")

    outcome = await run("text('before'); await a({}); return 1", call, programs=programs)
    assert outcome == Failed("The engine that ran the program ended unexpectedly", "crashed", "before")
    assert await run("return 1", programs=programs) == Finished("1")
    assert mine() == []


async def test_no_more_processes_than_are_allowed() -> None:
    programs = Programs(KEY, processes=2, computing=1)
    most, calls, go_on = 0, 0, asyncio.Event()

    async def call(call: ProgramCall) -> ProgramAnswer:
        nonlocal most, calls
        calls += 1
        most = max(most, len(mine()))
        await go_on.wait()
        return ProgramAnswer("x")

    tasks = [asyncio.create_task(run("return await a({})", call, programs=programs)) for _ in range(5)]
    await until(lambda: calls == 2)
    go_on.set()
    assert await asyncio.gather(*tasks) == [Finished("x")] * 5
    assert most == 2


async def test_programs_that_wait_for_tools_do_not_keep_others_from_computing() -> None:
    programs = Programs(KEY, computing=1)
    go_on = asyncio.Event()

    async def call(call: ProgramCall) -> ProgramAnswer:
        await go_on.wait()
        return ProgramAnswer("x")

    task = asyncio.create_task(run("return await a({})", call, programs=programs))
    assert await run("return 1", programs=programs) == Finished("1")
    go_on.set()
    assert await task == Finished("x")


async def test_a_fingerprint_of_another_project_code_or_hand_is_refused() -> None:
    programs = Programs(KEY)
    made = programs.fingerprints.make("return 1", project="p", seed="s", time=0)
    other = Programs(bytes(32)).fingerprints.make("return 1", project="p", seed="s", time=0)
    elsewhere = programs.fingerprints.make("return 1", project="q", seed="s", time=0)
    assert await run("return 1", programs=programs, fingerprint=made) == Finished("1")
    for code, fingerprint in [("return 2", made), ("return 1", other), ("return 1", elsewhere), ("return 1", "x")]:
        with pytest.raises(InvalidRequest) as raised:
            await run(code, programs=programs, fingerprint=fingerprint)
        assert raised.value.code == "invalid_fingerprint"


async def test_a_program_of_another_engine_is_not_replayed() -> None:
    programs = Programs(KEY)
    fingerprint = programs.fingerprints.make("return 1", project="p", seed="s", time=0)
    programs.engine = "another"
    outcome = await run("return 1", programs=programs, fingerprint=fingerprint)
    assert isinstance(outcome, Failed)
    assert outcome.why == "engine_changed"
