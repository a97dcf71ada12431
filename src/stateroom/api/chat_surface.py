"""Chat Completions as a surface of the runtime: its chunks; tools are those of the Responses API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stateroom.api.surface import ResponsesSurface
from stateroom.journal.entries import Frame, Item, OpenItem, RunSettings, RunView
from stateroom.runtime.chat_completions import CHAT
from stateroom.runtime.surface import Renderer, ToolPlan
from stateroom.tools.tool import Tool
from stateroom.wire.chat_events import ChatRenderer


class ChatSurface:
    """Implements `runtime.surface.Surface`."""

    name = CHAT
    one_off = True

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = ResponsesSurface(tools)

    def renderer(self, view: RunView, *, obfuscate: bool) -> Renderer:
        return ChatRenderer(view, obfuscate=obfuscate)

    def restore(self, view: RunView, frames: Sequence[Frame], *, obfuscate: bool) -> tuple[Renderer, list[OpenItem]]:
        return ChatRenderer.restore(view, frames)

    def plan(self, settings: RunSettings, items: Sequence[Item]) -> ToolPlan:
        return self._tools.plan(settings, items)
