"""The containers that runs work in: which one it is at a run's start, and what it leaves there at its end.

A run that asks for a container of its own goes on with the one that its branch worked in before, as long as no other
run has moved that on; else, and on a fork of that branch, it gets a new one, forked from the commit at which its chain
stood. What the client itself put there in between is no other run's: it is part of what the chain goes on with.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

import msgspec

from stateroom import ids
from stateroom.errors import InvalidRequest, NotFound, WorkspaceError
from stateroom.journal.entries import WorkspaceAt
from stateroom.runtime.containers.containers import Containers
from stateroom.runtime.containers.state import COLLECTION, RUN, UNSTORED_SECONDS, CommitNote, Container, Network
from stateroom.runtime.files.files import File
from stateroom.runtime.records import Held, RecordExists
from stateroom.runtime.skills.mounting import MountedSkill, blobs_of, remembered_skills
from stateroom.wire.containers import DeclaredContainer
from stateroom.wire.decoding import validate
from stateroom.workspaces.live.workspaces import Workspace

log = logging.getLogger("stateroom.containers")

_FITTED_MAX: Final = 1_024
_AUTO: Final = ("auto", "container_auto")


class RunContainers:
    """What the agent loop asks of containers."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        self._parts = containers.parts
        self._fitted: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        """What a run has declared of a container, by its key; the latest of each."""

    def check_driver(self) -> None:
        """Refuse where no process can be started. Raises NoSandbox."""
        self._parts.live.check_driver()

    async def resolve(
        self,
        project: str,
        key: str,
        declared: Mapping[str, Any] | str,
        base: WorkspaceAt | None,
        *,
        branch: str = "",
        param: str = "container",
    ) -> str:
        """The container that a run with this key works in, by what a tool says of it; nothing is written.

        `declared` is the `environment` of a shell or the `container` of a code interpreter, `base` how the run before
        left its container, `branch` that of the run. Raises InvalidRequest, NotFound.
        """
        named = _named(declared, param)
        if named is not None:
            container_id, place = named
            return (await self._containers.get(project, container_id, place)).id
        asked = _auto(declared, param)
        await self._containers.new_state(project, "", asked, param)
        await self._containers.files_named(project, asked.file_ids or (), f"{param}.file_ids")
        if base is not None:
            with suppress(NotFound):
                held = await self._containers.get(project, base.container)
                # One run at a time is under way on a branch; those on forks of it, and on chains that are not stored,
                # may be at the same time.
                is_ours = base.auto and (not branch or held.state.chain == branch)
                if is_ours and await self._continues(held, base.commit):
                    return held.id
        return _own_id(key)

    async def skills(
        self, project: str, container_id: str, declared: Mapping[str, Any] | str, base: WorkspaceAt | None
    ) -> list[MountedSkill]:
        """What a container that was resolved so has, or will have when it is opened. Raises RequestError."""
        asked = None if _named(declared, "container") is not None else _auto(declared, "container").skills
        if asked is not None and self._parts.skills is not None:
            return await self._parts.skills.described(project, asked, "container.skills")
        held = await self._containers.held.get(project, container_id)
        if held is None and base is not None:
            held = await self._containers.held.get(project, base.container)
        return [] if held is None else remembered_skills(held.state.skills)

    async def is_gone(self, project: str, container_id: str) -> bool:
        """Whether a container that was worked in is no more."""
        return await self._containers.held.get(project, container_id) is None

    async def left_by(self, project: str, container_id: str, item_id: str) -> WorkspaceAt | None:
        """How the run to which an item belongs left the container that was made for it; None for any other.

        An item without an id of ours means the latest. Whoever goes on from there does so in a fork.
        """
        held = await self._containers.held.get(project, container_id)
        if held is None or not held.state.made_for or held.state.head is None:
            return None
        parsed = ids.parse_item_id(item_id)
        async with aclosing(self._containers.commits(held).each()) as commits:
            async for note in commits:
                if parsed is None or (note.response and note.response <= f"resp_{parsed[0]}"):
                    return WorkspaceAt(held.id, note.id)
        return None

    async def open(
        self,
        project: str,
        container_id: str,
        *,
        key: str,
        declared: Mapping[str, Any] | str,
        base: WorkspaceAt | None,
    ) -> Workspace:
        """The workspace of a container that was resolved so; made when it is a new one. May be called again.

        Raises RequestError, StorageError.
        """
        asked = None if _named(declared, "container") is not None else _auto(declared, "container")
        held = await self._containers.held.get(project, container_id)
        if held is None:
            is_own = asked is not None and container_id == _own_id(key)
            if asked is None or not is_own or await self._parts.records.existed(project, COLLECTION, container_id):
                raise (await self._missing(project, container_id))
            held = await self._make(project, container_id, key, asked, base)
        elif asked is not None:
            held = await self._fit(held, key, asked)
        return await self._containers.workspace(held)

    async def finish(self, project: str, container_ids: Sequence[str], run_id: str) -> list[WorkspaceAt]:
        """Before the end of a run: how it leaves its containers, whose commits are durable then.

        They stand on branches of their own: what erases the run must not take the files of its containers back.
        """
        left: list[WorkspaceAt] = []
        for container_id in container_ids:
            async with self._containers.changing(container_id):
                held = await self._containers.held.get(project, container_id)
                if held is None:  # deleted while the run went on
                    continue
                try:
                    workspace = await self._containers.workspace(held)
                    before = held.state.head
                    held = await self._containers.keep(held, workspace, RUN, response=run_id)
                    if held.state.head == before:
                        held = await self._containers.sign(held, workspace, RUN, run_id)
                except NotFound:
                    continue
                except (WorkspaceError, InvalidRequest) as error:  # what was answered counts for more than its files
                    log.warning("containers.not_kept container=%s run=%s code=%s", container_id, run_id, error.code)
            head = held.state.head
            left.append(WorkspaceAt(held.id, "" if head is None else head.id, auto=bool(held.state.made_for)))
        return left

    async def _continues(self, held: Held[Container], commit_id: str) -> bool:
        """Whether no other run has moved the container on since this commit; '' is its beginning."""
        head = held.state.head
        if ("" if head is None else head.id) == commit_id:
            return True
        async with aclosing(self._containers.commits(held).each()) as commits:
            async for note in commits:
                if note.id == commit_id:
                    return True
                if note.response:
                    return False
        return not commit_id

    async def _make(
        self, project: str, container_id: str, key: str, asked: DeclaredContainer, base: WorkspaceAt | None
    ) -> Held[Container]:
        run_id = f"resp_{ids.key_of(key)}"
        row = await self._parts.records.index.run(project, run_id)
        state = await self._containers.new_state(project, "auto", asked, "container")
        start = await self._base(project, base)
        if start is not None and base is not None:
            origin = await self._containers.get(project, base.container)
            state = msgspec.structs.replace(
                state,
                name=origin.state.name,
                memory=state.memory or origin.state.memory,
                minutes=origin.state.minutes,
                network=origin.state.network if asked.network_policy is None else state.network,
                skills=origin.state.skills if asked.skills is None else state.skills,
                began=f"{base.container}/{start.id}",
                copied=tuple(dict.fromkeys((*origin.state.copied, *state.copied))),
                user_files=origin.state.user_files,
            )
        state = msgspec.structs.replace(state, made_for=run_id, chain="" if row is None else row.branch)
        known = () if start is None or base is None else origin.state.copied
        files = await self._files_beyond(project, asked, known)
        expires_at = 0 if row is not None else self._parts.records.now() + UNSTORED_SECONDS * 1000
        try:
            return await self._containers.make(
                project, container_id, state, files=files, base=start, expires_at=expires_at
            )
        except RecordExists:  # by another call of the same run
            return await self._containers.get(project, container_id)

    async def _base(self, project: str, base: WorkspaceAt | None) -> CommitNote | None:
        """The commit that a new container is forked from."""
        if base is None or not base.commit:
            return None
        try:
            origin = await self._containers.get(project, base.container)
            return await self._containers.commit(origin, base.commit)
        except NotFound:
            log.info("containers.base_gone container=%s commit=%s", base.container, base.commit)
            return None

    async def _fit(self, held: Held[Container], key: str, asked: DeclaredContainer) -> Held[Container]:
        """Make a container what this turn says of it: further files, another network, other skills.

        What it does not mention stays as it is. Every call of a run comes by here: the same is done once.
        """
        said = (key, msgspec.json.encode(asked))
        if self._fitted.get(held.id) == said:
            return held
        project, state = held.project, held.state
        wanted = await self._containers.new_state(project, state.name, asked, "container")
        files = await self._files_beyond(project, asked, state.copied)
        same = asked.network_policy is None or self._same_network(project, state.network, wanted.network)
        fitting = {
            "network": state.network if same else wanted.network,
            "skills": state.skills if asked.skills is None else wanted.skills,
            "memory": wanted.memory or state.memory,
            "copied": tuple(dict.fromkeys((*state.copied, *wanted.copied))),
        }
        if files or any(getattr(state, name) != value for name, value in fitting.items()):
            held = await self._change(held, files, fitting)
        self._fitted[held.id] = said
        self._fitted.move_to_end(held.id)
        while len(self._fitted) > _FITTED_MAX:
            self._fitted.popitem(last=False)
        return held

    async def _change(self, held: Held[Container], files: Sequence[File], fitting: dict[str, Any]) -> Held[Container]:
        async with self._containers.changing(held.id):
            copied: dict[str, str] = {}
            if files:
                workspace = await self._containers.workspace(held)
                copied = await self._containers.copy_in(workspace, files)

            def change(now: Held[Container]) -> Container:
                merged = {**now.state.user_files, **copied}
                return msgspec.structs.replace(now.state, **fitting, user_files=merged)

            blobs = blobs_of(fitting["skills"])
            updated = await self._containers.held.update(held.project, held.id, change, blobs=blobs)
        if updated is None:
            raise (await self._missing(held.project, held.id))
        return updated

    async def _files_beyond(self, project: str, asked: DeclaredContainer, known: Sequence[str]) -> list[File]:
        wanted = [file_id for file_id in dict.fromkeys(asked.file_ids or ()) if file_id not in known]
        return await self._containers.files_named(project, wanted, "container.file_ids")

    def _same_network(self, project: str, one: Network | None, other: Network | None) -> bool:
        if one is None or other is None:
            return one is other
        return self._plain(project, one) == self._plain(project, other)

    def _plain(self, project: str, network: Network) -> tuple[Any, ...]:
        """Without what is different each time that it is declared."""
        opened = self._containers.opened(project, network)
        return () if opened is None else (opened.allowed_domains, [(s.domain, s.name, s.value) for s in opened.secrets])

    async def _missing(self, project: str, container_id: str) -> Exception:
        try:
            await self._containers.get(project, container_id)
        except NotFound as error:
            return error
        return InvalidRequest("The container was made in this moment. Try again.", code="container_busy")


def _named(declared: Mapping[str, Any] | str, param: str) -> tuple[str, str] | None:
    """The container that is named, and where it is; None when one is to be made."""
    if isinstance(declared, str):
        return declared, param
    if declared.get("type") == "container_reference":
        place = f"{param}.container_id"
        identifier = declared.get("container_id")
        if not isinstance(identifier, str) or not identifier:
            message = f"Missing required parameter: '{place}'."
            raise InvalidRequest(message, code="missing_required_parameter", param=place)
        return identifier, place
    return None


def _auto(declared: Mapping[str, Any] | str, param: str) -> DeclaredContainer:
    if isinstance(declared, str) or declared.get("type") not in _AUTO:
        message = f"'{param}.type' must be 'auto', 'container_auto' or 'container_reference'."
        raise InvalidRequest(message, code="invalid_value", param=f"{param}.type")
    said = {name: value for name, value in declared.items() if name != "type"}
    validate(said, DeclaredContainer, param)
    return msgspec.convert(said, DeclaredContainer)


def _own_id(key: str) -> str:
    """The id of the container that is made for a run."""
    return f"cntr_{ids.key_of(key)}"
