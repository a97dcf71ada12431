"""Batches with the real client against a real server: every endpoint, every end, and a server that keeps dying."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from openai import APIConnectionError, BadRequestError, NotFoundError, OpenAI
from openai.types import Batch, Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from stateroom.agent.state import fold_run
from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.memory import MemoryBlobs
from stateroom.clock import SystemClock
from stateroom.journal.sqlite import open_sqlite
from stateroom.runtime.batches.state import Batch as BatchState
from stateroom.runtime.records import Records
from stateroom.testing.kill_points import KILL_AT
from stateroom.testing.process import ProcessFailed, ServerProcess
from stateroom.testing.script import ChatRequest, Reply
from tests.acceptance.hosted import PYTHON, SHELL, python, shell
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.test_webhooks import Receiver
from tests.acceptance.wire import RESPONSE

SECONDS = 60.0
ENDED = ("completed", "failed", "expired", "cancelled")
RESPONSES, CHAT, EMBEDDINGS, COMPLETIONS = (
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
)


class CountingHost(ModelHost):
    """Counts how often it was asked each thing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def _respond(self, request: ChatRequest) -> Reply:
        self.counts[request.messages[-1].text] += 1
        if request.messages[-1].role == "tool" and "stumble" in request.messages[0].text:
            return Reply(status=500, error={"message": "It stumbled over what came back.", "type": "server_error"})
        return super()._respond(request)


@pytest.fixture(scope="module")
def host() -> Iterator[CountingHost]:
    with CountingHost() as host:
        yield host


@pytest.fixture
def server(host: CountingHost, tmp_path: Path) -> Iterator[ServerProcess]:
    """One that a test may stop, on which three requests of batches go on at a time."""
    environment = {"STATEROOM_LIMITS__BATCH_CONCURRENCY": "3", "STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true"}
    module = "stateroom.testing.probe_server"
    process = ServerProcess(tmp_path / "data", backends=(host.url,), environment=environment, module=module)
    yield process
    if process.process is not None:
        process.kill()


def client_of(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=SECONDS)


def upload(client: OpenAI, data: bytes, purpose: Any = "batch") -> str:
    return client.files.create(file=("requests.jsonl", data), purpose=purpose).id


def lines(url: str, bodies: list[dict[str, Any]], name: str = "id") -> bytes:
    return b"\n".join(
        json.dumps({"custom_id": f"{name} {number}", "method": "POST", "url": url, "body": body}).encode()
        for number, body in enumerate(bodies)
    )


def asking(url: str, text: str, **more: Any) -> dict[str, Any]:
    named: dict[str, Any] = {
        RESPONSES: {"input": text},
        CHAT: {"messages": [{"role": "user", "content": text}]},
        EMBEDDINGS: {"input": text},
        COMPLETIONS: {"prompt": text},
    }[url]
    return {"model": "scripted", **named, **more}


def begin(client: OpenAI, url: Any, data: bytes, **more: Any) -> Batch:
    return client.batches.create(input_file_id=upload(client, data), endpoint=url, completion_window="24h", **more)


def ended(client: OpenAI, batch: Batch, seconds: float = SECONDS) -> Batch:
    """The batch, once it has ended. Every look at it is strictly of the client's shape."""

    def look() -> Batch | None:
        found = client.batches.retrieve(batch.id)
        Batch.model_validate(found.model_dump(), strict=True)
        return found if found.status in ENDED else None

    found: Batch = until(look, f"the end of {batch.id}", seconds)
    return found


def read(client: OpenAI, file_id: str | None) -> dict[str, Any]:
    """The lines of an output file by custom_id, each once."""
    if file_id is None:
        return {}
    found = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    assert all(set(line) == {"id", "custom_id", "response", "error"} for line in found)
    by_id = {line["custom_id"]: line for line in found}
    assert len(by_id) == len(found) == len({line["id"] for line in found})
    return by_id


def test_responses_are_answered_and_stored(client: OpenAI) -> None:
    data = lines(RESPONSES, [asking(RESPONSES, f"say: number {number}") for number in range(25)])
    batch = begin(client, RESPONSES, data, metadata={"for": "me"})
    assert (batch.status, batch.endpoint, batch.completion_window) == ("validating", RESPONSES, "24h")
    assert batch.expires_at == batch.created_at + 24 * 3_600
    batch = ended(client, batch)
    assert (batch.status, batch.model, batch.metadata) == ("completed", "scripted", {"for": "me"})
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (25, 25, 0)
    assert batch.error_file_id is None
    assert batch.errors is None
    output = read(client, batch.output_file_id)
    used = 0
    for number in range(25):
        answer = output[f"id {number}"]["response"]
        assert answer["status_code"] == 200
        assert answer["request_id"].startswith("req_")
        RESPONSE.validate_python(answer["body"])
        response = Response.model_validate(answer["body"])
        assert response.output_text == f"number {number}"
        assert client.responses.retrieve(response.id).output_text == response.output_text
        assert response.usage is not None
        used += response.usage.total_tokens
    assert batch.usage is not None
    assert batch.usage.total_tokens == used
    file = client.files.retrieve(batch.output_file_id or "")
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")


@pytest.mark.parametrize("endpoint", [CHAT, EMBEDDINGS, COMPLETIONS])
def test_the_other_endpoints_are_answered_as_they_are_over_http(client: OpenAI, endpoint: str) -> None:
    data = lines(endpoint, [asking(endpoint, f"say: number {number}") for number in range(5)])
    batch = ended(client, begin(client, endpoint, data))
    assert batch.status == "completed"
    output = read(client, batch.output_file_id)
    for number in range(5):
        body = output[f"id {number}"]["response"]["body"]
        if endpoint == CHAT:
            assert ChatCompletion.model_validate(body).choices[0].message.content == f"number {number}"
        elif endpoint == COMPLETIONS:
            assert Completion.model_validate(body).choices[0].text == f"number {number}"
        else:
            made = CreateEmbeddingResponse.model_validate(body)
            direct = client.embeddings.create(model="scripted", input=f"say: number {number}", encoding_format="float")
            assert made.data[0].embedding == direct.data[0].embedding
    assert batch.usage is not None
    assert batch.usage.total_tokens > 0


def test_stored_chat_completions_can_be_looked_up(client: OpenAI) -> None:
    batch = ended(client, begin(client, CHAT, lines(CHAT, [asking(CHAT, "say: kept", store=True)])))
    body = read(client, batch.output_file_id)["id 0"]["response"]["body"]
    assert client.chat.completions.retrieve(body["id"]).choices[0].message.content == "kept"


def test_what_was_not_to_be_stored_is_in_the_file_alone(client: OpenAI) -> None:
    batch = ended(client, begin(client, RESPONSES, lines(RESPONSES, [asking(RESPONSES, "say: gone", store=False)])))
    body = read(client, batch.output_file_id)["id 0"]["response"]["body"]
    with pytest.raises(NotFoundError):
        client.responses.retrieve(body["id"])


def test_what_fails_is_in_the_error_file_as_it_would_have_been_answered(client: OpenAI) -> None:
    bodies = [
        asking(RESPONSES, "say: fine"),
        {"model": "scripted", "input": 7},
        asking(RESPONSES, "fail: 400 not like this"),
        asking(RESPONSES, "say: x", stream=True),
        asking(RESPONSES, "say: x", background=True),
        asking(RESPONSES, "say: x", previous_response_id="resp_none"),
        asking(RESPONSES, "say: x", temperature=9),
    ]
    batch = ended(client, begin(client, RESPONSES, lines(RESPONSES, bodies)))
    assert batch.status == "completed"
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (7, 1, 6)
    assert list(read(client, batch.output_file_id)) == ["id 0"]
    errors = read(client, batch.error_file_id)
    assert sorted(errors) == [f"id {number}" for number in range(1, 7)]
    for number in range(1, 7):
        line = errors[f"id {number}"]
        assert line["error"] is None
        assert line["response"]["status_code"] == 400
        assert set(line["response"]["body"]["error"]) == {"message", "type", "param", "code"}
        if number not in (3, 4):
            with pytest.raises(BadRequestError) as caught:
                client.post("/responses", body=bodies[number], cast_to=Response)
            assert caught.value.body == line["response"]["body"]["error"]
    assert [errors[f"id {number}"]["response"]["body"]["error"]["param"] for number in (3, 4)] == [
        "stream",
        "background",
    ]


def test_a_file_with_mistakes_fails_the_batch_and_says_where(client: OpenAI) -> None:
    data = lines(RESPONSES, [asking(RESPONSES, "say: x")]) + b"\n" + lines(CHAT, [asking(CHAT, "x")]) + b"\nnot json\n"
    batch = ended(client, begin(client, RESPONSES, data))
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert [(error.line, error.code, error.param) for error in batch.errors.data or ()] == [
        (2, "invalid_url", "url"),
        (3, "invalid_json_line", None),
    ]
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_what_cannot_be_a_batch_is_refused(client: OpenAI) -> None:
    good = upload(client, lines(RESPONSES, [asking(RESPONSES, "x")]))
    other = upload(client, b"text", purpose="user_data")
    made: dict[str, Any] = {"input_file_id": good, "endpoint": RESPONSES, "completion_window": "24h"}
    for change, code, param in (
        ({"input_file_id": other}, "invalid_file_purpose", "input_file_id"),
        ({"endpoint": "/v1/moderations"}, "invalid_value", "endpoint"),
        ({"completion_window": "1h"}, "invalid_value", "completion_window"),
        ({"metadata": {"k": "v" * 513}}, "string_above_max_length", None),
    ):
        with pytest.raises(BadRequestError) as caught:
            client.batches.create(**{**made, **change})
        assert caught.value.code == code
        if param:
            assert caught.value.param == param
    with pytest.raises(NotFoundError):
        client.batches.create(**{**made, "input_file_id": "file-none"})
    with pytest.raises(NotFoundError):
        client.batches.retrieve("batch_none")
    with pytest.raises(NotFoundError):
        client.batches.cancel("batch_none")


def test_a_batch_is_made_once_under_its_key(client: OpenAI) -> None:
    file_id = upload(client, lines(RESPONSES, [asking(RESPONSES, "say: once")]))
    first, second = (
        client.batches.create(
            input_file_id=file_id,
            endpoint=RESPONSES,
            completion_window="24h",
            extra_headers={"Idempotency-Key": file_id},
        )
        for _ in range(2)
    )
    assert first.id == second.id


def test_files_go_when_they_were_asked_to(client: OpenAI) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": 3_600}
    data = lines(RESPONSES, [asking(RESPONSES, "say: x"), {"model": "scripted"}])
    batch = ended(client, begin(client, RESPONSES, data, output_expires_after=expiry))
    for file_id in (batch.output_file_id, batch.error_file_id):
        file = client.files.retrieve(file_id or "")
        assert file.expires_at == file.created_at + 3_600


def test_batches_are_listed_newest_first(server: ServerProcess) -> None:
    client = client_of(server.start())
    made = [begin(client, RESPONSES, lines(RESPONSES, [asking(RESPONSES, "say: x")])) for _ in range(5)]
    wanted = [batch.id for batch in reversed(made)]
    assert [batch.id for batch in client.batches.list(limit=2)] == wanted  # it fetches the pages by itself
    page = client.batches.list(limit=2, after=wanted[1])
    assert [batch.id for batch in page.data] == wanted[2:4]
    assert page.has_more
    for batch in made:
        ended(client, batch)


def test_a_cancelled_batch_keeps_what_is_finished(server: ServerProcess, host: CountingHost) -> None:
    client = client_of(server.start())
    texts = [f"say: cancel{number}" + ("\nslow: 2000" if number > 3 else "") for number in range(30)]
    batch = begin(client, RESPONSES, lines(RESPONSES, [asking(RESPONSES, text) for text in texts]))
    until(lambda: sum(host.counts[text] for text in texts) == 7, "three wait for their answers")
    cancelled = client.batches.cancel(batch.id)
    assert (cancelled.status, cancelled.cancelling_at is not None) == ("cancelling", True)
    batch = ended(client, batch)
    counts = batch.request_counts
    assert counts is not None
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("cancelled", 30, 7, 0)
    assert set(read(client, batch.output_file_id)) == {f"id {number}" for number in range(7)}
    assert client.batches.cancel(batch.id).status == "cancelled"
    done = ended(client, begin(client, RESPONSES, lines(RESPONSES, [asking(RESPONSES, "say: x")])))
    with pytest.raises(BadRequestError) as caught:
        client.batches.cancel(done.id)
    assert caught.value.code == "batch_not_cancellable"


def test_the_end_of_a_batch_is_told(server: ServerProcess) -> None:
    client = client_of(server.start())
    receiver = Receiver()
    try:
        endpoint = client.webhooks.create(name="n", url=receiver.url, event_types=["batch.completed", "batch.failed"])
        batch = ended(client, begin(client, RESPONSES, lines(RESPONSES, [asking(RESPONSES, "say: x")])))
        ((headers, body),) = receiver.wait(1)
        event: Any = client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)
        assert (event.type, event.data.id) == ("batch.completed", batch.id)
        ended(client, failed := begin(client, RESPONSES, b"{"))
        receiver.wait(2)
        assert failed.id.encode() in receiver.heard[1][1]
    finally:
        receiver.close()


def test_somebody_who_waits_is_answered_while_a_batch_goes_on(server: ServerProcess, host: CountingHost) -> None:
    client = client_of(server.start())
    bodies = [asking(RESPONSES, f"say: {number}\nslow: 20") for number in range(150)]
    batch = begin(client, RESPONSES, lines(RESPONSES, bodies, "slow"))
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 3, "some are answered")  # type: ignore[union-attr]
    for _ in range(5):
        assert client.responses.create(model="scripted", input="say: at once").output_text == "at once"
    assert client.batches.retrieve(batch.id).status == "in_progress"
    assert ended(client, batch).status == "completed"


def test_a_server_that_stops_leaves_the_rest_for_the_next_start(server: ServerProcess, host: CountingHost) -> None:
    client = client_of(server.start())
    texts = [f"say: stop {number}\nslow: 10" for number in range(60)]
    batch = begin(client, RESPONSES, lines(RESPONSES, [asking(RESPONSES, text) for text in texts]))
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 10, "some are answered")  # type: ignore[union-attr]
    assert server.terminate() == 0
    asked = {text for text in texts if host.counts[text]}
    assert 10 < len(asked) < 60
    batch = ended(client_of(server.start()), batch)
    assert batch.status == "completed"
    assert {host.counts[text] for text in texts} == {1}
    assert len(read(client_of(server), batch.output_file_id)) == 60


async def written_down(data: Path, batch_id: str) -> tuple[set[str], set[str]]:
    """Of a server that is dead: the custom_ids whose answers are noted, and the texts whose runs have ended."""
    journal = open_sqlite(data / "journal.db", durability="normal", clock=SystemClock())
    try:
        blobs = MemoryBlobs()
        records = Records(journal, journal, blobs, HeldBlobs(blobs), SystemClock())
        notes = await records.collection("batch", BatchState).notes("default", batch_id)
        noted = {outcome["written"]["custom_id"] for note in notes for outcome in msgspec.json.decode(note)["outcomes"]}
        texts = set()
        for surface in ("responses", "chat"):
            for row in await journal.runs("default", surface=surface, limit=10_000):
                state = fold_run(await journal.read("default", row.branch, run=row.start))
                if state is not None and row.end >= 0:
                    content = state.started.input[0]["content"]
                    texts.add(content if isinstance(content, str) else content[0]["text"])
        return noted, texts
    finally:
        await journal.close()


@pytest.mark.parametrize(
    ("endpoint", "more"), [(RESPONSES, {}), (RESPONSES, {"store": False}), (CHAT, {"store": True})]
)
def test_whenever_it_is_killed_nothing_that_is_finished_is_asked_again(
    server: ServerProcess, host: CountingHost, endpoint: str, more: dict[str, Any]
) -> None:
    stored = more.get("store", endpoint == RESPONSES)
    tag = f"{endpoint} {more}"
    texts = [f"say: {number} of {tag}" for number in range(24)]
    server.start()
    with client_of(server) as client:
        batch = begin(client, endpoint, lines(endpoint, [asking(endpoint, text, **more) for text in texts]))
    server.kill()
    frozen: dict[str, int] = {}
    kills, few = 1, 6 if stored else 1  # what is stored takes more commits
    for life in range(16):
        point = f"{('before', 'after')[life % 2]}_commit:{few + life % 7}"
        server.spawn(environment={KILL_AT: point})
        found = batch
        with suppress(ProcessFailed, APIConnectionError):
            server.wait_ready()
            with client_of(server) as client:
                while found.status not in ENDED:
                    found = client.batches.retrieve(batch.id)
                    time.sleep(0.01)
        if found.status in ENDED and server.status is None:
            break
        assert server.wait() == -9
        kills += 1
        noted, ran = asyncio.run(written_down(server.data, batch.id))
        for text, count in frozen.items():
            assert host.counts[text] == count, f"{text} was finished, and asked again"
        finished = {texts[int(name.removeprefix("id "))] for name in noted} | (ran & set(texts))
        frozen = {text: host.counts[text] for text in finished}
    assert kills > 2  # how many there is room for depends on what is committed together
    server.kill()
    server.start()
    for text, count in frozen.items():
        assert host.counts[text] == count
    with client_of(server) as client:
        found = ended(client, batch)
        assert found.status == "completed"
        output = read(client, found.output_file_id)
        assert set(output) == {f"id {number}" for number in range(24)}
        for number, text in enumerate(texts):
            body = output[f"id {number}"]["response"]["body"]
            said = (
                body["output"][0]["content"][0]["text"]
                if endpoint == RESPONSES
                else body["choices"][0]["message"]["content"]
            )
            assert said == text.removeprefix("say: ")
        assert {file.purpose for file in client.files.list()} == {"batch", "batch_output"}
        assert len(list(client.files.list())) == 2
        if endpoint == RESPONSES and stored:
            assert len(httpx.get(f"{server.url}/responses?limit=100").json()["data"]) == 24


def test_a_batch_waits_for_a_model_server_that_is_away(server: ServerProcess) -> None:
    with ModelHost() as away:
        url = away.url
    lonely = ServerProcess(server.data.with_name("lonely"), backends=(url,))
    with lonely.start(), client_of(lonely) as client:
        batch = begin(client, RESPONSES, lines(RESPONSES, [asking(RESPONSES, "say: x") for _ in range(3)]))
        until(lambda: client.batches.retrieve(batch.id).status == "in_progress", "it is begun")
        time.sleep(1.5)  # two tries
        found = client.batches.retrieve(batch.id)
        assert found.request_counts is not None
        assert (found.status, found.request_counts.failed) == ("in_progress", 0)
        client.batches.cancel(batch.id)
        assert ended(client, batch).status == "cancelled"
        assert httpx.get(f"{lonely.url}/responses").json()["data"] == []  # nothing is left of the tries


def test_large_batches_take_little_memory(server: ServerProcess) -> None:
    client = client_of(server.start())
    text = "x" * 20_000
    data = lines(COMPLETIONS, [asking(COMPLETIONS, f"say: {number} {text}") for number in range(800)])
    assert len(data) > 16_000_000
    file_id = upload(client, data)
    before = memory_of(server)
    batch = client.batches.create(input_file_id=file_id, endpoint=COMPLETIONS, completion_window="24h")
    batch = ended(client, batch)
    assert batch.status == "completed"
    assert client.files.retrieve(batch.output_file_id or "").bytes > 16_000_000
    assert memory_of(server) - before < 12_000


def memory_of(server: ServerProcess) -> int:
    """The most memory that it ever had, in kilobytes."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def of_container(client: OpenAI) -> tuple[str, dict[str, Any]]:
    """A container, and the shell in it."""
    made = client.containers.create(name="of a batch")
    return made.id, {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}


def times(client: OpenAI, tool: Any) -> str:
    """What stands in the file into which every command of a test writes a line."""
    answer: Any = client.responses.create(model="scripted", input=shell("cat times"), tools=[tool])
    stdout: str = answer.output[1].output[0].stdout
    return stdout


def test_hosted_tools_work_in_the_requests_of_a_batch(client: OpenAI) -> None:
    first: Any = client.responses.create(model="scripted", input=shell("echo before > f"), tools=[SHELL])
    more: dict[str, Any] = {"tools": [SHELL, PYTHON], "include": ["code_interpreter_call.outputs"]}
    words = "\n".join([shell("echo one > f; cat f; ls"), python("6 * 7")])
    bodies = [
        asking(RESPONSES, words, **more),
        asking(RESPONSES, words, store=False, **more),
        asking(RESPONSES, shell("cat f"), previous_response_id=first.id, **more),
        asking(RESPONSES, shell("cat f"), tools=[{**SHELL, "environment": {"type": "nonsense"}}]),
    ]
    batch = ended(client, begin(client, RESPONSES, lines(RESPONSES, bodies)))
    assert batch.status == "completed"
    output = read(client, batch.output_file_id)
    answers = [Response.model_validate(output[f"id {number}"]["response"]["body"]) for number in range(3)]
    for answer in answers[:2]:
        call: Any = answer.output[1]
        assert call.output[0].stdout == "one\nf\n"
        cell: Any = answer.output[2]
        assert cell.outputs[0].logs == "42"
    third: Any = answers[2].output[1]
    assert third.output[0].stdout == "before\n"
    assert read(client, batch.error_file_id)["id 3"]["response"]["status_code"] == 400
    found: Any = client.responses.retrieve(answers[0].id)
    later: Any = client.responses.create(
        model="scripted", input=shell("cat f"), tools=[SHELL], previous_response_id=found.id
    )
    assert later.output[1].output[0].stdout == "one\n"


@pytest.mark.parametrize("store", [True, False])
def test_no_command_of_a_batch_is_carried_out_again_when_the_server_was_killed_in_it(
    server: ServerProcess, store: bool
) -> None:
    server.start()
    with client_of(server) as client:
        container_id, tool = of_container(client)
        words = shell("echo x >> times; while [ ! -e go ]; do sleep 0.02; done; echo over", timeout_ms=60_000)
        body = asking(RESPONSES, words, tools=[tool], store=store)
        batch = begin(client, RESPONSES, lines(RESPONSES, [body, asking(RESPONSES, "say: fine", store=store)]))
        folder = server.data / "workspaces" / "live" / container_id / "files"
        until(lambda: (folder / "times").exists(), "the command has begun")
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed == 1, "the other one is answered")  # type: ignore[union-attr]  # a batch has them
    server.kill()
    server.start()
    with client_of(server) as client:
        client.containers.files.create(container_id, file=("go", b""))
        batch = ended(client, batch)
        assert batch.status == "completed"
        assert times(client, tool) == "x\n"
        if store:
            answer = Response.model_validate(read(client, batch.output_file_id)["id 0"]["response"]["body"])
            told: Any = answer.output[1]
            assert (told.status, "unknown" in told.output[0].stderr) == ("incomplete", True)
        else:
            refused = read(client, batch.error_file_id)["id 0"]["response"]
            assert (refused["status_code"], refused["body"]["error"]["code"]) == (500, "outcome_unknown")


@pytest.mark.parametrize("store", [True, False])
def test_no_command_of_a_batch_is_carried_out_again_when_the_model_fails_after_it(
    server: ServerProcess, store: bool
) -> None:
    client = client_of(server.start())
    _, tool = of_container(client)
    words = shell("echo x >> times") + "\nstumble"
    batch = begin(client, RESPONSES, lines(RESPONSES, [asking(RESPONSES, words, tools=[tool], store=store)]))
    batch = ended(client, batch)
    assert times(client, tool) == "x\n"
    refused = read(client, batch.error_file_id)["id 0"]["response"]
    assert refused["status_code"] >= 500
