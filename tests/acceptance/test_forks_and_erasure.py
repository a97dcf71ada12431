"""What forks share, what deleting takes with it, and what it leaves to others: in memory and after a restart alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import Answer, get, post, read_stream, respond, send, stream, told

Again = Callable[[], None]


@pytest.fixture(scope="module")
def own_server(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("erasure") / "data", backends=(model_host.url,)) as process:
        yield process


@pytest.fixture
def url(own_server: ServerProcess) -> str:
    return own_server.url


@pytest.fixture(params=("in memory", "after kill -9"))
def again(request: pytest.FixtureRequest, own_server: ServerProcess) -> Again:
    """Has the server forget all it holds in memory, in one of two runs of a test."""

    def restart() -> None:
        if request.param != "in memory":
            own_server.kill()
            own_server.start()

    return restart


def test_a_fork_at_an_item_in_the_middle_of_a_response_ends_there(url: str, again: Again, seen: Seen) -> None:
    source = conversation(url, "hello")
    turn(url, source, "say: one")
    asked = texts(url, source).index("say: one")
    forked = fork(url, source, after_item_id=item_ids(url, source)[asked])
    again()
    assert texts(url, forked) == ["hello", "say: one"]
    assert item_ids(url, forked) == item_ids(url, source)[: asked + 1]
    turn(url, forked, "say: other")
    assert texts(url, forked) == ["hello", "say: one", "say: other", "other"]
    assert texts(url, source) == ["hello", "say: one", "one"]
    assert [text for _, text in told(seen.messages)] == ["hello", "say: one", "say: other"]


def test_a_fork_at_a_response_ends_with_it(url: str, again: Again) -> None:
    source = conversation(url)
    first = turn(url, source, "say: one")
    turn(url, source, "say: two")
    forked = fork(url, source, response_id=first["id"])
    again()
    assert texts(url, forked) == ["say: one", "one"]


def test_a_fork_of_a_fork_may_branch_off_before_it(url: str, again: Again) -> None:
    root = conversation(url, "a", "b")
    turn(url, root, "say: one")
    child = fork(url, root)
    turn(url, child, "say: two")
    grandchild = fork(url, child, after_item_id=item_ids(url, child)[0])
    great = fork(url, grandchild)
    again()
    assert texts(url, child) == ["a", "b", "say: one", "one", "say: two", "two"]
    assert texts(url, grandchild) == ["a"]
    assert texts(url, great) == ["a"]
    turn(url, great, "say: last")
    assert texts(url, great) == ["a", "say: last", "last"]


def test_a_conversation_made_from_a_chain_can_be_forked_at_its_first_item(url: str, again: Again) -> None:
    first = respond(url, {"input": "say: one"})
    made = post(url, f"/responses/{first['id']}/fork", {})["id"]
    forked = fork(url, made, after_item_id=item_ids(url, made)[0])
    again()
    assert texts(url, forked) == ["say: one"]
    assert texts(url, fork(url, forked)) == ["say: one"]


def test_forking_at_what_is_not_there_is_refused(url: str) -> None:
    source, other = conversation(url, "a"), conversation(url)
    foreign = turn(url, other, "say: x")["id"]
    assert send(url, "POST", f"/conversations/{source}/fork", {"after_item_id": "msg_no"}).error["code"] == (
        "item_not_found"
    )
    refused = send(url, "POST", f"/conversations/{source}/fork", {"response_id": foreign})
    assert refused.error["code"] == "response_not_in_conversation"
    both = send(url, "POST", f"/conversations/{source}/fork", {"response_id": foreign, "after_item_id": "x"})
    assert both.status == 400
    assert send(url, "POST", "/conversations/conv_no/fork", {}).error["code"] == "conversation_not_found"
    assert send(url, "POST", "/responses/resp_no/fork", {}).error["code"] == "response_not_found"


def test_a_fork_takes_over_the_metadata_or_has_its_own(url: str) -> None:
    source = post(url, "/conversations", {"metadata": {"a": "1"}})["id"]
    assert get(url, f"/conversations/{fork(url, source)}")["metadata"] == {"a": "1"}
    other = post(url, f"/conversations/{source}/fork", {"metadata": {"b": "2"}})
    assert other["metadata"] == {"b": "2"}
    assert other["object"] == "conversation"


def test_forking_during_a_turn_takes_what_was_finished_before_it(url: str, model_host: ModelHost, seen: Seen) -> None:
    source = conversation(url, "a")
    running = post(
        url, "/responses", {"model": "m", "input": "gate: fork\nsay: x", "conversation": source, "background": True}
    )
    seen.wait(1)
    forked = fork(url, source)
    assert texts(url, forked) == ["a"]
    model_host.open_gate("fork")
    read_stream(url, "GET", f"/responses/{running['id']}?stream=true")
    assert texts(url, forked) == ["a"]
    assert len(texts(url, source)) == 3


def test_continuing_a_response_of_a_conversation_leaves_the_conversation_alone(
    url: str, again: Again, seen: Seen
) -> None:
    source = conversation(url, "a")
    first = turn(url, source, "say: one")
    aside = respond(url, {"input": "say: aside", "previous_response_id": first["id"]})
    again()
    further = respond(url, {"input": "say: further", "previous_response_id": aside["id"]})
    assert further["conversation"] is None
    assert [text for _, text in told(seen.messages)] == ["a", "say: one", "one", "say: aside", "aside", "say: further"]
    assert texts(url, source) == ["a", "say: one", "one"]


def test_a_deleted_response_is_gone_from_its_conversation_and_every_fork(url: str, again: Again, seen: Seen) -> None:
    source = conversation(url, "a")
    first = turn(url, source, "say: one")
    whole = fork(url, source)
    cut = fork(url, source, after_item_id=item_ids(url, source)[1])
    cut_again = fork(url, cut)
    chained = respond(url, {"input": "say: two", "previous_response_id": first["id"]})
    again()
    turn(url, cut, "say: three")
    delete(url, f"/responses/{first['id']}")
    again()
    assert texts(url, source) == ["a"]
    assert texts(url, whole) == ["a"]
    assert texts(url, cut) == ["a", "say: three", "three"]
    assert texts(url, cut_again) == ["a"]
    assert input_texts(url, chained["id"]) == ["a", "say: two"]
    turn(url, cut, "say: four")
    assert [text for _, text in told(seen.messages)] == ["a", "say: three", "three", "say: four"]
    respond(url, {"input": "say: five", "previous_response_id": chained["id"]})
    assert [text for _, text in told(seen.messages)] == ["a", "say: two", "two", "say: five"]


def test_deleting_the_second_answer_leaves_the_first_one(url: str, again: Again) -> None:
    source = conversation(url)
    turn(url, source, "say: one")
    second = turn(url, source, "say: two")
    again()
    delete(url, f"/conversations/{source}/items/{second['output'][0]['id']}")
    again()
    assert texts(url, source) == ["say: one", "one", "say: two"]
    assert get(url, f"/responses/{second['id']}")["output"] == []


def test_deleting_an_item_leaves_the_rest_of_the_context_as_it_was(url: str, again: Again, seen: Seen) -> None:
    source = conversation(url, "a", "b", "c", "d")
    again()
    delete(url, f"/conversations/{source}/items/{item_ids(url, source)[1]}")
    turn(url, source, "say: on")
    assert [text for _, text in told(seen.messages)] == ["a", "c", "d", "say: on"]


def test_a_deleted_item_is_in_no_stream_any_more(url: str, again: Again) -> None:
    source = conversation(url)
    events = stream(url, {"input": "say: forgettable words", "conversation": source})
    final = events[-1]["response"]
    delete(url, f"/conversations/{source}/items/{final['output'][0]['id']}")
    again()
    replayed = send(url, "GET", f"/responses/{final['id']}?stream=true")
    assert replayed.error["code"] == "stream_expired"
    assert b"forgettable" not in send(url, "GET", f"/responses/{final['id']}").body


def test_items_that_clients_named_alike_elsewhere_stay(url: str, again: Again, seen: Seen) -> None:
    def asked(text: str) -> dict[str, Any]:
        return {"input": [{"type": "message", "id": "msg_mine", "role": "user", "content": text}]}

    first, second = respond(url, asked("say: one")), respond(url, asked("say: two"))
    again()
    delete(url, f"/responses/{first['id']}")
    respond(url, {"input": "say: three", "previous_response_id": second["id"]})
    assert [text for _, text in told(seen.messages)] == ["say: two", "two", "say: three"]


def test_items_named_alike_stay_in_the_context_of_others(url: str, again: Again, seen: Seen) -> None:
    """The same id at the same place: an addition here, the input of a response there."""
    message = {"type": "message", "id": "msg_twin", "role": "user"}
    source, other = conversation(url), conversation(url)
    respond(url, {"input": [{**message, "content": "say: one"}], "conversation": source})
    post(url, f"/conversations/{other}/items", {"items": [{**message, "content": "unlike"}]})
    again()
    delete(url, f"/conversations/{other}/items/msg_twin")
    turn(url, source, "say: two")
    assert [text for _, text in told(seen.messages)] == ["say: one", "one", "say: two"]


def test_an_item_that_was_added_to_a_fork_is_no_copy(url: str, again: Again) -> None:
    """It has the id of an item that its parent got after the fork, and stays when that one goes."""
    source = conversation(url, "a")
    forked = fork(url, source)
    message = {"type": "message", "id": "msg_added_twice", "role": "user"}
    post(url, f"/conversations/{source}/items", {"items": [{**message, "content": "here"}]})
    post(url, f"/conversations/{forked}/items", {"items": [{**message, "content": "there"}]})
    again()
    delete(url, f"/conversations/{source}/items/msg_added_twice")
    assert texts(url, forked) == ["a", "there"]


def test_copies_of_copies_go_with_the_original(url: str, again: Again) -> None:
    source = conversation(url, "a", "b", "c", "d")
    first, second, third, _ = item_ids(url, source)
    child = fork(url, source, after_item_id=third)
    grandchild = fork(url, child, after_item_id=second)
    whole = fork(url, grandchild)
    again()
    delete(url, f"/conversations/{source}/items/{first}")
    assert texts(url, child) == ["b", "c"]
    assert texts(url, grandchild) == ["b"]
    assert texts(url, whole) == ["b"]


def test_an_item_of_a_failed_try_does_not_stand_in_the_way_of_deleting_it(url: str, again: Again) -> None:
    source = conversation(url)
    message = {"type": "message", "id": "msg_retried", "role": "user"}
    failing = {"model": "m", "input": [{**message, "content": "fail: 400 no"}], "conversation": source}
    assert send(url, "POST", "/responses", failing).status == 400
    respond(url, {"input": [{**message, "content": "say: yes"}], "conversation": source})
    again()
    delete(url, f"/conversations/{source}/items/msg_retried")
    assert texts(url, source) == ["yes"]


def test_deleting_while_a_turn_goes_on_hides_what_was_deleted_at_once(
    url: str, model_host: ModelHost, seen: Seen
) -> None:
    source = conversation(url)
    first = turn(url, source, "say: secret")
    running = post(
        url,
        "/responses",
        {"model": "m", "input": "gate: hide\nsay: later", "conversation": source, "background": True},
    )
    seen.wait(2)
    delete(url, f"/responses/{first['id']}")
    assert texts(url, source) == []
    model_host.open_gate("hide")
    read_stream(url, "GET", f"/responses/{running['id']}?stream=true")
    assert texts(url, source) == ["gate: hide\nsay: later", "later"]
    turn(url, source, "say: end")
    assert "secret" not in str(seen.messages)


def test_a_deleted_conversation_leaves_its_forks_whole(url: str, again: Again, seen: Seen) -> None:
    source = conversation(url, "a", "b")
    first = turn(url, source, "say: one")
    forked = fork(url, source)
    cut = fork(url, source, after_item_id=item_ids(url, source)[0])
    later = turn(url, source, "say: two")
    again()
    delete(url, f"/conversations/{source}")
    again()
    assert send(url, "GET", f"/conversations/{source}").status == 404
    assert send(url, "GET", f"/conversations/{source}/items").status == 404
    assert send(url, "DELETE", f"/conversations/{source}").status == 404
    assert send(url, "POST", "/responses", {"model": "m", "input": "x", "conversation": source}).status == 404
    assert send(url, "GET", f"/responses/{later['id']}").status == 404
    assert send(url, "GET", f"/responses/{first['id']}").status == 200
    assert texts(url, forked) == ["a", "b", "say: one", "one"]
    assert texts(url, cut) == ["a"]
    turn(url, forked, "say: on")
    assert [text for _, text in told(seen.messages)] == ["a", "b", "say: one", "one", "say: on"]
    delete(url, f"/conversations/{forked}")
    assert send(url, "GET", f"/responses/{first['id']}").status == 404
    assert texts(url, cut) == ["a"]


def test_what_a_chain_kept_of_a_deleted_conversation_goes_with_the_chain(
    url: str, again: Again, own_server: ServerProcess
) -> None:
    source = conversation(url, "the only secret of this test")
    first = turn(url, source, "say: one")
    chained = respond(url, {"input": "say: two", "previous_response_id": first["id"]})
    again()
    delete(url, f"/conversations/{source}")
    assert input_texts(url, chained["id"]) == ["the only secret of this test", "say: one", "one", "say: two"]
    again()
    delete(url, f"/responses/{chained['id']}")
    assert send(url, "GET", f"/responses/{first['id']}").status == 404
    assert not files_with(own_server.data, b"the only secret of this test")


def test_deleted_words_are_in_no_file_any_more(url: str, own_server: ServerProcess) -> None:
    secret = "ivory-tusk-in-the-journal"
    source = conversation(url, f"{secret} one")
    turn(url, source, f"say: {secret} two")
    chained = stream(url, {"input": f"say: {secret} three", "instructions": f"{secret} " * 60})[-1]["response"]
    until(lambda: files_with(own_server.data, secret.encode()), "the words reach a file")
    delete(url, f"/conversations/{source}")
    delete(url, f"/responses/{chained['id']}")
    until(lambda: not files_with(own_server.data, secret.encode()), "the words are gone from the files")


def conversation(url: str, *messages: str) -> str:
    made: str = post(url, "/conversations", {"items": [{"role": "user", "content": text} for text in messages]})["id"]
    return made


def turn(url: str, conversation_id: str, text: str) -> dict[str, Any]:
    return respond(url, {"input": text, "conversation": conversation_id})


def fork(url: str, conversation_id: str, **point: str) -> str:
    forked: str = post(url, f"/conversations/{conversation_id}/fork", point)["id"]
    return forked


def delete(url: str, path: str) -> Answer:
    answer = send(url, "DELETE", path)
    assert answer.status == 200, answer.body
    return answer


def shown(url: str, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = get(url, f"{path}?order=asc&limit=100")["data"]
    return items


def item_ids(url: str, conversation_id: str) -> list[str]:
    return [item["id"] for item in shown(url, f"/conversations/{conversation_id}/items")]


def texts(url: str, conversation_id: str) -> list[str]:
    return [item["content"][0]["text"] for item in shown(url, f"/conversations/{conversation_id}/items")]


def input_texts(url: str, response_id: str) -> list[str]:
    return [item["content"][0]["text"] for item in shown(url, f"/responses/{response_id}/input_items")]


def files_with(directory: Path, text: bytes) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and text in path.read_bytes()]
