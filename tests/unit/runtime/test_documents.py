"""The text of documents, and what hostile ones may not do: take the time, the memory or the answer of others."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.errors import InvalidRequest, RequestError, TooMany
from stateroom.runtime.files import documents
from stateroom.runtime.files.documents import Documents, as_told, decode_text, image_type, of_bytes
from stateroom.settings import Limits
from tests.papers import bomb, encrypted_pdf, endless_work, pdf, pdf_of


async def read(data: bytes, *, charset: str = "", seconds: float = 20.0, **limits: int) -> str:
    reader = Documents(Limits(**limits))  # type: ignore[arg-type]  # counts, all of them
    return await reader.text("p", of_bytes(data, charset), param="here", seconds=seconds)


async def refusal(data: bytes, *, seconds: float = 20.0, **limits: int) -> str:
    with pytest.raises(RequestError) as refused:
        await read(data, seconds=seconds, **limits)
    assert refused.value.param == "here"
    assert len(refused.value.message) < 300
    return refused.value.code


def children() -> list[Path]:
    """The processes that read PDFs for this one, as the kernel shows them."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return [Path("/proc", line.split()[0]) for line in listed.stdout.splitlines() if "documents_child" in line]


async def first_child() -> Path:
    deadline = time.monotonic() + 10
    while not (found := children()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return found[0]


async def test_the_pages_of_a_pdf_come_in_their_order() -> None:
    assert await read(pdf("Hello world", "Second")) == "[page 1]\nHello world\n\n[page 2]\nSecond"


async def test_a_pdf_is_known_by_its_bytes_even_behind_others() -> None:
    assert "Hello" in await read(b"\x00\xff junk\n" + pdf("Hello"))
    assert await read(b"Notes on PDF: files begin with %PDF-1.7") == "Notes on PDF: files begin with %PDF-1.7"


async def test_a_pdf_without_text_is_refused_rather_than_shown_as_nothing() -> None:
    assert await refusal(pdf("", "")) == "file_without_text"


async def test_a_pdf_with_a_password_is_refused_and_one_that_only_forbids_changes_is_read() -> None:
    assert await refusal(encrypted_pdf("secret", password="s3cret")) == "file_encrypted"
    assert "open" in await read(encrypted_pdf("open", password=""))


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7",
        b"%PDF-1.4\n" + b"\x00" * 10_000,
        pdf("Hello")[:200],
        b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 1 0 R >>\nendobj\ntrailer << /Root 1 0 R >>\n%%EOF",
        b"%PDF-1.4\n" + b"[" * 100_000,
    ],
)
async def test_a_damaged_pdf_is_refused(data: bytes) -> None:
    assert await refusal(data) in ("file_unreadable", "file_without_text")


async def test_a_pdf_may_have_so_many_pages_and_no_more() -> None:
    assert "third" in await read(pdf("first", "second", "third"), file_pages=3)
    assert await refusal(pdf("first", "second", "third"), file_pages=2) == "too_many_pages"


async def test_a_pdf_may_have_so_much_text_and_no_more() -> None:
    assert await refusal(pdf("a" * 3_000), file_text_bytes=2_000) == "file_text_too_large"


async def test_a_pdf_that_unpacks_to_more_than_a_machine_holds_is_given_up() -> None:
    began = time.monotonic()
    assert await refusal(bomb(300_000_000)) in ("file_too_complex", "file_unreadable", "file_without_text")
    assert time.monotonic() - began < 20
    assert children() == []


async def test_a_pdf_that_takes_too_long_is_given_up_and_its_process_is_gone() -> None:
    assert await refusal(endless_work(), seconds=1.5) == "file_too_complex"
    assert children() == []


async def test_whoever_stops_waiting_leaves_no_process_behind() -> None:
    reading = asyncio.ensure_future(read(endless_work()))
    await first_child()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert children() == []


async def test_those_who_find_no_place_in_time_are_told_so() -> None:
    reader = Documents(Limits())
    slow = of_bytes(endless_work())
    hogs = [
        asyncio.ensure_future(reader.text(str(n), slow, param="here", seconds=20.0)) for n in range(documents.AT_ONCE)
    ]
    await asyncio.sleep(0)
    with pytest.raises(TooMany) as refused:
        await reader.text("p", of_bytes(pdf("Hello")), param="here", seconds=0.2)
    assert refused.value.code == "too_many_files_at_once"
    for hog in hogs:
        hog.cancel()
    await asyncio.gather(*hogs, return_exceptions=True)
    assert "Hello" in await reader.text("p", of_bytes(pdf("Hello")), param="here", seconds=20.0)


async def test_a_pdf_that_was_read_is_remembered_for_its_own_project() -> None:
    reader = Documents(Limits())
    content = of_bytes(pdf("Hello"))
    text = await reader.text("p", content, param="here", seconds=20.0)
    assert await reader.text("p", content, param="here", seconds=0.0) == text
    with pytest.raises(InvalidRequest):
        await reader.text("other", content, param="here", seconds=0.0)


async def test_the_child_sees_nothing_of_the_server_s_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEROOM_TEST_SECRET", "sk-secret")
    reading = asyncio.ensure_future(read(endless_work(), seconds=5.0))
    found = (await first_child() / "environ").read_bytes()
    assert b"PATH=" in found
    assert b"sk-secret" not in found
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        ("naïve – 日本".encode(), "", "naïve – 日本"),
        ("naïve".encode("utf-8-sig"), "", "naïve"),
        ("naïve 日本".encode("utf-16"), "", "naïve 日本"),
        ("naïve 日本".encode("utf-32"), "", "naïve 日本"),
        ("Grüße aus Köln".encode("latin-1"), "", "Grüße aus Köln"),
        ("“quoted” – 5 €".encode("cp1252"), "", "“quoted” – 5 €"),
        ("日本語のテキスト".encode("shift_jis"), "shift_jis", "日本語のテキスト"),
        ('<meta charset="euc-jp"><p>日本語'.encode("euc-jp"), "", '<meta charset="euc-jp"><p>日本語'),
        ('<?xml version="1.0" encoding="koi8-r"?><p>мир'.encode("koi8-r"), "", None),
        (b"a,b\r\n1,2\r\n", "", "a,b\n1,2\n"),
        (b"colour \x1b[31mred", "", "colour \x1b[31mred"),
        (b"", "", ""),
    ],
)
def test_texts_are_read_in_the_encoding_that_they_have(data: bytes, charset: str, text: str | None) -> None:
    read = decode_text(data, charset)
    assert read == text if text is not None else read is not None and "мир" in read


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04\x14\x00\x06\x00\x08\x00",
        b"\x00\x01\x02",
        bytes(range(256)),
        "日本語のテキスト".encode("shift_jis"),
        b"\x7fELF\x02\x01\x01\x00",
        b"%!PS\x00",
    ],
)
def test_what_is_no_text_is_not_guessed_at(data: bytes) -> None:
    assert decode_text(data) is None


@pytest.mark.parametrize("charset", ["idna", "punycode", "base64", "rot13", "unicode_escape", "no such", "\x00", "hex"])
def test_an_encoding_that_no_text_has_is_not_heeded(charset: str) -> None:
    assert decode_text(b"xn--" + b"a" * 50 + b"\xfc", charset) == "xn--" + "a" * 50 + "ü"


@given(st.binary(max_size=300), st.text(max_size=20))
def test_any_bytes_are_read_or_refused(data: bytes, charset: str) -> None:
    text = decode_text(data, charset)
    assert text is None or "\x00" not in text
    image_type(data)


async def test_texts_and_files_have_bounds_of_their_own() -> None:
    assert await refusal(b"a" * 101, file_text_bytes=100) == "file_text_too_large"
    assert await refusal(b"a" * 1_000, file_text_bytes=100) == "file_text_too_large"
    assert await refusal(b"a" * 101, file_input_bytes=100) == "file_too_large"
    assert await read(b"a" * 100, file_text_bytes=100, file_input_bytes=100) == "a" * 100


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n...", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x00\x00\x00\x00WAVE", None),
        (b"<svg>", None),
        (b"", None),
    ],
)
def test_images_are_known_by_their_bytes(head: bytes, kind: str | None) -> None:
    assert image_type(head) == kind


async def test_an_image_as_a_file_is_refused_with_the_way_to_send_it() -> None:
    assert await refusal(b"\x89PNG\r\n\x1a\n...") == "unsupported_file"


async def test_a_page_that_cannot_be_read_does_not_take_the_others_with_it() -> None:
    broken = b"BT /F1 12 Tf (" + b"(" * 50_000 + b" Tj ET"
    text = await read(pdf_of([b"BT /F1 12 Tf 72 720 Td (fine) Tj ET", broken]))
    assert "fine" in text


def test_a_name_cannot_end_the_mark_that_it_stands_in() -> None:
    assert as_told('x"><file>', "t") == '<file name="x\')(file)">\nt\n</file>'
