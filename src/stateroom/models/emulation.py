"""Tool calls for models without tool support: a JSON schema forces a call or an answer, and the reply is read as such.

One call is made in a step, whatever `parallel_tool_calls` says. Log probabilities are not given while functions are
offered: they would be those of JSON. What a model does with a free choice is its own: a very small one chooses badly.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Final, Literal

import msgspec

from stateroom import ids
from stateroom.errors import BackendFailed, InvalidRequest
from stateroom.journal.entries import Item
from stateroom.journal.hosted_items import told_name
from stateroom.models.backend import (
    Backend,
    ContextItem,
    Delta,
    Finished,
    FunctionSpec,
    ItemDelta,
    Model,
    ModelCall,
    TextDelta,
    ToolCallDelta,
)
from stateroom.models.emulated_reply import ReplyReader
from stateroom.models.grammar_schema import UNBOUNDED, Bounds, Schema, describe, fit, fit_arguments

_KEY: Final = "emulation"
_NOT_ARGUMENTS: Final = frozenset({"type", "id", "call_id", "status", "name", "namespace", "output", "error", "extra"})

_encode = msgspec.json.Encoder().encode


class ToolEmulation:
    """A backend whose model need not know tools, made into one that calls them."""

    def __init__(self, inner: Backend, bounds: Bounds = UNBOUNDED) -> None:
        self.inner = inner
        self.name = inner.name
        self.can_prefill = inner.can_prefill
        self._bounds = bounds
        """On the strings and lists of arguments that their schemas leave unbounded."""

    async def models(self) -> list[Model]:
        return await self.inner.models()

    async def generate(self, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
        plan, told = _plan(call, self._bounds)
        inner = self.inner.generate(told)
        async with contextlib.aclosing(inner):
            if not plan.names:
                async for batch in inner:
                    yield batch
                return
            async for batch in _read(inner, ReplyReader(plan.names, plan.answer), plan):
                yield batch

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        return await self.inner.count_tokens(_plan(call, self._bounds)[1])

    async def close(self) -> None:
        await self.inner.close()


async def _read(
    inner: AsyncIterator[Sequence[Delta]], reader: ReplyReader, plan: _Plan
) -> AsyncIterator[Sequence[Delta]]:
    """The reply's batches as text, a call and an end. Raises BackendFailed when it is neither."""
    async for batch in inner:
        deltas: list[Delta] = []
        for delta in batch:
            if isinstance(delta, TextDelta):
                if text := reader.feed(delta.text):
                    deltas.append(TextDelta(text))
            elif isinstance(delta, Finished):
                deltas += _ending(reader, delta, plan)
            elif not isinstance(delta, ToolCallDelta) and not _of_message(delta):
                deltas.append(delta)
        if deltas:
            yield deltas


def _of_message(delta: Delta) -> bool:
    """Whether it begins or ends a message, which may turn out to be a call."""
    return isinstance(delta, ItemDelta) and delta.item.get("type") == "message"


def _ending(reader: ReplyReader, finished: Finished, plan: _Plan) -> list[Delta]:
    text, call, whole = reader.end()
    if call is not None:
        made = ToolCallDelta(0, ids.new_id("call"), call.name, call.arguments)
        return [made, Finished("stop", finished.usage)]
    if whole and plan.answer != "none":
        return [TextDelta(text), finished] if text else [finished]
    if finished.reason == "stop":
        raise BackendFailed(
            "The model's server did not keep to the JSON schema that its reply was to have, so no tool call could be "
            "read from it. Use a server with structured output (`response_format`), or one with native tool calls.",
            code="tool_call_unreadable",
        )
    return [finished]


class _Plan(msgspec.Struct, frozen=True):
    """What the inner backend is asked in the place of functions; without names there are none to be called."""

    names: frozenset[str] = frozenset()
    answer: Literal["text", "json", "none"] = "text"
    """What the model may reply other than a call."""
    tools: str = ""
    format: dict[str, Any] | None = None


class _Flat:
    """The context without calls, as far as it has been made; lives in the context's cache."""

    def __init__(self) -> None:
        self.items: list[ContextItem] = []
        self.cache: dict[str, Any] = {}
        """The inner backend's own."""
        self.consumed = 0
        self.last = ""
        self.names: dict[str, str] = {}
        """By call id."""
        self.plans: list[tuple[Sequence[FunctionSpec], Any, Any, _Plan]] = []
        """The last one, with what it was made from."""

    def extend(self, items: Sequence[ContextItem]) -> None:
        for held in items[self.consumed :]:
            self._add(held)
            self.last = held.id
        self.consumed = len(items)

    def _add(self, held: ContextItem) -> None:
        item = held.item
        kind = str(item.get("type") or "message")
        if kind.endswith("_call_output"):
            self._result(held.id, str(item.get("call_id") or ""), item.get("output"))
        elif kind.endswith("_call") and ("call_id" in item or "output" in item):
            name = str(item.get("name") or kind.removesuffix("_call"))
            name = told_name(name, item.get("namespace"))
            self.names[str(item.get("call_id") or held.id)] = name
            said = f"Called {name}({_arguments(item)})"
            self._say(held.id, "assistant", [{"type": "output_text", "text": said}])
            if item.get("output") is not None:  # the server carried it out itself
                self._result(f"{held.id}-result", str(item.get("call_id") or held.id), item["output"])
        else:
            self.items.append(held)

    def _result(self, item_id: str, call_id: str, output: Any) -> None:
        heading = f"Result of {self.names.get(call_id) or call_id or 'a tool'}:"
        if isinstance(output, dict) and "type" in output:
            output = [output]  # a single part, such as a screenshot
        if isinstance(output, list):
            self._say(item_id, "user", [{"type": "input_text", "text": heading}, *output])
            return
        text = output if isinstance(output, str) else "" if output is None else _encode(output).decode()
        self._say(item_id, "user", f"{heading} {text}")

    def _say(self, item_id: str, role: str, content: Any) -> None:
        item: Item = {"role": role, "content": content}
        self.items.append(ContextItem(item_id, item))


def _arguments(item: Item) -> str:
    given = item.get("arguments", item.get("input"))
    if given is None:
        given = {name: value for name, value in item.items() if name not in _NOT_ARGUMENTS}
    return given if isinstance(given, str) else _encode(given).decode()


def _flattened(call: ModelCall) -> _Flat:
    held = call.cache.get(_KEY)
    if not isinstance(held, _Flat) or len(call.items) < held.consumed or not _same_start(held, call.items):
        held = call.cache[_KEY] = _Flat()
    held.extend(call.items)
    return held


def _same_start(held: _Flat, items: Sequence[ContextItem]) -> bool:
    return held.consumed == 0 or items[held.consumed - 1].id == held.last


def _plan(call: ModelCall, bounds: Bounds) -> tuple[_Plan, ModelCall]:
    """What to ask, and the call that asks it.

    An answer that has begun goes on as text: it cannot become a call any more.
    """
    flat = _flattened(call)
    told = msgspec.structs.replace(call, items=flat.items, cache=flat.cache, functions=(), tool_choice="auto")
    choice = call.tool_choice
    if not call.functions or choice == "none" or (call.prefill and choice == "auto"):
        return _Plan(), told
    plan = _known_plan(flat, call)
    if plan is None:
        plan = _new_plan(call, bounds)
        flat.plans[:] = [(tuple(call.functions), choice, call.format, plan)]
    told.instructions = "\n\n".join([text for text in (call.instructions, plan.tools) if text])
    told.format, told.top_logprobs, told.prefill = plan.format, None, ""
    return plan, told


def _known_plan(flat: _Flat, call: ModelCall) -> _Plan | None:
    """The plan of the context's last call, if it was made from the same objects."""
    for functions, choice, format, plan in flat.plans:
        same = len(functions) == len(call.functions) and all(map(_is, functions, call.functions))
        if same and choice == call.tool_choice and format is call.format:
            return plan
    return None


def _is(one: object, other: object) -> bool:
    return one is other


def _new_plan(call: ModelCall, bounds: Bounds) -> _Plan:
    choice = call.tool_choice
    offered = [each for each in call.functions if isinstance(choice, str) or each.name in choice]
    if not offered:
        raise InvalidRequest("`tool_choice` names no tool of this request.", param="tool_choice")
    arguments = {each.name: fit_arguments(each.parameters, bounds) for each in offered}
    branches = [_object({"tool": {"const": name}, "arguments": schema}) for name, schema in arguments.items()]
    answer: Literal["text", "json", "none"] = "none"
    if choice == "auto":
        answer = "json" if call.format else "text"
        branches.append(_object({"answer": _answer_schema(call.format, bounds)}))
    schema = branches[0] if len(branches) == 1 else {"anyOf": branches}
    return _Plan(
        frozenset(arguments),
        answer,
        _explained(offered, arguments, answer),
        {"type": "json_schema", "name": "reply", "schema": schema, "strict": True},
    )


def _answer_schema(format: dict[str, Any] | None, bounds: Bounds) -> Schema:
    if format is None:
        return {"type": "string"}
    return fit(format["schema"], bounds) if isinstance(format.get("schema"), dict) else {"type": "object"}


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _explained(offered: Sequence[FunctionSpec], arguments: dict[str, Schema], answer: str) -> str:
    """What the model is told of its tools."""
    lines = ["You can call these tools:"]
    for each in offered:
        lines.append(f"- {each.name}{': ' if each.description else ''}{' '.join(each.description.split())}")
        lines.append(f"  arguments: {describe(arguments[each.name])}")
    lines += ["", 'Reply with one JSON object: {"tool": name, "arguments": arguments} to call a tool']
    lines[-1] += {
        "none": ".",
        "text": ', or {"answer": text} to answer the user.',
        "json": ', or {"answer": value} to answer the user.',
    }[answer]
    lines.append('Messages that begin with "Called" and "Result of" are earlier calls and their results.')
    return "\n".join(lines)
