"""Trace context: what of a client's headers is believed, and what goes on to other servers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.telemetry.context import TraceContext, current_trace, read_trace, to_keep, traced

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@pytest.fixture(autouse=True)
def nothing_current() -> Iterator[None]:
    token = current_trace.set(None)
    yield
    current_trace.reset(token)


def test_a_header_is_read_and_written_as_it_was() -> None:
    found = read_trace(f"00-{TRACE}-{SPAN}-01".encode(), b"congo=t61rcWkgMzE")
    assert found is not None
    assert (found.trace_id, found.span_id, found.sampled, found.state) == (TRACE, SPAN, True, "congo=t61rcWkgMzE")
    assert found.header() == f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    "parent",
    [
        "",
        ",",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
    ],
)
def test_what_cannot_be_understood_is_no_trace(parent: str) -> None:
    assert read_trace(parent.encode()) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    found = read_trace(f"cc-{TRACE}-{SPAN}-ff-what-comes-then".encode())
    assert found is not None
    assert found.header() == f"00-{TRACE}-{SPAN}-03"


@given(st.binary(max_size=80), st.binary(max_size=600))
def test_no_bytes_break_the_reader_and_what_goes_out_is_well_formed(parent: bytes, state: bytes) -> None:
    for found in (read_trace(parent, state), read_trace(f"00-{TRACE}-{SPAN}-00".encode(), state)):
        if found is not None:
            headers = found.outgoing()
            assert HEADER.fullmatch(headers["traceparent"])
            assert re.fullmatch(r"[\x20-\x7e]{1,512}", headers.get("tracestate", "x"))


def test_another_server_is_sent_a_child_of_a_foreign_span_and_an_own_span_itself() -> None:
    foreign = TraceContext(TRACE, SPAN, "01", "a=b")
    first, second = foreign.outgoing(), foreign.outgoing()
    assert first["tracestate"] == "a=b"
    assert first["traceparent"].startswith(f"00-{TRACE}-")
    assert len({first["traceparent"], second["traceparent"], foreign.header()}) == 3
    own = TraceContext(TRACE, SPAN, own=True)
    assert own.outgoing() == {"traceparent": own.header()}


def test_an_entry_keeps_what_was_given_and_what_is_recorded() -> None:
    assert to_keep() == ""
    current_trace.set(TraceContext(TRACE, SPAN, "00", own=True))
    assert to_keep() == ""
    for held in (TraceContext(TRACE, SPAN, "00"), TraceContext(TRACE, SPAN, "01", own=True)):
        current_trace.set(held)
        kept = traced(to_keep())
        assert kept is not None
        assert kept.header() == held.header()
    assert traced("") is None
