"""Skills with the real SDK: sent in both ways, in versions, downloaded, refused when hostile, whole after crashes."""

from __future__ import annotations

import io
import re
import socket
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from stateroom.testing.kill_points import KILL_AT
from stateroom.testing.process import ServerProcess, quiet_port
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.wire import Answer, send
from tests.bundles import FILES, MANIFEST, Entry, files_of, manifest, raw_zip, zip_of

MIB = 1024 * 1024
KEPT = {f"geometry/{path}": content for path, content in FILES.items()}
FOLDER: Any = [(f"geometry/{path}", content) for path, content in FILES.items()]


@pytest.fixture
def own_server(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as process:
        yield process


def strictly(shown: BaseModel) -> BaseModel:
    """The object, if it is of its type to the last field and has no others."""
    assert not shown.model_extra
    return type(shown).model_validate(shown.model_dump(), strict=True)


def zipped(data: bytes) -> Any:
    return ("skill.zip", data, "application/zip")


def version_of(number: int) -> Any:
    return zipped(zip_of({**FILES, "SKILL.md": manifest(description=f"Version {number}.")}))


def send_form(url: str, *parts: tuple[str, str, bytes], path: str = "/skills", **headers: str) -> Answer:
    """A form of fields, filenames and contents."""
    body = b"".join(
        f'--cut\r\ncontent-disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, filename, content in parts
    )
    kind = {"content-type": "multipart/form-data; boundary=cut", **{k.replace("_", "-"): v for k, v in headers.items()}}
    return send(url, "POST", path, raw=body + b"--cut--\r\n", headers=kind)


def left(server: ServerProcess) -> list[Path]:
    """What is on the disk beside the journal: blobs and what is being received."""
    folders = (server.data / "blobs", server.data / "skills")
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def test_a_folder_and_a_zip_become_the_same_skill(client: OpenAI) -> None:
    ways = [client.skills.create(files=FOLDER), client.skills.create(files=zipped(zip_of()))]
    for skill in ways:
        strictly(skill)
        assert skill.id.startswith("skill_")
        assert (skill.name, skill.description) == ("geometry", "Areas of plane figures.")
        assert (skill.default_version, skill.latest_version) == ("1", "1")
        assert client.skills.retrieve(skill.id) == skill
        content = client.skills.content.retrieve(skill.id)
        assert files_of(content.read()) == KEPT
        assert content.response.headers["content-disposition"] == 'attachment; filename="geometry.zip"'
        assert content.response.headers["content-type"] == "application/octet-stream"


def test_files_that_are_opened_have_no_folder_and_need_none(client: OpenAI, tmp_path: Path) -> None:
    (tmp_path / "SKILL.md").write_bytes(MANIFEST)
    (tmp_path / "area.py").write_bytes(FILES["area.py"])
    skill = client.skills.create(files=[tmp_path / "SKILL.md", tmp_path / "area.py"])
    with zipfile.ZipFile(io.BytesIO(client.skills.content.retrieve(skill.id).read())) as read:
        modes = {each.filename: each.external_attr >> 16 & 0o777 for each in read.infolist()}
    assert modes == {"geometry/SKILL.md": 0o644, "geometry/area.py": 0o755}
    alone = client.skills.create(files=tmp_path / "SKILL.md")
    assert files_of(client.skills.content.retrieve(alone.id).read()) == {"geometry/SKILL.md": MANIFEST}


def test_the_life_of_versions(client: OpenAI) -> None:
    skill = client.skills.create(files=version_of(1))
    second = client.skills.versions.create(skill.id, files=version_of(2))
    third = client.skills.versions.create(skill.id, files=FOLDER, default=True)
    for version in (strictly(second), strictly(third)):
        assert version.skill_id == skill.id  # type: ignore[attr-defined]
    assert (second.version, second.description, second.name) == ("2", "Version 2.", "geometry")
    skill = client.skills.retrieve(skill.id)
    assert (skill.default_version, skill.latest_version, skill.description) == ("3", "3", "Areas of plane figures.")
    skill = client.skills.update(skill.id, default_version="2")
    assert (strictly(skill), skill.default_version, skill.description) == (skill, "2", "Version 2.")
    assert client.skills.versions.retrieve("2", skill_id=skill.id) == second
    content = client.skills.versions.content.retrieve("1", skill_id=skill.id).read()
    assert files_of(content)["geometry/SKILL.md"] == manifest(description="Version 1.")
    assert client.skills.content.retrieve(skill.id).read() != content
    assert [each.version for each in client.skills.versions.list(skill.id)] == ["3", "2", "1"]
    assert [each.version for each in client.skills.versions.list(skill.id, order="asc", limit=1)] == ["1", "2", "3"]
    page = client.skills.versions.list(skill.id, after=third.id, limit=1)
    assert ([each.version for each in page.data], page.has_more) == (["2"], True)
    deleted = client.skills.versions.delete("3", skill_id=skill.id)
    assert (strictly(deleted), deleted.id, deleted.version, deleted.deleted) == (deleted, third.id, "3", True)
    assert client.skills.retrieve(skill.id).latest_version == "2"
    assert client.skills.versions.create(skill.id, files=version_of(4)).version == "4"


def test_the_default_version_cannot_be_deleted_and_the_last_one_takes_the_skill_along(client: OpenAI) -> None:
    skill = client.skills.create(files=version_of(1))
    client.skills.versions.create(skill.id, files=version_of(2))
    with pytest.raises(BadRequestError) as refused:
        client.skills.versions.delete("1", skill_id=skill.id)
    assert refused.value.code == "default_skill_version"
    client.skills.versions.delete("2", skill_id=skill.id)
    client.skills.versions.delete("1", skill_id=skill.id)
    with pytest.raises(NotFoundError) as gone:
        client.skills.retrieve(skill.id)
    assert gone.value.code == "skill_not_found"


def test_what_is_deleted_is_missing_everywhere(client: OpenAI, url: str) -> None:
    skill = client.skills.create(files=FOLDER)
    deleted = client.skills.delete(skill.id)
    assert (strictly(deleted), deleted.id, deleted.deleted) == (deleted, skill.id, True)
    acts: list[Any] = [
        lambda: client.skills.retrieve(skill.id),
        lambda: client.skills.update(skill.id, default_version="1"),
        lambda: client.skills.delete(skill.id),
        lambda: client.skills.content.retrieve(skill.id),
        lambda: client.skills.versions.list(skill.id),
        lambda: client.skills.versions.create(skill.id, files=FOLDER),
        lambda: client.skills.versions.retrieve("1", skill_id=skill.id),
        lambda: client.skills.versions.delete("1", skill_id=skill.id),
        lambda: client.skills.versions.content.retrieve("1", skill_id=skill.id),
    ]
    for act in acts:
        with pytest.raises(NotFoundError) as refused:
            act()
        assert refused.value.code == "skill_not_found"
    there = client.skills.create(files=FOLDER)
    for number in ("2", "0", "01", "x", "latest"):
        with pytest.raises(NotFoundError) as refused:
            client.skills.versions.retrieve(number, skill_id=there.id)
        assert refused.value.code == "skill_version_not_found"
    assert send(url, "POST", f"/skills/{there.id}", {"default_version": 1}).status == 200
    assert send(url, "POST", f"/skills/{there.id}", {"default_version": 2}).status == 404
    assert send(url, "POST", f"/skills/{there.id}", {}).status == 400


def test_lists_are_paged_and_ordered(own_server: ServerProcess) -> None:
    with OpenAI(base_url=own_server.url, api_key="unused", max_retries=0) as client:
        made = [client.skills.create(files=FOLDER).id for _ in range(5)]
        assert [skill.id for skill in client.skills.list()] == made[::-1]
        assert [skill.id for skill in client.skills.list(order="asc", limit=2)] == made
        page = client.skills.list(after=made[3], limit=2)
        assert ([skill.id for skill in page.data], page.has_more) == ([made[2], made[1]], True)
        for bad in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "skill_nobody"}):
            with pytest.raises(BadRequestError):
                client.skills.list(**bad)  # type: ignore[arg-type]
        with pytest.raises(BadRequestError):
            client.skills.versions.list(made[0], after="skillver_nobody")


SKILL = Entry(b"geometry/SKILL.md", MANIFEST)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a path that leads out": (raw_zip([SKILL, Entry(b"geometry/../../x", b"x")]), "invalid_skill_path"),
    "an absolute path": (raw_zip([SKILL, Entry(b"/etc/cron.d/x", b"x")]), "invalid_skill_path"),
    "a link": (raw_zip([SKILL, Entry(b"geometry/x", b"/etc/passwd", mode=0o120777)]), "unsupported_skill_file"),
    "a name twice": (raw_zip([SKILL, Entry(b"geometry/a"), Entry(b"geometry/A")]), "duplicate_skill_path"),
    "a password": (raw_zip([SKILL, Entry(b"geometry/x", b"x", flags=1)]), "skill_archive_encrypted"),
    "a bomb": (zip_of({"SKILL.md": MANIFEST, "x": b"\0" * 24 * MIB}), "skill_too_large"),
    "a large file": (zip_of({"SKILL.md": MANIFEST, "x": b"\0" * 26 * MIB}), "skill_too_large"),
    "many files": (zip_of({"SKILL.md": MANIFEST, **{str(n): b"" for n in range(500)}}), "too_many_skill_files"),
    "a huge folder": (zip_of({"SKILL.md": MANIFEST, **{f"{n}/": b"" for n in range(30_000)}}), "too_many_skill_files"),
    "no zip": (b"PK but no zip", "invalid_skill_archive"),
    "no manifest": (zip_of({"README.md": b"x"}), "invalid_skill_manifest"),
    "a manifest without a name": (zip_of({"SKILL.md": b"---\ndescription: x\n---\n"}), "invalid_skill_manifest"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_zips_are_refused_and_leave_nothing(own_server: ServerProcess, what: str) -> None:
    sent, code = HOSTILE[what]
    answer = send_form(own_server.url, ("files", "skill.zip", sent))
    assert (answer.error["code"], answer.error["param"]) == (code, "files")
    assert answer.status == (413 if code == "skill_too_large" else 400)
    assert send(own_server.url, "GET", "/skills").json["data"] == []
    assert left(own_server) == []


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([("other", "SKILL.md", b"short")], "missing_required_parameter"),
        ([("files[]", "g/SKILL.md", MANIFEST), ("files[]", "../x", b"x")], "invalid_skill_path"),
        ([("files[]", "g/SKILL.md", MANIFEST), ("files[]", "/x", b"x")], "invalid_skill_path"),
        ([("files[]", "g/SKILL.md", MANIFEST), ("files[]", "", b"x")], "invalid_skill_path"),
        ([("files[]", "g/SKILL.md", MANIFEST), ("files[]", "g/skill.MD", MANIFEST)], "duplicate_skill_path"),
        ([("files[]", "g/SKILL.md", MANIFEST), ("files[]", "h/x", b"x")], "invalid_skill_manifest"),
        ([("files[]", "g/README.md", MANIFEST)], "invalid_skill_manifest"),
        ([("files[]", f"g/{n}", b"") for n in range(501)], "too_many_skill_files"),
        ([("files[]", f"g/{n}", b"") for n in range(3_000)], "too_many_skill_files"),
        ([("files[]", "g/SKILL.md", MANIFEST), ("files[]", "g/x", b"\0" * 26 * MIB)], "skill_too_large"),
        ([("files", "a.zip", b"text")], "invalid_skill_archive"),
    ],
)
def test_hostile_folders_are_refused(url: str, parts: list[tuple[str, str, bytes]], code: str) -> None:
    answer = send_form(url, *parts)
    assert answer.error["code"] == code, answer.body


def test_more_than_a_skill_may_have_is_not_even_read(model_host: ModelHost, tmp_path: Path) -> None:
    settings = {"STATEROOM_LIMITS__SKILL_BYTES": "100000", "STATEROOM_LIMITS__SKILL_VERSIONS": "1"}
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=settings) as server,
        OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client,
    ):
        with pytest.raises(APIStatusError) as refused:
            client.skills.create(files=zipped(b"PK" + b"x" * 5 * MIB))
        assert (refused.value.status_code, refused.value.code) == (413, "skill_too_large")
        skill = client.skills.create(files=FOLDER)
        with pytest.raises(BadRequestError) as full:
            client.skills.versions.create(skill.id, files=version_of(2))
        assert full.value.code == "too_many_skill_versions"
        assert len(left(server)) == 1


def test_a_key_makes_one_skill_and_one_version(url: str, request: pytest.FixtureRequest) -> None:
    key, part = request.node.name, ("files", "skill.zip", zip_of())
    made = [send_form(url, part, idempotency_key=key) for _ in range(2)]
    assert made[0].json == made[1].json
    path = f"/skills/{made[0].json['id']}/versions"
    versions = [send_form(url, part, path=path, idempotency_key=key + "v") for _ in range(2)]
    assert [version.json["version"] for version in versions] == ["2", "2"]
    other = send_form(url, ("files", "skill.zip", version_of(9)[1]), idempotency_key=key)
    assert other.error["code"] == "idempotency_conflict"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells which files a process has open")
def test_a_client_that_goes_away_in_the_middle_leaves_nothing(own_server: ServerProcess) -> None:
    where = urlsplit(own_server.url)
    head = b'--cut\r\ncontent-disposition: form-data; name="files"; filename="a.zip"\r\n\r\n'
    unnamed = Path(f"/proc/{own_server.process.pid if own_server.process else 0}/fd")

    def received() -> int:
        """Bytes in files of the server that have no name."""
        size = 0
        for each in unnamed.iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                size += each.stat().st_size if re.search(r"skills/.*\(deleted\)", str(each.readlink())) else 0
        return size

    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.sendall(
            b"POST /v1/skills HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: multipart/form-data; boundary=cut\r\n"
            b"content-length: 50000000\r\n\r\n" + head + b"PK" + b"x" * 5 * MIB
        )
        until(lambda: received() > 4 * MIB, "the bytes are on their way to the disk")
    until(lambda: received() == 0, "they are gone")
    assert left(own_server) == []


@pytest.mark.parametrize(
    "point",
    [
        *("before_put_skill:1", "after_put_skill:1", "before_put_skill:2", "after_put_skill:2", "before_put_skill:3"),
        *("after_put_skill:3", "before_drop_skill_version:1", "after_drop_skill_version:1", "before_redact:1"),
        *("after_redact:1", "before_drop_skill:1", "after_drop_skill:1"),
    ],
)
def test_a_crash_at_any_commit_leaves_skills_whole(point: str, model_host: ModelHost, tmp_path: Path) -> None:
    server = ServerProcess(
        tmp_path / "data", backends=(model_host.url,), port=quiet_port(), module="stateroom.testing.probe_server"
    )
    with server.start(environment={KILL_AT: point}), OpenAI(base_url=server.url, api_key="x", max_retries=0) as client:
        with suppress(Exception):  # whatever a client makes of a server that dies
            skill = client.skills.create(files=version_of(1))
            client.skills.versions.create(skill.id, files=version_of(2), default=True)
            client.skills.update(skill.id, default_version="2")
            client.skills.versions.delete("1", skill_id=skill.id)
            client.skills.delete(skill.id)
        assert server.wait() == -9
        server.start()
        skills = list(client.skills.list())
        kept = set()
        for skill in skills:
            versions = list(client.skills.versions.list(skill.id))
            assert {skill.default_version, skill.latest_version} <= {version.version for version in versions}
            for version in versions:
                content = client.skills.versions.content.retrieve(version.version, skill_id=skill.id).read()
                said = manifest(description=f"Version {version.version}.")
                assert files_of(content)["geometry/SKILL.md"] == said
                kept.add(content)
        until(lambda: len(left(server)) == len(kept), "what nothing refers to is gone")
        assert len(skills) == (0 if point in ("before_put_skill:1", "after_drop_skill:1") else 1)
