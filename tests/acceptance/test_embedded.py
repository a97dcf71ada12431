"""The embedded model, for real: weights that came through pip, a process that is killed, a grammar put to use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema_rs
import msgspec
import pytest
import pytest_asyncio

from stateroom.errors import BackendFailed, BackendRejected, BackendUnavailable, InvalidRequest
from stateroom.models.backend import ContextItem, Finished, FunctionSpec, TextDelta
from stateroom.models.embedded import DESCRIPTION, MODEL, EmbeddedBackend, probe
from stateroom.settings import EmbeddedSettings
from stateroom.testing import backend_conformance
from stateroom.testing.backend_conformance import calls_of, collect, make_call, text_of, user

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("embedded"),
]

SETTINGS = EmbeddedSettings(context_tokens=1024)
STORY = "Write a short story about a dog who finds a key."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[EmbeddedBackend]:
    """One engine for all tests; those that kill it leave it to come back."""
    backend = EmbeddedBackend(SETTINGS)
    async with asyncio.timeout(300):
        await backend.ready()
    yield backend
    await backend.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return True


def what_everybody_sees_of(pid: int) -> bytes:
    """The command line and environment of a process, where the system shows them."""
    return b"".join(
        path.read_bytes() for path in map(Path, (f"/proc/{pid}/cmdline", f"/proc/{pid}/environ")) if path.exists()
    )


@pytest.mark.parametrize("case", backend_conformance.CASES, ids=lambda case: case.__name__)
async def test_the_engine_keeps_the_promises_of_the_seam(
    engine: EmbeddedBackend, case: backend_conformance.Case
) -> None:
    await case(engine, MODEL)


async def test_it_says_what_it_is(engine: EmbeddedBackend) -> None:
    (model,) = await engine.models()
    assert (model.id, model.context_tokens, model.description) == (MODEL, 1024, DESCRIPTION)
    assert model.temperature == 0.0
    assert "smoke-test" in model.description


async def test_the_model_is_in_another_process(engine: EmbeddedBackend) -> None:
    started = await engine.ready()
    assert started.pid != os.getpid()
    assert "xllamacpp" not in sys.modules


async def test_it_answers_a_plain_question(engine: EmbeddedBackend) -> None:
    call = make_call(MODEL, user("What is the capital of France?"), max_output_tokens=12)
    assert "Paris" in text_of(await collect(engine, call))


async def test_an_answer_comes_in_pieces(engine: EmbeddedBackend) -> None:
    deltas = await collect(engine, make_call(MODEL, user(STORY), max_output_tokens=8))
    assert sum(isinstance(delta, TextDelta) for delta in deltas) > 3


async def test_tokens_are_counted_as_the_engine_counts_them(engine: EmbeddedBackend) -> None:
    call = make_call(MODEL, user("Hello there."), max_output_tokens=1)
    counted, exact = await engine.count_tokens(call)
    finished = (await collect(engine, call))[-1]
    assert isinstance(finished, Finished)
    assert finished.usage is not None
    assert exact
    assert counted == finished.usage.input


async def test_a_conversation_costs_what_is_new_though_others_are_between_its_turns(engine: EmbeddedBackend) -> None:
    calls = [make_call(MODEL, user(f"{name} " * 40), max_output_tokens=1) for name in ("red", "green", "blue")]
    for turn in range(2):
        for call in calls:
            deltas = await collect(engine, call)
            finished = deltas[-1]
            assert isinstance(finished, Finished)
            assert finished.usage is not None
            if turn:
                assert finished.usage.input - finished.usage.cached < 25
            answer = ContextItem(f"a{turn}", {"role": "assistant", "content": text_of(deltas)})
            call.items = [*call.items, answer, ContextItem(f"u{turn}", user("Go on."))]


async def test_an_answer_goes_on_seamlessly_after_its_engine_was_killed(engine: EmbeddedBackend) -> None:
    options = {"max_output_tokens": 24, "temperature": 0.0}
    whole = text_of(await collect(engine, make_call(MODEL, user(STORY), **options)))
    said: list[str] = []

    async def until_it_dies() -> None:
        async for batch in engine.generate(make_call(MODEL, user(STORY), **options)):
            said.extend(delta.text for delta in batch if isinstance(delta, TextDelta))
            if len(said) >= 6:
                os.kill((await engine.ready()).pid, signal.SIGKILL)

    with pytest.raises(BackendFailed) as failed:
        await until_it_dies()
    assert failed.value.code == "engine_died"
    begun = "".join(said)
    assert whole.startswith(begun)
    assert begun != whole
    rest = make_call(MODEL, user(STORY), prefill=begun, temperature=0.0, max_output_tokens=24 - len(said))
    assert begun + text_of(await collect(engine, rest)) == whole


async def test_a_request_that_had_no_answer_yet_is_asked_again_of_the_new_process(engine: EmbeddedBackend) -> None:
    before = await engine.ready()
    os.kill(before.pid, signal.SIGKILL)
    assert text_of(await collect(engine, make_call(MODEL, user("Say hello."), max_output_tokens=2)))
    after = await engine.ready()
    assert after.pid != before.pid
    assert after.key != before.key


async def test_nobody_else_on_the_machine_can_use_it(engine: EmbeddedBackend) -> None:
    started = await engine.ready()

    def status(path: str, key: str) -> int:
        request = urllib.request.Request(started.url + path, headers={"authorization": f"Bearer {key}"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert await asyncio.to_thread(status, "/models", started.key) == 200
    assert await asyncio.to_thread(status, "/models", "guess") == 401
    assert await asyncio.to_thread(status, "/../slots", "guess") in (401, 404)
    assert started.key.encode() not in what_everybody_sees_of(started.pid)


async def test_the_arguments_of_a_forced_call_fit_its_schema(engine: EmbeddedBackend) -> None:
    parameters = {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "date": {"$ref": "#/$defs/day"},
            "guests": {"type": "array", "items": {"type": "string", "pattern": "^[A-Z][a-z]+$"}, "maxItems": 2},
            "kind": {"anyOf": [{"enum": ["meeting", "party"]}, {"type": "null"}]},
            "hours": {"type": "integer", "minimum": 1, "maximum": 8},
        },
        "required": ["title", "date", "guests", "kind", "hours"],
        "additionalProperties": False,
        "$defs": {"day": {"type": "string", "format": "date"}},
    }
    book = FunctionSpec("book", "Put something into the calendar.", parameters, strict=True)
    other = FunctionSpec("forget", "Forget everything.", None)
    question = user("Book a two hour meeting called Plan with Ann on the 5th of May 2031.")
    call = make_call(MODEL, question, functions=(other, book), tool_choice=("book",), max_output_tokens=250)
    ((_, name, arguments),) = calls_of(await collect(engine, call))
    assert name == "book"
    jsonschema_rs.validate(parameters, msgspec.json.decode(arguments), validate_formats=True)


async def test_a_result_of_a_tool_is_read(engine: EmbeddedBackend) -> None:
    call = make_call(
        MODEL,
        user("What is the weather in Oslo?"),
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city":"Oslo"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "It is raining in Oslo."},
        max_output_tokens=24,
    )
    assert "rain" in text_of(await collect(engine, call))


async def test_an_endless_format_is_given_an_end(engine: EmbeddedBackend) -> None:
    schema = {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"enum": ["a"]}}},
        "required": ["tags"],
    }
    format = {"type": "json_schema", "name": "tags", "schema": schema}
    call = make_call(MODEL, user("Repeat a for ever."), format=format, max_output_tokens=200)
    jsonschema_rs.validate(schema, msgspec.json.decode(text_of(await collect(engine, call))))


async def test_a_schema_that_nothing_fulfils_does_not_reach_the_engine(engine: EmbeddedBackend) -> None:
    """The engine would take all memory over it."""
    schema = {"type": "object", "properties": {"v": {"minLength": 5, "maxLength": 3}}, "required": ["v"]}
    with pytest.raises(InvalidRequest) as refused:
        await collect(
            engine, make_call(MODEL, user("v?"), format={"type": "json_schema", "name": "v", "schema": schema})
        )
    assert refused.value.code == "schema_unsupported"


async def test_images_are_refused(engine: EmbeddedBackend) -> None:
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    for item in (
        {"role": "user", "content": [{"type": "input_text", "text": "What is this?"}, picture]},
        {"type": "function_call_output", "call_id": "call_1", "output": [picture]},
    ):
        with pytest.raises(InvalidRequest) as refused:
            await collect(engine, make_call(MODEL, item))
        assert (refused.value.code, refused.value.status) == ("image_not_supported", 400)


async def test_a_context_that_is_too_long_is_refused(engine: EmbeddedBackend) -> None:
    with pytest.raises(BackendRejected) as refused:
        await collect(engine, make_call(MODEL, user("word " * 1100)))
    assert (refused.value.code, refused.value.status) == ("context_length_exceeded", 400)


async def test_a_probe_tells_how_the_engine_does() -> None:
    report = await probe(EmbeddedSettings(context_tokens=256, slots=1))
    assert report.model == MODEL
    assert report.weights.is_file()
    assert 0 < report.load_seconds < report.start_seconds < 60
    assert report.first_token_seconds > 0
    assert report.input_tokens > 5
    assert report.resident_mib is None or 100 < report.resident_mib < 600


async def test_an_engine_that_was_closed_is_gone_and_says_so() -> None:
    backend = EmbeddedBackend(EmbeddedSettings(context_tokens=256, slots=1))
    started = await backend.ready()
    await backend.close()
    assert not is_alive(started.pid)
    with pytest.raises(BackendUnavailable) as refused:
        await collect(backend, make_call(MODEL, user("Hello.")))
    assert refused.value.code == "engine_closed"


async def test_its_start_is_told() -> None:
    told: list[str] = []
    backend = EmbeddedBackend(EmbeddedSettings(context_tokens=256, slots=1), progress=told.append)
    await backend.ready()
    await asyncio.sleep(0)
    await backend.close()
    assert told[-1].startswith("The embedded model is ready")


async def test_weights_that_are_no_weights_are_a_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    backend = EmbeddedBackend(EmbeddedSettings(cache_dir=str(blocked)))
    with pytest.raises(BackendUnavailable) as failed:
        await collect(backend, make_call(MODEL, user("Hello.")))
    assert failed.value.code == "weights_unavailable"
    assert "--backend" in failed.value.message
    await backend.close()


PARENT = """
import asyncio
from stateroom.models.embedded import EmbeddedBackend
from stateroom.settings import EmbeddedSettings

async def main():
    backend = EmbeddedBackend(EmbeddedSettings(context_tokens=256, slots=1))
    print((await backend.ready()).pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def child_after_its_parent_was_killed() -> tuple[bool, bool]:
    """Whether the engine lived before, and within ten seconds after, its parent was killed."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        before = is_alive(child)
        parent.kill()
        deadline = time.monotonic() + 10
        while is_alive(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        return before, is_alive(child)


async def test_the_child_dies_with_its_parent() -> None:
    assert await asyncio.to_thread(child_after_its_parent_was_killed) == (True, False)
