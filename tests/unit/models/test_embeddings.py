"""What servers answer to POST /embeddings, and what is made of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from stateroom.errors import BackendError, BackendFailed, InvalidRequest
from stateroom.models.embeddings import EmbedCall, OpenAIEmbedder, estimate
from stateroom.settings import BackendSettings

CALL = EmbedCall("some-model", ["one", "two"])
ONE, TWO = [1.0, 0.0], [0.0, 1.0]


@asynccontextmanager
async def answering(body: bytes, status: int = 200) -> AsyncIterator[OpenAIEmbedder]:
    """An embedder whose server answers everything with this."""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        (length,) = re.findall(rb"content-length: (\d+)", asked, re.IGNORECASE)
        await reader.readexactly(int(length))
        writer.write(head + body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        embedder = OpenAIEmbedder(BackendSettings(f"http://127.0.0.1:{port}/v1", retries=0))
        yield embedder
        await embedder.close()


def shown(*data: Any, **more: Any) -> bytes:
    return msgspec.json.encode({"data": list(data), **more})


async def test_vectors_are_put_in_the_order_of_their_indexes() -> None:
    body = shown({"embedding": TWO, "index": 1}, {"embedding": ONE, "index": 0}, usage={"prompt_tokens": 7})
    async with answering(body) as embedder:
        made = await embedder.embed(CALL)
    assert [msgspec.json.decode(vector) for vector in made.vectors] == [ONE, TWO]
    assert made.tokens == 7


async def test_vectors_without_an_index_stand_in_order_and_tokens_are_estimated() -> None:
    async with answering(shown({"embedding": ONE}, {"embedding": TWO})) as embedder:
        made = await embedder.embed(CALL)
    assert [msgspec.json.decode(vector) for vector in made.vectors] == [ONE, TWO]
    assert made.tokens == estimate(CALL.inputs) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"[]",
        b'{"data":{}}',
        shown(),
        shown({"embedding": ONE}),
        shown({"embedding": ONE, "index": 0}, {"embedding": TWO, "index": 0}),
        shown({"embedding": ONE, "index": 0}, {"embedding": TWO, "index": 2}),
        shown({"embedding": ONE}, {"embedding": None}),
        shown({"embedding": ONE}, {"embedding": [None]}),
        shown({"embedding": ONE}, {"embedding": "<script>"}),
        shown({"embedding": ONE}, {"embedding": []}),
    ],
)
@pytest.mark.parametrize("base64", [False, True])
async def test_what_is_no_list_of_embeddings_is_not_passed_on(body: bytes, base64: bool) -> None:
    async with answering(body) as embedder:
        with pytest.raises(BackendFailed) as failed:
            await embedder.embed(msgspec.structs.replace(CALL, base64=base64))
    assert failed.value.code == "backend_bad_answer"


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (404, "Not Found", "embeddings_not_supported"),
        (404, "The model does not exist", "model_not_found"),
        (
            500,
            "input (602 tokens) is too large to process. increase the physical batch size",
            "context_length_exceeded",
        ),
        (400, "maximum context length is 512 tokens", "context_length_exceeded"),
        (401, "no", "backend_auth_failed"),
        (429, "slow down", "backend_busy"),
        (501, "This server does not support embeddings.", "backend_failed"),
    ],
)
async def test_refusals_have_the_codes_of_all_backends(status: int, message: str, code: str) -> None:
    async with answering(msgspec.json.encode({"error": {"message": message}}), status) as embedder:
        with pytest.raises((BackendError, InvalidRequest)) as failed:
            await embedder.embed(CALL)
    assert failed.value.code == code
