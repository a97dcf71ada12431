"""Files and uploads in OpenAI's shapes, held against the types of the `openai` package."""

from __future__ import annotations

import json
from email.message import Message
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import FileDeleted, FileObject, FilePurpose, Upload
from openai.types.uploads import UploadPart

from stateroom.errors import InvalidRequest
from stateroom.wire import files


def a_file(**changed: Any) -> dict[str, Any]:
    told = {"id": "file-1", "filename": "a", "purpose": "batch", "bytes": 5, "created_at": 1_999, "expires_at": 0}
    return files.file_object(**{**told, **changed})


def refusal(call: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as refused:
        call()
    return refused.value.code, refused.value.param


def test_objects_have_the_fields_of_the_package_s_types_and_no_others() -> None:
    upload = files.upload_object(
        id="upload_1",
        filename="a",
        purpose="batch",
        bytes=5,
        status="completed",
        created_at=1_000,
        expires_at=2_000,
        file=a_file(),
    )
    for kind, shown in (
        (FileObject, a_file(expires_at=5_000)),
        (FileObject, a_file()),
        (FileDeleted, files.deleted_file("file-1")),
        (Upload, upload),
        (UploadPart, files.part_object(id="part_1", upload_id="upload_1", created_at=1_000)),
    ):
        assert set(shown) == set(kind.model_fields)
        kind.model_validate(shown, strict=True)
    assert (a_file()["created_at"], a_file()["expires_at"]) == (1, None)


def test_the_purposes_are_those_of_the_package() -> None:
    assert set(files.PURPOSES) == set(get_args(FilePurpose))


def test_a_form_says_what_its_file_is_for_and_how_long_it_lives() -> None:
    assert files.read_new_file({"purpose": "vision"}) == files.NewFile("vision", None)
    form = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    assert files.read_new_file(form) == files.NewFile("batch", 3_600)


@pytest.mark.parametrize(
    ("changed", "code", "param"),
    [
        ({"purpose": None}, "missing_required_parameter", "purpose"),
        ({"purpose": "batch_output"}, "invalid_value", "purpose"),
        ({"purpose": ""}, "invalid_value", "purpose"),
        ({"expires_after[anchor]": None}, "invalid_value", "expires_after[anchor]"),
        ({"expires_after[anchor]": "last_active_at"}, "invalid_value", "expires_after[anchor]"),
        ({"expires_after[seconds]": None}, "invalid_value", "expires_after[seconds]"),
        ({"expires_after[seconds]": "-3600"}, "invalid_value", "expires_after[seconds]"),
        ({"expires_after[seconds]": "٣٦٠٠"}, "invalid_value", "expires_after[seconds]"),
        ({"expires_after[seconds]": "3599"}, "integer_below_min_value", "expires_after[seconds]"),
        ({"expires_after[seconds]": "2592001"}, "integer_above_max_value", "expires_after[seconds]"),
    ],
)
def test_a_form_that_says_something_else_is_refused(changed: dict[str, Any], code: str, param: str) -> None:
    form = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600", **changed}
    given_ = {name: value for name, value in form.items() if value is not None}
    assert refusal(lambda: files.read_new_file(given_)) == (code, param)


@pytest.mark.parametrize(
    ("changed", "code", "param"),
    [
        ({"bytes": 0}, "integer_below_min_value", "bytes"),
        ({"bytes": 1_001}, "integer_above_max_value", "bytes"),
        ({"bytes": "5"}, "invalid_type", "bytes"),
        ({"filename": ""}, "string_below_min_length", "filename"),
        ({"mime_type": None}, "invalid_type", "mime_type"),
        ({"purpose": "fun"}, "invalid_value", "purpose"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "integer_below_min_value", "expires_after.seconds"),
        ({"expires_after": {"anchor": "x", "seconds": 3_600}}, "invalid_value", "expires_after.anchor"),
    ],
)
def test_an_upload_that_is_none_is_refused(changed: dict[str, Any], code: str, param: str) -> None:
    told = {"bytes": 5, "filename": "a", "mime_type": "x/y", "purpose": "batch"}
    files.decode_new_upload(json.dumps(told).encode(), 64, 1_000)
    body = json.dumps({**told, **changed}).encode()
    assert refusal(lambda: files.decode_new_upload(body, 64, 1_000)) == (code, param)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"part_ids": []}, "array_below_min_length", "part_ids"),
        ({"part_ids": ["x" * 65]}, "string_above_max_length", "part_ids[0]"),
        ({"part_ids": ["a"] * (files.PARTS_MAX + 1)}, "array_above_max_length", "part_ids"),
        ({"part_ids": ["a"], "md5": "x"}, "invalid_value", "md5"),
        ({}, "missing_required_parameter", "part_ids"),
    ],
)
def test_a_completion_that_is_none_is_refused(body: Any, code: str, param: str) -> None:
    found, where = refusal(lambda: files.decode_completion(json.dumps(body).encode(), 64))
    assert (found, (where or "").replace("[]", "[0]")) in ((code, param), (code, "part_ids"))


@pytest.mark.parametrize(
    ("given_", "name"),
    [
        ("a.txt", "a.txt"),
        ("/etc/passwd", "passwd"),
        ("C:\\docs\\a.txt", "a.txt"),
        ("../../x", "x"),
        ("a\r\nset-cookie: x", "aset-cookie: x"),
        ("a\x00b\u202etxt.exe", "abtxt.exe"),
        ("né 日本.pdf", "né 日本.pdf"),
        ("", "file"),
        ("..", "file"),
        ("dir/", "file"),
        (" a ", "a"),
    ],
)
def test_names_have_no_folders_and_nothing_that_cannot_be_seen(given_: str, name: str) -> None:
    assert files.clean_filename(given_, "file") == name


def test_a_name_may_be_so_long_and_no_longer() -> None:
    assert files.clean_filename("x" * 255, "file") == "x" * 255
    assert refusal(lambda: files.clean_filename("x" * 256, "file")) == ("string_above_max_length", "file")


@given(st.text(max_size=60))
def test_any_name_makes_a_header_that_gives_it_back(given_: str) -> None:
    name = files.clean_filename(given_, "file")
    header = files.content_disposition(name)
    assert header.isascii()
    assert header.isprintable()
    assert header.startswith("attachment; filename=")
    if "filename*" in header:
        message = Message()
        message["content-disposition"] = (
            header.partition(";")[0] + ";" + header.partition("; filename*=")[2].join((" filename*=", ""))
        )
        assert message.get_filename() == name
    else:
        assert header == f'attachment; filename="{name}"'
