"""The HTTP client of the commands: pages, errors and whatever else may answer at a URL."""

from __future__ import annotations

import pytest

from stateroom.cli.client import Client, Refused, ServerDown, segment
from stateroom.cli.failure import CommandFailed
from tests.unit.cli.script_server import Reply, serving


def page(*names: str, more: bool) -> Reply:
    data = [{"id": name} for name in names]
    return Reply({"object": "list", "data": data, "last_id": names[-1] if names else None, "has_more": more})


def test_pages_are_followed_to_the_end() -> None:
    with serving(page("a", "b", more=True), page("c", more=False)) as script:
        assert [entry["id"] for entry in Client(script.url).pages("/responses")] == ["a", "b", "c"]
    assert script.requests[1].path == "/v1/responses?order=asc&limit=100&after=b"


def test_a_limit_stops_the_pages() -> None:
    names = [f"r{number}" for number in range(100)]
    with serving(page(*names, more=True), page("x", "y", more=True)) as script:
        assert len(list(Client(script.url).pages("/responses", limit=102))) == 102
    assert "limit=2&" in script.requests[1].path
    assert len(script.requests) == 2


def test_an_empty_page_ends_the_list_even_if_it_promises_more() -> None:
    with serving(page(more=True)) as script:
        assert list(Client(script.url).pages("/responses")) == []


def test_the_key_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEROOM_API_KEY", "sk-1")
    with serving(Reply({})) as script:
        Client(script.url).call("POST", "/x", {"a": 1})
    assert script.requests[0].headers["authorization"] == "Bearer sk-1"
    assert script.requests[0].body == {"a": 1}


def test_an_answer_without_content_is_none() -> None:
    with serving(Reply(b"", 204)) as script:
        assert Client(script.url).call("DELETE", "/x") is None


@pytest.mark.parametrize("body", [b"<html>proxy</html>", {"detail": "Not Found"}, ["error"], b""])
def test_something_else_than_stateroom_is_told_apart(body: object) -> None:
    with serving(Reply(body, 404)) as script, pytest.raises(Refused, match="right base URL"):
        Client(script.url).call("GET", "/models")


def test_an_answer_that_breaks_off_is_an_error_and_not_half_an_answer() -> None:
    with serving(Reply({"data": []}, broken=True)) as script, pytest.raises(ServerDown, match="broke"):
        Client(script.url).call("GET", "/models")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "://"])
def test_what_is_not_a_url_is_a_usage_error(url: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        Client(url)
    assert caught.value.exit_code == 2


def test_an_id_cannot_reach_another_path() -> None:
    assert segment("../models?x=1") == "..%2Fmodels%3Fx%3D1"
    with pytest.raises(CommandFailed):
        segment("")
