"""Structured output is checked on the way out: what a caller parses is what it asked for, or the run has failed."""

from __future__ import annotations

import json
from typing import Any

from stateroom.agent.state import RunState
from stateroom.agent.steps import CLIENT_CALLS
from stateroom.errors import BackendFailed, InvalidRequest
from stateroom.journal.entries import Item, RunSettings


def check_format(settings: RunSettings) -> None:
    """Refuse a JSON schema that is none. Raises InvalidRequest."""
    schema = _schema(settings)
    if schema is None:
        return
    import jsonschema_rs  # lazy: compiled library, needed for structured output alone

    try:
        jsonschema_rs.validator_for(schema)
    except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        message = f"The schema of `text.format` is not a valid JSON schema: {str(error)[:300]}"
        raise InvalidRequest(message, code="invalid_json_schema", param="text.format.schema") from error


def check_output(settings: RunSettings, run: RunState) -> None:
    """Hold the answer against `text.format`. Raises BackendFailed when it does not fit.

    A schema with `strict: false` is advice to the model and not checked beyond being JSON.
    """
    format_ = (settings.text or {}).get("format") or {}
    if format_.get("type") not in ("json_schema", "json_object"):
        return
    answer = run.output[run.answer_start :]
    if any(output.item.get("type") in CLIENT_CALLS for output in answer):
        return
    message = next((output.item for output in reversed(answer) if output.item.get("role") == "assistant"), None)
    if message is None or _refused(message):
        return
    try:
        value = json.loads(_text(message))
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
    import jsonschema_rs  # lazy: compiled library, needed for structured output alone

    problem = next(iter(jsonschema_rs.validator_for(schema).iter_errors(value)), None)
    if problem is not None:
        where = "/".join(str(step) for step in problem.instance_path)
        raise BackendFailed(
            f"The model's answer does not fit the JSON schema at /{where}: {problem.message[:300]}",
            code="invalid_output",
        )


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
