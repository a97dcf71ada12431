"""The Responses API as a surface of the runtime: its renderer and its tools, wired to the runtime's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from stateroom.agent.assembler import CallShape
from stateroom.agent.steps import HOSTED_CALL
from stateroom.journal.entries import Frame, Item, OpenItem, RunSettings, RunView
from stateroom.models.backend import FunctionSpec
from stateroom.runtime.surface import Renderer, ToolPlan
from stateroom.tools.tool import Tool
from stateroom.wire.events import ResponsesRenderer
from stateroom.wire.tools import Function, ToolRef, ToolSet, build_call_item, tool_set


class ResponsesSurface:
    """Implements `runtime.surface.Surface`."""

    name = "responses"
    one_off = False

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._hosted = {kind: _function(tool) for kind, tool in tools.items()}

    def renderer(self, view: RunView, *, obfuscate: bool) -> Renderer:
        return ResponsesRenderer(view, obfuscate=obfuscate)

    def restore(self, view: RunView, frames: Sequence[Frame], *, obfuscate: bool) -> tuple[Renderer, list[OpenItem]]:
        return ResponsesRenderer.restore(view, frames, obfuscate=obfuscate)

    def plan(self, settings: RunSettings, items: Sequence[Item]) -> ToolPlan:
        return Plan(tool_set(settings.tools, settings.tool_choice, items=items, hosted=self._hosted))


class Plan:
    """A `wire.tools.ToolSet` as a `ToolPlan`."""

    def __init__(self, tools: ToolSet) -> None:
        self.functions: Sequence[FunctionSpec] = [
            FunctionSpec(each.name, each.description, each.parameters, each.strict) for each in tools.functions
        ]
        self.choice = tools.choice
        self.allowed = tools.allowed
        self._lookup = tools.lookup

    def shape_of(self, name: str) -> CallShape | None:
        ref = self._lookup.get(name)
        if ref is None:
            return None
        if ref.kind == "hosted":
            return CallShape(
                lambda call_id, arguments: _hosted_call(ref, name, call_id, arguments), streams=False, hosted=True
            )
        return CallShape(
            lambda call_id, arguments: build_call_item(ref, call_id, arguments), streams=ref.kind == "function"
        )


def _hosted_call(ref: ToolRef, name: str, call_id: str, arguments: str) -> Item:
    return {"type": HOSTED_CALL, "call_id": call_id, "tool": ref.name, "name": name, "arguments": arguments}


def _function(tool: Tool) -> Function:
    offered = tool.function
    return Function(**msgspec.structs.asdict(offered))
