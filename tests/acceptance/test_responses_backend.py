"""A Responses server as the model server: a chain of two Staterooms, and a server that seals its reasoning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from stateroom.models.dialects import ProbedBackend
from stateroom.models.responses import ResponsesBackend
from stateroom.settings import BackendSettings
from stateroom.testing import backend_conformance
from stateroom.testing.process import ModelProcess, ServerProcess
from stateroom.testing.script_dialect import Quirks
from tests.acceptance.modelhost import ModelHost, Seen

LOOK: Any = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": False}
SEALED: Any = ["reasoning.encrypted_content"]


def over_responses(folder: Path, name: str, url: str) -> ServerProcess:
    """A server whose backend is asked in Responses."""
    file = folder / f"{name}.toml"
    file.write_text(f'[[backends]]\nurl = "{url}"\nname = "{name}"\ndialect = "responses"\n')
    return ServerProcess(folder / name, options=("--config", str(file)))


@pytest.fixture(scope="module")
def chain(stateroom_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A Stateroom over the Stateroom that all tests share."""
    with over_responses(tmp_path_factory.mktemp("chain"), "inner", stateroom_server.url) as process:
        yield process


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A Stateroom whose model says more than the fewest tokens that one may ask for."""
    folder = tmp_path_factory.mktemp("talkative")
    with (
        ModelProcess("--chunks", "50", log=folder / "model.log") as model,
        ServerProcess(folder / "data", backends=(model.url,)) as process,
    ):
        yield process


@pytest.fixture(scope="module")
def sealing_host() -> Iterator[ModelHost]:
    """A model server that seals its reasoning, and refuses every history that is not complete."""
    with ModelHost(quirks=Quirks(hidden_reasoning=True)) as host:
        yield host


@pytest.fixture(scope="module")
def sealing(sealing_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with over_responses(tmp_path_factory.mktemp("sealing"), "cloud", sealing_host.url) as process:
        yield process


@pytest.fixture
def client_of() -> Iterator[Callable[[ServerProcess], OpenAI]]:
    clients: list[OpenAI] = []

    def make(process: ServerProcess) -> OpenAI:
        clients.append(OpenAI(base_url=process.url, api_key="unused", max_retries=0, timeout=30))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


ClientOf = Callable[[ServerProcess], OpenAI]


def asked(host: ModelHost, count: int) -> list[dict[str, Any]]:
    """The bodies of the last requests to a model server for a response."""
    bodies = [request.json() for request in host.script.requests if request.path.endswith("/responses")]
    return bodies[-count:]


@pytest.mark.parametrize("case", backend_conformance.CASES, ids=lambda case: case.__name__)
async def test_a_real_server_behind_the_dialect_keeps_the_promises_of_the_seam(
    case: backend_conformance.Case, talkative: ServerProcess
) -> None:
    backend = ResponsesBackend(BackendSettings(talkative.url))
    try:
        await case(backend, "scripted")
    finally:
        await backend.close()


async def test_a_real_server_is_found_out_to_speak_responses(url: str) -> None:
    backend = ProbedBackend(BackendSettings(url, dialect="auto"))
    assert "scripted" in [model.id for model in await backend.models()]
    assert (backend.known, backend.dialect) == (True, "responses")
    await backend.close()


def test_a_chain_of_two_servers_runs_a_loop_of_function_calls(chain: ServerProcess, client_of: ClientOf) -> None:
    client = client_of(chain)
    first = client.responses.create(model="scripted", input="call: look\ncall: look\nsay: seen twice", tools=[LOOK])
    turns = 0
    answer = first
    while calls := [item for item in answer.output if item.type == "function_call"]:
        turns += 1
        outputs: Any = [
            {"type": "function_call_output", "call_id": call.call_id, "output": f"sight {turns}"} for call in calls
        ]
        answer = client.responses.create(model="scripted", input=outputs, previous_response_id=answer.id, tools=[LOOK])
    assert turns == 2
    assert answer.output_text == "seen twice"
    assert answer.usage is not None
    assert answer.usage.input_tokens > 0


def test_a_streamed_turn_with_reasoning_goes_through_two_servers(
    chain: ServerProcess, client_of: ClientOf, seen: Seen
) -> None:
    client = client_of(chain)
    with client.responses.stream(
        model="scripted", input="reason: first this then that\ncall: look", tools=[LOOK], include=SEALED
    ) as stream:
        events = list(stream)
        first = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == "first this then that"
    assert len(deltas) > 1
    assert [event.sequence_number for event in events] == list(range(len(events)))  # type: ignore[attr-defined]  # every event of a stream has one
    thought: Any = first.output[0]
    assert [part.text for part in thought.content] == ["first this then that"]
    call: Any = first.output[1]
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "x"}
    client.responses.create(model="scripted", input=[output], previous_response_id=first.id, tools=[LOOK])
    assert [message.get("reasoning_content") for message in seen.messages if message["role"] == "assistant"] == [
        "first this then that"
    ]


def test_both_servers_keep_nothing_of_what_the_caller_does_not_want_kept(
    chain: ServerProcess, client_of: ClientOf, stateroom_server: ServerProcess
) -> None:
    inner, outer = client_of(stateroom_server), client_of(chain)
    before = len(list(inner.get("/responses?limit=100", cast_to=dict[str, Any])["data"]))
    stored = outer.responses.create(model="scripted", input="say: kept outside")
    assert outer.responses.retrieve(stored.id).output_text == "kept outside"
    assert len(list(inner.get("/responses?limit=100", cast_to=dict[str, Any])["data"])) == before


def test_sealed_reasoning_goes_back_to_its_server_as_it_came(
    sealing: ServerProcess, sealing_host: ModelHost, client_of: ClientOf
) -> None:
    client = client_of(sealing)
    first = client.responses.create(
        model="scripted", input="reason: secret\nsummarise: I thought.\ncall: look", tools=[LOOK], include=SEALED
    )
    thought: Any = first.output[0]
    assert [part.text for part in thought.summary] == ["I thought."]
    assert thought.encrypted_content.startswith("sr1.")
    assert not hasattr(thought, "upstream")
    call: Any = first.output[1]
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "x"}
    client.responses.create(model="scripted", input=[output], previous_response_id=first.id, tools=[LOOK])
    (body,) = asked(sealing_host, 1)
    sent = body["input"][1]
    assert sent["id"].startswith("rs_")
    assert sent["id"] != thought.id
    assert sent["summary"] == [{"type": "summary_text", "text": "I thought."}]
    assert sent["encrypted_content"].startswith("sealed.")
    assert body["store"] is False


def test_sealed_reasoning_survives_a_client_that_carries_it(
    sealing: ServerProcess, sealing_host: ModelHost, client_of: ClientOf
) -> None:
    client = client_of(sealing)
    said: list[Any] = [{"role": "user", "content": "reason: secret\ncall: look\nsay: done"}]
    first = client.responses.create(model="scripted", input=said, tools=[LOOK], store=False, include=SEALED)
    said += [item.model_dump(exclude_none=True) for item in first.output]
    call: Any = first.output[1]
    said.append({"type": "function_call_output", "call_id": call.call_id, "output": "x"})
    second = client.responses.create(model="scripted", input=said, tools=[LOOK], store=False, include=SEALED)
    assert second.output_text == "done"
    (body,) = asked(sealing_host, 1)
    kinds = [item.get("type") or item["role"] for item in body["input"]]
    assert kinds == ["user", "reasoning", "function_call", "function_call_output"]
    assert body["input"][1]["encrypted_content"].startswith("sealed.")


def test_summaries_of_reasoning_are_streamed_as_they_come(sealing: ServerProcess, client_of: ClientOf) -> None:
    client = client_of(sealing)
    events = list(client.responses.create(model="scripted", input="summarise: one two three\nsay: x", stream=True))
    types = [event.type for event in events]
    begin = types.index("response.reasoning_summary_part.added")
    assert types[begin : begin + 6] == [
        "response.reasoning_summary_part.added",
        *["response.reasoning_summary_text.delta"] * 3,
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
    ]


def test_reasoning_that_was_never_sealed_here_does_not_stop_a_conversation(
    sealing: ServerProcess, sealing_host: ModelHost, client_of: ClientOf
) -> None:
    client = client_of(sealing)
    foreign: Any = {"type": "reasoning", "id": "rs_x", "summary": [], "encrypted_content": "gAAAfromElsewhere"}
    said: Any = [{"role": "user", "content": "hi"}, foreign, {"role": "assistant", "content": "hello"}]
    answer = client.responses.create(model="scripted", input=[*said, {"role": "user", "content": "say: fine"}])
    assert answer.output_text == "fine"
    refused, taken = asked(sealing_host, 2)
    assert "reasoning" in [item.get("type") for item in refused["input"]]
    assert "reasoning" not in [item.get("type") for item in taken["input"]]
