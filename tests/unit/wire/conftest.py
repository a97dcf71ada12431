"""One plain example of every item type that the API takes as input, as a client would send it."""

from __future__ import annotations

from typing import Any

import pytest

SAMPLES: dict[str, dict[str, Any]] = {
    "easy user message": {"role": "user", "content": "hello"},
    "easy assistant message": {"role": "assistant", "content": "hello", "phase": "commentary"},
    "message with parts": {
        "type": "message",
        "role": "user",
        "content": [
            {"type": "input_text", "text": "what is this?"},
            {"type": "input_image", "detail": "high", "image_url": "data:image/png;base64,AAAA"},
            {"type": "input_file", "file_data": "data:text/plain;base64,AAAA", "filename": "a.txt"},
        ],
    },
    "developer message": {"role": "developer", "content": [{"type": "input_text", "text": "be brief"}]},
    "output message": {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "phase": "final_answer",
        "content": [
            {
                "type": "output_text",
                "text": "it is a cat",
                "annotations": [{"type": "file_path", "file_id": "file_1", "index": 2}],
                "logprobs": [],
            },
            {"type": "refusal", "refusal": "no"},
        ],
    },
    "reasoning": {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "thought"}],
        "content": [{"type": "reasoning_text", "text": "thinking"}],
        "encrypted_content": "sealed",
        "status": "in_progress",
    },
    "function call": {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "get_weather",
        "namespace": "weather",
        "arguments": '{"city": "Bern"}',
        "async": True,
        "status": "completed",
    },
    "function call output": {"type": "function_call_output", "call_id": "call_1", "output": "sunny", "id": "fco_1"},
    "function call output with parts": {
        "type": "function_call_output",
        "call_id": "call_1",
        "output": [
            {"type": "input_text", "text": "seen"},
            {"type": "input_image", "detail": "low", "image_url": "https://example.org/cat.png"},
        ],
    },
    "custom tool call": {"type": "custom_tool_call", "call_id": "call_2", "name": "patch", "input": "*** Begin"},
    "custom tool call output": {"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"},
    "file search call": {
        "type": "file_search_call",
        "id": "fs_1",
        "queries": ["cats"],
        "status": "completed",
        "results": [{"file_id": "file_1", "filename": "a.txt", "score": 0.5, "text": "cat"}],
    },
    "web search call": {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "cats", "queries": ["cats"]},
    },
    "computer call": {
        "type": "computer_call",
        "id": "cu_1",
        "call_id": "call_3",
        "status": "completed",
        "pending_safety_checks": [],
        "action": {"type": "screenshot"},
    },
    "computer call output": {
        "type": "computer_call_output",
        "call_id": "call_3",
        "output": {"type": "computer_screenshot", "image_url": "data:image/png;base64,AAAA"},
    },
    "image generation call": {
        "type": "image_generation_call",
        "id": "ig_1",
        "status": "completed",
        "result": "AAAA",
    },
    "code interpreter call": {
        "type": "code_interpreter_call",
        "id": "ci_1",
        "container_id": "cntr_1",
        "code": "1 + 1",
        "outputs": [{"type": "logs", "logs": "2"}],
        "status": "completed",
    },
    "local shell call": {
        "type": "local_shell_call",
        "id": "lsh_1",
        "call_id": "call_4",
        "action": {"type": "exec", "command": ["ls"], "env": {}},
        "status": "completed",
    },
    "local shell call output": {"type": "local_shell_call_output", "id": "lsho_1", "output": "a.txt"},
    "shell call": {
        "type": "shell_call",
        "call_id": "call_5",
        "action": {"commands": ["ls"], "timeout_ms": 1000},
        "environment": {"type": "local"},
        "status": "completed",
    },
    "shell call output": {
        "type": "shell_call_output",
        "call_id": "call_5",
        "output": [{"stdout": "a.txt", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
        "max_output_length": 100,
    },
    "apply patch call": {
        "type": "apply_patch_call",
        "call_id": "call_6",
        "operation": {"type": "delete_file", "path": "a.txt"},
        "status": "completed",
    },
    "apply patch call output": {
        "type": "apply_patch_call_output",
        "call_id": "call_6",
        "status": "failed",
        "output": "no such file",
    },
    "mcp list tools": {
        "type": "mcp_list_tools",
        "id": "mcpl_1",
        "server_label": "docs",
        "tools": [{"name": "search", "input_schema": {"type": "object"}}],
    },
    "mcp approval request": {
        "type": "mcp_approval_request",
        "id": "mcpr_1",
        "server_label": "docs",
        "name": "search",
        "arguments": "{}",
    },
    "mcp approval response": {
        "type": "mcp_approval_response",
        "approval_request_id": "mcpr_1",
        "approve": True,
        "reason": "fine",
    },
    "mcp call": {
        "type": "mcp_call",
        "id": "mcp_1",
        "server_label": "docs",
        "name": "search",
        "arguments": "{}",
        "output": "found",
        "status": "completed",
    },
    "compaction": {"type": "compaction", "id": "cmp_1", "encrypted_content": "sealed"},
    "additional tools": {
        "type": "additional_tools",
        "role": "developer",
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}],
    },
    "configuration update": {"type": "configuration_update", "reasoning": {"effort": "low"}},
    "tool search call": {
        "type": "tool_search_call",
        "call_id": "call_7",
        "execution": "client",
        "arguments": {"query": "weather"},
    },
    "tool search output": {"type": "tool_search_output", "call_id": "call_7", "execution": "client", "tools": []},
    "program": {"type": "program", "id": "prg_1", "call_id": "call_8", "code": "1", "fingerprint": "f"},
    "program output": {
        "type": "program_output",
        "id": "prgo_1",
        "call_id": "call_8",
        "result": "1",
        "status": "completed",
    },
    "item reference": {"type": "item_reference", "id": "msg_1"},
}


@pytest.fixture
def samples() -> dict[str, dict[str, Any]]:
    """Items by a name for the test's message."""
    return SAMPLES
