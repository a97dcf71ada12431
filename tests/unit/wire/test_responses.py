"""Response objects, conversations and lists: every key that clients rely on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stateroom.journal.entries import OutputItem, RunSettings, RunView, Usage
from stateroom.wire.responses import (
    ResponseTemplate,
    render_conversation,
    render_deleted_response,
    render_input_tokens,
    render_list,
    render_response,
)

NEVER_NULL = {
    "id",
    "object",
    "created_at",
    "status",
    "model",
    "output",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "truncation",
    "tool_choice",
    "tools",
    "parallel_tool_calls",
    "text",
    "store",
    "background",
    "service_tier",
    "metadata",
}
PRESENT = {
    "completed_at",
    "usage",
    "reasoning",
    "max_tool_calls",
    "max_output_tokens",
    "previous_response_id",
    "instructions",
    "error",
    "incomplete_details",
    "safety_identifier",
    "prompt_cache_key",
    "conversation",
}


def shown(status: str = "completed", **changes: Any) -> dict[str, Any]:
    given = {"id": "resp_1", "created_at": 1_700_000_000_999, "settings": RunSettings(model="m"), "status": status}
    rendered: dict[str, Any] = msgspec.json.decode(render_response(RunView(**{**given, **changes})))
    return rendered


@pytest.mark.parametrize("status", ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"])
def test_every_key_is_there_at_every_status(status: str) -> None:
    response = shown(status)
    assert set(response) >= NEVER_NULL | PRESENT
    assert not [name for name in NEVER_NULL if response[name] is None]
    assert "output_text" not in response


def test_defaults_are_spelled_out() -> None:
    response = shown()
    assert {name: response[name] for name in ("temperature", "top_p", "presence_penalty", "top_logprobs")} == {
        "temperature": 1.0,
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "top_logprobs": 0,
    }
    assert response["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
    assert (response["truncation"], response["tool_choice"], response["service_tier"]) == (
        "disabled",
        "auto",
        "default",
    )
    assert (response["metadata"], response["tools"], response["store"], response["background"]) == ({}, [], True, False)
    assert response["created_at"] == 1_700_000_000


def test_zero_is_not_taken_for_absent() -> None:
    settings = RunSettings(model="m", temperature=0.0, top_p=0.0, top_logprobs=0)
    response = shown(settings=settings)
    assert (response["temperature"], response["top_p"]) == (0.0, 0.0)


def test_the_model_that_served_is_named() -> None:
    assert shown(settings=RunSettings(model="gpt-4.1", served="local"))["model"] == "local"
    assert shown()["model"] == "m"


def test_usage_has_its_details_once_a_run_has_ended() -> None:
    assert shown(usage=Usage(5, 7, 1, 2))["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 12,
    }
    assert shown("in_progress", usage=Usage(5, 7))["usage"] is None
    assert shown("failed")["usage"]["total_tokens"] == 0


def test_the_end_of_a_run_is_told_in_words_that_sdks_know() -> None:
    assert shown("incomplete", reason="content_filter")["incomplete_details"] == {"reason": "content_filter"}
    assert shown("incomplete", reason="length")["incomplete_details"] == {"reason": "max_output_tokens"}
    assert shown("completed", reason="x")["incomplete_details"] is None
    assert shown("completed", ended_at=1_700_000_005_000)["completed_at"] == 1_700_000_005
    for status in ("failed", "cancelled", "incomplete"):
        assert shown(status, ended_at=1_700_000_005_000)["completed_at"] is None


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("backend_failed", 502, "server_error"),
        ("backend_busy", 429, "rate_limit_exceeded"),
        ("context_length_exceeded", 400, "invalid_prompt"),
        ("image_too_large", 400, "image_too_large"),
        (None, None, "server_error"),
    ],
)
def test_an_error_has_a_code_that_sdks_know(code: str | None, status: int | None, told: str) -> None:
    error = {"code": code, "message": "It broke.", "param": None, "status": status}
    assert shown("failed", error=error)["error"] == {"code": told, "message": "It broke."}


def test_the_conversation_and_the_parent_are_named() -> None:
    assert shown(conversation="conv_1")["conversation"] == {"id": "conv_1"}
    assert shown()["conversation"] is None
    assert shown(previous="resp_0")["previous_response_id"] == "resp_0"
    assert shown(stored=False, background=True)["store"] is False


def test_declarations_are_echoed_with_the_fields_readers_expect() -> None:
    tools = [
        {"type": "function", "name": "f"},
        {"type": "function", "name": "g", "strict": True},
        {"type": "web_search"},
    ]
    assert shown(settings=RunSettings(model="m", tools=tools))["tools"] == [
        {"type": "function", "name": "f", "description": None, "parameters": None, "strict": False},
        {"type": "function", "name": "g", "description": None, "parameters": None, "strict": True},
        {"type": "web_search"},
    ]
    text = {"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"}
    assert shown(settings=RunSettings(model="m", text=text))["text"] == {
        "format": {"type": "json_schema", "name": "n", "schema": {}, "description": None, "strict": False},
        "verbosity": "low",
    }


@pytest.mark.parametrize(("asked", "told"), [("auto", "default"), ("fast", "priority"), ("flex", "flex")])
def test_the_service_tier_is_the_one_in_use(asked: str, told: str) -> None:
    assert shown(settings=RunSettings(model="m", echo={"service_tier": asked}))["service_tier"] == told


def test_one_template_serves_all_states_of_a_run() -> None:
    running = RunView(id="resp_1", created_at=1, settings=RunSettings(model="m"), status="in_progress")
    ended = msgspec.structs.replace(
        running, status="completed", output=(OutputItem(0, "msg_1", {"role": "assistant", "content": "hi"}),)
    )
    template = ResponseTemplate(running)
    assert template.render(running) == render_response(running)
    assert template.render(ended) == render_response(ended)
    assert msgspec.json.decode(template.render(ended, {0: b'{"id":"ready"}'}))["output"] == [{"id": "ready"}]


def test_a_page_names_its_ends_and_an_empty_one_has_none() -> None:
    assert msgspec.json.decode(render_list([{"id": "a"}, {"id": "b"}], True)) == {
        "object": "list",
        "data": [{"id": "a"}, {"id": "b"}],
        "first_id": "a",
        "last_id": "b",
        "has_more": True,
    }
    empty = msgspec.json.decode(render_list([], False))
    assert (empty["first_id"], empty["last_id"], empty["has_more"]) == (None, None, False)


def test_small_objects_are_what_the_api_documents() -> None:
    assert msgspec.json.decode(render_deleted_response("resp_1")) == {
        "id": "resp_1",
        "object": "response",
        "deleted": True,
    }
    assert msgspec.json.decode(render_conversation("conv_1", 1_700_000_000_999, {})) == {
        "id": "conv_1",
        "object": "conversation",
        "created_at": 1_700_000_000,
        "metadata": {},
    }
    assert msgspec.json.decode(render_input_tokens(3)) == {"object": "response.input_tokens", "input_tokens": 3}
