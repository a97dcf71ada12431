"""The seam to model servers: a call in our words, and one kind of delta back, whatever the dialect.

A backend turns a `ModelCall` into its own request and its answer into batches of `Delta`s, one batch for each read of
the socket. It normalises what servers disagree on (see docs/why/backends.md); above this seam no dialect is known.
Every backend passes `stateroom.testing.backend_conformance`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from stateroom.journal.entries import ContextItem as ContextItem
from stateroom.journal.entries import Item, Usage


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """Visible text of the answer."""

    text: str
    logprobs: list[Any] | None = None
    """In the shape of an `output_text` part: `{token, bytes, logprob, top_logprobs[]}`."""


class RefusalDelta(msgspec.Struct, frozen=True, gc=False):
    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """Reasoning text, from `reasoning`, `reasoning_content` or `thinking`."""

    text: str


class SummaryDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of what a server tells in the place of its model's reasoning."""

    text: str
    part: int = 0
    """Which of its summaries it belongs to: another number than before begins the next one."""


class ItemDelta(msgspec.Struct, frozen=True):
    """The beginning or the end of an item as its server writes it; only servers that speak in items give it."""

    item: Item
    """Reasoning: whole when it has ended, with what the server sealed in it. A message: without its text, which came in
    deltas. Items of other types come once, whole."""
    origin: str
    """The backend's name: only there may go back what was sealed there."""
    done: bool = True
    """Whether it has ended."""


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of a tool call. `key` tells parallel calls of one answer apart and never changes within a call."""

    key: int
    call_id: str = ""
    """Set on the first piece; minted by the backend when its server gave none."""
    name: str = ""
    """Set on the first piece."""
    arguments: str = ""
    extra: dict[str, Any] | None = None
    """Unknown fields of the call that must come back verbatim, such as `extra_content`."""


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The last delta of every answer that did not raise."""

    reason: str
    """stop, length, content_filter; whether it is a tool turn is decided by the calls that came."""
    usage: Usage | None = None


Delta: TypeAlias = TextDelta | RefusalDelta | ReasoningDelta | SummaryDelta | ItemDelta | ToolCallDelta | Finished


class FunctionSpec(msgspec.Struct, frozen=True):
    """Something the model may call. Custom tools and namespaces arrive here already flattened to functions."""

    name: str
    """Unique within the call; the name the model sees."""
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


class ModelCall(msgspec.Struct):
    """One request to a model."""

    model: str
    """The backend's own name for it."""
    items: Sequence[ContextItem]
    """The whole context, oldest first. It only ever grows at its end within one `cache`."""
    cache: dict[str, Any]
    """Lives as long as this context: a dialect keeps its encoded history here. Losing it costs only time."""
    instructions: str | None = None
    functions: Sequence[FunctionSpec] = ()
    tool_choice: str | tuple[str, ...] = "auto"
    """none, auto, required, or the names of which one must be called."""
    parallel_tool_calls: bool = True
    stream: bool = True
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    """None: no log probabilities wanted."""
    reasoning_effort: str | None = None
    reasoning_summary: str | None = None
    """How much is to be told of the reasoning, by servers that keep the reasoning itself: auto, concise, detailed."""
    format: dict[str, Any] | None = None
    """`text.format` of the Responses API: json_schema {name, schema, strict} or json_object; None for plain text."""
    verbosity: str | None = None
    service_tier: str | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    stop: Sequence[str] = ()
    """Texts at which the answer is to end, without them. Not every server heeds them: who asks has to cut, too."""
    seed: int | None = None
    """Best effort, as with OpenAI."""
    prefill: str = ""
    """Begin the answer with this text and go on from it; given only to backends that say they can."""
    extra: dict[str, Any] | None = None
    """Further fields of the request, for a dialect whose server is known to take them."""


class Model(msgspec.Struct, frozen=True):
    """A model that a backend serves."""

    id: str
    owned_by: str = "stateroom"
    created: int = 0
    context_tokens: int | None = None
    description: str = ""
    temperature: float | None = None
    """What it is asked with when the caller names none, where that is known to be other than 1."""
    dimensions: int | None = None
    """Of an embedding model: how many numbers its vectors have, where that is known."""


class Backend(Protocol):
    """A model server or engine."""

    name: str
    can_prefill: bool
    """Whether an answer can be continued from given text."""

    async def models(self) -> list[Model]:
        """What it serves now. Raises BackendError when it cannot be asked."""
        ...

    def generate(self, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
        """Batches of deltas, the last of which ends in `Finished`.

        Raises BackendError subclasses. Retries by itself, with backoff, while no delta has been given out. Closing the
        iterator (or cancelling its task) cancels the request upstream at once.
        """
        ...

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        """Input tokens of a call, and whether that is exact (False: an estimate on the high side)."""
        ...

    async def close(self) -> None: ...
