"""The words in which a surface of the API is described: operations, their parameters, bodies and answers."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec

from stateroom.wire.openapi.schemas import Schema, one_of, text

Scope: TypeAlias = Literal["read", "write", "admin", "none"]


class Parameter(msgspec.Struct, frozen=True):
    """A parameter in the query string, or a header."""

    name: str
    schema: Schema
    about: str = ""
    where: Literal["query", "header"] = "query"


class Body(msgspec.Struct, frozen=True):
    """What a request brings."""

    schema: Schema
    media: str = "application/json"
    required: bool = True
    examples: dict[str, Any] = {}
    """By a name that says what it shows; each of them works as it stands."""
    others: dict[str, Schema] = {}
    """What it may bring instead, by media type."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path."""

    place: str
    """`POST /v1/responses`"""
    name: str
    """Its id in the document."""
    summary: str
    about: str = ""
    query: tuple[Parameter, ...] = ()
    body: Body | None = None
    answer: Schema = {}
    """What a 200 holds; empty: nothing that is JSON."""
    answered: str = ""
    """What a 200 is, in words."""
    media: dict[str, Schema] = {}
    """What a 200 may hold besides."""
    headers: dict[str, str] = {}
    """Headers of a 200, with what they say."""
    others: dict[int, Schema] = {}
    """Answers with another status that are no errors of the usual shape."""
    errors: tuple[int, ...] = ()
    """Statuses of errors beside those that all have."""
    scope: Scope
    """What a key must have; `none`: it needs no key."""
    asks_model: bool = False
    makes: bool = False
    """Whether it heeds `Idempotency-Key`."""
    extension: bool = False
    """Whether OpenAI's API has no such thing."""
    python: str = ""
    """The same with the openai package."""

    @property
    def method(self) -> str:
        return self.place.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.place.partition(" ")[2]


class Surface(msgspec.Struct, frozen=True):
    """Operations that belong together, and the components that only they need."""

    name: str
    about: str
    operations: tuple[Operation, ...]
    shapes: tuple[type[msgspec.Struct], ...] = ()
    schemas: dict[str, Schema] = {}


AFTER: Final = Parameter("after", text(), "The id that the page begins behind; usually `last_id` of the page before.")
BEFORE: Final = Parameter("before", text(), "The id that the page ends before.")
LIMIT: Final = Parameter(
    "limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "Entries of a page."
)
ORDER: Final = Parameter("order", {**one_of("asc", "desc"), "default": "desc"}, "By time: oldest or newest first.")
ORDER_UP: Final = Parameter("order", {**one_of("asc", "desc"), "default": "asc"}, "By time: oldest or newest first.")
PAGE: Final = (AFTER, LIMIT, ORDER)

PATH_PARAMETERS: Final[dict[str, str]] = {
    "response_id": "Begins with `resp_`.",
    "conversation_id": "Begins with `conv_`.",
    "item_id": "The id of an item.",
    "completion_id": "Begins with `chatcmpl-`.",
    "file_id": "Begins with `file`.",
    "container_id": "Begins with `cntr_`.",
    "container_file_id": "Begins with `cfile_`.",
    "commit_id": "Begins with `wsc_`.",
    "upload_id": "Begins with `upload_`.",
    "skill_id": "Begins with `skill_`.",
    "version": "The number of a version: 1, 2, 3, ...",
    "batch_id": "Begins with `batch_`.",
    "webhook_endpoint_id": "Begins with `whe_`.",
    "model": "The name of a model; slashes in it may be sent as they are.",
}
