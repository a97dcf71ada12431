"""One answer of the model: from the run's context to finished items, through whichever backend serves the model.

Everything that a model or server may get wrong is settled here: calls that were not allowed, a call that was demanded
and did not come, a context that is too long for a caller who said `truncation: auto`, missing token counts.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial

import msgspec

from stateroom.access.sealing import Sealer
from stateroom.agent.assembler import Assembler
from stateroom.agent.context import Context, blob_digests
from stateroom.blobs.store import Blobs
from stateroom.clock import Clock
from stateroom.errors import BackendFailed, BackendRejected, BackendUnavailable
from stateroom.journal.entries import ContextItem, ItemAbandoned, RunSettings, Usage
from stateroom.models.backend import (
    Backend,
    Finished,
    ModelCall,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
)
from stateroom.models.emulation import ToolEmulation
from stateroom.models.router import Router
from stateroom.runtime.live import LiveRun
from stateroom.runtime.surface import ToolPlan
from stateroom.settings import Limits

SEALED_REASONING = "reasoning.encrypted_content"

ATTEMPTS_MAX = 3
"""Model calls for one answer, when the first ones broke the rules on tools."""


class Generator:
    """Asks models."""

    def __init__(self, router: Router, blobs: Blobs, sealer: Sealer, limits: Limits, clock: Clock) -> None:
        self._router = router
        self._blobs = blobs
        self._sealer = sealer
        self._limits = limits
        self._clock = clock

    async def answer(self, run: LiveRun) -> None:
        """Generate the next answer of the run; its items are added to the run's writer. Raises BackendError."""
        backend, model = self._router.resolve(run.settings.model)
        context = run.branch.context
        await self.extend(context, run.state.output_items(run.state.start)[run.context_outputs :])
        run.context_outputs = len(run.state.output)
        call = build_call(run.settings, run.plan, model, context, stream=run.renderer is not None)
        resumed, run.resumed = run.resumed, None
        if resumed is not None and not backend.can_prefill:
            # Another backend than the one that was there when the run was taken up.
            if run.renderer is not None:
                run.renderer.item_abandoned(resumed.index)
            run.writer.add(ItemAbandoned(resumed.index))
            resumed = None
        if resumed is not None:
            call.prefill = resumed.text
        assembler = run.assembler = Assembler(
            run.state.key,
            run.state.next_index,
            shape_of=lambda name: None if not _may_call(run, name) else run.plan.shape_of(name),
            listener=run.renderer,
            resumed=resumed,
            seal=partial(self._sealer.seal, run.project) if SEALED_REASONING in run.settings.include else None,
        )
        finished = await self._obedient_answer(run, backend, call, assembler)
        usage = finished.usage or estimate_usage(call, context, assembler.size)
        assembler.end(finished.reason, usage)
        self._keep_finished(run, assembler)
        run.assembler = None

    async def _obedient_answer(self, run: LiveRun, backend: Backend, call: ModelCall, assembler: Assembler) -> Finished:
        """Ask until the answer keeps to the tool choice. Raises BackendFailed when it never does."""
        for _ in range(ATTEMPTS_MAX):
            finished = await self._fitting_answer(run, backend, call, assembler)
            must_call = call.tool_choice not in ("auto", "none")
            refused = bool(assembler.refused_calls) and assembler.size == 0
            if finished.reason != "stop" or assembler.calls or not (must_call or refused):
                return finished
            assembler.forget_refused()
            call.functions = [each for each in call.functions if _may_call(run, each.name)]
            if must_call and not isinstance(backend, ToolEmulation):
                backend = ToolEmulation(backend)
                call.cache = {}
        raise BackendFailed(
            "The model did not keep to `tool_choice`: it made no call that is allowed. Try another model or `auto`.",
            code="tool_choice_not_honoured",
        )

    async def _fitting_answer(self, run: LiveRun, backend: Backend, call: ModelCall, assembler: Assembler) -> Finished:
        """Ask; ask again with less history when it is too long and may be cut, or when the server is not back yet."""
        give_up = self._clock.monotonic() + run.patience_seconds
        while True:
            try:
                return await self._stream(run, backend, call, assembler)
            except BackendUnavailable:
                if assembler.begun or self._clock.monotonic() >= give_up:
                    raise
                await self._clock.sleep(0.5)
            except BackendRejected as error:
                shorter = shortened(call.items) if run.settings.truncation == "auto" else None
                if error.code != "context_length_exceeded" or shorter is None or assembler.begun:
                    raise
                call.items, call.cache = shorter, {}

    async def _stream(self, run: LiveRun, backend: Backend, call: ModelCall, assembler: Assembler) -> Finished:
        finished: Finished | None = None
        writer, live = run.writer, run.renderer is not None
        async with aclosing(backend.generate(call)) as batches:
            async for batch in batches:
                for delta in batch:
                    kind = type(delta)
                    if kind is TextDelta:
                        assembler.text(delta.text, delta.logprobs)  # type: ignore[union-attr]  # narrowed by `kind`, which is cheaper than isinstance here
                    elif isinstance(delta, ToolCallDelta):
                        assembler.call(delta.key, delta.call_id, delta.name, delta.arguments, delta.extra)
                    elif isinstance(delta, ReasoningDelta):
                        assembler.reason(delta.text)
                    elif isinstance(delta, RefusalDelta):
                        assembler.refuse(delta.text)
                    elif isinstance(delta, Finished):
                        finished = delta
                if live:
                    self._keep_finished(run, assembler)  # before anything is awaited: facts go out with their events
                    writer.touch()
                if writer.failure is not None:
                    raise writer.failure  # nobody will ever see what is still to come
                if assembler.is_over(self._limits.output_bytes):
                    return Finished("length", finished.usage if finished else None)
        if finished is None:
            raise BackendFailed("The model server ended its answer without saying that it was complete.")
        return finished

    def _keep_finished(self, run: LiveRun, assembler: Assembler) -> None:
        for record in assembler.take():
            run.writer.add(record)

    async def prepare(self, run: LiveRun) -> None:
        """Bring the branch's context up to the run's input."""
        context = run.branch.context
        await self.extend(context, run.branch.state.items[context.source_count :])
        context.mark()
        await self.extend(context, run.state.input_items(run.state.start))

    async def extend(self, context: Context, items: Sequence[ContextItem]) -> None:
        """Add branch items to a context, with their images."""
        images: dict[str, str] = {}
        for held in items:
            for digest in blob_digests([held.item]):
                data = await self._blobs.get(digest)
                if data is not None:
                    images[digest] = data_url(held, digest, data)
        context.extend(items, images)


def data_url(held: ContextItem, digest: str, data: bytes) -> str:
    """The data URL of an image that an item keeps as a blob."""
    media_type = "application/octet-stream"
    for field in ("content", "output"):
        for part in held.item.get(field) or ():
            if isinstance(part, dict) and part.get("blob") == digest:
                media_type = part.get("media_type", media_type)
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def build_call(settings: RunSettings, plan: ToolPlan, model: str, context: Context, *, stream: bool) -> ModelCall:
    """What a run with these settings asks of its model."""
    text, reasoning, echo = settings.text or {}, settings.reasoning or {}, settings.echo
    format_ = text.get("format") or {}
    wants_logprobs = "message.output_text.logprobs" in settings.include or settings.top_logprobs
    return ModelCall(
        model=model,
        items=context.items,
        cache=context.cache,
        instructions=settings.instructions,
        functions=plan.functions,
        tool_choice=plan.choice,
        parallel_tool_calls=settings.parallel_tool_calls,
        stream=stream,
        temperature=settings.temperature,
        top_p=settings.top_p,
        presence_penalty=settings.presence_penalty,
        frequency_penalty=settings.frequency_penalty,
        max_output_tokens=settings.max_output_tokens,
        top_logprobs=(settings.top_logprobs or 0) if wants_logprobs else None,
        reasoning_effort=reasoning.get("effort"),
        format=format_ if format_.get("type") in ("json_schema", "json_object") else None,
        verbosity=text.get("verbosity"),
        service_tier=echo.get("service_tier"),
        user=echo.get("safety_identifier") or echo.get("user"),
        prompt_cache_key=echo.get("prompt_cache_key"),
    )


def shortened(items: Sequence[ContextItem]) -> list[ContextItem] | None:
    """The context without its oldest quarter (system and developer messages stay); None when nothing can go."""
    removable = [n for n, held in enumerate(items[:-1]) if held.item.get("role") not in ("system", "developer")]
    if not removable:
        return None
    gone = set(removable[: max(1, len(removable) // 4)])
    return [held for n, held in enumerate(items) if n not in gone]


def estimate_usage(call: ModelCall, context: Context, characters: int) -> Usage:
    """Token counts when the backend gave none: four bytes a token, marked as an estimate."""
    if call.items is context.items:
        size = context.size()
    else:
        size = sum(len(msgspec.json.encode(held.item)) for held in call.items)
    return Usage(input=(size + len(call.instructions or "")) // 4 + 1, output=characters // 4 + 1, estimated=True)


def _may_call(run: LiveRun, name: str) -> bool:
    plan = run.plan
    if plan.choice == "none":
        return False
    if not run.settings.parallel_tool_calls and run.assembler is not None and run.assembler.calls:
        return False
    if isinstance(plan.choice, tuple) and name not in plan.choice:
        return False
    return plan.allowed is None or name in plan.allowed
