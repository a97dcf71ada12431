"""One answer of the model: from the run's context to finished items, through whichever backend serves the model.

Everything that a model or server may get wrong is settled here: calls that were not allowed, a call that was demanded
and did not come, a context that is too long for a caller who said `truncation: auto`, missing token counts.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial

import msgspec

from stateroom.access.sealing import Sealer
from stateroom.agent.assembler import STEERED, Assembler
from stateroom.agent.compaction import relevant
from stateroom.agent.context import Context, shown_blobs
from stateroom.agent.state import add_usage
from stateroom.agent.tokens import estimate_text
from stateroom.agent.truncation import shortened
from stateroom.blobs.store import Blobs
from stateroom.clock import Clock
from stateroom.errors import BackendFailed, BackendRejected, BackendUnavailable
from stateroom.journal.entries import Answered, ContextItem, ItemAbandoned, RunSettings, Usage
from stateroom.journal.hosted_items import HOSTED_CALL
from stateroom.models.backend import (
    Backend,
    Finished,
    ItemDelta,
    ModelCall,
    ReasoningDelta,
    RefusalDelta,
    SummaryDelta,
    TextDelta,
    ToolCallDelta,
)
from stateroom.models.bounds import bounded
from stateroom.models.emulation import ToolEmulation
from stateroom.models.router import Router
from stateroom.models.stops import heeding_stops
from stateroom.runtime.citations import citing
from stateroom.runtime.fitting import fit
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
        await self.catch_up(run)
        call = build_call(run.settings, run.plan, model, context, stream=run.renderer is not None)
        call.tool_choice = _choice(run)
        await fit(backend, call, context, self._router.window(run.settings.model), run.settings.truncation)
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
            cite=citing(run.folders),
        )
        began, run.answer_at = self._clock.monotonic(), 0.0
        finished = await self._obedient_answer(run, backend, call, assembler)
        if finished.reason == STEERED and not assembler.size:
            return  # nothing to keep: what was begun is closed with the run
        usage, run.spent = run.spent, None
        first_ms = round((run.answer_at - began) * 1000) if run.answer_at else -1
        by = Answered(backend.name, round((self._clock.monotonic() - began) * 1000), first_ms)
        assembler.end(finished.reason, usage, by)
        self._keep_finished(run, assembler)
        run.assembler = None

    async def _obedient_answer(self, run: LiveRun, backend: Backend, call: ModelCall, assembler: Assembler) -> Finished:
        """Ask until the answer keeps to the tool choice. Raises BackendFailed when it never does.

        What every try used is added up in `run.spent`: those that came to nothing have to be paid, too.
        """
        called = ""
        for _ in range(ATTEMPTS_MAX):
            begun = assembler.size
            finished = await self._fitting_answer(run, backend, call, assembler)
            used = finished.usage or estimate_usage(call, assembler.size - begun, run.branch.context)
            run.spent = add_usage(run.spent, used)
            must_call = call.tool_choice not in ("auto", "none")
            refused = bool(assembler.refused_calls) and assembler.size == 0
            if finished.reason != "stop" or assembler.calls or not (must_call or refused):
                return finished
            called = next(iter(assembler.refused_calls), called)
            assembler.forget_refused()
            call.functions = [each for each in call.functions if _may_call(run, each.name)]
            if must_call and not isinstance(backend, ToolEmulation):
                backend = ToolEmulation(backend)
                call.cache = {}
        message = (
            "The model did not keep to `tool_choice`: it made no call that is allowed. Try another model or `auto`."
        )
        if call.tool_choice == "auto" and run.plan.allowed is None:
            message = (
                f"The model called {called[:64]!r}, at every try, and no such tool is declared. Try another model."
            )
        raise BackendFailed(message, code="tool_choice_not_honoured")

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
                context = run.branch.context
                may_cut = run.settings.truncation == "auto" and error.code == "context_length_exceeded"
                left = shortened(context.items, pinned=context.summary) if may_cut else None
                if left is None or assembler.begun:
                    raise
                own_cache = call.cache is not context.cache
                context.truncate(left)
                call.items, call.cache = context.items, {} if own_cache else context.cache

    async def _stream(self, run: LiveRun, backend: Backend, call: ModelCall, assembler: Assembler) -> Finished:
        """Read one answer to its end, or until the run is interrupted."""
        run.interruptible = True
        try:
            return await self._read(run, backend, call, assembler)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not run.interrupted or run.cancelling or (task is not None and task.uncancel()):
                raise
            return Finished(STEERED, None)
        finally:
            run.interruptible = run.interrupted = False

    async def _read(self, run: LiveRun, backend: Backend, call: ModelCall, assembler: Assembler) -> Finished:
        finished: Finished | None = None
        writer, live = run.writer, run.renderer is not None
        async with aclosing(heeding_stops(backend, call)) as batches:
            async for batch in batches:
                if not run.answer_at:
                    run.answer_at = self._clock.monotonic()
                    run.first_at = run.first_at or run.answer_at
                fitting, is_cut = bounded(batch, self._limits.output_bytes - assembler.size)
                for delta in fitting:
                    kind = type(delta)
                    if kind is TextDelta:
                        assembler.text(delta.text, delta.logprobs)  # type: ignore[union-attr]  # narrowed by `kind`, which is cheaper than isinstance here
                    elif isinstance(delta, ToolCallDelta):
                        assembler.call(delta.key, delta.call_id, delta.name, delta.arguments, delta.extra)
                    elif isinstance(delta, ReasoningDelta):
                        assembler.reason(delta.text)
                    elif isinstance(delta, SummaryDelta):
                        assembler.summarise(delta.text, delta.part)
                    elif isinstance(delta, ItemDelta):
                        assembler.item(delta.item, delta.origin, done=delta.done)
                    elif isinstance(delta, RefusalDelta):
                        assembler.refuse(delta.text)
                    elif isinstance(delta, Finished):
                        finished = delta
                if live:
                    self._keep_finished(run, assembler)  # before anything is awaited: facts go out with their events
                    writer.touch()
                if writer.failure is not None:
                    raise writer.failure  # nobody will ever see what is still to come
                if is_cut or assembler.is_over(self._limits.output_bytes):
                    return Finished("length", finished.usage if finished else None)
        if finished is None:
            raise BackendFailed("The model server ended its answer without saying that it was complete.")
        return finished

    def _keep_finished(self, run: LiveRun, assembler: Assembler) -> None:
        for record in assembler.take():
            run.writer.add(record)

    async def prepare(self, run: LiveRun) -> None:
        """Bring the branch's context up to the run's input."""
        context, state = run.branch.context, run.branch.state
        if context.truncated and run.settings.truncation != "auto":
            context.restart()  # what another run had cut off belongs to this one
        if state.counted_tokens and state.counted_at >= context.source_count:
            await self.extend(context, state.items[context.source_count : state.counted_at])
            context.note_count(state.counted_tokens, context.tokens_fixed)
        await self.extend(context, state.items[context.source_count :])
        context.tokens_fixed = 0
        context.mark()
        await self.extend(context, run.state.input_items(run.state.start))

    async def catch_up(self, run: LiveRun) -> None:
        """Bring the context up to the run's latest output."""
        context, state = run.branch.context, run.state
        outputs = state.output_items(state.start)
        if state.counted_tokens and state.counted_outputs > run.context_outputs:
            await self.extend(context, outputs[run.context_outputs : state.counted_outputs])
            results = [
                held.item.get("output") or ""
                for held in outputs[state.answer_start : state.counted_outputs]
                if held.item.get("type") == HOSTED_CALL
            ]
            since = sum(estimate_text(str(result).encode()) for result in results)
            context.note_count(state.counted_tokens + since, context.tokens_fixed)
            run.context_outputs = state.counted_outputs
        await self.extend(context, outputs[run.context_outputs :])
        run.context_outputs = len(outputs)

    async def extend(self, context: Context, items: Sequence[ContextItem]) -> None:
        """Add branch items to a context, with the images and the texts of files of those that it will show."""
        images: dict[str, str] = {}
        for held in relevant(items):
            for name, digest, media_type in shown_blobs(held.item):
                data = await self._blobs.get(digest)
                if data is not None and media_type:
                    images[name] = f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
                elif data is not None:
                    images[name] = data.decode()
        context.extend(items, images)


def build_call(settings: RunSettings, plan: ToolPlan, model: str, context: Context, *, stream: bool) -> ModelCall:
    """What a run with these settings asks of its model."""
    text, reasoning, echo = settings.text or {}, settings.reasoning or {}, settings.echo
    format_ = text.get("format") or {}
    wants_logprobs = "message.output_text.logprobs" in settings.include or settings.top_logprobs
    return ModelCall(
        model=model,
        items=context.items,
        cache=context.cache,
        instructions="\n\n".join([text for text in (settings.instructions, plan.told) if text]) or None,
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
        reasoning_summary=reasoning.get("summary") or reasoning.get("generate_summary"),
        format=format_ if format_.get("type") in ("json_schema", "json_object") else None,
        verbosity=text.get("verbosity"),
        service_tier=echo.get("service_tier"),
        user=echo.get("safety_identifier") or echo.get("user"),
        prompt_cache_key=echo.get("prompt_cache_key"),
        stop=settings.stop,
        seed=settings.seed,
        extra=None if settings.logit_bias is None else {"logit_bias": settings.logit_bias},
    )


def estimate_usage(call: ModelCall, characters: int, context: Context | None = None) -> Usage:
    """Token counts when the backend gave none: four bytes a token, marked as an estimate.

    A context that has measured the call's items before saves measuring them.
    """
    if context is not None and call.items is context.items:
        size = context.size()
    else:
        size = sum(len(msgspec.json.encode(held.item)) for held in call.items)
    return Usage(input=(size + len(call.instructions or "")) // 4 + 1, output=characters // 4 + 1, estimated=True)


def _choice(run: LiveRun) -> str | tuple[str, ...]:
    """What the next answer must do. A call that was demanded is demanded once: with its result the model is free."""
    choice = run.plan.choice
    return "auto" if run.state.answers and choice != "none" else choice


def _may_call(run: LiveRun, name: str) -> bool:
    plan, choice = run.plan, _choice(run)
    if choice == "none":
        return False
    if not run.settings.parallel_tool_calls and run.assembler is not None and run.assembler.calls:
        return False
    if isinstance(choice, tuple) and name not in choice:
        return False
    return plan.allowed is None or name in plan.allowed
