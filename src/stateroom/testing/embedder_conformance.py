"""What every embedder promises: cases to run over each implementation, as `case(embedder, model)`.

They rest on nothing but what an embedding model is: vectors of one size and of length 1, equal for equal texts, and
nearer to each other for texts that have something in common.
"""

from __future__ import annotations

import asyncio
import base64
import math
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from stateroom.errors import StateroomError
from stateroom.models.embeddings import EmbedCall, Embedder

Case: TypeAlias = Callable[[Embedder, str], Awaitable[None]]

CATS: Final = "The cat sits on the mat in the sun."
MORE_CATS: Final = "The cat lies on the mat in the sun."
MARKETS: Final = "Interest rates rose again yesterday."


async def embed(embedder: Embedder, model: str, *texts: str) -> list[list[float]]:
    """Vectors of these texts, read from the numbers."""
    made = await embedder.embed(EmbedCall(model, texts))
    assert len(made.vectors) == len(texts)
    return [msgspec.json.decode(vector, type=list[float]) for vector in made.vectors]


def near(one: Sequence[float], other: Sequence[float]) -> float:
    """How near two vectors are: their cosine."""
    return math.sumprod(one, other) if hasattr(math, "sumprod") else sum(a * b for a, b in zip(one, other, strict=True))


async def it_lists_the_model(embedder: Embedder, model: str) -> None:
    assert model in [one.id for one in await embedder.models()]


async def it_makes_vectors_of_length_one_and_of_one_size(embedder: Embedder, model: str) -> None:
    vectors = await embed(embedder, model, CATS, MARKETS, "Hi.")
    assert len({len(vector) for vector in vectors}) == 1
    for vector in vectors:
        assert math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-3)


async def it_keeps_the_order_of_its_inputs(embedder: Embedder, model: str) -> None:
    texts = [f"This is text number {number} of many." for number in range(9)]
    together = await embed(embedder, model, *texts)
    for position in (0, 4, 8):
        (alone,) = await embed(embedder, model, texts[position])
        nearest = max(range(9), key=lambda other: near(alone, together[other]))
        assert nearest == position


async def it_puts_texts_near_each_other_that_say_the_same(embedder: Embedder, model: str) -> None:
    cats, more, markets = await embed(embedder, model, CATS, MORE_CATS, MARKETS)
    assert near(cats, more) > near(cats, markets) + 0.2


async def it_gives_the_form_that_is_asked_for(embedder: Embedder, model: str) -> None:
    (numbers,) = await embed(embedder, model, CATS)
    made = await embedder.embed(EmbedCall(model, [CATS], base64=True))
    read = array("f")
    read.frombytes(base64.b64decode(msgspec.json.decode(made.vectors[0], type=str), validate=True))
    assert len(read) == len(numbers)
    assert near(read, numbers) > 0.999


async def it_counts_tokens(embedder: Embedder, model: str) -> None:
    short = (await embedder.embed(EmbedCall(model, ["Hi."]))).tokens
    long = (await embedder.embed(EmbedCall(model, [CATS, MARKETS]))).tokens
    assert 0 < short < long


async def it_takes_every_script_and_odd_characters(embedder: Embedder, model: str) -> None:
    texts = ["Grüße aus Köln", "你好，世界", "🙂🙂", "a\0b", " ", "[CLS] <|endoftext|>", "\u2028"]
    assert len(await embed(embedder, model, *texts)) == len(texts)


async def it_reads_tokens_or_says_that_it_does_not(embedder: Embedder, model: str) -> None:
    call = EmbedCall(model, [[7592, 2088], [7592]])
    if embedder.takes_tokens:
        assert len((await embedder.embed(call)).vectors) == 2
        return
    (refusal,) = await asyncio.gather(embedder.embed(call), return_exceptions=True)
    assert isinstance(refusal, StateroomError), "it took tokens although it says that it does not"
    assert (refusal.status, refusal.code, refusal.param) == (400, "tokens_not_supported", "input")


async def it_serves_several_requests_at_once(embedder: Embedder, model: str) -> None:
    made: list[Any] = await asyncio.gather(*(embed(embedder, model, f"Text {number}", CATS) for number in range(8)))
    assert all(near(vectors[1], made[0][1]) > 0.999 for vectors in made)


async def it_goes_on_after_a_request_was_cancelled(embedder: Embedder, model: str) -> None:
    task = asyncio.ensure_future(embedder.embed(EmbedCall(model, [f"{CATS} {n}" for n in range(200)])))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(60):
        await embed(embedder, model, CATS)


CASES: Final[tuple[Case, ...]] = (
    it_lists_the_model,
    it_makes_vectors_of_length_one_and_of_one_size,
    it_keeps_the_order_of_its_inputs,
    it_puts_texts_near_each_other_that_say_the_same,
    it_gives_the_form_that_is_asked_for,
    it_counts_tokens,
    it_takes_every_script_and_odd_characters,
    it_reads_tokens_or_says_that_it_does_not,
    it_serves_several_requests_at_once,
    it_goes_on_after_a_request_was_cancelled,
)
