"""A real server dies at each point of a compaction: the conversation goes on, its answer has one compaction item."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from stateroom.agent.compaction import PROMPT
from stateroom.testing.kill_points import KILL_AT
from stateroom.testing.script import ChatRequest, Reply, obey
from tests.simulation.client import Gone
from tests.simulation.scene import Scene, Stream, scene

LONG = "and so on " * 1_500
UNREACHED = ("before_item:2",)
"""Points that a run of one item does not pass."""
SUMMARY = "The dog is called Biscuit, and much was said."
POINTS = [
    "before_start:1",
    "after_start:1",
    "before_frames:1",
    "after_frames:1",
    "before_frames:2",
    "after_frames:2",
    "publish:1",
    "sent:2",
    "before_item:1",
    "after_item:1",
    "before_item:2",
    "before_end:1",
    "after_end:1",
]


def answer(request: ChatRequest) -> Reply:
    asked = next((message.text for message in reversed(request.messages) if message.role == "user"), "")
    return Reply(text=SUMMARY, delay=0.02) if asked.startswith(PROMPT[:60]) else obey(request)


async def died(stage: Scene, stream: Stream) -> bool:
    """Wait until the server has died, and whether it did so by itself: one that did not reach the point is killed."""
    with contextlib.suppress(Gone):
        await stream.whole()
    try:
        await asyncio.to_thread(stage.server.wait, 1.0)
    except Exception as error:  # subprocess.TimeoutExpired: it lives
        if type(error).__name__ != "TimeoutExpired":
            raise
        await stage.kill()
        return False
    assert stage.server.status == -9
    return True


@pytest.mark.parametrize("trigger", [False, True], ids=["threshold", "trigger"])
@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_at_any_point_of_a_compaction_leaves_it_done_once_or_not_begun(
    tmp_path: Path, point: str, trigger: bool
) -> None:
    async with scene(tmp_path, module="stateroom.testing.probe_server") as stage:
        stage.script.respond = answer
        conversation = (await stage.client.call("POST", "/conversations", {}))["id"]
        await stage.create(f"my dog is Biscuit\nsay: {LONG}", conversation=conversation)
        assert await stage.stop() == 0
        await stage.start(**{KILL_AT: point})

        asked: dict[str, Any] = {"context_management": [{"type": "compaction", "compact_threshold": 2_000}]}
        said: Any = [{"role": "user", "content": "say: two"}]
        stream = stage.stream(
            [*said, {"type": "compaction_trigger"}] if trigger else said, conversation=conversation, **asked
        )  # type: ignore[arg-type]  # the input may be a list
        reached = await died(stage, stream)
        assert reached or (trigger and point in UNREACHED)
        await stage.start()

        shown = (await stage.client.call("GET", "/responses?limit=1"))["data"][0]
        if shown["conversation"] == {"id": conversation} and stream.events:
            assert shown["id"] == stream.id, "what was shown is there"
        final = await stage.ended(shown["id"])
        assert final["status"] == "completed"
        kinds = [item["type"] for item in final["output"]]
        second = [*(["compaction"] if trigger else ["compaction", "message"])]
        assert kinds in (["message"], second)
        if kinds == second:
            replay = stage.follow(final["id"])
            await replay.whole()
            replay.check_numbers()
            assert [event.raw for event in replay.events[: len(stream.events)]] == [
                event.raw for event in stream.events
            ]
            done = [event.data["item"] for event in replay.events if event.kind == b"response.output_item.done"]
            assert [item["type"] for item in done].count("compaction") == 1
            assert sum(event.kind == b"response.compaction.compacting" for event in replay.events) == 1
            assert next(item for item in final["output"] if item["type"] == "compaction") in done

        after = await stage.create("what is my dog?", conversation=conversation)
        assert after["status"] == "completed"
        items = (await stage.client.call("GET", f"/conversations/{conversation}/items?limit=100&order=asc"))["data"]
        assert [item["type"] for item in items].count("compaction") == (1 if kinds == second else 0)
        assert items[0]["content"][0]["text"].startswith("my dog is Biscuit"), "nothing was taken away"
