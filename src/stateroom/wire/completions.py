"""The legacy Completions API: its request, from bytes to a record, and its answer, whole or as a stream of chunks.

What happens to each parameter of `POST /v1/completions`:

- honoured: model, prompt, max_tokens (16 when absent, as the API has it), temperature, top_p, n, stop, stream,
  stream_options, echo, presence_penalty, frequency_penalty, seed (as far as the model server does), user
- refused, with a message that says so: prompts as tokens, logprobs, suffix, best_of above 1, logit_bias,
  stream_options.include_obfuscation

Null means absent everywhere, and parameters that the API does not know are ignored, as in all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from stateroom.errors import InvalidRequest, StateroomError
from stateroom.journal.entries import Usage
from stateroom.wire.decoding import decode
from stateroom.wire.sse import escape_line_breaks

MAX_TOKENS: Final = 16
"""When the caller does not say."""
STOP_LENGTH: Final = 512

_Stop: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=STOP_LENGTH)]
_Penalty: TypeAlias = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Token: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class CompletionRequest(msgspec.Struct, frozen=True):
    """`POST /v1/completions`, checked."""

    model: str
    prompts: list[str]
    n: int
    """Answers to each prompt; all answers to the first one come first."""
    max_tokens: int
    temperature: float | None
    top_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    stop: tuple[str, ...]
    seed: int | None
    user: str | None
    echo: bool
    stream: bool
    include_usage: bool


class Choice(msgspec.Struct):
    """One answer, whole."""

    text: str = ""
    finish: str = "stop"


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Create(msgspec.Struct):
    model: str | None = None
    prompt: str | list[str | _Token | list[_Token]] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    stop: _Stop | Annotated[list[_Stop], msgspec.Meta(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    echo: bool | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    user: str | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    suffix: str | None = None
    best_of: Annotated[int, msgspec.Meta(ge=1, le=20)] | None = None
    logit_bias: dict[str, float] | None = None


_DECODE: Final = msgspec.json.Decoder(Create)


def decode_completion(body: bytes, *, choices_max: int, depth: int) -> CompletionRequest:
    """The body of a request. Raises InvalidRequest."""
    asked = decode(_DECODE, body, depth)
    for name in ("model", "prompt"):
        if getattr(asked, name) is None or (name == "model" and not asked.model):
            text = f"Missing required parameter: '{name}'."
            raise InvalidRequest(text, code="missing_required_parameter", param=name)
    _refuse_unsupported(asked)
    prompts = _prompts(asked.prompt)
    n = asked.n or 1
    if len(prompts) * n > choices_max:
        raise InvalidRequest(
            f"{len(prompts)} prompts with {n} answers each are more than the {choices_max} answers that one request "
            "may ask for (`limits.completion_choices`).",
            code="array_above_max_length",
            param="n" if n > 1 else "prompt",
        )
    options = asked.stream_options
    return CompletionRequest(
        model=asked.model or "",
        prompts=prompts,
        n=n,
        max_tokens=MAX_TOKENS if asked.max_tokens is None else asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        stop=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ()),
        seed=asked.seed,
        user=asked.user,
        echo=bool(asked.echo),
        stream=bool(asked.stream),
        include_usage=options is not None and bool(options.include_usage),
    )


def _refuse_unsupported(asked: Create) -> None:
    """What this server cannot do is said, not dropped."""
    if asked.logprobs is not None:
        raise _unsupported("logprobs", "Ask for `message.output_text.logprobs` of a response (POST /v1/responses).")
    if asked.suffix:
        raise _unsupported("suffix", "Chat models cannot fill in text: put what follows into the prompt.")
    if asked.best_of is not None and asked.best_of > 1:
        raise _unsupported("best_of", "Answers are not ranked here: ask for several with 'n' and choose.")
    if asked.logit_bias:
        raise _unsupported("logit_bias", "Leave it out.")
    if asked.best_of == 1 and (asked.n or 1) > 1:
        raise InvalidRequest("'best_of' must not be less than 'n'.", code="invalid_value", param="best_of")
    options = asked.stream_options
    if options is not None and not asked.stream:
        text = "'stream_options' is only allowed with 'stream': true."
        raise InvalidRequest(text, code="invalid_value", param="stream_options")
    if options is not None and options.include_obfuscation:
        raise _unsupported("stream_options.include_obfuscation", "Use POST /v1/responses, or leave it out.")


def _unsupported(name: str, advice: str) -> InvalidRequest:
    return InvalidRequest(f"'{name}' is not supported here. {advice}", code="unsupported_parameter", param=name)


def _prompts(given: Any) -> list[str]:
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidRequest("'prompt' is empty.", code="array_below_min_length", param="prompt")
    for index, each in enumerate(given):
        if not isinstance(each, str):
            raise InvalidRequest(
                "Prompts as tokens are not supported: a model behind this server may have any tokenizer. Send strings.",
                code="tokens_not_supported",
                param=f"prompt[{index}]",
            )
    return list(given)


# The answer.


def render_completion(identifier: str, created: int, model: str, choices: Sequence[Choice], usage: Usage) -> bytes:
    """The whole answer."""
    shown = [_choice(index, choice.text, choice.finish) for index, choice in enumerate(choices)]
    return msgspec.json.encode({**_head(identifier, created, model, shown), "usage": _usage(usage)})


class ChunkRenderer:
    """The chunks of one stream."""

    def __init__(self, identifier: str, created: int, model: str, *, include_usage: bool) -> None:
        self._base = (identifier, created, model)
        self._more: dict[str, Any] = {"usage": None} if include_usage else {}

    def text(self, index: int, text: str, finish: str) -> bytes:
        """A piece of a choice; with its finish reason if it is the last one."""
        return _event({**_head(*self._base, [_choice(index, text, finish or None)]), **self._more})

    def usage(self, usage: Usage) -> bytes:
        """The last chunk, for those who asked for it."""
        return _event({**_head(*self._base, []), "usage": _usage(usage)})

    def error(self, error: StateroomError) -> bytes:
        """Takes the place of everything that would still come."""
        return _event(error.body())


def _head(identifier: str, created: int, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": identifier, "object": "text_completion", "created": created, "model": model, "choices": choices}


def _choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _event(held: dict[str, Any]) -> bytes:
    return b"data: " + escape_line_breaks(msgspec.json.encode(held)) + b"\n\n"
