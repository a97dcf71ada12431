"""Sealed streams come back exactly and are small; what was tampered with is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom import ids
from stateroom.errors import JournalDamaged
from stateroom.journal.entries import OutputItem, RunSettings, RunView, Usage
from stateroom.journal.frames import FramePacker
from stateroom.wire.events import ResponsesRenderer

PACKER = FramePacker()


def stream(words: list[str]) -> bytes:
    """The stream of a run that says these words."""
    key = ids.new_key()
    view = RunView(f"resp_{key}", 1_790_000_000_000, RunSettings(model="some-model"), "in_progress")
    renderer = ResponsesRenderer(view)
    renderer.begin(view)
    name = ids.item_id("msg", key, ids.OUTPUT_BASE)
    renderer.item_opened(0, name, {"role": "assistant", "content": ""})
    for word in words:
        renderer.text(0, word)
    item = {"role": "assistant", "content": "".join(words)}
    renderer.item_closed(0, name, item)
    output = (OutputItem(0, name, item),)
    renderer.end(msgspec.structs.replace(view, status="completed", output=output, usage=Usage(9, 9)))
    frame = renderer.take()
    assert frame is not None
    return frame.body


@given(st.lists(st.text(max_size=20), max_size=40))
def test_a_stream_comes_back_exactly(words: list[str]) -> None:
    body = stream(words)
    assert PACKER.unpack(PACKER.pack(body)) == body


@given(st.binary(max_size=300))
def test_any_bytes_come_back_exactly_and_grow_by_one_at_most(body: bytes) -> None:
    packed = PACKER.pack(body)
    assert PACKER.unpack(packed) == body
    assert len(packed) <= len(body) + 1


def test_a_short_stream_shrinks_to_a_few_hundred_bytes() -> None:
    body = stream(["Paris ", "is ", "the ", "capital ", "of ", "France", "."])
    assert len(body) > 4_000
    assert len(PACKER.pack(body)) < 400


def test_a_long_stream_shrinks_to_a_fraction() -> None:
    body = stream([f"word{number * 7919 % 1000} " for number in range(2_000)])
    assert len(PACKER.pack(body)) < len(body) / 12


@pytest.mark.parametrize("damage", ["nothing", "unknown format", "cut off", "more", "changed"])
def test_what_is_not_a_sealed_stream_is_refused(damage: str) -> None:
    packed = PACKER.pack(stream(["hello"]))
    damaged = {
        "nothing": b"",
        "unknown format": b"\xee" + packed[1:],
        "cut off": packed[:-3],
        "more": packed + b"x",
        "changed": packed[:40] + bytes([packed[40] ^ 255]) + packed[41:],
    }[damage]
    with pytest.raises(JournalDamaged):
        PACKER.unpack(damaged)
