"""Random histories of responses and conversations over HTTP, with kill -9 in between, against a plain model."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost
from tests.simulation.plain_model import Branch, Conversation, Entry, Item, Response, living

T = TypeVar("T")

EXAMPLES = int(os.environ.get("API_MACHINE_EXAMPLES", "20"))
RESTARTS_MAX = 2
FEW = 3
"""New things are begun while there are fewer: what is there already is to get longer and to branch."""
PICK = st.integers(0, 1_000_000)
LIMIT = st.integers(1, 5)
WAYS = ("", "stream", "background")
OWN = st.integers(0, 9)
"""Below 4: the client names the first item itself, by an id that it also uses elsewhere."""


class World:
    """The server under test and the model behind it."""

    def __init__(self, server: ServerProcess, host: ModelHost) -> None:
        self.server = server
        self.host = host
        self.count = 0
        """Numbers every text, so that no two are alike."""
        self._connection: http.client.HTTPConnection | None = None

    def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        if self._connection is None:
            parts = urlsplit(self.server.url)
            self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        data = None if body is None else json.dumps(body)
        self._connection.request(method, f"/v1{path}", data, {"content-type": "application/json"} if data else {})
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def call(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.send(method, path, body)
        assert status == 200, (method, path, body, answer)
        return answer

    def restart(self) -> None:
        self.server.kill()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.server.start()

    def text(self, word: str) -> str:
        self.count += 1
        return f"{word}: t{self.count}"


class ApiMachine(RuleBasedStateMachine):
    """Every rule does something to both sides; what it touched, or everything after a loss, is then compared."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.responses: list[Response] = []
        self.conversations: list[Conversation] = []
        self.restarts = 0

    # What is done.

    @initialize()
    def begin(self) -> None:
        self.create_conversation(2)
        self.start_chain(1)

    @precondition(lambda self: len(self._alive(self.conversations)) < FEW)
    @rule(count=st.integers(0, 3))
    def create_conversation(self, count: int) -> None:
        made = self._added(count)
        metadata = {"n": str(self.world.count)}
        answer = self.world.call("POST", "/conversations", {"items": _sent(made), "metadata": metadata})
        conversation = Conversation(answer["id"], Branch(), metadata)
        self._keep(conversation)
        self._append_items(conversation, made)

    @precondition(lambda self: len(self._alive(self.responses)) < FEW)
    @rule(count=st.integers(1, 3))
    def start_chain(self, count: int) -> None:
        self._respond(Branch(), self._said(count), {})

    @precondition(lambda self: len(self._alive(self.responses)) < 3 * FEW and self._referable())
    @rule(picks=st.lists(PICK, min_size=1, max_size=2))
    def start_chain_from_references(self, picks: list[int]) -> None:
        items = self._referable()
        named = {item.id: item for item in (items[pick % len(items)] for pick in picks)}
        given = [Item(item.id, item.role, item.text) for item in named.values()]
        said = self._said(1)
        sent = [{"type": "item_reference", "id": item.id} for item in given]
        self._respond(Branch(), [*given, *said], {"input": [*sent, *_sent(said)]})

    @precondition(lambda self: self._alive(self.responses))
    @rule(pick=PICK, count=st.integers(1, 2), ways=st.sampled_from((*WAYS, "unstored", "failing")), own=OWN)
    def continue_response(self, pick: int, count: int, ways: str, own: int) -> None:
        parent = self._pick(self.responses, pick)
        if ways == "unstored":
            self._ask_in_passing(parent, self._said(count))
        elif ways == "failing":
            self._fail(parent.continued(), {"previous_response_id": parent.id}, previous=parent.id)
        else:
            branch = parent.continued()
            said = self._own(branch, self._said(count), own)
            self._respond(branch, said, {"previous_response_id": parent.id}, ways, previous=parent.id)

    @precondition(lambda self: self._alive(self.conversations))
    @rule(pick=PICK, count=st.integers(1, 2), ways=st.sampled_from((*WAYS, "failing")), own=OWN)
    def respond_in_conversation(self, pick: int, count: int, ways: str, own: int) -> None:
        conversation = self._pick(self.conversations, pick)
        if ways == "failing":
            self._fail(conversation.branch, {"conversation": conversation.id}, conversation=conversation.id)
        else:
            named = {"conversation": {"id": conversation.id} if pick % 2 else conversation.id}
            said = self._own(conversation.branch, self._said(count), own)
            self._respond(conversation.branch, said, named, ways, conversation=conversation.id)
        self._check_conversation(conversation)

    @precondition(lambda self: self._alive(self.conversations))
    @rule(pick=PICK, count=st.integers(1, 3), own=OWN)
    def add_items(self, pick: int, count: int, own: int) -> None:
        conversation = self._pick(self.conversations, pick)
        made = self._own(conversation.branch, self._added(count), own)
        answer = self.world.call("POST", f"/conversations/{conversation.id}/items", {"items": _sent(made)})
        for item, shown in zip(made, answer["data"], strict=True):
            item.id = item.id or shown["id"]
            assert _shown(shown) == _plain(item)
        conversation.branch.own.append(Entry(made))
        self._check_conversation(conversation)

    @precondition(lambda self: self._alive(self.conversations))
    @rule(pick=PICK, which=PICK)
    def delete_item(self, pick: int, which: int) -> None:
        conversation = self._pick(self.conversations, pick)
        if not (items := conversation.branch.items()):
            return
        item = items[which % len(items)]
        self.world.call("DELETE", f"/conversations/{conversation.id}/items/{item.id}")
        item.deleted = True
        self._check_everything()

    @precondition(lambda self: self._alive(self.conversations))
    @rule(pick=PICK)
    def change_metadata(self, pick: int) -> None:
        conversation = self._pick(self.conversations, pick)
        conversation.metadata = {"changed": self.world.text("at")}
        self.world.call("POST", f"/conversations/{conversation.id}", {"metadata": conversation.metadata})
        self._check_conversation(conversation)

    @precondition(lambda self: self._alive(self.conversations))
    @rule(pick=PICK, which=PICK, how=st.sampled_from(("end", "item", "item", "item", "response")))
    def fork_conversation(self, pick: int, which: int, how: str) -> None:
        source = self._pick(self.conversations, pick)
        items = source.branch.items()
        own = [one for one in self._alive(self.responses) if one.branch is source.branch]
        asked: dict[str, Any] = {}
        if how == "item" and items:
            item = items[which % len(items)]
            asked, branch = {"after_item_id": item.id}, source.branch.fork_at(item)
        elif how == "response" and own:
            response = own[which % len(own)]
            asked, branch = {"response_id": response.id}, source.branch.fork(response.position + 1)
        else:
            branch = source.branch.fork(len(source.branch.entries()))
        answer = self.world.call("POST", f"/conversations/{source.id}/fork", asked)
        self._keep(Conversation(answer["id"], branch, dict(source.metadata)))
        self._check_conversation(self.conversations[-1])
        self._check_conversation(source)

    @precondition(lambda self: self._alive(self.responses))
    @rule(pick=PICK)
    def fork_response(self, pick: int) -> None:
        response = self._pick(self.responses, pick)
        answer = self.world.call("POST", f"/responses/{response.id}/fork", {})
        self._keep(Conversation(answer["id"], response.branch.fork(response.position + 1), {}))
        self._check_conversation(self.conversations[-1])

    @precondition(lambda self: self._alive(self.responses))
    @rule(pick=PICK)
    def delete_response(self, pick: int) -> None:
        response = self._pick(self.responses, pick)
        self.world.call("DELETE", f"/responses/{response.id}")
        response.delete()
        self._check_everything()

    @precondition(lambda self: self._alive(self.conversations))
    @rule(pick=PICK)
    def delete_conversation(self, pick: int) -> None:
        conversation = self._pick(self.conversations, pick)
        self.world.call("DELETE", f"/conversations/{conversation.id}")
        conversation.delete()
        self._check_everything()

    @precondition(lambda self: self.restarts < RESTARTS_MAX and len(self.responses) > 3)
    @rule()
    def kill_and_restart(self) -> None:
        self.restarts += 1
        self.world.restart()
        self._check_everything()

    @rule(pick=PICK, limit=LIMIT, newest_first=st.booleans(), what=st.sampled_from(("all", "items", "input")))
    def page_through(self, pick: int, limit: int, newest_first: bool, what: str) -> None:
        conversations, responses = self._alive(self.conversations), self._alive(self.responses)
        if what == "all":
            self._check_list("/conversations", [one.id for one in conversations], limit, newest_first)
            self._check_list("/responses", [one.id for one in responses], limit, newest_first)
            return
        if what == "items" and conversations:
            conversation = self._pick(conversations, pick)
            items, path = conversation.branch.items(), f"/conversations/{conversation.id}/items"
        elif what == "input" and responses:
            response = self._pick(responses, pick)
            items, path = response.context(), f"/responses/{response.id}/input_items"
        else:
            return
        expected = [item.id for item in items]
        assert self._page(path, limit, newest_first) == (expected[::-1] if newest_first else expected)

    def teardown(self) -> None:
        self._check_everything()

    # How it is done.

    def _respond(
        self,
        branch: Branch,
        given: list[Item],
        named: dict[str, Any],
        ways: str = "",
        previous: str = "",
        conversation: str = "",
    ) -> None:
        before = branch.items()
        asked = self.world.host.script.received
        body = {"model": "scripted", "input": _sent(given), **named}
        if ways == "background":
            answer = self._in_background(body)
        elif ways == "stream":
            answer = self._streamed(body)
        else:
            answer = self.world.call("POST", "/responses", body)
        assert answer["status"] == "completed", answer
        self._check_request(asked, [*before, *given])
        said = Item(answer["output"][0]["id"], "assistant", given[-1].text.removeprefix("say: "))
        response = Response(answer["id"], branch, len(branch.entries()), given, [said], previous, conversation)
        branch.own.append(Entry([*given, said], response))
        self._found(response)

    def _in_background(self, body: dict[str, Any]) -> Any:
        queued = self.world.call("POST", "/responses", {**body, "background": True})
        assert queued["status"] in ("queued", "in_progress")
        final = self._events("GET", f"/responses/{queued['id']}?stream=true")
        assert final["id"] == queued["id"]
        return final

    def _streamed(self, body: dict[str, Any]) -> Any:
        return self._events("POST", "/responses", {**body, "stream": True})

    def _events(self, method: str, path: str, body: Any = None) -> Any:
        """The Response in the last event of a stream."""
        parts = urlsplit(self.world.server.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        data = None if body is None else json.dumps(body)
        connection.request(method, f"/v1{path}", data, {"content-type": "application/json"} if data else {})
        answer = connection.getresponse()
        lines = [line[6:] for line in answer.read().decode().split("\n") if line.startswith("data: ")]
        connection.close()
        assert answer.status == 200
        assert lines[-1] == "[DONE]"
        return json.loads(lines[-2])["response"]

    def _ask_in_passing(self, parent: Response, given: list[Item]) -> None:
        """A response that is not stored sees the chain and leaves nothing in it."""
        before = parent.branch.items(parent.position + 1)
        asked = self.world.host.script.received
        body = {"model": "scripted", "input": _sent(given), "previous_response_id": parent.id, "store": False}
        answer = self.world.call("POST", "/responses", body)
        self._check_request(asked, [*before, *given])
        assert self.world.send("GET", f"/responses/{answer['id']}")[0] == 404

    def _fail(self, branch: Branch, named: dict[str, Any], previous: str = "", conversation: str = "") -> None:
        """A run that fails can be looked at afterwards and leaves nothing where it was to go."""
        given = Item("", "user", self.world.text("fail: 400 because").replace("because:", "because"))
        body = {"model": "scripted", "input": _sent([given]), **named}
        status, answer = self.world.send("POST", "/responses", body)
        assert status == 400, answer
        made = self.world.call("GET", "/responses?limit=1")["data"][0]
        assert made["status"] == "failed"
        response = Response(made["id"], branch, len(branch.entries()), [given], [], previous, conversation, failed=True)
        branch.own.append(Entry([], response))
        self._found(response)

    def _found(self, response: Response) -> None:
        """Learn the ids of a new response's input."""
        self.responses.append(response)
        listed = self._items(f"/responses/{response.id}/input_items")
        assert len(listed) == len(response.context())
        for item, shown in zip(response.input, listed[-len(response.input) :], strict=True):
            item.id = item.id or shown["id"]
        self._check_response(response)

    def _added(self, count: int) -> list[Item]:
        roles = ("user", "assistant", "developer")
        return [Item("", roles[n % 3], self.world.text("item")) for n in range(count)]

    def _said(self, count: int) -> list[Item]:
        return [*self._added(count - 1), Item("", "user", self.world.text("say"))]

    def _own(self, branch: Branch, items: list[Item], own: int) -> list[Item]:
        """The same, the first one with an id that its client chose, if the branch does not have that already."""
        if own < 4 and f"own_{own}" not in [item.id for item in branch.items()]:
            items[0].id = f"own_{own}"
        return items

    def _referable(self) -> list[Item]:
        return [
            item
            for response in self._alive(self.responses)
            for item in (*([] if response.failed else living(response.input)), *living(response.output))
            if not item.id.startswith("own_")
        ]

    def _append_items(self, conversation: Conversation, made: list[Item]) -> None:
        for item, shown in zip(made, self._items(f"/conversations/{conversation.id}/items"), strict=True):
            item.id = shown["id"]
        if made:
            conversation.branch.own.append(Entry(made))
        self._check_conversation(conversation)

    def _keep(self, conversation: Conversation) -> None:
        conversation.branch.conversation = conversation
        self.conversations.append(conversation)

    def _alive(self, held: Sequence[T]) -> list[T]:
        return [one for one in held if one.alive]

    def _pick(self, held: Sequence[T], pick: int) -> T:
        alive = self._alive(held)
        return alive[pick % len(alive)]

    # What is compared.

    def _check_request(self, asked: int, expected: list[Item]) -> None:
        """The model saw exactly this history."""
        requests = self.world.host.asked_since(asked)
        assert len(requests) == 1
        messages = [(message["role"], message["content"]) for message in requests[0]["messages"]]
        roles = {"developer": "system"}
        assert messages == [(roles.get(item.role, item.role), item.text) for item in expected]

    def _check_response(self, response: Response) -> None:
        status, shown = self.world.send("GET", f"/responses/{response.id}")
        if not response.alive:
            assert status == 404, shown
            return
        assert status == 200, shown
        assert [_shown(item) for item in shown["output"]] == [_plain(item) for item in living(response.output)]
        assert shown["previous_response_id"] == (response.previous or None)
        assert shown["conversation"] == ({"id": response.conversation} if response.conversation else None)
        listed = self._items(f"/responses/{response.id}/input_items")
        assert [_shown(item) for item in listed] == [_plain(item) for item in response.context()]

    def _check_conversation(self, conversation: Conversation) -> None:
        status, shown = self.world.send("GET", f"/conversations/{conversation.id}")
        if not conversation.alive:
            assert status == 404, shown
            return
        assert status == 200, shown
        assert shown["metadata"] == conversation.metadata
        listed = self._items(f"/conversations/{conversation.id}/items")
        assert [_shown(item) for item in listed] == [_plain(item) for item in conversation.branch.items()]

    def _check_everything(self) -> None:
        for response in self.responses:
            self._check_response(response)
        for conversation in self.conversations:
            self._check_conversation(conversation)

    def _items(self, path: str) -> list[dict[str, Any]]:
        """All of a list, oldest first."""
        items: list[dict[str, Any]] = []
        after = ""
        while True:
            page = self.world.call("GET", f"{path}?order=asc&limit=100{after}")
            items += page["data"]
            if not page["has_more"]:
                return items
            after = f"&after={page['last_id']}"

    def _page(self, path: str, limit: int, newest_first: bool) -> list[str]:
        found: list[str] = []
        after = ""
        while True:
            order = "desc" if newest_first else "asc"
            page = self.world.call("GET", f"{path}?limit={limit}&order={order}{after}")
            found += [one["id"] for one in page["data"]]
            assert len(page["data"]) <= limit
            assert page["first_id"] == (page["data"][0]["id"] if page["data"] else None)
            if not page["has_more"]:
                return found
            assert page["last_id"] == found[-1]
            after = f"&after={page['last_id']}"

    def _check_list(self, path: str, expected: list[str], limit: int, newest_first: bool) -> None:
        """What this history made is the newest that the server has; all of it is listed, by age, in pages."""
        after = f"&after={expected[0]}" if expected and not newest_first else ""
        found = [] if newest_first else expected[:1]
        while len(found) < len(expected):
            order = "desc" if newest_first else "asc"
            page = self.world.call("GET", f"{path}?limit={limit}&order={order}{after}")
            found += [one["id"] for one in page["data"]]
            after = f"&after={page['last_id']}"
        assert found[: len(expected)] == (expected[::-1] if newest_first else expected)


def _sent(items: list[Item]) -> list[dict[str, Any]]:
    return [{**({"id": item.id} if item.id else {}), "role": item.role, "content": item.text} for item in items]


def _plain(item: Item) -> tuple[str, str, str]:
    return item.id, item.role, item.text


def _shown(item: dict[str, Any]) -> tuple[str, str, str]:
    (part,) = item["content"]
    return item["id"], item["role"], part["text"]


def test_the_api_answers_as_a_plain_model_does(tmp_path: Path) -> None:
    with ModelHost() as host, ServerProcess(tmp_path / "data", backends=(host.url,)) as server:
        world = World(server, host)
        run_state_machine_as_test(
            lambda: ApiMachine(world),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
                phases=(Phase.explicit, Phase.generate),  # shrinking over a real server takes minutes
                report_multiple_bugs=False,
                database=None,
            ),
        )
