"""The text of documents: of PDFs, and of everything that is text itself. What a file is, its bytes say, not its name.

PDFs are read in a process of their own, with bounds on its time, its memory and what it may answer.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import hashlib
import math
import os
import re
import sys
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

import msgspec

from stateroom.errors import InvalidRequest, StateroomError, TooMany
from stateroom.settings import Limits

HEAD_BYTES: Final = 1024
"""In which a PDF has to say that it is one."""
AT_ONCE: Final = 2
"""PDFs that are read at the same time."""
MEMORY_BYTES: Final = 1024 * 1024 * 1024
"""Of the process that reads one."""
REMEMBERED_BYTES: Final = 16 * 1024 * 1024
"""Texts of PDFs that are remembered: clients that keep their history themselves send the same file with every turn."""

_CHILD: Final = Path(__file__).with_name("documents_child.py")
_PASSED_ON: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_IMAGES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARED: Final = re.compile(
    rb"""(?:<meta[^>]{0,256}?charset\s*=\s*["']?|^\s*<\?xml[^>]{0,256}?encoding\s*=\s*["'])\s*([A-Za-z0-9_.:-]{1,40})""",
    re.IGNORECASE,
)
_NO_TEXT: Final = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_ENCODINGS: Final = (
    *("ascii", "utf-8", "utf-16", "utf-32", "iso8859", "iso2022", "cp", "koi8", "mac-"),
    *("gb", "hz", "big5", "shift_jis", "euc", "johab", "tis"),
)
"""Beginnings of the names of encodings that texts have; others are made for something else, and some are slow."""
_FOREIGN_SHARE: Final = 0.3
"""Of a Western text whose encoding nobody tells, so much at most is not ASCII."""


class Content(msgspec.Struct, frozen=True):
    """The bytes of a file, wherever they are."""

    size: int
    digest: str
    chunks: Callable[[], AsyncGenerator[bytes, None]]
    charset: str = ""
    """What was said of its encoding elsewhere."""


class _Said(msgspec.Struct):
    """The first line of a child's answer."""

    error: str = "unreadable"
    detail: str = ""
    pages: int = 0


class Documents:
    """Reads documents."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places = asyncio.Semaphore(AT_ONCE)
        self._remembered: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._remembered_size = 0

    async def text(self, project: str, content: Content, *, param: str, seconds: float) -> str:
        """What a model reads of the file. Raises InvalidRequest, TooMany; StorageError of its chunks."""
        limits = self._limits
        if content.size > limits.file_input_bytes:
            raise _refused(
                f"The file has {content.size} bytes; at most {limits.file_input_bytes} can be read "
                "(`limits.file_input_bytes`).",
                "file_too_large",
                param,
            )
        head = await _head(content)
        if head.lstrip().startswith(b"%PDF-") or (b"%PDF-" in head and decode_text(head) is None):
            return await self._pdf(project, content, param, seconds)
        if image_type(head) is not None:
            raise _refused("The file is an image. Send it as `input_image`.", "unsupported_file", param)
        if content.size > 4 * limits.file_text_bytes + 4:  # in no encoding could it be short enough
            raise self._too_much_text(param)
        text = await asyncio.to_thread(decode_text, await _whole(content), content.charset)
        if text is None:
            raise _refused(
                "The file is neither text nor a PDF, or its encoding cannot be told. "
                "Send PDF, or text as UTF-8: plain, Markdown, CSV, JSON, HTML, code.",
                "unsupported_file",
                param,
            )
        if len(text.encode()) > limits.file_text_bytes:
            raise self._too_much_text(param)
        return text

    async def _pdf(self, project: str, content: Content, param: str, seconds: float) -> str:
        known = (project, content.digest)
        if known in self._remembered:
            self._remembered.move_to_end(known)
            return self._remembered[known]
        if seconds <= 0:
            raise self._too_slow(param)
        said, text = await self._in_child(content, param, seconds)
        if said.error:
            raise self._why(said, param)
        self._remembered[known] = text
        self._remembered_size += len(text)
        while self._remembered_size > REMEMBERED_BYTES:
            self._remembered_size -= len(self._remembered.popitem(last=False)[1])
        return text

    async def _in_child(self, content: Content, param: str, seconds: float) -> tuple[_Said, str]:
        placed = False
        process: asyncio.subprocess.Process | None = None
        try:
            async with asyncio.timeout(seconds), self._places:
                placed = True
                try:
                    process = await asyncio.create_subprocess_exec(
                        sys.executable,
                        "-P",  # else the folder of the script would hide modules of the same names
                        str(_CHILD),
                        stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.PIPE,
                        stderr=asyncio.subprocess.DEVNULL,
                        env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                        start_new_session=True,  # Ctrl-C in the terminal is for us
                    )
                    return await self._ask(process, content, seconds)
                finally:
                    if process is not None:
                        await asyncio.shield(_end(process))
        except TimeoutError:
            if not placed:
                message = "Other files are being read, too many at a time. Try again."
                raise TooMany(message, code="too_many_files_at_once", param=param) from None
            raise self._too_slow(param) from None

    async def _ask(self, process: asyncio.subprocess.Process, content: Content, seconds: float) -> tuple[_Said, str]:
        """Hand the file to the child while listening to it: it may answer before it has read all."""
        assert process.stdin is not None
        assert process.stdout is not None
        text_max = self._limits.file_text_bytes
        told = {
            "parent": os.getpid(),
            "pages": self._limits.file_pages,
            "text": text_max,
            "seconds": math.ceil(seconds) + 1,
            "memory": MEMORY_BYTES,
        }
        telling = asyncio.create_task(_tell(process.stdin, msgspec.json.encode(told) + b"\n", content))
        try:
            answer = await _read_most(process.stdout, text_max + 4096)
            if answer is None:
                return _Said("too_much_text"), ""
            await telling
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        line, _, text = answer.partition(b"\n")
        if not line:  # it was killed for what it used
            return _Said("too_complex"), ""
        return msgspec.json.decode(line, type=_Said), text.decode("utf-8", "replace")

    def _why(self, said: _Said, param: str) -> StateroomError:
        if said.error == "too_much_text":
            return self._too_much_text(param)
        if said.error == "too_many_pages":
            message = f"The PDF has {said.pages} pages; at most {self._limits.file_pages} can be read"
            return _refused(f"{message} (`limits.file_pages`).", "too_many_pages", param)
        message, code = {
            "encrypted": ("The PDF is encrypted. Send it without a password.", "file_encrypted"),
            "no_text": (
                "The PDF has no text: it may be scanned. Send its pages as images (`input_image`).",
                "file_without_text",
            ),
            "too_complex": ("The PDF takes too much memory or time to be read. Send it in parts.", "file_too_complex"),
        }.get(said.error, (f"The PDF is damaged: it cannot be read ({said.detail}).", "file_unreadable"))
        return _refused(message, code, param)

    def _too_much_text(self, param: str) -> InvalidRequest:
        most = self._limits.file_text_bytes
        message = f"The file has more than {most} bytes of text (`limits.file_text_bytes`). Send a part of it."
        return _refused(message, "file_text_too_large", param)

    def _too_slow(self, param: str) -> InvalidRequest:
        seconds = self._limits.file_seconds
        message = f"Reading the files of this request takes longer than {seconds:g} seconds (`limits.file_seconds`)."
        return _refused(message, "file_too_complex", param)


def of_bytes(data: bytes, charset: str = "") -> Content:
    """Content that is in memory."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield data

    return Content(len(data), hashlib.sha256(data).hexdigest(), chunks, charset)


def image_type(head: bytes) -> str | None:
    """The media type of an image by its first bytes; None when it is none that models are shown."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _IMAGES if head.startswith(magic)), None)


def decode_text(data: bytes, charset: str = "") -> str | None:
    """The text of bytes, by what they or their sender say of their encoding; None when they are no text."""
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _decoded(data[len(bom) :], encoding)
    if (text := _decoded(data, "utf-8")) is not None:
        return text
    declared = _DECLARED.search(data[:HEAD_BYTES])
    for said in (charset, declared.group(1).decode("ascii") if declared else ""):
        if said and (text := _decoded(data, said)) is not None:
            return text
    foreign = len(data) - len(data.translate(None, bytes(range(128, 256))))
    return _decoded(data, "windows-1252") if foreign <= _FOREIGN_SHARE * len(data) else None


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        if not codecs.lookup(encoding).name.startswith(_ENCODINGS):
            return None
        text = data.decode(encoding)
    except (UnicodeError, LookupError, ValueError):
        return None
    return None if _NO_TEXT.search(text) else text.replace("\r\n", "\n")


async def _head(content: Content) -> bytes:
    head = b""
    async with aclosing(content.chunks()) as chunks:
        async for chunk in chunks:
            head += chunk[:HEAD_BYTES]
            if len(head) >= HEAD_BYTES:
                break
    return head[:HEAD_BYTES]


async def _whole(content: Content) -> bytes:
    async with aclosing(content.chunks()) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def _tell(stdin: asyncio.StreamWriter, line: bytes, content: Content) -> None:
    try:
        with contextlib.suppress(ConnectionError):  # it has heard enough: its answer says so
            stdin.write(line)
            async with aclosing(content.chunks()) as chunks:
                async for chunk in chunks:
                    stdin.write(chunk)
                    await stdin.drain()
    finally:
        stdin.close()


async def _read_most(stdout: asyncio.StreamReader, bytes_max: int) -> bytes | None:
    """All that comes; None when it is more than expected."""
    said = bytearray()
    while chunk := await stdout.read(65536):
        said += chunk
        if len(said) > bytes_max:
            return None
    return bytes(said)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()


def _refused(message: str, code: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, code=code, param=param)


def as_told(name: str, text: str) -> str:
    """What the model reads: the text, and which file it is of."""
    shown = name.replace('"', "'").replace("<", "(").replace(">", ")")
    return f'<file name="{shown}">\n{text}\n</file>'
