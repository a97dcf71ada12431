"""Embeddings and the list of models through the real `openai` SDK: from a server, a backend, the embedded model."""

from __future__ import annotations

import base64
import math
import os
import signal
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import CreateEmbeddingResponse, Model

from stateroom.testing.process import ServerProcess
from stateroom.testing.script_dialect import Quirks
from stateroom.testing.script_embeddings import SIZE, vector
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.wire import get, post, send

CATS, MORE, MARKETS = "The cat sits on the mat.", "A cat is on the mat.", "Interest rates rose again."


@pytest.fixture(scope="module")
def embedding_host() -> Iterator[ModelHost]:
    with ModelHost(models=("vendor/embed-1", "embed-2")) as host:
        yield host


@pytest.fixture(scope="module")
def server(
    embedding_host: ModelHost, model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """With a server for embeddings beside the backend that chats."""
    environment = {
        "STATEROOM_EMBEDDINGS__URL": embedding_host.url,
        "STATEROOM_LIMITS__EMBEDDING_INPUTS": "300",
        "STATEROOM_LIMITS__EMBEDDING_INPUT_BYTES": "400",
    }
    data = tmp_path_factory.mktemp("embeddings") / "data"
    with ServerProcess(data, backends=(model_host.url,), environment=environment) as process:
        yield process


@pytest.fixture
def embedding(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=30) as client:
        yield client


def near(one: list[float], other: Any) -> bool:
    return len(one) == len(other) and math.dist(one, other) < 1e-6


def asked(host: ModelHost) -> list[dict[str, Any]]:
    return [request.json() for request in host.script.requests if request.path == "/v1/embeddings"]


# Forms and inputs.


def test_an_embedding_comes_as_the_sdk_asks_for_it(embedding: OpenAI, embedding_host: ModelHost) -> None:
    made = embedding.embeddings.create(model="embed-2", input=CATS)
    assert near(made.data[0].embedding, vector(CATS))
    assert (made.object, made.model, made.data[0].object, made.data[0].index) == ("list", "embed-2", "embedding", 0)
    assert made.usage.prompt_tokens == made.usage.total_tokens == 6
    assert asked(embedding_host)[-1]["encoding_format"] == "base64", "the SDK asks for base64, and so do we"


def test_numbers_come_when_numbers_are_asked_for(embedding: OpenAI, server: ServerProcess) -> None:
    made = embedding.embeddings.create(model="embed-2", input=[CATS, MARKETS], encoding_format="float")
    assert [one.index for one in made.data] == [0, 1]
    assert near(made.data[0].embedding, vector(CATS))
    assert near(made.data[1].embedding, vector(MARKETS))
    plain = post(server.url, "/embeddings", {"model": "embed-2", "input": CATS})
    CreateEmbeddingResponse.model_validate(plain, strict=True)
    assert isinstance(plain["data"][0]["embedding"], list)


def test_base64_is_little_endian_32_bit_floats(server: ServerProcess) -> None:
    body = {"model": "embed-2", "input": CATS, "encoding_format": "base64"}
    made = post(server.url, "/embeddings", body)["data"][0]["embedding"]
    assert base64.b64decode(made, validate=True) == vector(CATS).tobytes()


@pytest.mark.parametrize("ways", ["floats", "refuses"])
def test_a_server_that_knows_no_base64_does_not_show(ways: Any, tmp_path: Path, model_host: ModelHost) -> None:
    with (
        ModelHost(quirks=Quirks(embeddings=ways), models=("embed",)) as host,
        ServerProcess(
            tmp_path / "data", backends=(model_host.url,), environment={"STATEROOM_EMBEDDINGS__URL": host.url}
        ) as process,
        OpenAI(base_url=process.url, api_key="unused", max_retries=0) as client,
    ):
        for _ in range(2):
            assert near(client.embeddings.create(model="embed", input=CATS).data[0].embedding, vector(CATS))
        assert len(asked(host)) == (3 if ways == "refuses" else 2), "what it refused is not asked for again"


def test_a_batch_keeps_its_order(embedding: OpenAI) -> None:
    texts = [f"text number {number}" for number in range(300)]
    made = embedding.embeddings.create(model="embed-2", input=texts)
    assert [one.index for one in made.data] == list(range(300))
    assert all(near(one.embedding, vector(text)) for one, text in zip(made.data, texts, strict=True))


def test_tokens_go_to_a_server_that_reads_them(embedding: OpenAI) -> None:
    one = embedding.embeddings.create(model="embed-2", input=[5, 6, 7])
    assert len(one.data) == 1
    assert near(one.data[0].embedding, vector([5, 6, 7]))
    assert len(embedding.embeddings.create(model="embed-2", input=[[5, 6], [7]]).data) == 2


def test_tokens_for_a_model_that_is_not_there_are_refused(embedding: OpenAI) -> None:
    """They are those of another vocabulary: read as the stand-in's, they would be other words."""
    with pytest.raises(openai.BadRequestError) as refused:
        embedding.embeddings.create(model="text-embedding-3-small", input=[[15339, 1917]])
    assert refused.value.code == "tokens_not_supported"
    assert "check_embedding_ctx_length" in refused.value.message


@pytest.mark.parametrize("form", ["float", "base64"])
def test_fewer_dimensions_are_the_first_ones_brought_back_to_length_one(embedding: OpenAI, form: Any) -> None:
    made = embedding.embeddings.create(model="embed-2", input=[CATS, MORE] * 40, dimensions=5, encoding_format=form)
    short = made.data[0].embedding
    if form == "base64":
        numbers = array("f")
        numbers.frombytes(base64.b64decode(str(short)))
        short = numbers.tolist()
    whole = vector(CATS)[:5]
    assert near(short, [number / math.hypot(*whole) for number in whole])


def test_as_many_dimensions_as_there_are_change_nothing(embedding: OpenAI) -> None:
    made = embedding.embeddings.create(model="embed-2", input=CATS, dimensions=SIZE, encoding_format="float")
    assert near(made.data[0].embedding, vector(CATS))


def test_more_dimensions_than_there_are_are_refused(embedding: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        embedding.embeddings.create(model="embed-2", input=CATS, dimensions=SIZE + 1)
    assert (refused.value.code, refused.value.param) == ("integer_above_max_value", "dimensions")
    assert str(SIZE) in refused.value.message


async def test_the_asynchronous_client_works_alike(server: ServerProcess) -> None:
    async with AsyncOpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        made = await client.embeddings.create(model="embed-2", input=CATS, user="somebody")
    assert near(made.data[0].embedding, vector(CATS))


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"input": None}, "missing_required_parameter", "input"),
        ({"model": ""}, "missing_required_parameter", "model"),
        ({"input": ""}, "string_below_min_length", "input"),
        ({"input": ["a", ""]}, "string_below_min_length", "input[1]"),
        ({"input": []}, "array_below_min_length", "input"),
        ({"input": [[1], []]}, "array_below_min_length", "input[1]"),
        ({"input": ["a", 1]}, "invalid_type", "input"),
        ({"input": [1, [2]]}, "invalid_type", "input"),
        ({"input": [True]}, "invalid_type", "input[0]"),
        ({"input": {"text": "a"}}, "invalid_type", "input"),
        ({"input": [[-1]]}, "integer_below_min_value", "input[0][0]"),
        ({"input": ["a"] * 301}, "array_above_max_length", "input"),
        ({"input": ["a", "é" * 201]}, "string_above_max_length", "input[1]"),
        ({"input": [7] * 101}, "array_above_max_length", "input"),
        ({"dimensions": 0}, "integer_below_min_value", "dimensions"),
        ({"dimensions": "5"}, "invalid_type", "dimensions"),
        ({"encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"input": "long"}, "context_length_exceeded", "input"),
    ],
)
def test_what_is_wrong_is_said(server: ServerProcess, change: dict[str, Any], code: str, param: str) -> None:
    answer = send(server.url, "POST", "/embeddings", {"model": "embed-2", "input": "hello", **change})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)


def test_bytes_that_are_no_text_are_refused(server: ServerProcess) -> None:
    for raw in (b'{"model":"embed-2","input":"\\ud800"}', b'{"model":"embed-2","input":"\xff"}', b'{"model":'):
        answer = send(server.url, "POST", "/embeddings", raw=raw)
        assert (answer.status, answer.error["code"]) == (400, "invalid_json")


def test_what_the_server_for_embeddings_does_wrong_is_told(server: ServerProcess) -> None:
    answer = send(server.url, "POST", "/embeddings", {"model": "embed-2", "input": "fail: 422"})
    assert (answer.status, answer.error["code"]) == (422, "backend_rejected")


def test_a_client_that_goes_away_takes_its_request_with_it(server: ServerProcess, embedding_host: ModelHost) -> None:
    before = embedding_host.script.dropped
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/embeddings", json={"model": "embed-2", "input": "hang"}, timeout=0.5)
    until(lambda: embedding_host.script.dropped > before, "the request upstream was dropped")


# Which model.


def test_a_model_that_is_not_there_goes_to_the_first_embedding_model(embedding: OpenAI) -> None:
    made = embedding.embeddings.create(model="text-embedding-3-small", input=CATS)
    assert made.model == "vendor/embed-1", "and the answer says so"


def test_a_model_that_a_backend_serves_goes_to_that_backend(embedding: OpenAI, model_host: ModelHost) -> None:
    text = "a text that no other test asks for"
    assert embedding.embeddings.create(model="scripted", input=text).model == "scripted"
    assert [body["input"] for body in asked(model_host)].count([text]) == 1


def test_a_backend_without_embeddings_says_so(tmp_path: Path) -> None:
    with (
        ModelHost(quirks=Quirks(embeddings="none")) as host,
        ServerProcess(tmp_path / "data", backends=(host.url,)) as process,
    ):
        answer = send(process.url, "POST", "/embeddings", {"model": "scripted", "input": CATS})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "embeddings_not_supported", "model")


def test_unknown_models_are_refused_where_they_are_to_be(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('unknown_models = "reject"\n[embeddings]\nembedded = false\n')
    with (
        ModelHost() as host,
        ServerProcess(
            tmp_path / "data", backends=(host.url,), options=("--config", str(tmp_path / "settings.toml"))
        ) as process,
    ):
        answer = send(process.url, "POST", "/embeddings", {"model": "text-embedding-3-small", "input": CATS})
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
        assert [model["id"] for model in get(process.url, "/models")["data"]] == ["scripted"]


def test_vectors_of_another_model_are_not_made_while_a_server_is_down(tmp_path: Path, model_host: ModelHost) -> None:
    """They would be stored beside those that it made before, and fit none of them."""
    with ModelHost(models=("embed",)) as host:
        url = host.url
    environment = {"STATEROOM_EMBEDDINGS__URL": url}
    with ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=environment) as process:
        answer = send(process.url, "POST", "/embeddings", {"model": "embed", "input": CATS})
        assert (answer.status, answer.error["code"]) == (503, "backend_unavailable")
        assert [model["id"] for model in get(process.url, "/models")["data"]] == ["scripted", "all-minilm-l6-v2"]


def test_settings_name_the_models_and_the_one_that_stands_in(tmp_path: Path) -> None:
    with ModelHost() as host:
        text = (
            f'[[backends]]\nurl = "{host.url}"\nembedding_models = ["mine"]\n'
            '[embeddings]\nembedded = false\ndefault_model = "mine"\n'
        )
        (tmp_path / "settings.toml").write_text(text)
        with ServerProcess(tmp_path / "data", options=("--config", str(tmp_path / "settings.toml"))) as process:
            for name in ("mine", "unknown"):
                assert post(process.url, "/embeddings", {"model": name, "input": CATS})["model"] == "mine"
            assert [model["id"] for model in get(process.url, "/models")["data"]] == ["scripted", "mine"]


# GET /v1/models.


def test_models_are_listed_those_that_chat_first(embedding: OpenAI) -> None:
    models = list(embedding.models.list())
    assert [model.id for model in models] == ["scripted", "vendor/embed-1", "embed-2", "all-minilm-l6-v2"]
    shown = models[-1].model_dump()
    assert (shown["dimensions"], shown["context_window"]) == (384, 512)
    assert "embedded embedding model" in shown["description"]


def test_a_model_is_found_by_a_name_with_slashes(embedding: OpenAI, server: ServerProcess) -> None:
    assert embedding.models.retrieve("vendor/embed-1").id == "vendor/embed-1"
    for path in ("/models/vendor/embed-1", "/models/vendor%2Fembed-1"):
        Model.model_validate(get(server.url, path), strict=True)


def test_a_model_that_is_not_there_is_a_404(embedding: OpenAI) -> None:
    for name in ("nothing", "vendor/embed-9", "vendor/"):
        with pytest.raises(openai.NotFoundError) as missing:
            embedding.models.retrieve(name)
        assert missing.value.code == "model_not_found"


def test_models_cannot_be_deleted(embedding: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        embedding.models.delete("vendor/embed-1")
    assert (refused.value.status_code, refused.value.code) == (405, "method_not_allowed")


# The embedded model.


@pytest.mark.embedded
@pytest.mark.xdist_group("embedded")
@pytest.mark.skipif(sys.platform != "linux", reason="looks at the children of a process in /proc")
def test_the_embedded_model_serves_a_bare_server_and_comes_back_when_it_dies(
    model_host: ModelHost, tmp_path: Path
) -> None:
    """Started with the first request, so that a server that nobody asks has no child."""
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,)) as process,
        OpenAI(base_url=process.url, api_key="unused", max_retries=0, timeout=120) as client,
    ):
        assert children(process.pid) == []
        made = client.embeddings.create(model="text-embedding-3-small", input=[CATS, MORE, MARKETS])
        cats, more, markets = (one.embedding for one in made.data)
        assert made.model == "all-minilm-l6-v2"
        assert [len(each) for each in (cats, more, markets)] == [384] * 3
        assert cosine(cats, more) > 0.7 > 0.3 > cosine(cats, markets)
        assert made.usage.prompt_tokens > 10

        (child,) = children(process.pid)
        os.kill(child, signal.SIGKILL)
        again = client.embeddings.create(model="all-minilm-l6-v2", input=CATS, dimensions=100)
        assert cosine(again.data[0].embedding, cats[:100]) > 0.999 * math.hypot(*cats[:100])

        for inputs, code in (([[1, 2]], "tokens_not_supported"), ("word " * 600, "context_length_exceeded")):
            with pytest.raises(openai.BadRequestError) as refused:
                client.embeddings.create(model="all-minilm-l6-v2", input=inputs)
            assert refused.value.code == code
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model="all-minilm-l6-v2", input=CATS, dimensions=385)
        assert refused.value.code == "integer_above_max_value"
        (child,) = children(process.pid)
        assert process.terminate() == 0
    until(lambda: not Path(f"/proc/{child}").exists(), "the child is gone")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
