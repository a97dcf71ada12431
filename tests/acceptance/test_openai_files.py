"""Files and uploads with the real SDK: kept, listed, shown to models, streamed in and out, and gone when deleted."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from stateroom.testing.kill_points import KILL_AT
from stateroom.testing.process import ServerProcess, quiet_port
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import Answer, send
from tests.papers import encrypted_pdf, endless_work, pdf

MIB = 1024 * 1024
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PDF_TEXT = "[page 1]\nThe code word is heron."


@pytest.fixture
def own_server(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as process:
        yield process


def form(content: bytes | None, *, name: str = "file", filename: str = "a.txt", **fields: str) -> bytes:
    """A form of the boundary `cut`; without content it ends where that begins."""
    parts = [f'--cut\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{fields[key]}\r\n' for key in fields]
    parts.append(f'--cut\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n')
    return "".join(parts).encode() + (b"" if content is None else content + b"\r\n--cut--\r\n")


def send_form(url: str, body: bytes, path: str = "/files", **headers: str) -> Answer:
    kind = {"content-type": "multipart/form-data; boundary=cut"}
    return send(url, "POST", path, raw=body, headers={**kind, **{k.replace("_", "-"): v for k, v in headers.items()}})


def strictly(shown: BaseModel) -> BaseModel:
    """The object, if it is of its type to the last field and has no others."""
    assert not shown.model_extra
    return type(shown).model_validate(shown.model_dump(), strict=True)


def user(*parts: dict[str, Any]) -> Any:
    return [{"role": "user", "content": [*parts, {"type": "input_text", "text": "say: read"}]}]


def text_read(seen: Seen, message: int = 0) -> str:
    """The text of a message of the last request."""
    content = seen.messages[message]["content"]
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def blobs(server: ServerProcess) -> list[Path]:
    return [path for path in (server.data / "blobs").rglob("*") if path.is_file()]


def test_the_life_of_a_file(client: OpenAI) -> None:
    file = client.files.create(
        file=("notes.md", b"# Notes"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3_600}
    )
    strictly(file)
    assert (file.filename, file.bytes, file.purpose, file.status) == ("notes.md", 7, "user_data", "processed")
    assert file.expires_at == file.created_at + 3_600
    assert client.files.retrieve(file.id) == file
    content = client.files.content(file.id)
    assert content.read() == b"# Notes"
    assert content.response.headers["content-disposition"] == 'attachment; filename="notes.md"'
    assert content.response.headers["content-type"] == "application/octet-stream"
    assert content.response.headers["x-content-type-options"] == "nosniff"
    deleted = client.files.delete(file.id)
    assert (strictly(deleted), deleted.deleted) == (deleted, True)
    for act in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(NotFoundError) as refused:
            act(file.id)
        assert refused.value.code == "file_not_found"


def test_a_page_that_was_uploaded_is_never_shown_as_one(client: OpenAI, url: str) -> None:
    name = 'ev\u202eil"\r\nset-cookie: a=b; x.html'
    file = client.files.create(file=(name, b"<script>alert(1)</script>"), purpose="assistants")
    answer = send(url, "GET", f"/files/{file.id}/content")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment; ")
    assert "set-cookie" not in answer.headers
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_every_purpose_is_taken_and_outputs_are_ours_to_make(client: OpenAI, url: str) -> None:
    purposes: Any = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
    for purpose in purposes:
        file = client.files.create(file=("a", b"x"), purpose=purpose)
        assert file.purpose == purpose
        assert (file.expires_at is None) == (purpose != "batch")
    answer = send_form(url, form(b"x", purpose="batch_output"))
    assert (answer.status, answer.error["param"]) == (400, "purpose")


def test_lists_are_paged_filtered_and_ordered(own_server: ServerProcess) -> None:
    with OpenAI(base_url=own_server.url, api_key="unused", max_retries=0) as client:
        made = [client.files.create(file=("a", b"%d" % n), purpose="batch" if n % 2 else "vision").id for n in range(7)]
        assert [file.id for file in client.files.list()] == made[::-1]
        assert [file.id for file in client.files.list(order="asc", limit=2)] == made
        assert [file.id for file in client.files.list(purpose="vision", limit=1)] == made[::-2]
        page = client.files.list(after=made[3], limit=2)
        assert ([file.id for file in page.data], page.has_more) == ([made[2], made[1]], True)
        for bad in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"after": "file-nobody"}):
            with pytest.raises(BadRequestError):
                client.files.list(**bad)


def test_ranges_are_served_and_checked(client: OpenAI, url: str) -> None:
    content = bytes(range(256)) * 4_000
    file = client.files.create(file=("a", content), purpose="user_data")
    path = f"/files/{file.id}/content"
    part = send(url, "GET", path, headers={"range": "bytes=1000-1999"})
    assert (part.status, part.body) == (206, content[1_000:2_000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(content)}"
    assert send(url, "GET", path, headers={"range": "bytes=-1"}).body == content[-1:]
    beyond = send(url, "GET", path, headers={"range": f"bytes={len(content)}-"})
    assert (beyond.status, beyond.error["code"]) == (416, "range_not_satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{len(content)}"
    where = urlsplit(url)
    with closing(http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)) as connection:
        connection.request("HEAD", where.path + path)
        head = connection.getresponse()
        assert (head.status, head.read(), head.headers["content-length"]) == (200, b"", str(len(content)))


def test_the_same_bytes_are_on_the_disk_once_and_then_no_more(own_server: ServerProcess) -> None:
    with OpenAI(base_url=own_server.url, api_key="unused", max_retries=0) as client:
        first, second = [client.files.create(file=(n, b"x" * 100_000), purpose="user_data") for n in ("a", "b")]
        assert len(blobs(own_server)) == 1
        client.files.delete(first.id)
        assert client.files.content(second.id).read() == b"x" * 100_000
        client.files.delete(second.id)
        assert blobs(own_server) == []


def resident(server: ServerProcess, what: str = "VmHWM") -> int:
    """Bytes of memory that the process has (VmRSS), or had at most (VmHWM)."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def test_a_large_file_is_never_whole_in_memory(own_server: ServerProcess) -> None:
    size = 200 * MIB
    where = urlsplit(own_server.url)
    send_form(own_server.url, form(b"warm", purpose="user_data"))  # whatever is loaded on first use is there now
    before = resident(own_server)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    head, end, piece = form(None, purpose="user_data"), b"\r\n--cut--\r\n", bytes(range(256)) * 4_096
    connection.putrequest("POST", where.path + "/files")
    connection.putheader("content-type", "multipart/form-data; boundary=cut")
    connection.putheader("content-length", str(len(head) + size + len(end)))
    connection.endheaders(head)
    digest = hashlib.sha256()
    for _ in range(size // len(piece)):
        connection.send(piece)
        digest.update(piece)
    connection.send(end)
    answer = connection.getresponse()
    with OpenAI(base_url=own_server.url, api_key="unused", max_retries=0) as client:
        assert answer.status == 200, answer.read()
        answer.read()
        file = next(iter(client.files.list()))
        assert file.bytes == size
        with client.files.with_streaming_response.content(file.id) as content:
            whole = hashlib.sha256()
            for chunk in content.iter_bytes():
                whole.update(chunk)
        assert whole.digest() == digest.digest()
        grown = resident(own_server) - before
        assert grown < 24 * MIB, f"it took {grown / MIB:.0f} MiB"
        client.files.delete(file.id)


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(own_server: ServerProcess) -> None:
    where = urlsplit(own_server.url)
    head = form(None, purpose="user_data")
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: multipart/form-data; boundary=cut\r\n"
            b"content-length: 100000000\r\n\r\n" + head + b"x" * 5 * MIB
        )
        until(lambda: blobs(own_server), "the bytes are on their way to the disk")
    until(lambda: not blobs(own_server), "they are gone")
    assert send(own_server.url, "GET", "/files").json["data"] == []


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"x" * 1_000, {}),
        (form(b"x", purpose="user_data")[:-4], {}),
        (form(b"x", purpose="user_data"), {"content_type": "multipart/form-data"}),
        (form(b"x", purpose="user_data"), {"content_type": "application/json"}),
        (form(b"x", purpose="user_data"), {"content_type": f"multipart/form-data; boundary={'x' * 5_000}"}),
        (form(b"x"), {}),
        (form(b"x", name="other", purpose="user_data"), {}),
        (form(b"x", purpose="user_data", more="y" * 20_000), {}),
        (form(b"x", filename="n" * 300, purpose="user_data"), {}),
        (b"".join(form(None, name=f"f{n}") + b"\r\n" for n in range(100)) + b"--cut--\r\n", {}),
        (b"--cut\r\n" + b"x: y\r\n" * 100_000, {}),
    ],
)
def test_hostile_forms_are_answered_and_leave_nothing(url: str, body: bytes, headers: dict[str, str]) -> None:
    kept = len(send(url, "GET", "/files").json["data"])
    answer = send_form(url, body, **headers)
    assert answer.status == 400, answer.body
    assert answer.error["code"] in ("invalid_form", "missing_required_parameter", "string_above_max_length")
    assert len(send(url, "GET", "/files").json["data"]) == kept


def test_limits_are_kept(model_host: ModelHost, tmp_path: Path) -> None:
    settings = {
        "STATEROOM_LIMITS__FILE_BYTES": "1000",
        "STATEROOM_LIMITS__UPLOAD_PART_BYTES": "500",
        "STATEROOM_LIMITS__UPLOAD_BYTES": "2000",
        "STATEROOM_LIMITS__FILE_TEXT_BYTES": "400",
    }
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=settings) as server,
        OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client,
    ):
        assert client.files.create(file=("a", b"x" * 1_000), purpose="user_data").bytes == 1_000
        for size in (1_001, 5_000_000):
            with pytest.raises(APIStatusError) as refused:
                client.files.create(file=("a", b"x" * size), purpose="user_data")
            assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")
        told: Any = {"filename": "a", "mime_type": "x/y", "purpose": "user_data"}
        with pytest.raises(BadRequestError):
            client.uploads.create(bytes=2_001, **told)
        upload = client.uploads.create(bytes=2_000, **told)
        with pytest.raises(APIStatusError) as refused:
            client.uploads.parts.create(upload.id, data=b"x" * 501)
        assert refused.value.code == "file_too_large"
        parts = [client.uploads.parts.create(upload.id, data=b"x" * 500).id for _ in range(4)]
        done = client.uploads.complete(upload.id, part_ids=parts)
        assert done.file is not None
        with pytest.raises(BadRequestError) as unread:
            client.responses.create(model="scripted", input=user({"type": "input_file", "file_id": done.file.id}))
        assert unread.value.code == "file_text_too_large"
        client.files.delete(done.file.id)
        assert len(blobs(server)) == 1


def test_an_upload_in_parts_becomes_a_file(client: OpenAI) -> None:
    content = bytes(range(256)) * 1_000
    upload = client.uploads.upload_file_chunked(
        file=content,
        filename="b.bin",
        bytes=len(content),
        mime_type="application/octet-stream",
        purpose="user_data",
        part_size=100_000,
        md5=hashlib.md5(content).hexdigest(),
    )
    strictly(upload)
    assert upload.status == "completed"
    assert upload.file is not None
    assert client.files.content(upload.file.id).read() == content
    assert client.files.retrieve(upload.file.id) == upload.file


def test_an_upload_may_be_cancelled_and_its_objects_are_of_their_types(client: OpenAI) -> None:
    upload = client.uploads.create(bytes=5, filename="a", mime_type="text/plain", purpose="user_data")
    strictly(upload)
    assert (upload.status, upload.expires_at) == ("pending", upload.created_at + 3_600)
    strictly(client.uploads.parts.create(upload.id, data=b"hello"))
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(BadRequestError) as refused:
        client.uploads.parts.create(upload.id, data=b"hello")
    assert refused.value.code == "upload_not_pending"


def test_an_upload_goes_on_after_a_crash_between_its_parts(own_server: ServerProcess) -> None:
    with OpenAI(base_url=own_server.url, api_key="unused", max_retries=0) as client:
        upload = client.uploads.create(bytes=200_000, filename="a", mime_type="x/y", purpose="user_data")
        first = client.uploads.parts.create(upload.id, data=b"a" * 100_000)
        own_server.kill()
        own_server.start()
        second = client.uploads.parts.create(upload.id, data=b"b" * 100_000)
        own_server.kill()
        own_server.start()
        done = client.uploads.complete(upload.id, part_ids=[first.id, second.id])
        assert done.file is not None
        assert client.files.content(done.file.id).read() == b"a" * 100_000 + b"b" * 100_000
        until(lambda: len(blobs(own_server)) == 1, "the parts are gone")


@pytest.mark.parametrize("point", ["before_put_file:1", "after_put_file:1", "after_drop_upload_part:1"])
def test_a_completion_that_a_crash_cut_off_makes_one_file(point: str, model_host: ModelHost, tmp_path: Path) -> None:
    server = ServerProcess(
        tmp_path / "data",
        backends=(model_host.url,),
        port=quiet_port(),
        module="stateroom.testing.probe_server",
    )
    with server.start(environment={KILL_AT: point}), OpenAI(base_url=server.url, api_key="x", max_retries=0) as client:
        upload = client.uploads.create(bytes=6, filename="a", mime_type="x/y", purpose="user_data")
        parts = [client.uploads.parts.create(upload.id, data=data).id for data in (b"abc", b"def")]
        with suppress(Exception):  # whatever a client makes of a server that dies
            client.uploads.complete(upload.id, part_ids=parts)
        assert server.wait() == -9
        server.start()
        done = client.uploads.complete(upload.id, part_ids=parts)
        assert done.file is not None
        assert client.files.content(done.file.id).read() == b"abcdef"
        assert [file.id for file in client.files.list()] == [done.file.id]


def test_files_and_parts_are_made_once_for_their_key(url: str, request: pytest.FixtureRequest) -> None:
    key = request.node.name
    made = [send_form(url, form(b"x", purpose="user_data"), idempotency_key=key) for _ in range(2)]
    assert made[0].status == 200
    assert made[0].body == made[1].body
    for other in (form(b"y", purpose="user_data"), form(b"x", purpose="vision")):
        answer = send_form(url, other, idempotency_key=key)
        assert answer.error["code"] == "idempotency_conflict"
    told = {"bytes": 3, "filename": "a", "mime_type": "x/y", "purpose": "user_data"}
    uploads = [send(url, "POST", "/uploads", told, headers={"idempotency-key": f"{key} u"}) for _ in range(2)]
    assert uploads[0].body == uploads[1].body
    path = f"/uploads/{uploads[0].json['id']}/parts"
    parts = [send_form(url, form(b"abc", name="data"), path, idempotency_key=f"{key} p") for _ in range(2)]
    assert parts[0].status == 200
    assert parts[0].body == parts[1].body


def test_a_pdf_by_id_is_read_to_the_model_and_shown_as_it_was_sent(client: OpenAI, seen: Seen) -> None:
    file = client.files.create(file=("secret.pdf", pdf("The code word is heron.")), purpose="user_data")
    first = client.responses.create(model="scripted", input=user({"type": "input_file", "file_id": file.id}))
    assert first.output_text == "read"
    assert text_read(seen) == f'<file name="secret.pdf">\n{PDF_TEXT}\n</file>\nsay: read'
    item: Any = next(iter(client.responses.input_items.list(first.id)))
    assert item.content[0].to_dict() == {"type": "input_file", "file_id": file.id}
    client.files.delete(file.id)
    client.responses.create(model="scripted", input="say: still", previous_response_id=first.id)
    assert PDF_TEXT in text_read(seen)
    with pytest.raises(NotFoundError) as refused:
        client.responses.create(model="scripted", input=user({"type": "input_file", "file_id": file.id}))
    assert refused.value.code == "file_not_found"


def test_a_file_in_the_request_is_read_whether_it_is_stored_or_not(client: OpenAI, seen: Seen) -> None:
    data = "data:application/pdf;base64," + base64.b64encode(pdf("The code word is heron.")).decode()
    part = {"type": "input_file", "filename": "secret.pdf", "file_data": data}
    for store in (True, False):
        response = client.responses.create(model="scripted", input=user(part), store=store)
        assert PDF_TEXT in text_read(seen)
        if store:
            item: Any = next(iter(client.responses.input_items.list(response.id)))
            assert item.content[0].to_dict() == part


def test_chat_completions_read_files_too(client: OpenAI, seen: Seen) -> None:
    file = client.files.create(file=("a.csv", "naïve;1".encode("latin-1")), purpose="user_data")
    data = "data:application/pdf;base64," + base64.b64encode(pdf("The code word is heron.")).decode()
    for told, text in (
        ({"file_id": file.id}, "naïve;1"),
        ({"filename": "secret.pdf", "file_data": data}, PDF_TEXT),
    ):
        parts: Any = [{"type": "file", "file": told}, {"type": "text", "text": "say: read"}]
        answer = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": parts}])
        assert answer.choices[0].message.content == "read"
        assert text in text_read(seen)


def test_an_image_by_id_is_shown_to_the_model(client: OpenAI, seen: Seen) -> None:
    file = client.files.create(file=("dot.png", PNG), purpose="vision")
    part = {"type": "input_image", "file_id": file.id, "detail": "low"}
    response = client.responses.create(model="scripted", input=user(part))
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert seen.messages[0]["content"][0] == {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    item: Any = next(iter(client.responses.input_items.list(response.id)))
    assert item.content[0].to_dict() == part


def test_files_that_cannot_be_read_are_refused_before_the_model_is_asked(client: OpenAI, seen: Seen) -> None:
    for content, code in (
        (encrypted_pdf("x", password="s3cret"), "file_encrypted"),
        (pdf(""), "file_without_text"),
        (b"%PDF-1.4 broken", "file_unreadable"),
        (b"PK\x03\x04\x00\x00", "unsupported_file"),
        (PNG, "unsupported_file"),
    ):
        file = client.files.create(file=("a.pdf", io.BytesIO(content)), purpose="user_data")
        with pytest.raises(BadRequestError) as refused:
            client.responses.create(model="scripted", input=user({"type": "input_file", "file_id": file.id}))
        assert (refused.value.code, refused.value.param) == (code, "input[0].content[0].file_id")
    assert seen.requests == []


def test_a_hostile_pdf_takes_its_time_and_nobody_else_s(model_host: ModelHost, tmp_path: Path) -> None:
    settings = {"STATEROOM_LIMITS__FILE_SECONDS": "2"}
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=settings) as server,
        OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client,
    ):
        before = resident(server)
        data = base64.b64encode(endless_work()).decode()
        with pytest.raises(BadRequestError) as refused:
            client.responses.create(model="scripted", input=user({"type": "input_file", "file_data": data}))
        assert refused.value.code == "file_too_complex"
        assert client.responses.create(model="scripted", input="say: fine").output_text == "fine"
        assert resident(server) - before < 64 * MIB
