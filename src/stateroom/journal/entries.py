"""What the journal holds: frozen facts, written once and read for ever.

An entry is one committed fact at (branch, seq). Its `body` is the JSON of one of the facts below, chosen by `kind`.
A fact may gain fields with defaults; it never loses or redefines one. Nothing here follows anybody's wire format:
an `Item` is a JSON object in the shape that `wire.items.pack` makes of an OpenAI item, without what can be derived
(its id, `type: message`, `status: completed`, empty lists), and with the unknown fields that came with it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, TypeAlias

import msgspec

Item: TypeAlias = dict[str, Any]
"""A packed item; treated as immutable by everyone."""


PART_FIELDS: Final = ("content", "output", "outputs")
"""Fields of an item that may hold a list of parts."""

BLOB_FIELDS: Final = ("blob", "text_blob", "data_blob")
"""Fields of a part that name a blob: an image's bytes, what a model reads of a file, the file as it was sent."""


class Effect(StrEnum):
    """What a tool call does to the world: it decides what recovery may do with an unfinished call."""

    READ = "read"
    IDEMPOTENT = "idempotent"
    EFFECT = "effect"


class Kind(StrEnum):
    """The kinds of entries, each with its fact."""

    RUN_STARTED = "run.started"
    RUN_STEERED = "run.steered"
    ITEM_FINISHED = "item.finished"
    ITEM_ABANDONED = "item.abandoned"
    TOOL_DECIDED = "tool.decided"
    TOOL_INTENT = "tool.intent"
    TOOL_OUTCOME = "tool.outcome"
    RUN_ENDED = "run.ended"
    CONVERSATION_CREATED = "conversation.created"
    CONVERSATION_UPDATED = "conversation.updated"
    CONVERSATION_DELETED = "conversation.deleted"
    ITEMS_ADDED = "items.added"
    RECORD_PUT = "record.put"
    RECORD_NOTED = "record.noted"
    RECORD_DROPPED = "record.dropped"
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
    compact_from: int = 0
    """Tokens of context from which it is compacted before the model is asked; -1: by the model's length, 0: never."""
    compact_now: bool = False
    """The run is to compact its context and to do nothing else."""
    include: list[str] = []
    stop: list[str] = []
    """Texts at which an answer ends, without them."""
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
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
    key: str = ""
    """Id of the access key that asked for it; empty on a server without keys."""
    generate: bool = True
    """False: it asks no model and ends at once; its input belongs to the branch, for a run that continues it."""
    trace: str = ""
    """`traceparent` of what it was asked for in, where that is traced."""


class RunSteered(msgspec.Struct, frozen=True):
    """What its user says to a run that goes on: it ends where it can, and the run that follows begins with this.

    A run that ends with calls of its client leaves it to the run that brings the results.
    """

    id: str
    input: list[Item]
    """User messages."""


class Answered(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """Who made a model's answer, and how long that took."""

    backend: str
    ms: int = 0
    """From the first request to the end, further tries included."""
    first_ms: int = -1
    """To its first piece; -1: there was none."""


class ItemFinished(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finished output item of a run."""

    index: int
    """Its output index, which is also its ordinal above `ids.OUTPUT_BASE`."""
    item: Item
    finish: str = ""
    """On the last item of a model's answer: why the model ended (stop, length, content_filter)."""
    usage: Usage | None = None
    """On the last item of a model's answer: what that call used."""
    by: Answered | None = None
    """On the same item: who made it."""
    own: bool = False
    """The runtime made it (the result of a hosted call, say): it is no part of a model's answer."""


class ItemAbandoned(msgspec.Struct, frozen=True):
    """An output index whose item was begun in the stream and cut off for good."""

    index: int


class ToolDecided(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the policy says of a hosted call, or a person whom it asked: for the audit."""

    index: int
    """Output index of the call's item."""
    decision: str
    """allow, ask or deny."""
    by: str = ""
    """Which rule it was, or the id of the approval."""


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
    fields: dict[str, Any] = {}
    """What it adds to the call's item."""


class WorkspaceAt(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """How a run left the files of a container."""

    container: str
    commit: str
    """'': nothing was ever kept of it."""
    auto: bool = False
    """The container was made for this chain of runs, which goes on with it."""


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
    workspaces: list[WorkspaceAt] = []
    """The containers that it worked in."""


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


class RecordPut(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole new state of a record: a named thing besides runs and conversations (a file, a batch, ...).

    The latest put or drop of (collection, id) in the project counts, on whatever branch it stands. A record lives on a
    branch of its own; only what has to be committed together with something else stands beside that.
    """

    collection: str
    """What kind of thing: file, upload, batch, ... Fixed words, one owner each."""
    id: str
    state: msgspec.Raw
    """JSON object in the shape that the collection's owner decodes; may gain fields with defaults."""
    open: bool = False
    """Whether work on it is left, so that a start takes it up again."""
    expires_at: int = 0
    """Milliseconds since the epoch after which it is to be dropped; 0: never."""
    blobs: list[str] = []
    """Content hashes of the blobs that it refers to."""


class RecordNoted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A fact about a record that is not its state, such as the outcome of one line of a batch."""

    collection: str
    id: str
    note: msgspec.Raw
    """JSON object in the shape that the collection's owner decodes."""
    blobs: list[str] = []


class RecordDropped(msgspec.Struct, frozen=True):
    """The record is gone; what it said is erased besides."""

    collection: str
    id: str


class Erased(msgspec.Struct, frozen=True):
    """What stays where an entry's content was erased: its place, its former kind, the time. No content."""

    was: str
    at: int


Fact: TypeAlias = (
    RunStarted
    | RunSteered
    | ItemFinished
    | ItemAbandoned
    | ToolDecided
    | ToolIntent
    | ToolOutcome
    | RunEnded
    | ConversationCreated
    | ConversationUpdated
    | ConversationDeleted
    | ItemsAdded
    | RecordPut
    | RecordNoted
    | RecordDropped
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
    """JSON of the fact."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A committed batch of encoded stream events of one run."""

    first: int
    """Sequence number of its first event."""
    last: int
    """Sequence number of its last event."""
    body: bytes
    """The events as they go out, each ending in a blank line."""


_FACTS: Final[dict[str, type[Any]]] = {
    Kind.RUN_STARTED: RunStarted,
    Kind.RUN_STEERED: RunSteered,
    Kind.ITEM_FINISHED: ItemFinished,
    Kind.ITEM_ABANDONED: ItemAbandoned,
    Kind.TOOL_DECIDED: ToolDecided,
    Kind.TOOL_INTENT: ToolIntent,
    Kind.TOOL_OUTCOME: ToolOutcome,
    Kind.RUN_ENDED: RunEnded,
    Kind.CONVERSATION_CREATED: ConversationCreated,
    Kind.CONVERSATION_UPDATED: ConversationUpdated,
    Kind.CONVERSATION_DELETED: ConversationDeleted,
    Kind.ITEMS_ADDED: ItemsAdded,
    Kind.RECORD_PUT: RecordPut,
    Kind.RECORD_NOTED: RecordNoted,
    Kind.RECORD_DROPPED: RecordDropped,
    Kind.ERASED: Erased,
}
_KINDS: Final[dict[type[Any], str]] = {fact: str(kind) for kind, fact in _FACTS.items()}
_DECODERS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    str(kind): msgspec.json.Decoder(fact) for kind, fact in _FACTS.items()
}
_ENCODE: Final = msgspec.json.Encoder().encode


def kind_of(fact: Fact) -> str:
    """The kind under which a fact is written."""
    return _KINDS[type(fact)]


def encode(fact: Fact) -> bytes:
    """The body of an entry."""
    return _ENCODE(fact)


def decode(kind: str, body: bytes) -> Fact:
    """The fact of an entry. Raises msgspec.ValidationError on a body that is not of its kind."""
    fact: Fact = _DECODERS[kind].decode(body)
    return fact


PREFIXES: Final[dict[str, str]] = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "compaction": "cmp",
    "code_interpreter_call": "ci",
    "shell_call": "sh",
    "shell_call_output": "sho",
    "local_shell_call": "lsh",
    "apply_patch_call": "apc",
    "apply_patch_call_output": "apco",
    "mcp_list_tools": "mcpl",
    "mcp_approval_request": "mcpr",
    "mcp_call": "mcp",
    "tool_search_call": "tsc",
    "tool_search_output": "tso",
    "program": "prg",
    "program_output": "prgo",
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
    logprobs: list[Any] = []
    """The log probabilities of its text, where they were asked for."""
