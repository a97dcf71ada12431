"""Everything that clients do to a server, and how often in comparison."""

from __future__ import annotations

from typing import Final

from tests.simulation import actors
from tests.simulation.batching import batches
from tests.simulation.chats import chats
from tests.simulation.compacting import compacting
from tests.simulation.lanes import lanes, steering
from tests.simulation.load import Actor
from tests.simulation.once import once
from tests.simulation.uploading import file_inputs, files, uploads
from tests.simulation.working import WORKERS, abandoning, owning, sabotage, sharing, working

ACTORS: Final[dict[Actor, int]] = {
    **actors.ACTORS,
    once: 3,
    chats: 3,
    files: 2,
    file_inputs: 2,
    uploads: 2,
    batches: 2,
    lanes: 5,
    steering: 2,
    compacting: 2,
}

FOCUS: Final = 20
"""How much oftener those act who come to the point at which the server is to die."""

_BY_WORD: Final[dict[str, tuple[Actor, ...]]] = {
    "batch": (batches,),
    "file": (files, file_inputs, uploads),
    "upload": (uploads,),
    "idempotency": (once,),
    "endpoint": (once,),
    "chat": (chats,),
    "compaction": (compacting,),
    "steer": (steering,),
    "sent": (lanes,),
    "publish": (lanes,),
    "effect": (actors.hosted_tools,),
    "intent": (actors.hosted_tools,),
    "outcome": (actors.hosted_tools,),
    "deletion": (actors.conversation,),
    "redact": (actors.deletion,),
}

AT_WORK: Final[dict[Actor, int]] = {**WORKERS, actors.plain: 1, actors.deletion: 1, files: 1}
"""Those who work in containers, and a few others beside them."""

_AT_WORK_BY_WORD: Final[dict[str, tuple[Actor, ...]]] = {
    "write": (owning, sharing),
    "discard": (owning,),
    "materialise": (owning, working),
    "sweep": (abandoning,),
    "drop_container": (owning, abandoning),
}


def cast_at_work(point: str, *, sabotaged: bool) -> dict[Actor, int]:
    """Who acts when the server is to die while containers are worked in."""
    wanted = {actor for word, those in _AT_WORK_BY_WORD.items() if word in point for actor in those}
    cast = {actor: weight * (1 + 3 * (actor in wanted)) for actor, weight in AT_WORK.items()}
    return {**cast, sabotage: 8} if sabotaged else cast


def cast_for(point: str) -> dict[Actor, int]:
    """Who acts, and how often, when the server is to die at this point."""
    wanted = {actor for word, those in _BY_WORD.items() if word in point for actor in those}
    return {actor: weight + FOCUS * (actor in wanted) for actor, weight in ACTORS.items()}
