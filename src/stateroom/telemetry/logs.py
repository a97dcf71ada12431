"""Logging: fixed event names with fields, on standard error; no content of requests, no secrets.

A message is the event's name and `key=value` pairs, such as "run.given_up run_id=%s code=%s"; as JSON each key is a
field of its own. One line for each request is written without the logging package, which would take three times as
long.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import Any, Final, Literal, TextIO, TypeAlias

import msgspec

from stateroom.clock import Clock, SystemClock
from stateroom.telemetry.context import Asked, current_request

Style: TypeAlias = Literal["text", "json"]
Which: TypeAlias = Literal["all", "errors", "none"]

_FIELD: Final = re.compile(r"([a-z_]+)=%")
_PLACE: Final = re.compile(r"%(?!%)")
_EVENT: Final = re.compile(r"([a-z_]+(?:\.[a-z_]+)+)\b")
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_LOGGERS: Final = ("stateroom", "opentelemetry")

_encode = msgspec.json.Encoder().encode


class TextLines(logging.Formatter):
    """One readable line a record."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{stamp} {record.levelname.lower():7} {record.getMessage()}"
        asked = current_request.get()
        if asked is not None and asked.request_id:
            line += f" request_id={asked.request_id}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        named = _EVENT.match(message)
        fields: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": named.group(1) if named else message,
        }
        fields |= _fields(record)
        asked = current_request.get()
        if asked is not None:
            fields |= {name: value for name, value in _where(asked) if value}
        if named:
            fields["message"] = message
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return _encode(fields).decode()


def start_logging(level: str, style: Style) -> None:
    """Send the log of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("stateroom").setLevel(level.upper())
    logging.getLogger("opentelemetry").setLevel(max(_LEVELS[level], logging.WARNING))


class Answered(msgspec.Struct, omit_defaults=True):
    """What the line about a request says."""

    method: str
    route: str
    """The template of its address, never the address: what stands in there is the client's."""
    status: int
    ms: float
    project: str = ""
    key: str = ""
    request_id: str = ""
    run_id: str = ""
    trace_id: str = ""
    code: str = ""
    """Of the error that it was answered with."""


class AccessLog:
    """A line for each request."""

    def __init__(
        self, which: Which, level: str, style: Style, stream: TextIO | None = None, clock: Clock | None = None
    ) -> None:
        self._from = _LEVELS["warning"] if which == "errors" else 100 if which == "none" else 0
        self._from = max(self._from, _LEVELS[level])
        self._json = style == "json"
        self._stream = stream
        self._clock: Clock = clock or SystemClock()
        self._second = 0
        self._stamp = ""

    def wants(self, level: int) -> bool:
        return level >= self._from

    def write(self, level: int, told: Answered) -> None:
        """Write the line; what cannot be written is not waited for."""
        word = "info" if level == 20 else "warning" if level == 30 else "error" if level == 40 else "debug"
        line = self._object(word, told) if self._json else self._line(word, told)
        stream = self._stream or sys.stderr
        try:
            stream.write(line)
            stream.flush()
        except (OSError, ValueError):
            return  # nobody reads the log any more; requests are answered all the same

    def _line(self, word: str, told: Answered) -> str:
        return (
            f"{self._now(local=True)} {word:7} request method={told.method} route={told.route} status={told.status} "
            f"ms={told.ms:.1f} project={told.project or '-'} key={told.key or '-'} request_id={told.request_id}"
            f"{f' run_id={told.run_id}' if told.run_id else ''}{f' trace_id={told.trace_id}' if told.trace_id else ''}"
            f"{f' code={told.code}' if told.code else ''}\n"
        )

    def _object(self, word: str, told: Answered) -> str:
        head = f'{{"time":"{self._now(local=False)}","level":"{word}","logger":"stateroom.access","event":"request",'
        told.ms = round(told.ms, 1)
        return f"{head}{_encode(told).decode()[1:]}\n"

    def _now(self, *, local: bool) -> str:
        second = int(self._clock.now())
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%H:%M:%S", time.localtime(second)) if local else _utc(second)
        return self._stamp


def level_of(status: int, *, quiet: bool = False) -> int:
    """How much a request's line matters; `quiet` for routes that machines ask all day long."""
    if status >= 500:
        return 40
    if status >= 400:
        return 30
    return 10 if quiet else 20


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The `key=value` pairs of a message whose every place is one."""
    args = record.args
    if not isinstance(args, tuple) or not isinstance(record.msg, str):
        return {}
    places = list(_PLACE.finditer(record.msg))
    if len(places) != len(args):
        return {}
    names = {found.end() - 1: found.group(1) for found in _FIELD.finditer(record.msg)}
    found = {names[place.start()]: value for place, value in zip(places, args, strict=True) if place.start() in names}
    return {name: value if isinstance(value, int | float | str | None) else str(value) for name, value in found.items()}


def _where(asked: Asked) -> tuple[tuple[str, str], ...]:
    return (("request_id", asked.request_id), ("trace_id", asked.trace_id))


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
