"""Words in the items of calls that the runtime itself carries out, as the journal holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

HOSTED_CALL: Final = "stateroom:tool_call"
"""Item type of a call of a tool that has no item type of its own."""

HOSTED: Final = "hosted"
"""Field of a packed item that only the runtime writes: which tool carries the call out."""

CLIENT_CALLS: Final = frozenset(
    {
        "function_call",
        "custom_tool_call",
        "shell_call",
        "local_shell_call",
        "apply_patch_call",
        "tool_search_call",
        "mcp_approval_request",
    }
)
"""Item types of what the client is to answer, unless the runtime carries it out."""

APPROVAL_REQUEST: Final = "mcp_approval_request"
APPROVAL_RESPONSE: Final = "mcp_approval_response"
LISTING: Final = "mcp_list_tools"
OWN_LABEL: Final = "stateroom"
"""`server_label` of approval requests for tools that belong to no MCP server."""

SHELL: Final = "shell"
LOCAL_SHELL: Final = "local_shell"
PATCH: Final = "apply_patch"
PYTHON: Final = "python"
SEARCH: Final = "tool_search"
PROGRAM: Final = "program"


def told_name(name: str, namespace: str | None) -> str:
    """The function as which a model knows the tool of a call.

    A namespace that is the name itself is none: with it OpenAI's API marks calls of tools that a search has found.
    """
    return f"{namespace}__{name}" if namespace and namespace != name else name


def caller_of(item: Mapping[str, Any]) -> str:
    """The `call_id` of the program that made a call, or whose call this is the result of; '' when it was a model."""
    caller = item.get("caller")
    if not isinstance(caller, dict) or caller.get("type") != PROGRAM:
        return ""
    caller_id = caller.get("caller_id")
    return caller_id if isinstance(caller_id, str) else ""
