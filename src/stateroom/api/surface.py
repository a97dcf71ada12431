"""The Responses API as a surface of the runtime: its renderer and its tools, wired to the runtime's own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from stateroom.agent.assembler import CallShape
from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Frame, Item, OpenItem, RunSettings, RunView, WorkspaceAt
from stateroom.journal.hosted_items import HOSTED_CALL, PROGRAM
from stateroom.models.backend import FunctionSpec
from stateroom.runtime.surface import Renderer, ToolPlan
from stateroom.tools.program.contract import ProgramTool
from stateroom.tools.program.engine import Programs
from stateroom.tools.program.listing import program_function
from stateroom.tools.tool import Tool
from stateroom.wire.call_items import build_call_item
from stateroom.wire.events import ResponsesRenderer
from stateroom.wire.hosted_tools import FUNCTIONS, PROGRAMMATIC, build_item, program_item
from stateroom.wire.tool_types import Function, ToolRef, ToolSet
from stateroom.wire.tools import tool_set


class ResponsesSurface:
    """Implements `runtime.surface.Surface`."""

    name = "responses"
    one_off = False

    def __init__(self, tools: Mapping[str, Tool], programs: Programs | None = None) -> None:
        self._programs = programs
        self._hosted = {kind: _function(tool) for kind, tool in tools.items()}
        self._hosted["tool_search"] = FUNCTIONS["tool_search"]  # needs nobody who carries it out
        if programs is not None and not programs.unavailable:
            self._hosted[PROGRAMMATIC] = Function(PROGRAM)  # what it says follows from the other tools

    def renderer(self, view: RunView, *, obfuscate: bool) -> Renderer:
        return ResponsesRenderer(view, obfuscate=obfuscate)

    def restore(self, view: RunView, frames: Sequence[Frame], *, obfuscate: bool) -> tuple[Renderer, list[OpenItem]]:
        return ResponsesRenderer.restore(view, frames, obfuscate=obfuscate)

    def plan(self, settings: RunSettings, items: Sequence[Item]) -> ToolPlan:
        if PROGRAMMATIC not in self._hosted:
            self._refuse_programs(settings)
        return Plan(tool_set(settings.tools, settings.tool_choice, items=items, hosted=self._hosted))

    def _refuse_programs(self, settings: RunSettings) -> None:
        for position, tool in enumerate(settings.tools):
            if tool.get("type") == PROGRAMMATIC:
                why = self._programs.unavailable if self._programs is not None else "there is no engine for them"
                message = f"Programs cannot run here: {why}. Leave the tool '{PROGRAMMATIC}' out."
                raise InvalidRequest(message, code="programs_unavailable", param=f"tools[{position}].type")


class Plan:
    """A `wire.tools.ToolSet` as a `ToolPlan`."""

    def __init__(self, tools: ToolSet) -> None:
        self._lookup = tools.lookup
        self.programmatic = [self._program_tool(each) for each in tools.programmatic]
        self.functions: Sequence[FunctionSpec] = [self._offered(each) for each in tools.functions]
        self.choice = tools.choice
        self.allowed = tools.allowed
        self.environments = tools.environments
        self.places = tools.places
        self.servers = tools.servers
        self.unlisted = tools.unlisted
        self.deferred = tools.deferred
        self.containers: dict[str, str] = {}
        self.told = ""
        self.base: WorkspaceAt | None = None
        self.fingerprint: Callable[[str], str] = lambda code: ""

    def _offered(self, function: Function) -> FunctionSpec:
        if self._lookup[function.name] == ToolRef("typed", PROGRAMMATIC):
            listing = program_function(self.programmatic)
            return FunctionSpec(function.name, listing.description, listing.parameters)
        return FunctionSpec(function.name, function.description, function.parameters, function.strict)

    def _program_tool(self, function: Function) -> ProgramTool:
        parameters: dict[str, Any] | None = function.parameters or {"type": "object", "properties": {}}
        if self._lookup[function.name].kind == "custom":
            parameters = None  # takes text
        return ProgramTool(function.name, function.description, parameters, function.output_schema)

    def nested(self, name: str, call_id: str, arguments: str) -> Item | None:
        ref = self._lookup.get(name)
        if ref is None or not ref.programmatic:
            return None
        text = msgspec.json.encode({"input": arguments}).decode() if ref.kind == "custom" else arguments
        return self._shape(ref, name).build(call_id, text)

    def name_of(self, label: str, name: str) -> str:
        found = (
            flat for flat, ref in self._lookup.items() if (ref.kind, ref.namespace, ref.name) == ("mcp", label, name)
        )
        return next(found, "")

    def shape_of(self, name: str) -> CallShape | None:
        ref = self._lookup.get(name)
        return self._shape(ref, name) if ref is not None and ref.direct else None

    def _shape(self, ref: ToolRef, name: str) -> CallShape:
        if ref == ToolRef("typed", PROGRAMMATIC):
            return CallShape(
                lambda call_id, text: program_item(call_id, text, self.fingerprint), streams=False, whole=True
            )
        if ref.kind == "hosted":
            return CallShape(lambda call_id, text: _hosted_call(ref, name, call_id, text), streams=False, waits=True)
        if ref.kind in ("typed", "mcp"):
            container = self.containers.get(ref.name, "")
            waits = ref.kind == "mcp" or ref.name == "code_interpreter"
            return CallShape(
                lambda call_id, text: build_item(ref, name, call_id, text, container),
                streams=False,
                waits=waits and not ref.needs_approval,
                whole=ref.needs_approval,
            )
        return CallShape(lambda call_id, text: build_call_item(ref, call_id, text), streams=ref.kind == "function")


def _hosted_call(ref: ToolRef, name: str, call_id: str, arguments: str) -> Item:
    return {"type": HOSTED_CALL, "call_id": call_id, "tool": ref.name, "name": name, "arguments": arguments}


def _function(tool: Tool) -> Function:
    offered = tool.function
    return Function(**msgspec.structs.asdict(offered)) if offered is not None else Function(tool.type)
