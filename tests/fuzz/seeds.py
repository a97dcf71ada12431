"""Sound input, for a fuzzer to begin with: it finds the way to what is odd sooner from there."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.bundles import MANIFEST, Entry, raw_zip, zip_of

CALL: Final = {"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
FUNCTION: Final = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
ITEMS: Final[list[dict[str, Any]]] = [
    {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:,"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "d"}]},
    {"type": "custom_tool_call", "call_id": "e", "name": "g", "input": "h"},
    {"type": "custom_tool_call_output", "call_id": "e", "output": "i"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "j"}], "encrypted_content": "k"},
    {"type": "item_reference", "id": "msg_1"},
    {"type": "compaction", "encrypted_content": "l"},
    {"type": "configuration_update", "reasoning": {"effort": "low"}},
    {"type": "additional_tools", "role": "developer", "tools": [FUNCTION]},
    {"type": "compaction_trigger"},
]
CREATE: Final[dict[str, Any]] = {
    "model": "m",
    "input": ITEMS,
    "instructions": "i",
    "tools": [
        FUNCTION,
        {"type": "custom", "name": "g", "format": {"type": "grammar", "syntax": "lark", "definition": "start: A"}},
        {"type": "namespace", "name": "n", "description": "o", "tools": [{**FUNCTION, "async": True}]},
        {"type": "web_search"},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "json_schema", "name": "p", "schema": {"type": "object"}, "strict": True}},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "metadata": {"q": "r"},
    "context_management": [{"type": "compaction", "compact_threshold": 1000}],
    "stream_options": {"include_obfuscation": True},
    "conversation": {"id": "conv_1"},
    "max_output_tokens": 16,
    "temperature": 0.5,
}
CHAT: Final[dict[str, Any]] = {
    "model": "m",
    "messages": [
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}], "name": "b"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "d"}]},
    ],
    "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {}}},
        {"type": "custom", "custom": {"name": "g"}},
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
    "stop": ["x"],
    "n": 2,
    "stream_options": {"include_usage": True},
    "logit_bias": {"1": 5},
}
CHUNK: Final[dict[str, Any]] = {
    "choices": [
        {
            "delta": {
                "content": "a",
                "reasoning_content": "b",
                "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}],
            },
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": []}]},
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2},
}
EVENTS: Final[list[dict[str, Any]]] = [
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "id": "x", "content": []}},
    {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "item_id": "x", "delta": "a"},
    {
        "type": "response.output_item.added",
        "output_index": 1,
        "item": {"type": "function_call", "name": "f", "id": "y"},
    },
    {"type": "response.function_call_arguments.delta", "output_index": 1, "item_id": "y", "delta": "{}"},
    {"type": "response.reasoning_summary_text.delta", "output_index": 2, "summary_index": 0, "delta": "s"},
    {"type": "response.completed", "response": {"status": "completed", "output": [], "usage": {"input_tokens": 1}}},
    {"type": "error", "code": "x", "message": "y"},
    {"type": "response.failed", "response": {"status": "failed", "error": {"code": "a", "message": "b"}}},
]


def _stream(events: list[dict[str, Any]]) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


def _json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


SEEDS: Final[dict[str, list[bytes]]] = {
    "responses": _json(CREATE, *[{"model": "m", "input": [item]} for item in ITEMS]),
    "conversations": _json({"items": ITEMS[:6], "metadata": {"a": "b"}}, {"after_item_id": "x"}, {"items": ITEMS[6:]}),
    "chat": _json(CHAT, *[{"model": "m", "messages": [message]} for message in CHAT["messages"]]),
    "others": _json(
        {"model": "m", "input": ["a", [1, 2]], "encoding_format": "base64", "dimensions": 3},
        {"model": "m", "prompt": ["a"], "stop": "b", "stream_options": {"include_usage": True}},
        {"model": "m", "previous_response_id": "resp_1", "instructions": "i"},
        {"name": "a", "url": "https://b", "event_types": ["response.completed"]},
    ),
    "socket": _json(
        {"type": "response.create", "stream_id": "a", "generate": False, **CREATE},
        {"type": "response.steer", "previous_response_id": "resp_1", "input": [ITEMS[0]]},
    ),
    "chat_stream": [_stream([CHUNK, CHUNK]), *_json({"choices": [{"message": CHUNK["choices"][0]["delta"]}]})],
    "responses_stream": [_stream(EVENTS), *_json(EVENTS[5]["response"])],
    "emulated_reply": [*_json({"answer": "a"}, {"tool": "f", "arguments": {"b": [1]}}), b"```json\n{}\n```", b"plain"],
    "skills": [MANIFEST, zip_of(), zip_of(folder="", method=0), raw_zip([Entry(b"a/SKILL.md", MANIFEST, method=8)])],
    "frames": [_stream(EVENTS)],
}
