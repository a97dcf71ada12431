"""No project sees anything of another: every route of the application is walked with a key of somebody else.

The table says of each route what a stranger sends there; `<name>` in a body stands for an id of the other project, and
`<own.name>` for one of the stranger's. What is answered must be what is answered for an id that never was. A route that
is not in the table fails the test: whoever adds one adds its line, and makes a thing of its kind in `things`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.routing import BaseRoute, Mount, Route

from stateroom import ids
from stateroom.access.keys import FILE, Keys, open_keys
from stateroom.app import Application
from stateroom.settings import BackendSettings, Settings
from stateroom.testing.process import ServerProcess
from stateroom.testing.scripted import ScriptedServer
from tests.acceptance.modelhost import ModelHost
from tests.acceptance.socket_wire import opened
from tests.acceptance.wire import send
from tests.unit.api.driver import HOST, Exchange, call

NOTHING: dict[str, Any] = {}
ASK = {"model": "scripted", "input": "hello"}
REFERENCE = {"model": "scripted", "input": [{"type": "item_reference", "id": "<item_id>"}]}
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
HOOK = {"name": "hook", "url": "https://hooks.invalid/x", "event_types": ["response.completed"]}
UPLOAD = {"filename": "a.txt", "purpose": "user_data", "bytes": 6, "mime_type": "text/plain"}


def form(name: str, **fields: str) -> bytes:
    """A form with a small file, as a browser would send it."""
    parts = [f'--cut\r\ncontent-disposition: form-data; name="{key}"\r\n\r\n{fields[key]}\r\n' for key in fields]
    file = f'--cut\r\ncontent-disposition: form-data; name="{name}"; filename="a.txt"\r\n\r\nsecret\r\n--cut--\r\n'
    return ("".join(parts) + file).encode()


SKILL = form("files").replace(b"a.txt", b"SKILL.md").replace(b"secret", b"---\nname: a\ndescription: secret\n---\n")


def with_file(part: Any) -> dict[str, Any]:
    return {"model": "scripted", "input": [{"role": "user", "content": [part]}]}


FILES = [
    with_file({"type": "input_file", "file_id": "<file_id>"}),
    with_file({"type": "input_image", "file_id": "<file_id>", "detail": "auto"}),
]

PLACES = [
    {**ASK, "tools": [tool]}
    for tool in (
        {"type": "shell", "environment": {"type": "container_reference", "container_id": "<container_id>"}},
        {"type": "code_interpreter", "container": "<container_id>"},
        {"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["<file_id>"]}},
        {
            "type": "shell",
            "environment": {
                "type": "container_auto",
                "skills": [{"type": "skill_reference", "skill_id": "<skill_id>"}],
            },
        },
    )
]
ROUTES: dict[str, list[Any]] = {
    # Only the address names somebody's things; None is no body.
    "GET /v1/responses/{response_id}": [None],
    "DELETE /v1/responses/{response_id}": [None],
    "POST /v1/responses/{response_id}/cancel": [None],
    "POST /v1/responses/{response_id}/fork": [NOTHING],
    "GET /v1/responses/{response_id}/input_items": [None],
    "GET /v1/responses/{response_id}/events": [None],
    "GET /v1/conversations/{conversation_id}": [None],
    "POST /v1/conversations/{conversation_id}": [{"metadata": {"taken": "over"}}],
    "DELETE /v1/conversations/{conversation_id}": [None],
    "GET /v1/conversations/{conversation_id}/items": [None],
    "GET /v1/conversations/{conversation_id}/export": [None],
    "GET /v1/responses/{response_id}/export": [None],
    "POST /v1/conversations/{conversation_id}/items": [{"items": [{"role": "user", "content": "smuggled"}]}],
    "GET /v1/conversations/{conversation_id}/items/{item_id}": [None],
    "DELETE /v1/conversations/{conversation_id}/items/{item_id}": [None],
    "GET /v1/chat/completions/{completion_id}": [None],
    "POST /v1/chat/completions/{completion_id}": [{"metadata": {"taken": "over"}}],
    "DELETE /v1/chat/completions/{completion_id}": [None],
    "GET /v1/chat/completions/{completion_id}/messages": [None],
    "GET /v1/files/{file_id}": [None],
    "GET /v1/files/{file_id}/content": [None],
    "DELETE /v1/files/{file_id}": [None],
    "GET /v1/containers/{container_id}": [None],
    "DELETE /v1/containers/{container_id}": [None],
    "POST /v1/containers/{container_id}/files": [form("file"), {"file_id": "<file_id>"}],
    "GET /v1/containers/{container_id}/files": [None],
    "GET /v1/containers/{container_id}/files/{container_file_id}": [None],
    "DELETE /v1/containers/{container_id}/files/{container_file_id}": [None],
    "GET /v1/containers/{container_id}/files/{container_file_id}/content": [None],
    "GET /v1/containers/{container_id}/commits": [None],
    "GET /v1/containers/{container_id}/commits/{commit_id}/diff": [None],
    "GET /v1/containers/{container_id}/archive": [None],
    "GET /v1/containers/{container_id}/egress": [None],
    "POST /v1/containers/{container_id}/restore": [{"commit": "<commit_id>"}],
    "POST /v1/containers/{container_id}/fork": [NOTHING, {"commit": "<commit_id>"}],
    "POST /v1/containers/{container_id}/exec": [{"command": "ls"}],
    "POST /v1/uploads/{upload_id}/parts": [form("data")],
    "POST /v1/uploads/{upload_id}/complete": [{"part_ids": ["<part_id>"]}],
    "POST /v1/uploads/{upload_id}/cancel": [None],
    "GET /v1/skills/{skill_id}": [None],
    "POST /v1/skills/{skill_id}": [{"default_version": "<version>"}],
    "DELETE /v1/skills/{skill_id}": [None],
    "GET /v1/skills/{skill_id}/content": [None],
    "POST /v1/skills/{skill_id}/versions": [SKILL],
    "GET /v1/skills/{skill_id}/versions": [None],
    "GET /v1/skills/{skill_id}/versions/{version}": [None],
    "DELETE /v1/skills/{skill_id}/versions/{version}": [None],
    "GET /v1/skills/{skill_id}/versions/{version}/content": [None],
    "GET /v1/batches/{batch_id}": [None],
    "POST /v1/batches/{batch_id}/cancel": [None],
    "GET /v1/webhook_endpoints/{webhook_endpoint_id}": [None],
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}": [{"name": "taken over"}],
    "DELETE /v1/webhook_endpoints/{webhook_endpoint_id}": [None],
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret": [NOTHING],
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/test": [{"event_type": "response.completed"}],
    # Bodies that name somebody's things.
    "POST /v1/responses": [
        {**ASK, "previous_response_id": "<response_id>"},
        {**ASK, "previous_response_id": "<response_id>", "store": False},
        {**ASK, "previous_response_id": "<response_id>", "stream": True},
        {**ASK, "conversation": "<conversation_id>"},
        {**ASK, "conversation": {"id": "<conversation_id>"}, "background": True},
        REFERENCE,
        *FILES,
        *PLACES,
    ],
    "POST /v1/responses/input_tokens": [
        {**ASK, "previous_response_id": "<response_id>"},
        {**ASK, "conversation": "<conversation_id>"},
        REFERENCE,
        *FILES,
    ],
    "POST /v1/responses/compact": [{**ASK, "previous_response_id": "<response_id>"}, REFERENCE],
    "POST /v1/conversations": [
        {"items": [{"type": "item_reference", "id": "<item_id>"}]},
        {"items": FILES[0]["input"]},
    ],
    "POST /v1/chat/completions": [
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "<file_id>"}}]}]}
    ],
    "POST /v1/batches": [
        {"input_file_id": "<file_id>", "endpoint": "/v1/responses", "completion_window": "24h"},
    ],
    "POST /v1/containers": [{"name": "c", "file_ids": ["<file_id>"]}],
    "POST /v1/conversations/{conversation_id}/fork": [NOTHING],
    # Lists: a stranger's are empty.
    "GET /v1/responses": ["list"],
    "GET /v1/conversations": ["list"],
    "GET /v1/chat/completions": ["list"],
    "GET /v1/files": ["list"],
    "GET /v1/skills": ["list"],
    "GET /v1/batches": ["list"],
    "GET /v1/containers": ["list"],
    "GET /v1/webhook_endpoints": ["list"],
    "GET /v1/webhook_deliveries": ["list"],
    # Nobody's in particular: nothing that a project has is named there.
    "POST /v1/files": [],
    "POST /v1/skills": [],
    "POST /v1/conversations/import": [],
    "POST /v1/uploads": [],
    "POST /v1/webhook_endpoints": [],
    "GET /v1/webhook_event_types": [],
    "POST /v1/completions": [],
    "POST /v1/embeddings": [],
    "GET /v1/models": [],
    "GET /v1/models/{model}": [],
    "DELETE /v1/models/{model}": [],
    "GET /metrics": [],
    "GET /health": [],
    "GET /ready": [],
    "GET /openapi.json": [],
    "GET /docs": [],
}

OWN_PLACES: dict[str, list[Any]] = {
    # In a thing of one's own, somebody else's things are as missing as in a strange one.
    "GET /v1/conversations/<own.conversation_id>/items/{item_id}": [None],
    "DELETE /v1/conversations/<own.conversation_id>/items/{item_id}": [None],
    "POST /v1/conversations/<own.conversation_id>/items": [{"items": [{"type": "item_reference", "id": "<item_id>"}]}],
    "POST /v1/uploads/<own.upload_id>/complete": [{"part_ids": ["<part_id>"]}],
    "POST /v1/conversations/<own.conversation_id>/fork": [
        {"after_item_id": "<item_id>"},
        {"response_id": "<response_id>"},
    ],
    "POST /v1/containers/<own.container_id>/files": [{"file_id": "<file_id>"}],
    "GET /v1/containers/<own.container_id>/files/{container_file_id}": [None],
    "GET /v1/containers/<own.container_id>/commits/{commit_id}/diff": [None],
    "GET /v1/containers/<own.container_id>/files?commit={commit_id}": [None],
    "POST /v1/containers/<own.container_id>/restore": [{"commit": "<commit_id>"}],
    "POST /v1/containers/<own.container_id>/fork": [{"commit": "<commit_id>"}],
    "GET /v1/containers?after={container_id}": ["list"],
    "GET /v1/conversations?after={conversation_id}": ["list"],
    "GET /v1/responses?after={response_id}": ["list"],
    "GET /v1/responses/<own.response_id>/input_items?after={item_id}": [None],
    "GET /v1/conversations/<own.conversation_id>/items?after={item_id}": [None],
    "GET /v1/files?after={file_id}": ["list"],
    "GET /v1/skills?after={skill_id}": ["list"],
    "GET /v1/skills/<own.skill_id>/versions?after={skill_version_id}": [None],
    "GET /v1/batches?after={batch_id}": ["list"],
    "GET /v1/webhook_endpoints?after={webhook_endpoint_id}": ["list"],
}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Application]:
    async with ScriptedServer() as model:
        settings = Settings(data=str(tmp_path / "data"), backends=(BackendSettings(url=model.url),), shutdown_seconds=0)
        application = Application(settings)
        await application.start()
        yield application
        await application.stop()


@pytest.fixture
def keys(app: Application) -> Iterator[Keys]:
    keys = open_keys(Path(app.settings.data) / FILE)
    yield keys
    keys.close()


class Someone:
    """A holder of a key of their own project."""

    def __init__(self, app: Application, keys: Keys, project: str) -> None:
        self._app = app
        _, secret = keys.create(project=project, name="", scopes=("read", "write", "admin"))
        self._headers = [HOST, (b"authorization", b"Bearer " + secret.encode())]

    async def ask(self, method: str, path: str, body: Any = None) -> Exchange:
        path, _, query = path.partition("?")
        headers = self._headers
        if isinstance(body, bytes):
            headers = [*headers, (b"content-type", b"multipart/form-data; boundary=cut")]
        return await call(self._app.asgi, method, path, body, query=query, headers=headers)

    async def make(self, path: str, body: Any) -> Any:
        answer = await self.ask("POST", path, body)
        assert answer.status == 200, answer.body
        return answer.json


async def things(owner: Someone) -> dict[str, str]:
    """One thing of each kind that an address or a body can name."""
    conversation = await owner.make("/v1/conversations", {"items": [{"role": "user", "content": "secret"}]})
    items = await owner.ask("GET", f"/v1/conversations/{conversation['id']}/items")
    response = await owner.make("/v1/responses", {**ASK, "background": True, "stream": False})
    path = f"/v1/responses/{response['id']}"
    while (await owner.ask("GET", path)).json["status"] != "completed":  # noqa: ASYNC110 - it says nothing of itself
        await asyncio.sleep(0.01)
    completion = await owner.make("/v1/chat/completions", {**CHAT, "store": True})
    file = await owner.make("/v1/files", form("file", purpose="user_data"))
    upload = await owner.make("/v1/uploads", UPLOAD)
    part = await owner.make(f"/v1/uploads/{upload['id']}/parts", form("data"))
    skill = await owner.make("/v1/skills", SKILL)
    version = await owner.make(f"/v1/skills/{skill['id']}/versions", SKILL)
    hook = await owner.make("/v1/webhook_endpoints", HOOK)
    requests = await owner.make("/v1/files", form("file", purpose="batch"))
    asked = {"input_file_id": requests["id"], "endpoint": "/v1/responses", "completion_window": "24h"}
    batch = await owner.make("/v1/batches", asked)
    container = await owner.make("/v1/containers", {"name": "c"})
    path = f"/v1/containers/{container['id']}"
    held = await owner.make(f"{path}/files", form("file"))
    commits = await owner.ask("GET", f"{path}/commits")
    return {
        "container_id": container["id"],
        "container_file_id": held["id"],
        "commit_id": commits.json["data"][0]["id"],
        "batch_id": batch["id"],
        "file_id": file["id"],
        "upload_id": upload["id"],
        "part_id": part["id"],
        "skill_id": skill["id"],
        "skill_version_id": version["id"],
        "webhook_endpoint_id": hook["id"],
        "conversation_id": conversation["id"],
        "item_id": items.json["data"][0]["id"],
        "response_id": response["id"],
        "completion_id": completion["id"],
        "version": "1",  # the last, since it is a part of ids
    }


def routes_of(routes: Iterable[BaseRoute], above: str = "") -> Iterator[str]:
    for route in routes:
        if isinstance(route, Mount):
            yield from routes_of(route.routes, above + route.path)
            continue
        assert isinstance(route, Route), f"{route} is of a kind that nobody has thought of here"
        for method in sorted(set(route.methods or ()) - {"HEAD"}):
            yield f"{method} {above}{re.sub(r':[a-z]+}', '}', route.path)}"


def like(identifier: str) -> str:
    """An id of the same shape that nothing has."""
    prefix, _, key = identifier.partition("_" if "_" in identifier else "-")
    return f"{identifier[: len(prefix) + 1]}{(ids.new_key() + key[26:])[: len(key)]}"


def fill(text: str, named: dict[str, str]) -> str:
    for name, identifier in named.items():
        text = text.replace(f"{{{name}}}", identifier).replace(f"<{name}>", identifier)
    return text


def told(answer: Exchange, named: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
    """What an answer says, without the ids that were asked for and its own number."""
    body = answer.body
    for name, identifier in named.items():
        body = body.replace(identifier.encode(), f"<{name}>".encode())
    return answer.status, body, {name: value for name, value in answer.headers.items() if name != "x-request-id"}


async def test_the_table_has_every_route_and_no_other(app: Application) -> None:
    assert sorted(routes_of(app.routes)) == sorted(ROUTES)


async def test_to_a_stranger_everything_is_as_if_it_had_never_been(app: Application, keys: Keys) -> None:
    owner, stranger = Someone(app, keys, "owner"), Someone(app, keys, "stranger")
    real = await things(owner)
    missing = {name: like(identifier) for name, identifier in real.items()}
    own = await things(stranger)
    before = await everything(owner, real)
    for place in [*ROUTES, *OWN_PLACES]:
        bodies = ROUTES[place] if place in ROUTES else OWN_PLACES[place]
        method, path = fill(place, {f"own.{name}": identifier for name, identifier in own.items()}).split(" ")
        for body in bodies:
            if body == "list":
                await hold_list(owner, stranger, path, real, missing)
            else:
                await hold_alike(stranger, method, path, body, real, missing)
    assert await everything(owner, real) == before


async def hold_alike(
    stranger: Someone, method: str, path: str, body: Any, real: dict[str, str], missing: dict[str, str]
) -> None:
    answers = []
    for named in (real, missing):
        sent = body if isinstance(body, bytes) else msgspec.json.decode(fill(msgspec.json.encode(body).decode(), named))
        answers.append(told(await stranger.ask(method, fill(path, named), sent), named))
    theirs, nothings = answers
    assert theirs == nothings, f"{method} {path} {body}"
    assert theirs[0] in (400, 404), f"{method} {path} {body}: {theirs}"


async def hold_list(
    owner: Someone, stranger: Someone, path: str, real: dict[str, str], missing: dict[str, str]
) -> None:
    theirs, nothings = [await stranger.ask("GET", fill(path, named)) for named in (real, missing)]
    assert theirs.status == nothings.status
    assert ids_of(theirs) == ids_of(nothings)
    owners = ids_of(await owner.ask("GET", path.partition("?")[0]))
    assert owners.isdisjoint(ids_of(theirs))
    if "deliveries" not in path:  # those come in their own time
        assert owners


def ids_of(answer: Exchange) -> set[str]:
    """What a list shows."""
    assert answer.status in (200, 400, 404)
    return {each["id"] for each in answer.json["data"]} if answer.status == 200 else set()


async def everything(owner: Someone, real: dict[str, str]) -> list[bytes]:
    """All that the owner can read."""
    moving = ("models", "deliveries")
    readable = [place[4:] for place in ROUTES if place.startswith("GET /v1/") and not any(w in place for w in moving)]
    answers = [await owner.ask("GET", fill(path, real)) for path in readable]
    assert [answer.status for answer in answers] == [200] * len(answers)
    return [answer.body for answer in answers]


async def test_an_idempotency_key_of_one_project_means_nothing_in_another(app: Application, keys: Keys) -> None:
    owner, stranger = Someone(app, keys, "owner"), Someone(app, keys, "stranger")
    made = []
    for who in (owner, stranger):
        who._headers.append((b"idempotency-key", b"the same"))
        made.append((await who.make("/v1/conversations", {}))["id"])
        assert (await who.make("/v1/conversations", {}))["id"] == made[-1]
    assert made[0] != made[1]
    refused = await stranger.ask("POST", "/v1/conversations", {"metadata": {"a": "b"}})
    assert refused.json["error"]["code"] == "idempotency_conflict"


async def test_two_keys_of_one_project_see_the_same(app: Application, keys: Keys) -> None:
    first, second = Someone(app, keys, "shared"), Someone(app, keys, "shared")
    made = await first.make("/v1/conversations", {})
    assert (await second.ask("GET", f"/v1/conversations/{made['id']}")).status == 200


async def test_what_was_made_before_there_were_keys_belongs_to_the_default_project(
    app: Application, keys: Keys
) -> None:
    made = (await call(app.asgi, "POST", "/v1/conversations", {})).json["id"]
    mine, other = Someone(app, keys, "default"), Someone(app, keys, "other")
    assert (await mine.ask("GET", f"/v1/conversations/{made}")).status == 200
    assert (await other.ask("GET", f"/v1/conversations/{made}")).status == 404


def test_over_a_socket_a_stranger_is_told_the_same(model_host: ModelHost, tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,)) as server,
        closing(open_keys(server.data / FILE)) as keys,
    ):
        owner, stranger = (
            {"Authorization": "Bearer " + keys.create(project=name, name="", scopes=("read", "write"))[1]}
            for name in ("owner", "stranger")
        )
        made = send(server.url, "POST", "/responses", ASK, headers=owner).json["id"]
        room = send(server.url, "POST", "/conversations", {}, headers=owner).json["id"]
        with opened(server.url, additional_headers=stranger) as socket:
            for field, identifier in (("previous_response_id", made), ("conversation", room)):
                said = []
                for named in (identifier, like(identifier)):
                    socket.create("hello", **{field: named})
                    said.append(json.dumps(socket.error()).replace(named, "ID"))
                assert said[0] == said[1]
            said = []
            for named in (made, like(made)):
                socket.steer(named, "mine now")
                said.append(json.dumps({**socket.next(), "sequence_number": 0}).replace(named, "ID"))
            assert said[0] == said[1]
        with opened(server.url, additional_headers=owner) as socket:
            assert socket.respond("say: mine", previous_response_id=made)["status"] == "completed"
