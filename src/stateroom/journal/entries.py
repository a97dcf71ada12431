"""What the journal holds: frozen records, written once and read for ever.

An entry is one committed fact at (branch, seq). Its `body` is the JSON of one of the records below, chosen by `kind`.
A record may gain fields with defaults; it never loses or redefines one. Nothing here follows anybody's wire format:
an `Item` is a JSON object in the shape that `wire.items.pack` makes of an OpenAI item, without what can be derived
(its id, `type: message`, `status: completed`, empty lists), and with the unknown fields that came with it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, TypeAlias

import msgspec

Item: TypeAlias = dict[str, Any]
"""A packed item; treated as immutable by everyone."""


class Effect(StrEnum):
    """What a tool call does to the world: it decides what recovery may do with an unfinished call."""

    READ = "read"
    IDEMPOTENT = "idempotent"
    EFFECT = "effect"


class Kind(StrEnum):
    """The kinds of entries, each with its record."""

    RUN_STARTED = "run.started"
    ITEM_FINISHED = "item.finished"
    ITEM_ABANDONED = "item.abandoned"
    TOOL_INTENT = "tool.intent"
    TOOL_OUTCOME = "tool.outcome"
    RUN_ENDED = "run.ended"
    CONVERSATION_CREATED = "conversation.created"
    CONVERSATION_UPDATED = "conversation.updated"
    CONVERSATION_DELETED = "conversation.deleted"
    ITEMS_ADDED = "items.added"
    ERASED = "erased"


class Usage(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """Token counts of the model calls of a run, added up."""

    input: int = 0
    output: int = 0
    cached: int = 0
    """Part of `input` that the backend read from its prefix cache."""
    reasoning: int = 0
    """Part of `output` spent on reasoning."""
    estimated: bool = False
    """True when the backend reported nothing and the counts are our estimate."""


class RunSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the caller asked of a run; only what differs from the default is written."""

    model: str = ""
    """The name the caller used."""
    served: str = ""
    """The name of the model that serves it, when it is another."""
    instructions: str | None = None
    tools: list[dict[str, Any]] = []
    """Tool declarations as the caller sent them."""
    instructions_blob: str = ""
    """Content hash of `instructions` when they are kept as a blob (large and repeated)."""
    tools_blob: str = ""
    """Content hash of the JSON of `tools` when they are kept as a blob."""
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    truncation: str = "disabled"
    include: list[str] = []
    echo: dict[str, Any] = {}
    """Parameters that are only given back to the caller (metadata, user, service_tier, prompt_cache_key, ...)."""


class RunStarted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run and its input. The run is known by the seq of this entry within its branch."""

    id: str
    settings: RunSettings
    input: list[Item]
    surface: str = "responses"
    """Which renderer writes its frames."""
    previous: str = ""
    """The response it continues, when it was named."""
    conversation: str = ""
    """The conversation it belongs to, when it was named."""
    background: bool = False
    frames: bool = False
    """Whether its events are kept as frames (streamed and background runs)."""
    obfuscate: bool = False
    """Whether its delta events carry padding."""


class ItemFinished(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finished output item of a run."""

    index: int
    """Its output index, which is also its ordinal above `ids.OUTPUT_BASE`."""
    item: Item
    finish: str = ""
    """On the last item of a model's answer: why the model ended (stop, length, content_filter)."""
    usage: Usage | None = None
    """On the last item of a model's answer: what that call used."""


class ItemAbandoned(msgspec.Struct, frozen=True):
    """An output index whose item was begun in the stream and cut off for good."""

    index: int


class ToolIntent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Committed before a hosted tool call starts."""

    index: int
    """Output index of the call's item."""
    tool: str
    effect: Effect = Effect.EFFECT
    attempt: int = 1


class ToolOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """Committed after a hosted tool call ended, or when nobody can say whether it did."""

    index: int
    output: str = ""
    failed: bool = False
    unknown: bool = False
    """The call was cut off by a crash and may or may not have taken effect."""


class RunEnded(msgspec.Struct, frozen=True, omit_defaults=True):
    """The terminal entry of a run."""

    status: str
    """completed, incomplete, failed or cancelled."""
    usage: Usage | None = None
    """Only where it is not the sum of what the run's items say."""
    reason: str = ""
    """Why it is incomplete: max_output_tokens, content_filter, ..."""
    error: dict[str, Any] | None = None
    """`{code, message, param}` of a failed run, and `status`, the HTTP status it was answered with."""


class ConversationCreated(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    metadata: dict[str, str] = {}
    forked_from: str = ""
    """The conversation whose items it began with; its branch has that one as parent."""


class ConversationUpdated(msgspec.Struct, frozen=True):
    metadata: dict[str, str]


class ConversationDeleted(msgspec.Struct, frozen=True):
    id: str


class ItemsAdded(msgspec.Struct, frozen=True, omit_defaults=True):
    """Items put into a conversation by its client."""

    key: str
    """Owns the ids of those items that came without one: `ids.item_id(prefix, key, position)`."""
    items: list[Item]
    copied: int = -1
    """In a fork that cuts an entry of its parent in two: the seq of that entry, whose first items these repeat."""


class Erased(msgspec.Struct, frozen=True):
    """What stays where an entry's content was erased: its place, its former kind, the time. No content."""

    was: str
    at: int


Record: TypeAlias = (
    RunStarted
    | ItemFinished
    | ItemAbandoned
    | ToolIntent
    | ToolOutcome
    | RunEnded
    | ConversationCreated
    | ConversationUpdated
    | ConversationDeleted
    | ItemsAdded
    | Erased
)

ERASED_ITEM: Final[Item] = {"type": "erased"}
"""Takes the place of a single erased item, so that its neighbours keep their ordinals."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One line of the journal."""

    seq: int
    """Position on its branch: from 0, without gaps; a fork goes on from its parent's position plus one."""
    kind: str
    run: int
    """Seq of the run's RUN_STARTED entry on the same branch; -1 outside a run."""
    at: int
    """Milliseconds since the epoch, by the writer's clock."""
    body: bytes
    """JSON of the record."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A committed batch of encoded stream events of one run."""

    first: int
    """Sequence number of its first event."""
    last: int
    """Sequence number of its last event."""
    body: bytes
    """The events as they go out, each ending in a blank line."""


_RECORDS: Final[dict[str, type[Any]]] = {
    Kind.RUN_STARTED: RunStarted,
    Kind.ITEM_FINISHED: ItemFinished,
    Kind.ITEM_ABANDONED: ItemAbandoned,
    Kind.TOOL_INTENT: ToolIntent,
    Kind.TOOL_OUTCOME: ToolOutcome,
    Kind.RUN_ENDED: RunEnded,
    Kind.CONVERSATION_CREATED: ConversationCreated,
    Kind.CONVERSATION_UPDATED: ConversationUpdated,
    Kind.CONVERSATION_DELETED: ConversationDeleted,
    Kind.ITEMS_ADDED: ItemsAdded,
    Kind.ERASED: Erased,
}
_KINDS: Final[dict[type[Any], str]] = {record: str(kind) for kind, record in _RECORDS.items()}
_DECODERS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    str(kind): msgspec.json.Decoder(record) for kind, record in _RECORDS.items()
}
_ENCODE: Final = msgspec.json.Encoder().encode


def kind_of(record: Record) -> str:
    """The kind under which a record is written."""
    return _KINDS[type(record)]


def encode(record: Record) -> bytes:
    """The body of an entry."""
    return _ENCODE(record)


def decode(kind: str, body: bytes) -> Record:
    """The record of an entry. Raises msgspec.ValidationError on a body that is not of its kind."""
    record: Record = _DECODERS[kind].decode(body)
    return record


PREFIXES: Final[dict[str, str]] = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "compaction": "cmp",
}
"""Id prefixes of items by type; other types use `item`."""


def item_prefix(item: Item) -> str:
    """The prefix of the id that a packed item gets when it brings none."""
    return PREFIXES.get(item.get("type", "message"), "item")


class ContextItem(msgspec.Struct, frozen=True, gc=False):
    """One item of a branch as the model sees it."""

    id: str
    item: Item
    """Packed; where it goes to a backend, image parts are resolved to data URLs."""
    seq: int = -1
    """The entry that made it visible: a fork at or after this seq has it."""


class OutputItem(msgspec.Struct, frozen=True, gc=False):
    """A finished output item of a run, with the id it goes by."""

    index: int
    id: str
    item: Item


class RunView(msgspec.Struct, frozen=True):
    """What folding a run's entries gives: all that a surface needs to show it. Derived, never stored."""

    id: str
    created_at: int
    """Milliseconds since the epoch."""
    settings: RunSettings
    """With `tools` and `instructions` filled in when the entry holds them as blobs."""
    status: str
    """queued, in_progress, completed, incomplete, failed or cancelled."""
    output: tuple[OutputItem, ...] = ()
    usage: Usage | None = None
    reason: str = ""
    error: dict[str, Any] | None = None
    ended_at: int = 0
    """Milliseconds since the epoch; 0 while it runs."""
    previous: str = ""
    conversation: str = ""
    background: bool = False
    stored: bool = True


class OpenItem(msgspec.Struct, frozen=True):
    """An output item whose events were begun but not ended when a run was cut off."""

    index: int
    type: str
    """message, reasoning, function_call, custom_tool_call, ..."""
    text: str
    """Visible text, reasoning text or arguments so far."""
