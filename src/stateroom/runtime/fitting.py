"""How long a model call is, and making it fit: by counts of the model's server, estimated where none were made.

Counting costs a request, so it is done only where it decides something. What the model's last answer said of its own
length, with an estimate of what came since, says so until then.
"""

from __future__ import annotations

from typing import Final

import msgspec

from stateroom.agent.context import Context
from stateroom.agent.tokens import estimate_json, estimate_text
from stateroom.agent.truncation import fitted
from stateroom.errors import BackendError, BackendRejected
from stateroom.models.backend import Backend, ModelCall

ANSWER_TOKENS: Final = 512
"""Room that is left for an answer when the caller does not bound it."""


async def count(backend: Backend, call: ModelCall, context: Context, fixed: int) -> tuple[int, bool]:
    """Input tokens of a call over this context, and whether the count is exact. Remembers it if so."""
    try:
        tokens, exact = await backend.count_tokens(call)
    except BackendError:
        return context.tokens(fixed)[0], False
    if exact:
        context.note_count(tokens, fixed)
    return tokens, exact


async def fit(backend: Backend, call: ModelCall, context: Context, window: int | None, truncation: str) -> None:
    """Make the call fit its model, if the caller wants it cut and the model's length is known.

    Raises BackendRejected `context_length_exceeded` when it is certain that it does not fit and it may not be cut.
    """
    if window is None or context.estimate() < window // 2:
        return
    fixed = context.tokens_fixed = fixed_tokens(call)
    cut = truncation == "auto"
    room = window - min(call.max_output_tokens or ANSWER_TOKENS, window // 4) if cut else window - 1
    if context.tokens(fixed)[0] <= room:
        return
    tokens, exact = await count(backend, call, context, fixed)
    if tokens <= room:
        return
    if cut:
        scale = context.scale(fixed)
        left = fitted(context.items, int(room * 3 / 4 - fixed * scale), pinned=context.summary, scale=scale)
        if left is not None:
            context.truncate(left)
            call.items, call.cache = context.items, context.cache
    elif exact:
        raise too_long(tokens, window)


def fixed_tokens(call: ModelCall) -> int:
    """What a call has beside its items, as an estimate."""
    instructions = estimate_text(call.instructions.encode()) if call.instructions else 0
    return instructions + (estimate_json(msgspec.json.encode(call.functions)) if call.functions else 0)


def too_long(tokens: int, window: int) -> BackendRejected:
    return BackendRejected(
        f"This model's maximum context length is {window} tokens, and the input has {tokens} tokens. Send less, or use "
        '`truncation: "auto"` or `context_management`.',
        code="context_length_exceeded",
        param="input",
    )
