"""Forms as they come in, in whatever pieces, and what hostile ones are answered with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from stateroom.api import multipart
from stateroom.api.multipart import Form, read_form
from stateroom.errors import RequestError, TooLarge
from tests.unit.api.driver import Exchange, scope_of

BOUNDARY = "cut"
KIND = f"multipart/form-data; boundary={BOUNDARY}"
TOO_LARGE = TooLarge("too large", code="file_too_large")


def part(name: str, value: bytes, *, filename: str | None = None, more: bytes = b"") -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n'.encode()
    return head + more + b"\r\n" + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
USUAL = part("purpose", b"user_data") + part("file", b"content", filename="a.txt") + END


class Read:
    """What came of reading a form."""

    def __init__(self, form: Form, pieces: list[bytes]) -> None:
        self.fields = form.fields
        self.filename = form.filename
        self.content = b"".join(pieces)
        self.pieces = pieces


async def read(body: bytes | Iterable[bytes], *, kind: str = KIND, most: int = 1_000, **options: Any) -> Read:
    headers = [(b"content-type", kind.encode("latin-1")), *options.pop("headers", ())]
    exchange = Exchange([body] if isinstance(body, bytes) else body, **options)
    pieces: list[bytes] = []

    async def write(piece: bytes) -> None:
        pieces.append(piece)

    request = Request(scope_of("POST", "/", headers=headers), exchange.receive)
    form = await read_form(request, file="file", bytes_max=most, too_large=TOO_LARGE, write=write)
    return Read(form, pieces)


async def refusal(body: bytes | Iterable[bytes], **options: Any) -> RequestError:
    with pytest.raises(RequestError) as refused:
        await asyncio.wait_for(read(body, **options), 10)
    assert len(refused.value.message) < 400
    return refused.value


async def test_a_form_has_fields_and_a_file() -> None:
    form = await read(USUAL)
    assert (form.fields, form.filename, form.content) == ({"purpose": "user_data"}, "a.txt", b"content")


@given(st.binary(max_size=200), st.lists(st.integers(1, 40), min_size=1, max_size=40))
async def test_a_form_is_the_same_in_whatever_pieces_it_comes(content: bytes, sizes: list[int]) -> None:
    content = content.replace(b"--cut", b"")
    body = part("file", content, filename="a") + part("purpose", b"batch") + END
    chunks, rest = [], body
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    form = await read([*[chunk for chunk in chunks if chunk], rest or b""])
    assert (form.content, form.fields) == (content, {"purpose": "batch"})


@given(st.binary(max_size=400))
async def test_any_bytes_are_a_form_or_refused(body: bytes) -> None:
    for sent in (body, f"--{BOUNDARY}\r\n".encode() + body, part("purpose", body) + END):
        with suppress(RequestError):
            await read(sent)


async def test_the_content_may_hold_what_looks_like_the_end_of_it() -> None:
    content = b"\r\n--cu\r\n--cut\x00\r\n--cut2--\r--\n--cut"
    assert (await read(part("file", content, filename="a") + END)).content == content


async def test_the_file_is_handed_on_while_it_comes_in() -> None:
    head, end = part("file", b"", filename="a")[:-2], b"\r\n" + END
    form = await read([head, b"x" * 50, b"y" * 50, end])
    assert form.pieces[:2] == [b"x" * 50, b"y" * 50]


async def test_a_form_may_have_no_file() -> None:
    assert (await read(part("purpose", b"batch") + END)).filename is None


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'b' * 71}",
        "multipart/mixed; boundary=cut",
        "application/json",
        "",
        "; boundary=cut",
        "multipart/form-data; boundary*=utf-8'en'cut; boundary*0=x",
        "\xff\xfe",
    ],
)
async def test_what_is_no_form_is_refused(kind: str) -> None:
    assert (await refusal(USUAL, kind=kind)).code == "invalid_form"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        USUAL[:-6],
        USUAL.replace(b"--cut--", b"--cut\r\n"),
        part("file", b"content", filename="a"),
        b"--cut\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
        b'--cut\r\nContent-Disposition: attachment; name="file"\r\n\r\nx\r\n' + END,
        b"--cut\r\n\r\nx\r\n" + END,
        b"--cut\r\n: x\r\n\r\nx\r\n" + END,
        b"--cut\r\nbad header\r\n\r\nx\r\n" + END,
        part("file", b"x", filename="a", more=b"Content-Transfer-Encoding: base64\r\n") + END,
        part("file", b"x", filename="a", more=b'Content-Disposition: form-data; name="other"\r\n') + END,
        part("file", b"x", filename="a") + part("file", b"y", filename="b") + END,
        part("purpose", b"x") + part("purpose", b"y") + END,
        part("purpose", b"\xff\xfe") + END,
        part("purpose", b"x" * (multipart.VALUE_BYTES + 1)) + END,
        part("file", b"x", filename="a", more=b"X: " + b"y" * 10_000 + b"\r\n") + END,
        part("file", b"x", filename="a", more=b"".join(b"X-%d: y\r\n" % n for n in range(20))) + END,
        b"".join(part(f"field{n}", b"x") for n in range(multipart.PARTS_MAX + 1)) + END,
    ],
)
async def test_a_form_that_is_none_is_refused(body: bytes) -> None:
    assert (await refusal(body)).code == "invalid_form"


async def test_a_header_that_never_ends_is_cut_short() -> None:
    def endless() -> Iterable[bytes]:
        yield b"--cut\r\nX: "
        for _ in range(100_000):
            yield b"y" * 1_000
        raise AssertionError("it was read to its end")

    class Lazy(Exchange):
        def __init__(self) -> None:
            super().__init__([])
            self._chunks = iter(endless())

        async def receive(self) -> dict[str, Any]:
            return {"type": "http.request", "body": next(self._chunks), "more_body": True}

    async def write(piece: bytes) -> None:
        raise AssertionError("there is no file")

    request = Request(scope_of("POST", "/", headers=[(b"content-type", KIND.encode())]), Lazy().receive)
    with pytest.raises(RequestError):
        await read_form(request, file="file", bytes_max=1_000, too_large=TOO_LARGE, write=write)


async def test_a_file_may_be_so_large_and_no_larger() -> None:
    assert len((await read(part("file", b"x" * 1_000, filename="a") + END)).content) == 1_000
    assert (await refusal(part("file", b"x" * 1_001, filename="a") + END)).code == "file_too_large"


@pytest.mark.parametrize("declared", [b"9" * 30, b"3000000"])
async def test_a_body_that_says_it_is_too_large_is_not_read(declared: bytes) -> None:
    class Unread(Exchange):
        async def receive(self) -> dict[str, Any]:
            raise AssertionError("it was read")

    async def write(piece: bytes) -> None: ...

    headers = [(b"content-type", KIND.encode()), (b"content-length", declared)]
    request = Request(scope_of("POST", "/", headers=headers), Unread().receive)
    with pytest.raises(TooLarge):
        await read_form(request, file="file", bytes_max=1_000, too_large=TOO_LARGE, write=write)


@pytest.mark.parametrize("before", [True, False])
async def test_what_a_form_has_beside_its_file_is_bounded(before: bool) -> None:
    padding = [b"\r\n" * 100_000] * 20
    body = [*padding, USUAL] if before else [USUAL, *padding]
    refused = await refusal(body)
    assert refused.status == 413


async def test_a_client_that_goes_away_is_told_from_one_that_is_done() -> None:
    exchange = Exchange([USUAL[:60]], stays=False)
    exchange.gone.set()
    request = Request(scope_of("POST", "/", headers=[(b"content-type", KIND.encode())]), exchange.receive)

    async def write(piece: bytes) -> None: ...

    with pytest.raises(RequestError) as refused:
        await read_form(request, file="file", bytes_max=1_000, too_large=TOO_LARGE, write=write)
    assert refused.value.code == "client_disconnected"


async def test_a_body_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "BODY_SECONDS", 0.05)
    assert (await refusal([USUAL[:60]], stays=False)).code == "body_too_slow"


async def test_filenames_are_read_as_utf_8() -> None:
    assert (await read(part("file", b"x", filename="né 日本.txt") + END)).filename == "né 日本.txt"
