"""Completions (legacy) and Embeddings: their operations, and the shapes of their answers."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from stateroom.wire import completions, embeddings
from stateroom.wire.openapi.operations import Body, Operation, Surface
from stateroom.wire.openapi.schemas import Time, any_of, body_of, list_of, nullable, ref, text

_TEXT: Final = text(minLength=1)
_TOKENS: Final = list_of({"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, minItems=1)


class CachedTokens(msgspec.Struct):
    cached_tokens: int


class ReasoningTokens(msgspec.Struct):
    reasoning_tokens: int


class CompletionUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class CompletionChoice(msgspec.Struct):
    text: str
    index: int
    logprobs: None
    finish_reason: Literal["stop", "length", "content_filter"] | None


class Completion(msgspec.Struct):
    """Texts that follow prompts; whole, or a piece of a stream."""

    id: str
    object: Literal["text_completion"]
    created: Time
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None


class Embedding(msgspec.Struct):
    """A vector: numbers, or with `encoding_format: base64` their bytes."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def completion_surface() -> Surface:
    """Completions."""
    return Surface(
        name="Completions",
        about="For programs that know nothing newer. A prompt is put to the model as the one message of a user.",
        operations=(
            Operation(
                place="POST /v1/completions",
                name="createCompletion",
                summary="Have prompts answered",
                body=Body(
                    ref("CreateCompletion"),
                    examples={"a prompt": {"model": "default", "prompt": "The capital of France is"}},
                ),
                answer=ref("Completion"),
                answered="The completion; its pieces when `stream` was asked for, the last of which may be an `Error`.",
                media={"text/event-stream": any_of(ref("Completion"), ref("Error"))},
                errors=(404,),
                scope="write",
                asks_model=True,
                python='client.completions.create(model="default", prompt="The capital of France is")',
            ),
        ),
        shapes=(Completion,),
        schemas={
            "CreateCompletion": body_of(
                completions.Create,
                required=("model", "prompt"),
                never={
                    "suffix": "Put what follows into the prompt.",
                    "logprobs": "Use chat completions.",
                    "logit_bias": "Use chat completions.",
                },
                replaced={"prompt": any_of(text(), list_of(text(), minItems=1)), "best_of": nullable({"const": 1})},
                about={"prompt": "A text, or several. Tokens are not taken.", "max_tokens": "16 when absent."},
            )
        },
    )


def embedding_surface() -> Surface:
    """Embeddings."""
    return Surface(
        name="Embeddings",
        about="Texts as vectors, by an embedded model or a server's.",
        operations=(
            Operation(
                place="POST /v1/embeddings",
                name="createEmbeddings",
                summary="Make vectors of texts",
                body=Body(
                    ref("CreateEmbeddings"),
                    examples={"a text": {"model": "default", "input": "a walk by the river"}},
                ),
                answer=ref("EmbeddingList"),
                errors=(404,),
                scope="write",
                asks_model=True,
                python='client.embeddings.create(model="default", input="a walk by the river")',
            ),
        ),
        shapes=(EmbeddingList,),
        schemas={
            "CreateEmbeddings": body_of(
                embeddings.Create,
                required=("model", "input"),
                replaced={"input": any_of(_TEXT, list_of(_TEXT, minItems=1), _TOKENS, list_of(_TOKENS, minItems=1))},
                about={"input": "A text or several; or tokens, for models that read them."},
            )
        },
    )
