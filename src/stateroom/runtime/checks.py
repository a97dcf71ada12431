"""Structured output is checked on the way out: what a caller parses is what it asked for, or the run has failed.

Schemas come from callers. None may have this server open a URL or a file, and checking an answer against one must not
take for ever: definitions that stand inside themselves can ask for exponential work, so those are handed to a process
of their own that is killed when it takes too long (see schema_check).
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import nullcontext
from typing import Any, Final, NoReturn

import msgspec

from stateroom.agent.state import RunState
from stateroom.errors import BackendFailed, InvalidRequest
from stateroom.journal.entries import Item, RunSettings
from stateroom.runtime.schema_check import problem_of, read_schema, weight_of

PARTS_MAX: Final = 20_000
"""Parts of a schema, definitions counted wherever they are referred to."""

WORK_MAX: Final = 20_000_000
"""Parts of a schema times characters of an answer that are checked in this process."""

CHECK_SECONDS: Final = 10.0
"""How long the process may take that does all other checks."""


def check_format(settings: RunSettings) -> None:
    """Refuse a JSON schema that is none, or too much of one. Raises InvalidRequest."""
    schema = _schema(settings)
    if schema is None:
        return
    too_large = weight_of(schema).parts > PARTS_MAX
    problem = f"it has more than {PARTS_MAX} parts." if too_large else read_schema(schema)[1]
    if problem:
        message = f"The schema of `text.format` is not a valid JSON schema: {problem}"
        raise InvalidRequest(message, code="invalid_json_schema", param="text.format.schema")


async def check_output(settings: RunSettings, run: RunState, places: asyncio.Semaphore | None = None) -> None:
    """Hold the answer against `text.format`. Raises BackendFailed when it does not fit.

    A schema with `strict: false` is advice to the model and not checked beyond being JSON. Each process that does a
    check takes one of the `places`.
    """
    format_ = (settings.text or {}).get("format") or {}
    if format_.get("type") not in ("json_schema", "json_object"):
        return
    if run.awaits_client:
        return
    answer = run.output[run.answer_start :]
    message = next((output.item for output in reversed(answer) if output.item.get("role") == "assistant"), None)
    if message is None or _refused(message):
        return
    text = _text(message)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BackendFailed(
            "The model's answer is not JSON, which `text.format` demands.", code="invalid_output"
        ) from error
    if format_["type"] == "json_object":
        if not isinstance(value, dict):
            raise BackendFailed("The model's answer is not a JSON object.", code="invalid_output")
        return
    schema = _schema(settings)
    if schema is None or format_.get("strict") is False:
        return
    weight = weight_of(schema)
    heavy = weight.recursive or weight.parts * len(text) > WORK_MAX
    if heavy:
        async with places or nullcontext():
            problem = await _problem_elsewhere(schema, text)
    else:
        problem = problem_of(schema, value)
    if problem:
        raise BackendFailed(f"The model's answer does not fit the JSON schema {problem}", code="invalid_output")


async def _problem_elsewhere(schema: Any, text: str) -> str:
    """The same as `problem_of`, by a process that can be killed."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "stateroom.runtime.schema_check",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            found, _ = await child.communicate(msgspec.json.encode({"schema": schema, "text": text}))
    except TimeoutError:
        found = b""
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise BackendFailed(
            f"The model's answer could not be checked against the JSON schema within {CHECK_SECONDS:g} seconds. "
            "Use a schema whose definitions stand inside themselves less often.",
            code="invalid_output",
        )
    return found.decode("utf-8", "replace")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _schema(settings: RunSettings) -> Any:
    format_ = (settings.text or {}).get("format") or {}
    return format_.get("schema") if format_.get("type") == "json_schema" else None


def _refused(message: Item) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(part.get("type") == "refusal" for part in content)


def _text(message: Item) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if part.get("type") == "output_text")
