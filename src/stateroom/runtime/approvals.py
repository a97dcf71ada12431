"""Requests for an approval, and what is answered to them: each answer is to a request, and the first one stands."""

from __future__ import annotations

from collections.abc import Sequence

from stateroom.agent.hosted import as_function
from stateroom.errors import InvalidRequest
from stateroom.journal.entries import ContextItem, Item
from stateroom.journal.hosted_items import APPROVAL_REQUEST, APPROVAL_RESPONSE, HOSTED, OWN_LABEL, caller_of
from stateroom.runtime.live import LiveRun


def check_approvals(items: Sequence[Item], present: Sequence[ContextItem]) -> None:
    """Refuse answers to requests for an approval that were never made, or were answered. Raises InvalidRequest."""
    answers = [item for item in items if item.get("type") == APPROVAL_RESPONSE]
    if not answers:
        return
    known = {held.id for held in present if held.item.get("type") == APPROVAL_REQUEST}
    known |= {item["id"] for item in items if item.get("type") == APPROVAL_REQUEST and "id" in item}
    answered = {
        held.item["approval_request_id"]
        for held in present
        if "approval_request_id" in held.item and held.item.get("type") != APPROVAL_RESPONSE
    }
    for item in answers:
        request_id = item["approval_request_id"]
        if request_id in answered:
            message = f"The request '{request_id[:64]}' was answered before. What was decided stands."
            raise InvalidRequest(message, code="approval_already_answered", param="input")
        if request_id not in known:
            message = (
                f"No request for an approval with id '{request_id[:64]}' was found. Continue the response that made it "
                "(`previous_response_id` or `conversation`), or send its item along."
            )
            raise InvalidRequest(message, code="approval_request_not_found", param="input")


def asked_for(run: LiveRun, request_id: str, request: Item) -> Item:
    """The item of the call that a request asks for."""
    label, name, arguments = request["server_label"], request["name"], request["arguments"]
    flat = name if label == OWN_LABEL else run.plan.name_of(label, name)
    nested = {name: request[name] for name in ("caller", "call_id")} if caller_of(request) else {}
    call_id: str = nested.get("call_id") or f"call_{request_id}"
    shape = run.plan.shape_of(flat)
    item = run.plan.nested(flat, call_id, arguments) if nested else shape.build(call_id, arguments) if shape else None
    if item is not None:
        if item["type"] == APPROVAL_REQUEST:
            item = {**item, "type": "mcp_call", HOSTED: "mcp"}
        return {**item, **nested, "approval_request_id": request_id}
    return {
        "type": "mcp_call",
        "server_label": label,
        "name": name,
        "arguments": arguments,
        **nested,
        "approval_request_id": request_id,
    }


def request_of(run: LiveRun, request_id: str) -> Item:
    """The request for an approval; it was looked for when the run began."""
    for held in reversed(run.branch.state.items):
        if held.id == request_id:
            return held.item
    for held in run.state.input_items(run.state.start):
        if held.id == request_id and held.item.get("type") == APPROVAL_REQUEST:
            return held.item
    return {"type": APPROVAL_REQUEST, "server_label": "", "name": "", "arguments": "{}"}


def asking(item: Item, kind: str) -> Item:
    """The request for an approval of a call that is held back."""
    if item.get("type") == "mcp_call":
        said = {"server_label": item["server_label"], "name": item["name"], "arguments": item["arguments"]}
        return {"type": APPROVAL_REQUEST, **said}
    name, arguments = _called_as(item, kind)
    return {"type": APPROVAL_REQUEST, "server_label": OWN_LABEL, "name": name, "arguments": arguments}


def _called_as(item: Item, kind: str) -> tuple[str, str]:
    """As which function a call was made, and with which arguments."""
    told = as_function(ContextItem("", item))
    call = next(iter(told)) if told is not None else None
    return (call.item["name"], call.item["arguments"]) if call is not None else (kind, "{}")
