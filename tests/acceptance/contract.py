"""The server's answers held against its own OpenAPI document, read strictly: a field that it does not name is an error.

Every request of `wire.send` and of the `client` fixtures goes through `hold`, so whatever an acceptance test asks, the
answer is checked: its status, its content type and its body.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema_rs
import msgspec

from stateroom.wire.openapi.document import document

GIVEN = ("/items", "/input_items", "/items/{item_id}")
"""Ends of paths that show what clients sent: fields of their own come back with it."""


@cache
def described() -> dict[str, Any]:
    """The document, in which no object may hold more than it names."""
    whole = document("0")
    return {**whole, "strict": closed(whole["components"])}


def closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not any("not" in held for held in schema["properties"].values()):
        inner["additionalProperties"] = False
    return inner


@cache
def patterns() -> list[tuple[re.Pattern[str], str]]:
    """Paths with parameters after those without."""
    paths = sorted(described()["paths"], key=lambda path: path.count("{"))
    return [(re.compile(re.sub(r"{model}", ".+", re.sub(r"{(?!model)\w+}", "[^/]+", path))), path) for path in paths]


def template_of(path: str) -> str:
    """The path as the document has it; '' when it has none."""
    return next((found for pattern, found in patterns() if pattern.fullmatch(path)), "")


@cache
def validator(schema: bytes, *, strict: bool) -> Any:
    held: Any = msgspec.json.decode(schema)
    held = closed(held) if strict else held
    return jsonschema_rs.validator_for({**held, "components": described()["strict" if strict else "components"]})


def hold(method: str, target: str, status: int, content_type: str, body: bytes | None) -> None:
    """Raises AssertionError when the answer is none that the document knows. `body` None: it is not looked at."""
    path = template_of(unquote(urlsplit(target).path))
    operation = described()["paths"].get(path, {}).get(method.lower().replace("head", "get"))
    if operation is None:
        assert status >= 400, f"{method} {path or target} is not in the document, and was answered with {status}"
        return
    place = f"{method} {path} {status}"
    answers = operation["responses"]
    named = next((each for each in (str(status), f"{status // 100}XX") if each in answers), "")
    assert named, f"{place}: the document has no such status: {(body or b'')[:400]!r}"
    answer: Any = answers[named]
    if "$ref" in answer:
        answer = described()["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    media = content_type.partition(";")[0]
    assert media in answer["content"], f"{place}: the document has no {media!r}"
    if media == "application/json" and body and method != "HEAD":
        said = msgspec.json.decode(body)
        schema = msgspec.json.encode(answer["content"][media]["schema"])
        problem = next(iter(validator(schema, strict=not path.endswith(GIVEN)).iter_errors(said)), None)
        assert problem is None, f"{place}: {problem}"[:3000]


def hold_event(event: Any) -> None:
    """The same for an event of a response's stream."""
    validator(b'{"$ref":"#/components/schemas/ResponseEvent"}', strict=True).validate(event)


def hold_answer(response: Any) -> None:
    """For the hooks of an HTTP client."""
    media = response.headers.get("content-type", "")
    if media.startswith("application/json"):
        response.read()
    body = response.content if media.startswith("application/json") else None
    hold(response.request.method, str(response.request.url), response.status_code, media, body)


async def hold_async_answer(response: Any) -> None:
    """The same."""
    if response.headers.get("content-type", "").startswith("application/json"):
        await response.aread()
    hold_answer(response)
