"""`POST /v1/responses/compact`: its body, and the object that answers it.

What happens to each parameter: model, input, previous_response_id and instructions are honoured; prompt_cache_key and
service_tier are handed to the model's server; prompt_cache_options, prompt_cache_retention and image are hints.
Refused, as in `requests`: prompt_cache_options.prewarm, image.context_compression enabled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Item, RunSettings, Usage
from stateroom.wire import parameters
from stateroom.wire.decoding import Bounds, decode
from stateroom.wire.requests import pack_input
from stateroom.wire.responses import ENCODE, render_usage

_DECODE: Final = msgspec.json.Decoder(parameters.Compact)


class CompactRequest(msgspec.Struct, frozen=True):
    """`POST /v1/responses/compact`, checked."""

    settings: RunSettings
    input: list[Item]
    previous: str = ""


def decode_compact(body: bytes, bounds: Bounds) -> CompactRequest:
    """Raises InvalidRequest."""
    asked = decode(_DECODE, body, bounds.depth)
    if not asked.model:
        raise _missing("model")
    if asked.prompt_cache_options is not None and asked.prompt_cache_options.prewarm:
        raise _unsupported("prompt_cache_options.prewarm", "Send the request itself.")
    if asked.image is not None and asked.image.context_compression == "enabled":
        raise _unsupported("image.context_compression", "Images are never compressed here: use 'auto' or 'disabled'.")
    items = pack_input(asked.input, body, bounds)
    if not items and not asked.previous_response_id:
        raise _missing("input", "One of 'input' or 'previous_response_id' must be provided.")
    hints = {"prompt_cache_key": asked.prompt_cache_key, "service_tier": asked.service_tier}
    settings = RunSettings(
        model=asked.model,
        instructions=asked.instructions,
        echo={name: value for name, value in hints.items() if value is not None},
    )
    return CompactRequest(settings, items, asked.previous_response_id or "")


def render_compaction(
    identifier: str, created_at: int, output: Sequence[Mapping[str, Any]], usage: Usage | None
) -> bytes:
    """The answer; `created_at` in milliseconds, `output` in OpenAI's shape."""
    head = {"id": identifier, "object": "response.compaction", "created_at": created_at // 1000, "output": output}
    return b'%b,"usage":%b}' % (ENCODE(head)[:-1], render_usage(usage or Usage()))


def _missing(name: str, message: str = "") -> InvalidRequest:
    text = message or f"Missing required parameter: '{name}'."
    return InvalidRequest(text, code="missing_required_parameter", param=name)


def _unsupported(name: str, advice: str) -> InvalidRequest:
    return InvalidRequest(f"'{name}' is not supported here. {advice}", code="unsupported_parameter", param=name)
