"""The Batches API: its operations, and the shapes of its answers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stateroom.wire import batches as sent
from stateroom.wire.openapi.operations import AFTER, BEFORE, LIMIT, ORDER, Body, Operation, Surface
from stateroom.wire.openapi.schemas import Time, body_of, page_of, ref

Moment = Annotated[int | None, msgspec.Meta(description="Seconds since 1970; null if it did not come to that.")]


class BatchError(msgspec.Struct):
    code: str
    message: str
    param: str | None
    line: Annotated[int | None, msgspec.Meta(description="From 1; null when it is about the whole file.")]


class BatchErrors(msgspec.Struct):
    object: Literal["list"]
    data: list[BatchError]


class BatchCounts(msgspec.Struct):
    total: int
    completed: int
    failed: int


class BatchInputDetails(msgspec.Struct):
    cached_tokens: int


class BatchOutputDetails(msgspec.Struct):
    reasoning_tokens: int


class BatchUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: BatchInputDetails
    output_tokens: int
    output_tokens_details: BatchOutputDetails
    total_tokens: int


class Batch(msgspec.Struct):
    """Many requests out of a file, whose answers become another file."""

    id: str
    object: Literal["batch"]
    endpoint: sent.Endpoint
    model: str | None
    errors: Annotated[BatchErrors | None, msgspec.Meta(description="What is wrong with the input file.")]
    input_file_id: str
    completion_window: Literal["24h"]
    status: Literal[
        "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: Time
    in_progress_at: Moment
    expires_at: Moment
    finalizing_at: Moment
    completed_at: Moment
    failed_at: Moment
    expired_at: Moment
    cancelling_at: Moment
    cancelled_at: Moment
    request_counts: BatchCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


def surface() -> Surface:
    """All of it."""
    return Surface(
        name="Batches",
        about="Many requests out of a file, answered within a day, whatever happens to the server meanwhile.",
        operations=(
            Operation(
                place="POST /v1/batches",
                name="createBatch",
                summary="Have the requests in a file answered",
                about="Each line of the file is an object with `custom_id`, `method`, `url` and `body`.",
                body=Body(ref("CreateBatch")),
                answer=ref("Batch"),
                errors=(404,),
                scope="write",
                makes=True,
                python="batch = client.batches.create(\n"
                '    input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"\n)',
            ),
            Operation(
                place="GET /v1/batches",
                name="listBatches",
                summary="List batches",
                query=(AFTER, BEFORE, LIMIT, ORDER),
                answer=ref("BatchList"),
                errors=(404,),
                scope="read",
                python="client.batches.list()",
            ),
            Operation(
                place="GET /v1/batches/{batch_id}",
                name="getBatch",
                summary="Retrieve a batch",
                answer=ref("Batch"),
                errors=(404,),
                scope="read",
                python="client.batches.retrieve(batch.id)",
            ),
            Operation(
                place="POST /v1/batches/{batch_id}/cancel",
                name="cancelBatch",
                summary="Cancel a batch",
                about="What was answered until then stands in its files.",
                answer=ref("Batch"),
                errors=(404, 409),
                scope="write",
                python="client.batches.cancel(batch.id)",
            ),
        ),
        shapes=(Batch,),
        schemas={
            "CreateBatch": body_of(sent.NewBatch, about={"input_file_id": "A file with the purpose `batch`."}),
            "BatchList": page_of("Batch"),
        },
    )
