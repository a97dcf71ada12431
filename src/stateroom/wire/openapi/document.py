"""The OpenAPI document, put together from the surfaces. Built when it is asked for first; nothing at start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from stateroom.wire.openapi import (
    batches,
    chat,
    completions,
    containers,
    conversations,
    export,
    files,
    responses,
    server,
    skills,
    webhooks,
)
from stateroom.wire.openapi.errors import error_answer, error_schemas
from stateroom.wire.openapi.items import item_schemas
from stateroom.wire.openapi.operations import PATH_PARAMETERS, Operation, Parameter, Surface
from stateroom.wire.openapi.schemas import Schema, any_of, fields, shapes, text

_ABOUT: Final = """One server that speaks OpenAI's API and keeps what an agent needs between calls. Point any client of
OpenAI's API at it by its base URL, which ends in `/v1`. Operations and fields that OpenAI's API does not have are
marked `x-stateroom-extension`. In bodies null means absent, and unknown fields are ignored."""

_REQUEST_ID: Final = "Names the request in the server's log: the client's own `x-request-id`, or one of the server's."
_IDEMPOTENCY: Final = Parameter(
    "Idempotency-Key",
    text(pattern="^[ -~]{1,256}$"),
    "The same key, path and body again give the same answer and make nothing new.",
    "header",
)

_MAKES: Final = {
    "createResponse": "response_id",
    "createConversation": "conversation_id",
    "forkResponse": "conversation_id",
    "forkConversation": "conversation_id",
    "createChatCompletion": "completion_id",
    "createFile": "file_id",
    "createUpload": "upload_id",
    "createSkill": "skill_id",
    "createBatch": "batch_id",
    "createContainer": "container_id",
    "forkContainer": "container_id",
    "createWebhookEndpoint": "webhook_endpoint_id",
}
"""The parameter of other paths that the `id` in an answer is for."""


def surfaces() -> tuple[Surface, ...]:
    """All of them, in the order in which they are shown."""
    return (
        responses.surface(),
        conversations.surface(),
        chat.surface(),
        completions.completion_surface(),
        completions.embedding_surface(),
        files.surface(),
        containers.surface(),
        skills.surface(),
        batches.surface(),
        export.surface(),
        webhooks.surface(),
        server.model_surface(),
        server.server_surface(),
    )


def document(version: str) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    described = surfaces()
    for surface in described:
        for each in surface.operations:
            paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, surface.name)
    _link(paths)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Stateroom",
            "version": version,
            "description": " ".join(_ABOUT.split()),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This server."}],
        "security": [{"key": []}, {}],
        "tags": [{"name": surface.name, "description": surface.about} for surface in described],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(_components(described).items())),
            "responses": {f"Error{status}": error_answer(status) for status in _statuses(paths)},
            "headers": {"RequestId": {"description": _REQUEST_ID, "schema": text()}},
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An access key of this server. A server on a loopback address may do without.",
                }
            },
        },
    }


def _link(paths: dict[str, dict[str, Any]]) -> None:
    """Say of what an operation makes where it can be used."""
    ways = [(operation, path) for path, held in paths.items() for operation in held.values()]
    for operation, _ in ways:
        name, made = operation["operationId"], _MAKES.get(operation["operationId"])
        links = {
            there["operationId"]: {"operationId": there["operationId"], "parameters": {made: "$response.body#/id"}}
            for there, path in ways
            if re.findall(r"{(\w+)}", path) == [made]
        }
        if name in ("addItems", "listItems"):
            ids = {"conversation_id": "$request.path.conversation_id", "item_id": "$response.body#/data/0/id"}
            links = {there: {"operationId": there, "parameters": ids} for there in ("getItem", "deleteItem")}
        if links:
            operation["responses"]["200"]["links"] = links


def _components(described: Sequence[Surface]) -> dict[str, Schema]:
    every = {**item_schemas(), **error_schemas(), **shapes([kind for surface in described for kind in surface.shapes])}
    for surface in described:
        for name, schema in surface.schemas.items():
            if name in every:
                raise ValueError(f"two components are called {name}")
            every[name] = schema
    chat.refine(every)
    return every


def _statuses(paths: dict[str, dict[str, Any]]) -> list[str]:
    found = re.findall(r"#/components/responses/Error(\w+)", repr(paths))
    return sorted(set(found))


def _operation(each: Operation, tag: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"operationId": each.name, "tags": [tag], "summary": each.summary}
    if each.about:
        shown["description"] = each.about
    if each.extension:
        shown["x-stateroom-extension"] = True
    shown["x-stateroom-scope"] = each.scope
    if each.scope == "none":
        shown["security"] = []
    if parameters := [*_path_parameters(each), *map(_parameter, each.query)]:
        shown["parameters"] = parameters
    if each.makes:
        shown.setdefault("parameters", []).append(_parameter(_IDEMPOTENCY))
    if each.body is not None:
        content: dict[str, Any] = {"schema": each.body.schema}
        others = {media: {"schema": schema} for media, schema in each.body.others.items()}
        if each.body.examples:
            content["examples"] = {name: {"value": value} for name, value in each.body.examples.items()}
        shown["requestBody"] = {"required": each.body.required, "content": {each.body.media: content, **others}}
    shown["responses"] = _answers(each)
    if each.python:
        shown["x-codeSamples"] = [{"lang": "Python", "label": "openai", "source": each.python}]
    return shown


def _path_parameters(each: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "description": PATH_PARAMETERS[name], "schema": text()}
        for name in re.findall(r"{(\w+)}", each.path)
    ]


def _parameter(each: Parameter) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": each.name, "in": each.where, "required": False}
    if each.about:
        shown["description"] = each.about
    if each.schema.get("type") == "object":
        shown |= {"style": "deepObject", "explode": True}
    return {**shown, "schema": each.schema}


def _answers(each: Operation) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    content: dict[str, Any] = {"application/json": {"schema": each.answer}} if each.answer else {}
    for media, schema in each.media.items():
        if media == "text/event-stream":
            content[media] = {"schema": _events(schema)}
        else:
            content[media] = {"schema": schema}
    if content:
        headers: dict[str, Any] = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
        headers |= {name: {"description": about, "schema": text()} for name, about in each.headers.items()}
        answers["200"] = {"description": each.answered or "It is done.", "headers": headers, "content": content}
        if 416 in each.errors:
            answers["206"] = {**answers["200"], "description": "The range that was asked for."}
    for status, schema in each.others.items():
        answers[str(status)] = {"description": "Not now.", "content": {"application/json": {"schema": schema}}}
    for error in _errors(each):
        answers.setdefault(error, {"$ref": f"#/components/responses/Error{error}"})
    return dict(sorted(answers.items()))


def _events(schema: Schema) -> Schema:
    """One server-sent event of a stream."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    about = "Each event of the stream. The data of the last one is `[DONE]`, which is no JSON."
    return fields({"event": text(), "data": any_of({"const": "[DONE]"}, data)}, ("data",), about)


def _errors(each: Operation) -> list[str]:
    errors = {*map(str, each.errors), "400", "403", "500"}
    if each.scope != "none":
        errors |= {"401", "429", "503"}
    if each.body is not None:
        errors.add("413")
    if each.asks_model:
        errors |= {"4XX", "502", "504"}
    return sorted(errors)
