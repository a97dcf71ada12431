"""A server that answers with what a test wrote down, byte by byte, and can break off in the middle."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    body: Any
    status: int = 200
    broken: bool = False
    """End the connection without ending the answer."""


class Events(NamedTuple):
    events: list[dict[str, Any]]
    broken: bool = False


class Request(NamedTuple):
    method: str
    path: str
    body: Any
    headers: dict[str, str]


class Script:
    """The replies that are still to be given, and the requests that came."""

    def __init__(self, *replies: Reply | Events) -> None:
        self.replies = list(replies)
        self.requests: list[Request] = []
        self.url = ""

    def next(self, request: Request) -> Reply | Events:
        self.requests.append(request)
        return self.replies.pop(0) if self.replies else Reply({"error": {"message": "nothing is left"}}, 500)


@contextmanager
def serving(*replies: Reply | Events, port: int = 0) -> Iterator[Script]:
    script = Script(*replies)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = script.next(Request(self.command, self.path, body, headers))
            self.close_connection = True
            if isinstance(reply, Events):
                self.stream(reply)
            else:
                self.plain(reply)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815  # names of the base class

        def plain(self, reply: Reply) -> None:
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content) + (10 if reply.broken else 0)))
            self.send_header("x-request-id", "req_1")
            self.end_headers()
            self.wfile.write(content)

        def stream(self, reply: Events) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream; charset=utf-8")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for event in reply.events:
                data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.write(b'20\r\ndata: {"type": ' if reply.broken else b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()


RESPONSE = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}


def story(*words: str, status: str = "completed") -> list[dict[str, Any]]:
    """The events of an answer of these words."""
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "".join(words)}]}]
    item = {"type": "message", "id": "msg_1"}
    bodies: list[dict[str, Any]] = [
        {"type": "response.created", "response": RESPONSE},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        *({"type": "response.output_text.delta", "output_index": 0, "delta": word} for word in words),
        {"type": "response.output_item.done", "output_index": 0, "item": {**item, "status": "completed"}},
        {"type": f"response.{status}", "response": {**RESPONSE, "status": status, "output": output}},
    ]
    return [{**body, "sequence_number": number} for number, body in enumerate(bodies)]
