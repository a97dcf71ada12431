"""Forms with files (`multipart/form-data`), read as they come in: the files' bytes go on at once, none are kept.

Everything else of a form is small and bounded. What the fields mean is not known here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, TypeAlias

import msgspec
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from stateroom.api.http import BODY_BYTES_PER_SECOND, BODY_SECONDS
from stateroom.errors import InvalidRequest, RequestError, TooLarge

PARTS_MAX: Final = 32
"""Fields of a form."""
HEADERS_MAX: Final = 8
"""Headers of a field."""
HEADER_BYTES: Final = 4_096
"""One of them."""
VALUE_BYTES: Final = 16 * 1024
"""One field that is no file."""
OVERHEAD_BYTES: Final = 1024 * 1024
"""What a form may have beside its file, before and behind its fields included."""

Write: TypeAlias = Callable[[bytes], Awaitable[None]]


class Form(msgspec.Struct, frozen=True):
    """A form whose file has been read."""

    fields: dict[str, str]
    filename: str | None
    """Of the file, as its sender wrote it; None when it has no file."""

    def named(self, field: str) -> str:
        """The file's name. Raises InvalidRequest, which names the field, when there is no file."""
        if self.filename is None:
            missing = f"Missing required parameter: '{field}'."
            raise InvalidRequest(missing, code="missing_required_parameter", param=field)
        return self.filename


async def read_form(request: Request, *, file: str, bytes_max: int, too_large: RequestError, write: Write) -> Form:
    """Read a form whose field `file` is the file, of at most `bytes_max`, and hand its bytes on to `write`.

    Raises InvalidRequest, TooLarge, and `too_large`, when some bytes may have been handed on.
    """

    async def begin(_: str) -> None:
        return None

    return await read_files(
        request,
        file=re.compile(re.escape(file)),
        files_max=1,
        too_many=_invalid(f"it has more than one field {file!r}"),
        bytes_max=bytes_max,
        too_large=too_large,
        begin=begin,
        write=write,
    )


async def read_files(
    request: Request,
    *,
    file: re.Pattern[str],
    files_max: int,
    too_many: RequestError,
    bytes_max: int,
    too_large: RequestError,
    begin: Callable[[str], Awaitable[None]],
    write: Write,
) -> Form:
    """The same for a form with several files, in fields whose names `file` matches, of `bytes_max` together.

    `begin` is called with the name of each file as its sender wrote it, then `write` with its bytes. The form's own
    `filename` is that of the last one.
    """
    form = _FormReader(_boundary(request), file, files_max, too_many)
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > bytes_max + OVERHEAD_BYTES):
        raise too_large
    size = read = 0
    async with aclosing(body_pieces(request)) as chunks:
        async for chunk in chunks:
            read += len(chunk)
            for piece in form.feed(chunk):
                if isinstance(piece, str):
                    await begin(piece)
                    continue
                size += len(piece)
                if size > bytes_max:
                    raise too_large
                await write(piece)
            if read > size + OVERHEAD_BYTES:
                raise TooLarge(f"The form has more than {OVERHEAD_BYTES} bytes beside its file.")
    return form.whole()


async def body_pieces(request: Request) -> AsyncGenerator[bytes, None]:
    """The body in pieces. Only what is waited for the client counts against its time."""
    clock = asyncio.get_running_loop().time
    stream = request.stream().__aiter__()
    waited, size = 0.0, 0
    while True:
        began = clock()
        try:
            async with asyncio.timeout(BODY_SECONDS + size / BODY_BYTES_PER_SECOND - waited):
                chunk = await anext(stream, None)
        except ClientDisconnect:
            message = "The client went away before its body was complete."
            raise InvalidRequest(message, code="client_disconnected") from None
        except TimeoutError:
            raise InvalidRequest("The request body came in too slowly.", code="body_too_slow") from None
        if chunk is None:
            return
        waited += clock() - began
        size += len(chunk)
        yield chunk


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise _invalid("send the file as a form, with `content-type: multipart/form-data; boundary=…`")
    if len(boundary) > 70:
        raise _invalid("its boundary has more than 70 characters")
    return boundary


class _FormReader:
    """Feeds the parser, whose callbacks note what they are told, so that whoever feeds can wait in between."""

    def __init__(self, boundary: bytes, file: re.Pattern[str], files_max: int, too_many: RequestError) -> None:
        """`file` matches the names of fields that are files."""
        self._file = file
        self._files_max = files_max
        self._too_many = too_many
        self._files = 0
        self._fields: dict[str, bytearray] = {}
        self._filename: str | None = None
        self._parts = 0
        self._header = (bytearray(), bytearray())
        self._headers: dict[bytes, bytes] = {}
        self._value: bytearray | None = None
        """Of the field that is being read; None in the file."""
        self._pieces: list[bytes | str] = []
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_begin": self._on_header_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_end": self._on_end,
            },
            max_header_count=HEADERS_MAX,
            max_header_size=HEADER_BYTES,
        )

    def feed(self, chunk: bytes) -> list[bytes | str]:
        """The bytes of files that this brought, and in front of each file its name. Raises InvalidRequest."""
        self._pieces = []
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise _invalid(str(error)[:200].rstrip(".").lower()) from None
        return self._pieces

    def whole(self) -> Form:
        """What was read, to the last byte. Raises InvalidRequest."""
        if not self._ended:
            raise _invalid("it ends before its last boundary")
        return Form({name: _text(value, name) for name, value in self._fields.items()}, self._filename)

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > self._files_max - 1 + PARTS_MAX:
            raise _invalid(f"it has more than {self._files_max - 1 + PARTS_MAX} fields")
        self._headers = {}

    def _on_header_begin(self) -> None:
        self._header = (bytearray(), bytearray())

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _on_header_end(self) -> None:
        name = bytes(self._header[0]).lower()
        if name in self._headers:
            raise _invalid("a field has the same header twice")
        self._headers[name] = bytes(self._header[1])

    def _on_headers_finished(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if disposition != b"form-data" or b"name" not in options:
            raise _invalid("a field has no name")
        if self._headers.get(b"content-transfer-encoding", b"binary").strip().lower() not in (b"binary", b"8bit"):
            raise _invalid("a field has a transfer encoding; send its bytes as they are")
        name = _text(options[b"name"], "name")
        if self._file.fullmatch(name):
            self._files += 1
            if self._files > self._files_max:
                raise self._too_many
            self._filename = _text(options.get(b"filename", b""), "filename")
            self._pieces.append(self._filename)
            self._value = None
            return
        if name in self._fields:
            raise _invalid(f"it has more than one field {name[:64]!r}")
        self._value = self._fields[name] = bytearray()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            self._pieces.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > VALUE_BYTES:
            raise _invalid(f"a field that is no file has more than {VALUE_BYTES} bytes")

    def _on_end(self) -> None:
        self._ended = True


def _text(value: bytes | bytearray, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _invalid(f"the field {name[:64]!r} is not UTF-8") from None


def _invalid(why: str) -> InvalidRequest:
    return InvalidRequest(f"The form cannot be read: {why}.", code="invalid_form")
