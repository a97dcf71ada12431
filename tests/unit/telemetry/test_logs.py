"""Lines of the log: one each, with the fields that are named, and nothing that breaks a request."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from stateroom.telemetry.context import Asked, current_request
from stateroom.telemetry.logs import AccessLog, Answered, JsonLines, TextLines, level_of


class StoppedClock:
    def now(self) -> float:
        return 1_700_000_000.5

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing sleeps here")


@pytest.fixture
def request_of_the_task() -> Iterator[Asked]:
    asked = Asked()
    token = current_request.set(asked)
    yield asked
    current_request.reset(token)


def record(message: str, *args: Any, error: BaseException | None = None) -> logging.LogRecord:
    held = (type(error), error, None) if error is not None else None
    return logging.LogRecord("stateroom.x", logging.WARNING, "f", 1, message, args, held)


def as_json(message: str, *args: Any, error: BaseException | None = None) -> dict[str, Any]:
    line = JsonLines().format(record(message, *args, error=error))
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_each_pair_of_a_message_is_a_field_of_its_own() -> None:
    line = as_json("run.given_up run_id=%s code=%s tries=%d it goes on", "resp_1", "storage_full", 3)
    assert (line["event"], line["run_id"], line["code"], line["tries"]) == (
        "run.given_up",
        "resp_1",
        "storage_full",
        3,
    )
    assert line["message"] == "run.given_up run_id=resp_1 code=storage_full tries=3 it goes on"
    assert line["level"] == "warning"


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("something else happened", ()),
        ("half=%s of it %s", ("a", "b")),
        ("share=%.1f%% done", (12.5,)),
        ("by name %(x)s", ({"x": 1},)),
        ("odd=%r", ("a\nb",)),
    ],
)
def test_other_messages_are_lines_as_well(message: str, args: tuple[Any, ...]) -> None:
    line = as_json(message, *args)
    assert line["event"] == record(message, *args).getMessage()


def test_a_trace_of_python_stays_on_the_line() -> None:
    line = as_json("run.broke run_id=%s", "resp_1", error=ValueError("no"))
    assert line["trace"].endswith("ValueError: no")


def test_what_is_logged_for_a_request_names_it(request_of_the_task: Asked) -> None:
    request_of_the_task.request_id, request_of_the_task.trace_id = "req_1", "ab" * 16
    assert as_json("a.b c=%d", 1)["request_id"] == "req_1"
    assert as_json("a.b c=%d", 1)["trace_id"] == "ab" * 16
    assert TextLines().format(record("a.b c=%d", 1)).endswith("a.b c=1 request_id=req_1")


def told(**others: Any) -> Answered:
    return Answered("GET", "/v1/responses/{response_id}", 200, 12.345, "default", "key_1", "req_1", **others)


def written(style: Literal["text", "json"], line: Answered) -> str:
    stream = io.StringIO()
    AccessLog("all", "debug", style, stream, StoppedClock()).write(20, line)
    assert stream.getvalue().count("\n") == 1
    return stream.getvalue()


def test_a_request_is_one_line_of_text() -> None:
    line = written("text", told(run_id="resp_1", trace_id="ab", code="server_stopping"))
    assert line[9:] == (
        "info    request method=GET route=/v1/responses/{response_id} status=200 ms=12.3 project=default key=key_1 "
        "request_id=req_1 run_id=resp_1 trace_id=ab code=server_stopping\n"
    )


def test_a_request_is_one_object_of_json() -> None:
    assert json.loads(written("json", told())) == {
        "time": "2023-11-14T22:13:20Z",
        "level": "info",
        "logger": "stateroom.access",
        "event": "request",
        "method": "GET",
        "route": "/v1/responses/{response_id}",
        "status": 200,
        "ms": 12.3,
        "project": "default",
        "key": "key_1",
        "request_id": "req_1",
    }


def test_how_much_a_request_matters_goes_by_its_status() -> None:
    assert [level_of(status) for status in (200, 302, 404, 429, 500, 503)] == [20, 20, 30, 30, 40, 40]
    assert [level_of(status, quiet=True) for status in (200, 404, 503)] == [10, 30, 40]


@pytest.mark.parametrize(
    ("which", "level", "wanted"),
    [
        ("all", "info", [20, 30, 40]),
        ("all", "debug", [10, 20, 30, 40]),
        ("all", "error", [40]),
        ("errors", "debug", [30, 40]),
        ("none", "debug", []),
    ],
)
def test_which_requests_have_a_line_goes_by_the_settings(
    which: Literal["all", "errors", "none"], level: str, wanted: list[int]
) -> None:
    log = AccessLog(which, level, "text", io.StringIO())
    assert [each for each in (10, 20, 30, 40) if log.wants(each)] == wanted


def test_a_log_that_nobody_reads_any_more_breaks_no_request() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    AccessLog("all", "info", "text", Gone()).write(20, told())
    closed = io.StringIO()
    closed.close()
    AccessLog("all", "info", "text", closed).write(20, told())
