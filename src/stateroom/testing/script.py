"""What the scripted model answers: replies as data, and the control words by which a message asks for one.

A `Script` is handed a chat request and gives a `Reply`: from a queue, from a function, or from the control words in the
last user message (one a line; see `CONTROL_WORDS`). It also records what was asked. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

CONTROL_WORDS: Final[dict[str, str]] = {
    "say": "answer with this text (it may go on over the following lines)",
    "reason": "reason with this text first",
    "summarise": "tell this of the reasoning (Responses only)",
    "call": "call a function: NAME {arguments}; several lines are several turns, one call each",
    "calls": 'call several functions at once: [{"name": ..., "arguments": {...}}, ...]',
    "loop": "call this function again after every result: NAME {arguments}",
    "preface": "say this before a call",
    "json": "answer with this JSON",
    "refuse": "refuse with this text",
    "chunks": "answer with a text of so many chunks",
    "slow": "wait so many milliseconds between chunks (200 when no number is given)",
    "fail": "answer with this HTTP status, and a message after it",
    "fail_after": "cut the connection after so many chunks, unless the answer was begun by a prefill",
    "error_after": "send an error inside the stream after so many chunks",
    "hang": "go silent, at once or after so many chunks",
    "finish": "end with this finish_reason",
    "length": "end with finish_reason length",
    "echo": "answer with the number of messages and the text of the last user message",
    "remember": "answer from the facts of earlier user messages (my X is Y)",
}

_LINE = re.compile(r"^\s*(" + "|".join(CONTROL_WORDS) + r")\s*(?::[ \t]*(.*))?$", re.IGNORECASE)
_FACT = re.compile(r"\bmy ([\w ]{1,40}?) is ([^\n.,;!?]{1,80})", re.IGNORECASE)
_QUESTION = re.compile(r"\bwhat(?:'s| is| was) my ([\w ]{1,40}?)\s*(?:\?|\.|$)", re.IGNORECASE | re.MULTILINE)
_PIECE = re.compile(r"\s*\S+|\s+$")


class Call(msgspec.Struct, frozen=True):
    """A call that the model makes."""

    name: str
    arguments: str = "{}"
    """JSON text."""
    extra: dict[str, Any] = {}
    """Unknown fields beside it, such as `extra_content`."""


class Reply(msgspec.Struct):
    """One answer of the model, and what goes wrong with it."""

    text: str = ""
    reasoning: str = ""
    summary: str = ""
    """What is told of the reasoning, in Responses."""
    phase: str = ""
    """Of the message, in Responses."""
    refusal: str = ""
    calls: tuple[Call, ...] = ()
    pieces: tuple[str, ...] = ()
    """The chunks of the text, when they are not to be its words."""
    finish: str = ""
    """Empty: tool_calls or stop."""
    delay: float | None = None
    """Seconds between chunks; None: the server's default."""
    drop_after: int | None = None
    """Cut the connection after so many chunks."""
    hang_after: int | None = None
    """Go silent after so many chunks; 0: before the headers."""
    error_after: int | None = None
    """Send `error` inside the stream after so many chunks."""
    gate: asyncio.Event | None = None
    """Wait for it after `gate_after` chunks."""
    gate_after: int = 0
    status: int = 200
    error: dict[str, Any] | None = None
    headers: dict[str, str] = {}
    raw: bytes | None = None
    """Send this body as it is."""
    content_type: str = ""
    usage: dict[str, Any] | None = None

    def chunks(self) -> list[str]:
        """The pieces that the text is streamed in: words with the space before them."""
        return list(self.pieces) or _PIECE.findall(self.text)


class Message(msgspec.Struct):
    """A message of a request, as far as the script reads it."""

    role: str
    content: Any = None
    tool_calls: list[Any] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        parts = self.content if isinstance(self.content, list) else []
        return "\n".join(part.get("text") or "" for part in parts if isinstance(part, dict))


class ChatRequest(msgspec.Struct):
    """A chat request, as far as the script reads it."""

    messages: list[Message]
    model: str = "scripted"
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    size: int = 0
    """Bytes of the body."""

    @property
    def prefill(self) -> str:
        last = self.messages[-1] if self.messages else None
        return last.text if last is not None and last.role == "assistant" and not last.tool_calls else ""

    @property
    def include_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


class Received(msgspec.Struct, frozen=True):
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Script:
    """Decides what the scripted model answers and remembers what it was asked."""

    def __init__(
        self,
        replies: Iterable[Reply] = (),
        *,
        respond: Callable[[ChatRequest], Reply] | None = None,
        default_chunks: int = 0,
        keep: int = 1000,
    ) -> None:
        self.replies = deque(replies)
        """Given out first, one a request."""
        self.respond = respond
        """Asked when the queue is empty; None: the control words."""
        self.default_chunks = default_chunks
        """Length of the answer to a message without a control word; 0: it is repeated."""
        self.requests: deque[Received] = deque(maxlen=keep)
        self.received = 0
        self.answered = 0
        self.dropped = 0
        """Connections that clients closed in the middle of an answer."""
        self._waiting: list[asyncio.Future[None]] = []

    def reply(self, request: ChatRequest) -> Reply:
        if self.replies:
            return self.replies.popleft()
        if self.respond is not None:
            return self.respond(request)
        return obey(request, default_chunks=self.default_chunks)

    def note(self, *, received: Received | None = None, answered: int = 0, dropped: int = 0) -> None:
        """Called by the server; wakes whoever waits in `until`."""
        if received is not None:
            self.received += 1
            if self.requests.maxlen:
                self.requests.append(received)
        self.answered += answered
        self.dropped += dropped
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[Script], bool], timeout: float = 5.0) -> None:
        """Wait until the condition holds. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while not condition(self):
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(future)
                await future


def obey(request: ChatRequest, *, default_chunks: int = 0) -> Reply:
    """The reply that the control words of the last user message ask for, or a plain one without any."""
    asked = max((i for i, message in enumerate(request.messages) if message.role == "user"), default=-1)
    text = request.messages[asked].text if asked >= 0 else ""
    words = _read(text)
    after = request.messages[asked + 1 :]
    reply = Reply(reasoning=words.get("reason", [""])[0], refusal=words.get("refuse", [""])[0])
    reply.summary = words.get("summarise", [""])[0]
    _disturb(reply, words, prefilled=bool(request.prefill))
    turns = sum(1 for message in after if message.tool_calls)
    steps = [*([_call(line)] for line in words.get("call", ())), *(_calls(line) for line in words.get("calls", ()))]
    if "loop" in words:
        reply.calls = (_call(words["loop"][0]),)
    elif turns < len(steps):
        reply.calls = tuple(steps[turns])
        reply.text = words.get("preface", [""])[0]
    elif not words and not turns and (call := _chosen_call(request, text)) is not None:
        reply.calls = (call,)
    else:
        results = [message.text for message in after if message.role == "tool"]
        reply.text = _text(request, asked, text, words, results, default_chunks)
    if reply.refusal:
        reply.text = ""
    return reply


def _read(text: str) -> dict[str, list[str]]:
    words: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.split("\n"):
        match = _LINE.match(line)
        if match is not None:
            current = words.setdefault(match.group(1).lower(), [])
            current.append((match.group(2) or "").rstrip())
        elif current is not None and "say" in words and current is words["say"]:
            current[-1] += "\n" + line
    return words


def _disturb(reply: Reply, words: dict[str, list[str]], *, prefilled: bool) -> None:
    if "slow" in words:
        reply.delay = _number(words["slow"][0], 200) / 1000
    if "fail" in words:
        status, _, message = words["fail"][0].partition(" ")
        reply.status = min(599, max(400, _number(status, 500)))
        reply.error = {"message": message or f"asked to fail with {reply.status}", "type": "scripted", "code": None}
    if "fail_after" in words and not prefilled:
        reply.drop_after = _number(words["fail_after"][0], 1)
    if "error_after" in words:
        reply.error_after = _number(words["error_after"][0], 1)
        reply.error = {"message": "asked to fail in the stream", "type": "server_error", "code": 500}
    if "hang" in words:
        reply.hang_after = _number(words["hang"][0], 0)
    if "length" in words:
        reply.finish = "length"
    if "finish" in words:
        reply.finish = words["finish"][0]


def _text(
    request: ChatRequest, asked: int, text: str, words: dict[str, list[str]], results: list[str], default_chunks: int
) -> str:
    if "say" in words:
        return "\n".join(words["say"])
    if "json" in words:
        return words["json"][0]
    if "chunks" in words:
        return numbered(_number(words["chunks"][0], 50))
    if "echo" in words:
        return f"{len(request.messages)} messages. {text}"
    if results:
        return "The tool answered: " + "; ".join(results)
    if "remember" in words or _QUESTION.search(text):
        return _recall(request.messages[:asked], text)
    if schema := _schema(request):
        return msgspec.json.encode(instance(schema)).decode()
    return numbered(default_chunks) if default_chunks else f"You said: {text}"


def numbered(count: int) -> str:
    """A text of `count` chunks: w0 w1 w2 …"""
    return " ".join([f"w{i}" for i in range(count)])


def _recall(earlier: list[Message], text: str) -> str:
    facts: dict[str, str] = {}
    for message in earlier:
        if message.role == "user":
            for match in _FACT.finditer(message.text):
                facts[match.group(1).strip().lower()] = match.group(2).strip()
    question = _QUESTION.search(text)
    if question is not None:
        wanted = question.group(1).strip().lower()
        return f"Your {wanted} is {facts[wanted]}." if wanted in facts else f"I do not know your {wanted}."
    return " ".join([f"Your {name} is {value}." for name, value in facts.items()]) or "I know nothing about you."


def _call(line: str) -> Call:
    name, _, arguments = line.strip().partition(" ")
    return Call(name, arguments.strip() or "{}")


def _calls(line: str) -> list[Call]:
    listed = msgspec.json.decode(line)
    return [Call(one["name"], msgspec.json.encode(one.get("arguments", {})).decode()) for one in listed]


def _chosen_call(request: ChatRequest, text: str) -> Call | None:
    """The call that `tool_choice` demands or that a word of the message suggests."""
    functions = [tool.get("function") or {} for tool in request.tools or ()]
    choice = request.tool_choice
    if isinstance(choice, dict):
        wanted = (choice.get("function") or {}).get("name")
        functions = [function for function in functions if function.get("name") == wanted]
    elif choice == "none":
        return None
    elif choice != "required":
        spoken = set(re.findall(r"[a-z]{3,}", text.lower()))
        functions = [one for one in functions if spoken & set(re.findall(r"[a-z]{4,}", str(one.get("name")).lower()))]
    if not functions:
        return None
    arguments = msgspec.json.encode(instance(functions[0].get("parameters") or {"type": "object"})).decode()
    return Call(str(functions[0].get("name")), arguments)


def _schema(request: ChatRequest) -> dict[str, Any] | None:
    wanted = request.response_format or {}
    if wanted.get("type") == "json_object":
        return {"type": "object"}
    schema: dict[str, Any] | None = (wanted.get("json_schema") or {}).get("schema")
    return schema


def instance(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """A small value that the JSON Schema allows, as far as the usual keywords go."""
    if not isinstance(schema, dict) or depth > 32:
        return None
    root = schema if root is None else root
    if "$ref" in schema:
        target: Any = root
        for step in str(schema["$ref"]).removeprefix("#").strip("/").split("/"):
            target = target.get(step, {}) if step else target
        return instance(target, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    for keyword in ("enum", "anyOf", "oneOf", "allOf"):
        if schema.get(keyword):
            first = schema[keyword][0]
            return first if keyword == "enum" else instance(first, root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: instance(properties.get(name, {}), root, depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        return [instance(schema.get("items", {}), root, depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind in ("integer", "number"):
        return max(1, schema.get("minimum", 1))
    return {"boolean": True, "null": None}.get(kind, "text".ljust(schema.get("minLength", 0), "t"))


def _number(text: str, default: int) -> int:
    try:
        return max(0, int(text))
    except ValueError:
        return default
