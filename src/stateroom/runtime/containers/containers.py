"""Containers: records of workspaces, which have files, processes and commits.

What a workspace holds is kept in the content store first; then the record is told, in one append with a note of the
commit. So every commit that the journal names is there, and what a crash leaves in between is unreferenced content.
Nothing here knows HTTP, nor what a model's tool call looks like.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec

from stateroom import ids
from stateroom.access.sealing import Sealer
from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Fact
from stateroom.runtime.containers.history import Commits
from stateroom.runtime.containers.state import (
    COLLECTION,
    CREATED,
    UNSTORED_SECONDS,
    CommitNote,
    Container,
    EgressNote,
    Head,
    Network,
    SealedSecret,
    commit_not_found,
    container_full,
    container_not_found,
)
from stateroom.runtime.cursors import check_cursors
from stateroom.runtime.files.files import File, Files
from stateroom.runtime.records import Held, Records
from stateroom.runtime.skills.mounting import SkillMounting, blobs_of
from stateroom.settings import WorkspaceSettings
from stateroom.wire.containers import (
    MEMORY_LIMITS,
    Allowlist,
    DeclaredContainer,
    NetworkPolicy,
    NewContainer,
    memory_bytes_of,
)
from stateroom.workspaces.content.store import ContentStore
from stateroom.workspaces.egress.policy import NetworkPolicy as Opened
from stateroom.workspaces.egress.policy import Secret, make_policy
from stateroom.workspaces.live.workspaces import Commit, Workspace, Workspaces, WorkspaceSpec, new_commit_id
from stateroom.workspaces.workspace import Mount

_PAGE: Final = 200
"""Containers that are looked through at a time for those of one name."""

Change = Callable[[Container], Container]


class ContainerParts(msgspec.Struct, frozen=True):
    """What containers are made of."""

    records: Records
    files: Files
    content: ContentStore
    live: Workspaces
    sealer: Sealer
    settings: WorkspaceSettings
    skills: SkillMounting | None = None


class Containers:
    """The containers of all projects."""

    def __init__(self, parts: ContainerParts) -> None:
        self.parts = parts
        self.held = parts.records.collection(COLLECTION, Container)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(
        self, project: str, asked: NewContainer, *, container_id: str = "", also: Sequence[Fact] = ()
    ) -> Held[Container]:
        """A new container, with its files in it. `also` is committed with it. Raises RequestError, StorageError."""
        declared = DeclaredContainer(asked.file_ids, asked.memory_limit, asked.network_policy, asked.skills)
        state = await self.new_state(project, asked.name, declared, "")
        minutes = 0 if asked.expires_after is None else asked.expires_after.minutes
        state = msgspec.structs.replace(state, minutes=minutes)
        files = await self.files_named(project, asked.file_ids or (), "file_ids")
        return await self.make(project, container_id or new_container_id(), state, files=files, also=also)

    async def make(
        self,
        project: str,
        container_id: str,
        state: Container,
        *,
        files: Sequence[File] = (),
        base: CommitNote | None = None,
        expires_at: int = 0,
        also: Sequence[Fact] = (),
    ) -> Held[Container]:
        """A new container of this state, which begins with a commit of another, or with these files."""
        facts = list(also)
        if base is not None:
            await self.spare(base)
            state = msgspec.structs.replace(state, head=head_of(base))
            facts.append(self.held.noted(container_id, base))
        if not files:
            return await self._made(project, container_id, state, expires_at, facts)
        # Nobody knows it yet: a crash leaves a folder that belongs to nothing, which the next start removes.
        draft = Held(container_id, project, state, self.parts.records.now())
        async with self.changing(container_id):
            workspace = await self.workspace(draft)
            try:
                copied = await self.copy_in(workspace, files)
                commit = await workspace.commit()
                if commit is not None:
                    note = self._note(commit, state.head, CREATED, "")
                    state = msgspec.structs.replace(state, head=head_of(note))
                    facts.append(self.held.noted(container_id, note))
                state = msgspec.structs.replace(state, user_files={**state.user_files, **copied})
                made = await self._made(project, container_id, state, expires_at, facts)
            except BaseException:
                await self.parts.live.forget(container_id)
                raise
            if commit is not None:
                await workspace.kept(commit)
            return made

    async def _made(
        self, project: str, container_id: str, state: Container, expires_at: int, also: Sequence[Fact]
    ) -> Held[Container]:
        blobs = blobs_of(state.skills)
        return await self.held.create(project, container_id, state, expires_at=expires_at, blobs=blobs, also=also)

    async def get(self, project: str, container_id: str, param: str = "container_id") -> Held[Container]:
        """Raises NotFound."""
        held = await self.held.get(project, container_id)
        if held is None:
            raise container_not_found(container_id, param)
        return held

    async def page(
        self, project: str, *, after: str = "", before: str = "", limit: int = 20, descending: bool = True, name: str
    ) -> list[Held[Container]]:
        """By age, one more than `limit` when there are more; `name` '' is any. Raises InvalidRequest."""
        await check_cursors(partial(self.held.get, project), "container", after=after, before=before)
        if not name:
            return await self.held.page(project, after=after, before=before, limit=limit, descending=descending)
        found: list[Held[Container]] = []
        while len(found) <= limit:
            some = await self.held.page(project, after=after, before=before, limit=_PAGE, descending=descending)
            found += [held for held in some[:_PAGE] if held.state.name == name]
            if len(some) <= _PAGE:
                break
            after = some[_PAGE - 1].id
        return found[: limit + 1]

    async def delete(self, project: str, container_id: str) -> None:
        """End its processes and drop it; what it held leaves the content store afterwards. Raises NotFound."""
        held = await self.get(project, container_id)
        async with self.changing(container_id):
            dropped = await self.held.drop(project, container_id)
            await self.parts.live.forget(container_id)
        if not dropped:
            raise container_not_found(container_id)
        if held.state.skills and self.parts.skills is not None:
            await self.parts.skills.let_go()

    def active_at(self, held: Held[Container]) -> int:
        """When it was last used, in milliseconds since the epoch."""
        return max(held.changed_at or held.created_at, self.parts.live.active_at(held.id))

    def interpreter(self, held: Held[Container]) -> tuple[str, dict[str, str]]:
        """How much of the interpreter's variables is there for the next cell, and what is lost of them.

        One that runs says so itself; else it is what the commit holds: all (`restored`), some (`partial`), or nothing.
        """
        running = self.parts.live.interpreter(held.id)
        if running is not None:
            return running
        head = held.state.head
        if head is None or not head.interpreter:
            return "fresh", {} if head is None else head.lost
        return "partial" if head.lost else "restored", head.lost

    def jobs(self, held: Held[Container]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Commands that left processes running: those whose still run, and those of whose end a model is to be told."""
        known = self.parts.live.jobs(held.id)
        return known if known is not None else ((), () if held.state.head is None else held.state.head.left)

    def minutes(self, state: Container) -> int:
        """How long its processes stay when nobody asks for them."""
        return state.minutes or max(1, round(self.parts.settings.idle_minutes))

    def memory_limit(self, state: Container) -> str:
        """What it is shown to have; '' for what OpenAI's API has no word for."""
        given = self.memory_bytes(state.memory)
        return state.memory or next((limit for limit in MEMORY_LIMITS if memory_bytes_of(limit) == given), "")

    # What the other parts of this package are made of.

    @asynccontextmanager
    async def changing(self, container_id: str) -> AsyncIterator[None]:
        """Keeps others from changing the container's files from outside, or committing them, meanwhile."""
        lock = self._locks.get(container_id)
        if lock is None:
            lock = self._locks[container_id] = asyncio.Lock()
        async with lock:
            yield

    async def spare(self, note: CommitNote) -> None:
        """Keep what a commit has from being collected until something else refers to it. Raises NotFound."""

        def keep() -> bool:
            with content.hold() as hold:
                return content.keep(note.tree, hold) and (not note.interpreter or content.keep(note.interpreter, hold))

        content = self.parts.content.database
        if not await asyncio.to_thread(keep):
            raise commit_not_found(note.id)

    async def workspace(self, held: Held[Container]) -> Workspace:
        """The live workspace of a container. Nothing is started or written yet."""
        state, settings = held.state, self.parts.settings
        mounts: list[Mount] = []
        if state.skills and self.parts.skills is not None:
            mounts = await self.parts.skills.mounts(held.project, state.skills)
        spec = WorkspaceSpec(
            id=held.id,
            project=held.project,
            memory_bytes=self.memory_bytes(state.memory),
            idle_seconds=state.minutes * 60.0 or settings.idle_minutes * 60.0,
            mounts=tuple(mounts),
            network=self.opened(held.project, state.network),
        )
        return self.parts.live.open(spec, None if state.head is None else _commit_of(state.head))

    async def keep(
        self,
        held: Held[Container],
        workspace: Workspace,
        why: str,
        *,
        response: str = "",
        change: Change | None = None,
        also: Sequence[Fact] = (),
    ) -> Held[Container]:
        """Commit what a workspace holds, and what `change` makes of the state, with a note of where it wanted to go.

        The caller has the container to itself (`changing`). Raises NotFound, StorageError.
        """
        commit = await workspace.commit()
        decided = self.parts.live.decided.seal(held.id)
        if commit is None and change is None and not also and not decided:
            return held
        facts = [*also, self.held.noted(held.id, EgressNote(decided))] if decided else list(also)
        note: CommitNote | None = None
        if commit is not None:
            note = self._note(commit, held.state.head, why, response)
            facts.append(self.held.noted(held.id, note))

        def changed(now: Held[Container]) -> Container:
            state = now.state if change is None else change(now.state)
            return state if note is None else msgspec.structs.replace(state, head=head_of(note))

        expires_at = self.expiry(held)
        updated = await self.held.update(held.project, held.id, changed, expires_at=expires_at, also=facts)
        if updated is None:
            raise container_not_found(held.id)
        self.parts.live.decided.written(held.id, decided)
        if commit is not None:
            await workspace.kept(commit)
        return updated

    async def sign(self, held: Held[Container], workspace: Workspace, why: str, response: str) -> Held[Container]:
        """Note that a run leaves a container as it stands, when what was kept last is no run's: an upload's, say.

        Without it nobody could tell that from what was there before the run. The caller has the container to itself.
        """
        head = held.state.head
        found = None if head is None else await self.commits(held).find(head.id)
        if head is None or found is None or found[1].response:
            return held
        now, on_disk = self.parts.records.now(), workspace.has_folder
        note = msgspec.structs.replace(
            found[1], id=new_commit_id(), at=now, why=why, parent=head.id, response=response, new_bytes=0
        )
        await self.point(held, note)
        if on_disk:
            await workspace.kept(_commit_of(head_of(note)))
        return await self.get(held.project, held.id)

    async def point(self, held: Held[Container], note: CommitNote, *, also: Sequence[Fact] = ()) -> None:
        """Have a container stand at a commit whose content is there. The caller has the container to itself."""

        def change(now: Held[Container]) -> Container:
            return msgspec.structs.replace(now.state, head=head_of(note))

        await self.spare(note)
        facts = [*also, self.held.noted(held.id, note)]
        if await self.held.update(held.project, held.id, change, expires_at=self.expiry(held), also=facts) is None:
            raise container_not_found(held.id)
        self.parts.live.stand(held.id, _commit_of(head_of(note)))

    def expiry(self, held: Held[Container]) -> int | None:
        """When it is to go, from now on; None: it stays as it was."""
        if held.expires_at:
            return self.parts.records.now() + UNSTORED_SECONDS * 1000
        return None

    def commits(self, held: Held[Container]) -> Commits:
        """What was committed of it."""
        return Commits(self.held, held)

    async def commit(self, held: Held[Container], commit_id: str, param: str = "commit") -> CommitNote:
        """One of them. Raises NotFound."""
        found = await self.commits(held).find(commit_id)
        if found is None:
            raise commit_not_found(commit_id, param)
        return found[1]

    async def new_state(self, project: str, name: str, declared: DeclaredContainer, param: str) -> Container:
        """The state of a container that is declared so. Raises RequestError."""
        where = f"{param}." if param else ""
        self._check_memory(declared.memory_limit, f"{where}memory_limit")
        return Container(
            name=name,
            memory=declared.memory_limit or "",
            network=self.network(project, declared.network_policy, f"{where}network_policy"),
            skills=await self.skills(project, declared.skills or (), f"{where}skills"),
            copied=tuple(dict.fromkeys(declared.file_ids or ())),
        )

    async def files_named(self, project: str, file_ids: Sequence[str], param: str) -> list[File]:
        """Raises NotFound, InvalidRequest."""
        files = [
            await self.parts.files.get_named(project, file_id, f"{param}[{number}]")
            for number, file_id in enumerate(file_ids)
        ]
        settings = self.parts.settings
        if sum(file.bytes for file in files) > settings.disk_bytes:
            raise container_full(f"more than {settings.disk_bytes} bytes", "disk_bytes")
        return files

    async def copy_in(self, workspace: Workspace, files: Sequence[File]) -> dict[str, str]:
        """Put files where their names say; what is to be remembered of them, by path."""
        for file in files:
            async with aclosing(self.parts.files.read(file)) as pieces:
                await workspace.write(file.filename, pieces)
        return {file.filename: file.digest[:12] for file in files}

    def network(self, project: str, policy: NetworkPolicy | None, param: str) -> Network | None:
        """What is kept of a policy: its secrets sealed. Raises InvalidRequest."""
        if not isinstance(policy, Allowlist):
            return None
        made = make_policy(
            policy.allowed_domains,
            policy.domain_secrets or (),
            egress_domains=self.parts.settings.egress_domains,
            param=param,
        )
        seal = self.parts.sealer.seal
        secrets = [SealedSecret(s.domain, s.name, s.placeholder, seal(project, s.value)) for s in made.secrets]
        return Network(made.allowed_domains, tuple(secrets))

    def opened(self, project: str, network: Network | None) -> Opened | None:
        """The same with its secrets in clear, for the proxy alone."""
        if network is None:
            return None
        found = [(secret, self.parts.sealer.open(project, secret.sealed)) for secret in network.secrets]
        # One that does not open was sealed under another key: its placeholder stays what the other end gets to see.
        secrets = [Secret(each.domain, each.name, value, each.placeholder) for each, value in found if value]
        return Opened(network.domains, tuple(secrets))

    async def skills(
        self, project: str, declared: Sequence[Mapping[str, Any]], param: str
    ) -> tuple[dict[str, Any], ...]:
        if not declared:
            return ()
        if self.parts.skills is None:
            raise InvalidRequest("This server has no skills.", code="unsupported_parameter", param=param)
        return tuple(await self.parts.skills.declared(project, declared, param))

    def _check_memory(self, limit: str | None, param: str) -> None:
        most = self.parts.settings.memory_bytes_max
        if limit is None or limit == MEMORY_LIMITS[0] or memory_bytes_of(limit) <= most:
            return
        message = f"'{param}': this server gives a container up to {most} bytes (`workspaces.memory_bytes_max`)."
        raise InvalidRequest(message, code="invalid_value", param=param)

    def memory_bytes(self, limit: str) -> int:
        """What a container of this `memory_limit` gets."""
        settings = self.parts.settings
        return min(memory_bytes_of(limit) if limit else settings.memory_bytes, settings.memory_bytes_max)

    def _note(self, commit: Commit, head: Head | None, why: str, response: str) -> CommitNote:
        return CommitNote(
            id=commit.id,
            tree=commit.tree,
            at=self.parts.records.now(),
            why=why,
            interpreter=commit.interpreter,
            skipped=commit.skipped,
            lost=commit.lost,
            parent="" if head is None else head.id,
            response=response,
            files=commit.files,
            bytes=commit.bytes,
            new_bytes=commit.new_bytes,
            left_out=commit.left_out,
            left=commit.left,
        )


def head_of(note: CommitNote) -> Head:
    """The same as a container's state has it."""
    return Head(note.id, note.tree, note.interpreter, note.files, note.bytes, note.left, note.lost)


def _commit_of(head: Head) -> Commit:
    return Commit(head.id, head.tree, head.interpreter, head.files, head.bytes, lost=head.lost, left=head.left)


def new_container_id() -> str:
    return ids.new_id("cntr")
