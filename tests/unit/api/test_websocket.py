"""What our WebSocket protocol adds to the library's: several frames in one write."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from stateroom.api.websocket import text_frames

EDGES = [0, 1, 125, 126, 127, 65_535, 65_536, 70_000]


@given(st.lists(st.text(max_size=50) | st.sampled_from(EDGES).map("x".__mul__), max_size=6))
def test_frames_in_one_write_are_read_one_by_one(texts: list[str]) -> None:
    client = ClientProtocol(parse_uri("ws://127.0.0.1/"), state=State.OPEN, max_size=None)
    client.receive_data(text_frames([text.encode() for text in texts]))
    received = client.events_received()
    assert client.parser_exc is None
    assert all(isinstance(frame, Frame) and frame.opcode is Opcode.TEXT and frame.fin for frame in received)
    assert [bytes(frame.data).decode() for frame in received if isinstance(frame, Frame)] == texts
