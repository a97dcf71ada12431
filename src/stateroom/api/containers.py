"""The Containers API, and what goes beyond it: translate, check access, call the runtime, translate back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom.access.principal import Principal
from stateroom.api.claims import claim
from stateroom.api.download import Download
from stateroom.api.http import EventStream, Json, flag, listed, page_of, read_body, slice_page
from stateroom.api.multipart import read_form
from stateroom.api.responses import principal
from stateroom.errors import NotFound, StateroomError
from stateroom.runtime.containers.commands import ContainerCommands, Ran
from stateroom.runtime.containers.commits import ContainerCommits, FileChange
from stateroom.runtime.containers.containers import Containers, new_container_id
from stateroom.runtime.containers.egress import ContainerEgress
from stateroom.runtime.containers.files import ContainerFile, ContainerFiles
from stateroom.runtime.containers.state import CommitNote, Container
from stateroom.runtime.files.files import file_too_large
from stateroom.runtime.idempotency import Idempotency
from stateroom.runtime.records import Held
from stateroom.settings import Limits
from stateroom.wire.containers import (
    commit_object,
    container_file_id,
    container_file_object,
    container_object,
    decision_object,
    decode_container_fork,
    decode_copied_file,
    decode_exec,
    decode_new_container,
    decode_restore,
    deleted_container,
    deleted_container_file,
    diff_object,
    encode_event,
    exec_done_event,
    exec_failed_event,
    exec_output_event,
    shown_path,
)
from stateroom.wire.files import clean_filename, content_disposition
from stateroom.wire.responses import render_list
from stateroom.wire.sse import DONE
from stateroom.workspaces.egress.decisions import Decision

SMALL_BODY: Final = 64 * 1024
COMMAND_BODY: Final = 512 * 1024
TAR: Final = "application/x-tar"


class ContainersApi:
    """Handlers over the runtime."""

    def __init__(
        self,
        containers: Containers,
        files: ContainerFiles,
        commits: ContainerCommits,
        egress: ContainerEgress,
        commands: ContainerCommands,
        idempotency: Idempotency,
        limits: Limits,
    ) -> None:
        self._containers = containers
        self._files = files
        self._commits = commits
        self._egress = egress
        self._commands = commands
        self._idempotency = idempotency
        self._limits = limits

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        one = "/containers/{container_id}"
        file = f"{one}/files/{{container_file_id}}"
        return [
            Route("/containers", self.create, methods=["POST"]),
            Route("/containers", self.page, methods=["GET"]),
            Route(one, self.retrieve, methods=["GET"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/files", self.create_file, methods=["POST"]),
            Route(f"{one}/files", self.list_files, methods=["GET"]),
            Route(file, self.retrieve_file, methods=["GET"]),
            Route(file, self.delete_file, methods=["DELETE"]),
            Route(f"{file}/content", self.content, methods=["GET"]),
            Route(f"{one}/commits", self.commits, methods=["GET"]),
            Route(f"{one}/commits/{{commit_id}}/diff", self.diff, methods=["GET"]),
            Route(f"{one}/restore", self.restore, methods=["POST"]),
            Route(f"{one}/fork", self.fork, methods=["POST"]),
            Route(f"{one}/exec", self.exec, methods=["POST"]),
            Route(f"{one}/archive", self.archive, methods=["GET"]),
            Route(f"{one}/egress", self.egress, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await read_body(request, self._limits.body_bytes)
        project = principal(request).project
        asked = decode_new_container(body)
        async with claim(self._idempotency, request, body) as claimed:
            if claimed.made:
                with suppress(NotFound):
                    return self._shown(await self._containers.get(project, claimed.made))
            container_id = new_container_id()
            made = await self._containers.create(
                project, asked, container_id=container_id, also=claimed.also(container_id)
            )
        return self._shown(made)

    async def page(self, request: Request) -> Response:
        query = request.query_params
        read = partial(self._containers.page, principal(request).project, name=query.get("name") or "")
        return await listed(query, read, self._object)

    async def retrieve(self, request: Request) -> Response:
        return self._shown(await self._containers.get(principal(request).project, _container(request)))

    async def delete(self, request: Request) -> Response:
        await self._containers.delete(principal(request).project, _container(request))
        return _json(deleted_container(_container(request)))

    async def create_file(self, request: Request) -> Response:
        project, container_id = principal(request).project, _container(request)
        await self._containers.get(project, container_id)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            return await self._copy_file(request)
        files = self._files
        async with files.incoming() as incoming:
            form = await read_form(
                request,
                file="file",
                bytes_max=files.bytes_max,
                too_large=file_too_large(files.bytes_max),
                write=incoming.write,
            )
            filename = clean_filename(form.named("file"), "file")
            said = msgspec.json.encode([incoming.digest, filename])
            async with claim(self._idempotency, request, said) as claimed:
                if claimed.made:
                    with suppress(NotFound):
                        return _shown_file(container_id, await files.get(project, container_id, claimed.made))
                also = claimed.also(container_file_id(container_id, filename))
                made = await files.add(project, container_id, incoming, filename, also=also)
        return _shown_file(container_id, made)

    async def _copy_file(self, request: Request) -> Response:
        project, container_id = principal(request).project, _container(request)
        body = await read_body(request, SMALL_BODY)
        asked = decode_copied_file(body)
        async with claim(self._idempotency, request, body) as claimed:
            if claimed.made:
                with suppress(NotFound):
                    return _shown_file(container_id, await self._files.get(project, container_id, claimed.made))
            filename = await self._files.filename(project, asked.file_id)
            also = claimed.also(container_file_id(container_id, filename))
            made = await self._files.copy(project, container_id, asked.file_id, also=also)
        return _shown_file(container_id, made)

    async def list_files(self, request: Request) -> Response:
        container_id, query = _container(request), request.query_params
        found = await self._files.all(principal(request).project, container_id, query.get("commit") or "")
        part, more = slice_page(found, page_of(query))
        return Json(render_list([_file_object(container_id, file) for file in part], more))

    async def retrieve_file(self, request: Request) -> Response:
        return _shown_file(_container(request), await self._file(request))

    async def delete_file(self, request: Request) -> Response:
        file_id = _file_id(request)
        await self._files.delete(principal(request).project, _container(request), file_id)
        return _json(deleted_container_file(file_id))

    async def content(self, request: Request) -> Response:
        file = await self._file(request)
        return Download(
            request,
            partial(self._read, file),
            size=file.bytes,
            etag=f'"{file.digest}"',
            disposition=content_disposition(clean_filename(shown_path(file.path), "file")),
        )

    async def commits(self, request: Request) -> Response:
        container_id = _container(request)
        read = partial(self._commits.page, principal(request).project, container_id)
        return await listed(request.query_params, read, partial(_commit_object, container_id))

    async def diff(self, request: Request) -> Response:
        container_id, commit_id, query = _container(request), request.path_params["commit_id"], request.query_params
        found = await self._commits.diff(
            principal(request).project, container_id, commit_id, query.get("from") or "", text=flag(query, "text")
        )
        shown = [_change_object(change) for change in found.changes]
        return _json(
            diff_object(
                container_id=container_id, commit=commit_id, base=found.base, changes=shown, truncated=found.truncated
            )
        )

    async def restore(self, request: Request) -> Response:
        project, container_id = principal(request).project, _container(request)
        body = await read_body(request, SMALL_BODY)
        asked = decode_restore(body)
        async with claim(self._idempotency, request, body) as claimed:
            if claimed.made:
                with suppress(NotFound):
                    held = await self._containers.get(project, container_id)
                    return _json(_commit_object(container_id, await self._containers.commit(held, claimed.made)))
            made = await self._commits.restore(project, container_id, asked.commit, also=claimed.also)
        return _json(_commit_object(container_id, made))

    async def fork(self, request: Request) -> Response:
        project, container_id = principal(request).project, _container(request)
        body = await read_body(request, SMALL_BODY)
        asked = decode_container_fork(body)
        async with claim(self._idempotency, request, body) as claimed:
            if claimed.made:
                with suppress(NotFound):
                    return self._shown(await self._containers.get(project, claimed.made))
            new_id = new_container_id()
            made = await self._commits.fork(
                project, container_id, new_id, asked.commit or "", asked.name or "", also=claimed.also(new_id)
            )
        return self._shown(made)

    async def archive(self, request: Request) -> Response:
        found = await self._files.archive(
            principal(request).project, _container(request), request.query_params.get("commit") or ""
        )
        name = content_disposition(f"{found.name}.tar")
        answer = Download(request, found.read, size=found.size, etag=f'"{found.tree or "empty"}"', disposition=name)
        answer.headers["content-type"] = TAR
        return answer

    async def egress(self, request: Request) -> Response:
        container_id = _container(request)
        found = await self._egress.all(principal(request).project, container_id)
        part, more = slice_page(found, page_of(request.query_params))
        return Json(render_list([_decision_object(container_id, decision) for decision in part], more))

    async def exec(self, request: Request) -> Response:
        who, container_id = principal(request), _container(request)
        asked = decode_exec(await read_body(request, COMMAND_BODY))
        seconds = await self._commands.check(who.project, container_id, asked.command, asked.timeout_ms)
        return EventStream(self._carried_out(who, container_id, asked.command, seconds))

    async def _carried_out(
        self, who: Principal, container_id: str, command: str, seconds: float
    ) -> AsyncGenerator[bytes, None]:
        """What a command says while it goes on, and how it ended. It ends with its client."""
        said: asyncio.Queue[bytes | None] = asyncio.Queue()

        def tell(stream: str, text: str) -> None:
            said.put_nowait(encode_event(exec_output_event(stream, text)))

        running = asyncio.get_running_loop().create_task(
            self._commands.run(who.project, container_id, command, seconds, who=who.key_id, on_output=tell)
        )
        running.add_done_callback(lambda _: said.put_nowait(None))
        try:
            while (piece := await said.get()) is not None:
                yield piece
            yield encode_event(_ended(await running))
            yield DONE
        except StateroomError as error:
            yield encode_event(exec_failed_event(error.body()["error"]))
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _file(self, request: Request) -> ContainerFile:
        commit = request.query_params.get("commit") or ""
        return await self._files.get(principal(request).project, _container(request), _file_id(request), commit)

    async def _read(self, file: ContainerFile, first: int, last: int | None) -> Any:
        async with aclosing(self._files.read(file, first=first, last=last)) as pieces:
            async for piece in pieces:
                yield piece

    def _object(self, held: Held[Container]) -> dict[str, Any]:
        state = held.state
        return container_object(
            id=held.id,
            name=state.name,
            created_at=held.created_at,
            active_at=self._containers.active_at(held),
            minutes=self._containers.minutes(state),
            memory_limit=self._containers.memory_limit(state),
            domains=None if state.network is None else state.network.domains,
            interpreter=self._containers.interpreter(held),
            jobs=self._containers.jobs(held),
        )

    def _shown(self, held: Held[Container]) -> Response:
        return _json(self._object(held))


def _container(request: Request) -> str:
    identifier: str = request.path_params["container_id"]
    return identifier


def _file_id(request: Request) -> str:
    identifier: str = request.path_params["container_file_id"]
    return identifier


def _json(value: dict[str, Any]) -> Response:
    return Json(msgspec.json.encode(value))


def _file_object(container_id: str, file: ContainerFile) -> dict[str, Any]:
    return container_file_object(
        container_id=container_id, path=file.path, bytes=file.bytes, created_at=file.created_at, source=file.source
    )


def _shown_file(container_id: str, file: ContainerFile) -> Response:
    return _json(_file_object(container_id, file))


def _commit_object(container_id: str, note: CommitNote) -> dict[str, Any]:
    return commit_object(
        id=note.id,
        container_id=container_id,
        created_at=note.at,
        parent=note.parent,
        response=note.response,
        reason=note.why,
        files=note.files,
        bytes=note.bytes,
        new_bytes=note.new_bytes,
        left_out=note.left_out,
        interpreter="saved" if note.interpreter else "skipped" if note.skipped else "none",
        lost=note.lost,
        jobs=note.left,
    )


def _decision_object(container_id: str, decision: Decision) -> dict[str, Any]:
    return decision_object(
        id=decision.id,
        container_id=container_id,
        domain=decision.domain,
        port=decision.port,
        verdict=decision.verdict,
        reason=decision.reason,
        count=decision.count,
        first_at=decision.first_at,
        last_at=decision.last_at,
    )


def _change_object(change: FileChange) -> dict[str, Any]:
    return {
        "path": shown_path(change.path),
        "change": change.change,
        "kind": change.kind,
        "bytes_before": change.bytes_before,
        "bytes_after": change.bytes_after,
        "mode_before": None if change.mode_before is None else f"{change.mode_before:04o}",
        "mode_after": None if change.mode_after is None else f"{change.mode_after:04o}",
        "text": change.text,
    }


def _ended(ran: Ran) -> dict[str, Any]:
    executed = ran.executed
    return exec_done_event(
        exit_code=executed.exit_code,
        timed_out=executed.timed_out,
        truncated=executed.truncated,
        background=executed.background,
        restarted=executed.restarted,
        breach=executed.breach,
        commit_id=ran.commit_id,
    )
