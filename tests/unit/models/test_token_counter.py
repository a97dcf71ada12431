"""Finding out how a server counts tokens: once, and not for good from one bad request."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from yarl import URL

from stateroom.errors import BackendError, BackendFailed, BackendRejected, BackendUnavailable
from stateroom.models.token_counter import INCONCLUSIVE_MAX, TokenCounter

BODY = b'{"messages":[{"role":"user","content":"hello"}]}'
ABSENT = BackendFailed("no such route", code="backend_misconfigured")


class Server:
    """Answers by path; what is not there is a 404."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def ask(self, method: str, url: URL, body: bytes | None) -> Any:
        name = url.path.rsplit("/", 1)[-1].replace("-", "_")
        self.asked.append(name)
        answer = self.answers.get(name, ABSENT)
        if isinstance(answer, BackendError):
            raise answer
        return answer(msgspec.json.decode(body or b"null")) if callable(answer) else answer


def counter(server: Server) -> TokenCounter:
    return TokenCounter(server.ask, "http://h:1/v1")


async def test_a_server_without_any_way_is_asked_once() -> None:
    server = Server()
    counting = counter(server)
    for _ in range(3):
        assert await counting.count(BODY) is None
    assert server.asked == ["input_tokens", "tokenize", "apply_template"]


async def test_a_way_that_was_found_is_kept() -> None:
    server = Server(tokenize={"count": 7, "tokens": [1]})
    counting = counter(server)
    assert [await counting.count(BODY) for _ in range(3)] == [7, 7, 7]
    assert server.asked == ["input_tokens", *["tokenize"] * 3]


async def test_an_older_llama_cpp_counts_the_text_of_its_template() -> None:
    server = Server(
        apply_template=lambda asked: {"prompt": f"<user>{asked['messages'][0]['content']}"},
        tokenize=lambda asked: {"tokens": list(asked.get("content", ""))},
    )
    counting = counter(server)
    assert await counting.count(BODY) == len("<user>hello")
    server.asked.clear()
    assert await counting.count(BODY) == len("<user>hello")
    assert server.asked == ["apply_template", "tokenize"]


@pytest.mark.parametrize("error", [BackendUnavailable("gone"), BackendFailed("broke")])
async def test_a_server_that_is_not_there_now_is_asked_again_later(error: BackendError) -> None:
    server = Server(input_tokens=error)
    counting = counter(server)
    for _ in range(INCONCLUSIVE_MAX + 2):
        assert await counting.count(BODY) is None
    server.answers["input_tokens"] = {"input_tokens": 5}
    assert await counting.count(BODY) == 5


async def test_a_refused_request_is_not_held_against_the_server_at_once() -> None:
    server = Server(input_tokens=BackendRejected("too long"))
    counting = counter(server)
    assert await counting.count(BODY) is None
    server.answers["input_tokens"] = {"input_tokens": 5}
    assert await counting.count(BODY) == 5
    server.answers["input_tokens"] = BackendRejected("too long")
    for _ in range(INCONCLUSIVE_MAX + 1):
        assert await counting.count(BODY) is None
    server.answers["input_tokens"] = {"input_tokens": 6}
    assert await counting.count(BODY) == 6


async def test_a_server_that_refuses_every_request_is_left_alone() -> None:
    server = Server(input_tokens=BackendRejected("no"), tokenize=BackendRejected("no"), apply_template=ABSENT)
    counting = counter(server)
    for _ in range(INCONCLUSIVE_MAX):
        assert await counting.count(BODY) is None
    asked = len(server.asked)
    assert await counting.count(BODY) is None
    assert len(server.asked) == asked


@pytest.mark.parametrize("nonsense", [None, [], {"count": "7"}, {"count": -1}, {"tokens": []}, {"prompt": 3}, True])
async def test_nonsense_is_no_count(nonsense: Any) -> None:
    server = Server(input_tokens=nonsense, tokenize=nonsense, apply_template=nonsense)
    assert await counter(server).count(BODY) is None
