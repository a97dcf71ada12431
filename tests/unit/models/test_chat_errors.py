from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.errors import BackendBusy, BackendError
from stateroom.models.chat_errors import MESSAGE_LIMIT, Told, from_status, read_error, retry_after, told

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"message": "no", "object": "error"}', "no"),
        (b'{"detail": "no"}', "no"),
        (b'[{"error": {"message": "no"}}]', "no"),
        (b"plain no\n", "plain no"),
        (b"", ""),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_every_shape_of_error_gives_its_message(body: bytes, message: str) -> None:
    assert read_error(body).message == message


def test_a_list_of_details_is_shown_as_json() -> None:
    assert (
        read_error(b'{"detail": [{"loc": ["body", "x"], "msg": "bad"}]}').message
        == '[{"loc":["body","x"],"msg":"bad"}]'
    )


def test_a_message_is_shortened() -> None:
    assert len(read_error(b'{"error": "' + b"x" * 10_000 + b'"}').message) == MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:05 GMT"}, 5.0),
        ({"retry-after": "Fri, 15 Jan 2021 08:00:05 GMT"}, 0.0),
        ({"retry-after": "999999999"}, 3600.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_a_number_a_date_or_nothing(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


def test_a_busy_server_without_a_time_asks_for_a_second() -> None:
    error = from_status(429, Told("x"), server="s", key=None, headers={}, now=NOW)
    assert isinstance(error, BackendBusy)
    assert error.retry_after == 1.0


@given(
    st.integers(300, 599),
    st.recursive(
        st.one_of(st.none(), st.integers(), st.text(max_size=9)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=2),
            st.dictionaries(st.sampled_from(["error", "message", "code", "type", "detail"]), inner, max_size=3),
        ),
    ),
)
def test_any_status_and_body_give_an_error_that_a_client_can_read(status: int, body: Any) -> None:
    error = from_status(status, told(body), server="The server", key="sk", headers={}, now=NOW)
    assert isinstance(error, BackendError)
    assert error.message
    assert error.code
    assert 400 <= error.status <= 599
