"""How a client carries a dialogue on: by `previous_response_id`, by `conversation`, or by sending it all each time."""

from __future__ import annotations

import re
from typing import Final, Literal, Protocol, TypeAlias

import msgspec

from benchmarks.wire import Connection

Surface: TypeAlias = Literal["response", "conversation", "history", "direct"]

_ID: Final = re.compile(rb'"id": ?"((?:resp|conv)_[^"]+)"')
_encode = msgspec.json.encode


class LoadFailed(Exception):
    """The server answered something that no benchmark may count."""


class Dialogue(Protocol):
    """One dialogue, turn after turn."""

    async def say(self, text: str) -> bytes:
        """The body of the answer. Raises LoadFailed when it is none."""
        ...


class ByResponse:
    """Each turn names the response before it."""

    def __init__(self, connection: Connection, model: str, stream: bool) -> None:
        self._connection = connection
        self._request = {"model": model, "stream": stream}
        self._previous: dict[str, str] = {}

    async def say(self, text: str) -> bytes:
        answer = await _post(self._connection, "/v1/responses", {**self._request, "input": text, **self._previous})
        self._previous = {"previous_response_id": _id(answer)}
        return answer


class ByConversation:
    """Each turn names the conversation, which its first turn creates."""

    def __init__(self, connection: Connection, model: str, stream: bool) -> None:
        self._connection = connection
        self._request = {"model": model, "stream": stream}
        self._conversation = ""

    async def say(self, text: str) -> bytes:
        if not self._conversation:
            self._conversation = _id(await _post(self._connection, "/v1/conversations", {}))
        request = {**self._request, "input": text, "conversation": self._conversation}
        return await _post(self._connection, "/v1/responses", request)


class ByHistory:
    """The client keeps the history and sends all of it as the input of each response: for a server without state."""

    def __init__(self, connection: Connection, model: str, stream: bool) -> None:
        self._connection = connection
        self._request = {"model": model, "stream": stream}
        self._history: list[msgspec.Raw] = []

    async def say(self, text: str) -> bytes:
        self._history.append(_message("user", text))
        answer = await _post(self._connection, "/v1/responses", {**self._request, "input": self._history})
        self._history.append(_message("assistant", read(answer).text))
        return answer


class Direct:
    """The client keeps the history and sends all of it to the model server each time."""

    def __init__(self, connection: Connection, model: str, stream: bool) -> None:
        self._connection = connection
        self._request = {"model": model, "stream": stream}
        self._history: list[msgspec.Raw] = []

    async def say(self, text: str) -> bytes:
        self._history.append(_message("user", text))
        request = {**self._request, "messages": self._history}
        answer = await _post(self._connection, "/v1/chat/completions", request)
        if not self._request["stream"]:
            self._history.append(_message("assistant", _completion(answer).choices[0].message.content))
        return answer


DIALOGUES: Final[dict[Surface, type[ByResponse | ByConversation | ByHistory | Direct]]] = {
    "response": ByResponse,
    "conversation": ByConversation,
    "history": ByHistory,
    "direct": Direct,
}


class _Message(msgspec.Struct):
    content: str


class _Choice(msgspec.Struct):
    message: _Message


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _Part(msgspec.Struct):
    text: str


class _Item(msgspec.Struct):
    content: list[_Part]


class _Usage(msgspec.Struct):
    input_tokens: int


class Response(msgspec.Struct):
    """A response, as far as the load reads it."""

    status: str
    output: list[_Item]
    usage: _Usage

    @property
    def text(self) -> str:
        return "".join([part.text for item in self.output for part in item.content])


class _Terminal(msgspec.Struct):
    response: Response


_completion = msgspec.json.Decoder(_Completion).decode
_response = msgspec.json.Decoder(Response).decode
_terminal = msgspec.json.Decoder(_Terminal).decode


def read(answer: bytes) -> Response:
    """The response of an answer, streamed or not. Raises LoadFailed when it is not complete."""
    if answer.startswith(b"{"):
        response = _response(answer)
    else:
        start = answer.rfind(b"data: {")
        response = _terminal(answer[start + len(b"data: ") :].partition(b"\n")[0]).response
    if response.status != "completed":
        raise LoadFailed(f"a response ended as {response.status}: {answer[:500]!r}")
    return response


def _message(role: str, text: str) -> msgspec.Raw:
    return msgspec.Raw(_encode({"role": role, "content": text}))


def dialogue_bytes(said: str, answered: str) -> int:
    """What one turn is as plain JSON: two messages and the commas after them."""
    return len(_message("user", said)) + len(_message("assistant", answered)) + 2


async def _post(connection: Connection, path: str, body: dict[str, object]) -> bytes:
    status, answer = await connection.post(path, _encode(body))
    if status != 200:
        raise LoadFailed(f"POST {path}: {status} {answer[:500]!r}")
    return answer


def _id(answer: bytes) -> str:
    match = _ID.search(answer)
    if match is None:
        raise LoadFailed(f"no id in {answer[:500]!r}")
    return match.group(1).decode()
