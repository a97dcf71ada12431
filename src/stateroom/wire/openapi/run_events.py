"""The journal of a response as it is shown: one operation, and the shape of its entries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from stateroom.wire.openapi.operations import AFTER, BEFORE, LIMIT, ORDER_UP, Operation
from stateroom.wire.openapi.schemas import ref

Place = Annotated[int, msgspec.Meta(ge=0)]


class JournalUsage(msgspec.Struct):
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    estimated: bool


class JournalEntry(msgspec.Struct, omit_defaults=True):
    """Who, what, when, how long, by which backend; never the content. Which fields there are goes by `kind`."""

    id: str
    object: Literal["response.journal_entry"]
    seq: Place
    at: Annotated[float, msgspec.Meta(description="Seconds since 1970.")]
    kind: str
    elapsed_ms: Annotated[int, msgspec.Meta(description="Since the response began.")]
    bytes: Annotated[int, msgspec.Meta(description="What the entry takes in the journal.")]
    key_id: str = ""
    model: str = ""
    served_model: str = ""
    surface: str = ""
    background: bool = False
    stream: bool = False
    previous_response_id: str = ""
    conversation_id: str = ""
    trace_id: str = ""
    input_items: list[dict[str, Any]] = []
    tools: int = 0
    steer_id: str = ""
    items: int = 0
    output_index: int = 0
    item_id: str = ""
    item_type: str = ""
    item_status: str = ""
    call_id: str = ""
    name: str = ""
    finish: str = ""
    usage: JournalUsage | None = None
    backend: str = ""
    duration_ms: int = 0
    first_token_ms: int = 0
    decision: Literal["allow", "ask", "deny", ""] = ""
    decided_by: Annotated[
        str, msgspec.Meta(description="`default`, the rule (`rule 2`), or the id of the request for an approval.")
    ] = ""
    tool: str = ""
    effect: str = ""
    attempt: int = 0
    outcome: Literal["completed", "failed", "unknown", ""] = ""
    status: str = ""
    reason: str = ""
    error_code: str = ""
    error_status: int = 0
    collection: str = ""
    record_id: str = ""
    was: str = ""
    erased_at: float = 0


LIST_EVENTS = Operation(
    place="GET /v1/responses/{response_id}/events",
    name="listResponseEvents",
    summary="List the journal of a response",
    about="`after` and `before` name an entry by its `seq`.",
    query=(AFTER, BEFORE, LIMIT, ORDER_UP),
    answer=ref("JournalEntryList"),
    errors=(404,),
    scope="read",
    extension=True,
)
