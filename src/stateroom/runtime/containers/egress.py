"""Where the processes of a container wanted to go: what its proxy decided, as noted with its commits."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

from stateroom.runtime.containers.containers import Containers
from stateroom.runtime.containers.state import Container, EgressNote, read_note
from stateroom.runtime.records import Held
from stateroom.workspaces.egress.decisions import Decision

KEPT_MAX: Final = 1_000
"""Decisions of a container; whole notes, so that there may be some more until they are looked at."""


class ContainerEgress:
    """The decisions about all containers."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers

    async def all(self, project: str, container_id: str) -> list[Decision]:
        """Those that are kept, and those of now, oldest first. Raises NotFound."""
        held = await self._containers.get(project, container_id)
        # Before the notes: what is written down meanwhile is then there twice rather than not at all.
        found = list(reversed(self._containers.parts.live.decided.of(container_id)))
        known = {decision.id for decision in found}
        for note in await self._notes(held):
            found += [decision for decision in reversed(note.decisions) if decision.id not in known]
            if len(found) >= KEPT_MAX:
                break
        return found[:KEPT_MAX][::-1]

    async def thin(self, held: Held[Container]) -> int:
        """Let go of notes beyond those that a container keeps; of how many."""
        if held.state.network is None:
            return 0
        old: set[str] = set()
        seen = 0
        for note in await self._notes(held):
            if seen >= KEPT_MAX:
                old.add(note.decisions[0].id)
            seen += len(note.decisions)
        if not old:
            return 0

        def is_old(raw: object) -> bool:
            note = read_note(raw)  # type: ignore[arg-type]  # what notes are
            return isinstance(note, EgressNote) and note.decisions[0].id in old

        return await self._containers.held.erase_old_notes(held.project, held.id, is_old)

    async def _notes(self, held: Held[Container]) -> list[EgressNote]:
        """Newest first."""
        found: list[EgressNote] = []
        async with aclosing(self._containers.held.each_note(held.project, held.id, newest_first=True)) as notes:
            async for raw in notes:
                note = read_note(raw)
                if isinstance(note, EgressNote):
                    found.append(note)
        return found
