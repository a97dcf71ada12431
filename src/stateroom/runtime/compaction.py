"""Compacting a context: the model writes the summary, and when it does not, one is made without it.

Within a run a compaction is one output item: what it replaces is not touched, and until its entry is committed nothing
has happened. For the stateless endpoint the same summary is sealed and handed to the client.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final, Protocol, runtime_checkable

import msgspec

from stateroom import ids
from stateroom.access.sealing import Sealer
from stateroom.agent import compaction
from stateroom.agent.compaction import COMPACTION, FALLBACK, Budget, Carried, Compacted
from stateroom.agent.context import Context
from stateroom.agent.programs import OpenPrograms, take, to_carry
from stateroom.agent.state import add_usage
from stateroom.agent.tokens import estimate_items, estimate_text
from stateroom.agent.truncation import fitted, shortened
from stateroom.clock import Clock
from stateroom.errors import BackendError, BackendRejected, BackendUnavailable
from stateroom.journal.entries import ContextItem, Item, ItemFinished, RunSettings, Usage
from stateroom.models.backend import Backend, Finished, ModelCall, TextDelta
from stateroom.models.router import Router
from stateroom.runtime.fitting import count, fixed_tokens
from stateroom.runtime.generate import Generator, build_call, estimate_usage
from stateroom.runtime.live import LiveRun
from stateroom.runtime.surface import NoTools

log = logging.getLogger("stateroom.runtime")

DEFAULT_THRESHOLD: Final = 64_000
"""Tokens from which a context is compacted when neither its caller nor its model's server says."""
ATTEMPTS_MAX: Final = 4
"""Calls for one summary: each but the first has less to read, because the one before was too long."""
SUMMARY_SECONDS: Final = 600.0
_THOUGHT: Final = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


@runtime_checkable
class ShowsCompaction(Protocol):
    """A renderer that tells when the summary is being written."""

    def compacting(self, index: int, item_id: str) -> None: ...


class Summary(msgspec.Struct, frozen=True):
    """What a context was summarised to."""

    text: str
    created_by: str
    """The model's name, or `stateroom:fallback`."""
    usage: Usage | None = None


class Compactor:
    """Compacts contexts."""

    def __init__(self, generator: Generator, router: Router, sealer: Sealer, clock: Clock) -> None:
        self._generator = generator
        self._router = router
        self._sealer = sealer
        self._clock = clock

    async def is_due(self, run: LiveRun) -> bool:
        """Whether the run's context is to be compacted before the model is asked again."""
        if run.compacting_at >= 0:
            return True
        asked, output = run.settings.compact_from, run.state.output
        if not asked or run.resumed is not None or (output and output[-1].item.get("type") == COMPACTION):
            return False
        await self._generator.catch_up(run)
        context, threshold = run.branch.context, self._threshold(run.settings)
        backend, model = self._router.resolve(run.settings.model)
        call = build_call(run.settings, run.plan, model, context, stream=True)
        fixed = context.tokens_fixed = fixed_tokens(call)
        tokens, counted = context.tokens(fixed)
        # A long question, or long instructions, are not made shorter: then there is nothing to be gained.
        if tokens < threshold or compaction.gain(context.items, context.summary, compaction.budget(threshold)) <= 0:
            return False
        return counted >= threshold or (await count(backend, call, context, fixed))[0] >= threshold

    async def compact(self, run: LiveRun) -> None:
        """Add a compaction item to the run; it is durable when this returns. Whatever the model does, it succeeds."""
        await self._generator.catch_up(run)
        index = run.state.next_index
        item_id = ids.item_id("cmp", run.state.key, ids.OUTPUT_BASE + index)
        renderer = run.renderer
        if renderer is not None and run.compacting_at != index:
            renderer.item_opened(index, item_id, {"type": COMPACTION, "encrypted_content": ""})
            if isinstance(renderer, ShowsCompaction):
                renderer.compacting(index, item_id)
            run.writer.touch()
        context = run.branch.context
        limits = self._limits(run.settings, context)
        tail = compaction.tail_of(context.items, context.summary, limits.tail)
        backend, model = self._router.resolve(run.settings.model)
        call = build_call(run.settings, run.plan, model, context, stream=True)
        summary = await self._summarise(backend, call, context, limits, tail, run.patience_seconds, run.id)
        compacted = Compacted(summary.text, limits.keep, [held.id for held in tail])
        place, programs = ContextItem(item_id, {}, run.state.start), to_carry(run.state.programs)
        item = self._item(run.project, context, place, compacted, summary, programs)
        run.compacting_at = -1
        run.writer.add(ItemFinished(index, item, usage=summary.usage))
        if renderer is not None:
            renderer.item_closed(index, item_id, item)
        await run.writer.commit()

    async def standalone(
        self, project: str, settings: RunSettings, items: Sequence[ContextItem], item_id: str
    ) -> tuple[list[ContextItem], Usage | None]:
        """The user's messages of a context, and the compaction item that goes behind them. Raises RequestError."""
        context = Context()
        await self._generator.extend(context, items)
        limits = self._limits(settings, context)
        tail = compaction.tail_of(context.items, context.summary, limits.tail)
        backend, model = await self._router.find(settings.model)
        call = build_call(settings, NoTools(), model, context, stream=True)
        summary = await self._summarise(backend, call, context, limits, tail, 0.0, item_id)
        said = [held for held in context.items if held is not context.summary and compaction.is_said(held.item)]
        instructing = [held for held in said if held.item.get("role") != "user"]
        programs: OpenPrograms = {}
        for held in items:
            take(programs, held)
        waiting = to_carry(programs)
        carried = compaction.carried(Compacted(summary.text), instructing, tail, summary.created_by, waiting)
        item: Item = {
            "type": COMPACTION,
            "encrypted_content": self._sealer.seal(project, compaction.to_seal(carried)),
            "created_by": summary.created_by,
        }
        users = [held for held in said if held.item.get("role") == "user"]
        return [*users, ContextItem(item_id, item)], summary.usage

    def _item(
        self,
        project: str,
        context: Context,
        place: ContextItem,
        compacted: Compacted,
        summary: Summary,
        programs: Sequence[Item],
    ) -> Item:
        """The packed item: what it says for this branch, and the same sealed for everywhere else."""
        told = {"type": COMPACTION, "compacted": msgspec.to_builtins(compacted)}
        anew, message = compaction.begin_anew(context.items, context.summary, ContextItem(place.id, told, place.seq))
        at = next(n for n, held in enumerate(anew) if held is message)
        kept, tail = anew[:at], anew[at + 1 :]
        carried: Carried = compaction.carried(compacted, kept, tail, summary.created_by, programs)
        sealed = self._sealer.seal(project, compaction.to_seal(carried))
        return {**told, "encrypted_content": sealed, "created_by": summary.created_by}

    def _limits(self, settings: RunSettings, context: Context) -> Budget:
        """What may stay; a summary is to be no longer than half of what it is made of."""
        limits = compaction.budget(self._threshold(settings))
        half = max(compaction.SUMMARY_MIN, context.estimate() // 2)
        return msgspec.structs.replace(limits, summary=min(limits.summary, half))

    def _threshold(self, settings: RunSettings) -> int:
        if settings.compact_from > 0:
            return settings.compact_from
        window = self._router.window(settings.model)
        return window * 4 // 5 if window else DEFAULT_THRESHOLD

    async def _summarise(
        self,
        backend: Backend,
        call: ModelCall,
        context: Context,
        limits: Budget,
        tail: Sequence[ContextItem],
        patience: float,
        what: str,
    ) -> Summary:
        """The model's summary, or the plain one. Raises nothing of the model's."""
        usage: Usage | None = None
        try:
            async with asyncio.timeout(SUMMARY_SECONDS):
                text, finish, usage = await self._ask(backend, call, context, limits, patience)
            reason = _flaw(text, finish, limits)
        except TimeoutError:
            reason = "timeout"
        except BackendError as error:
            reason = error.code
        if not reason:
            return Summary(text, call.model, usage)
        log.warning("compaction.fell_back id=%s reason=%s", what, reason)
        there = {id(held) for held in tail}
        plain = compaction.plain_summary(context.items, context.summary, lambda held: id(held) in there, limits.summary)
        return Summary(plain, FALLBACK, usage)

    async def _ask(
        self, backend: Backend, call: ModelCall, context: Context, limits: Budget, patience: float
    ) -> tuple[str, str, Usage | None]:
        """What the model answers to the request for a summary, why it ended, and what it used. Raises BackendError."""
        asked = ContextItem("stateroom:summary", compaction.prompt(limits))
        items, cache = context.items, context.cache
        spent: Usage | None = None
        give_up = self._clock.monotonic() + patience
        attempts = 0
        while True:
            # Behind the same items as before, so that the server finds them in its prefix cache, and we in ours.
            told = summary_call(call, [*items, asked], cache, limits)
            try:
                text, finished = await _collect(backend, told, 8 * limits.summary)
            except BackendUnavailable:
                if self._clock.monotonic() >= give_up:
                    raise
                await self._clock.sleep(0.5)
                continue
            except BackendRejected as error:
                attempts += 1
                left = _less(items, context) if error.code == "context_length_exceeded" else None
                if left is None or attempts >= ATTEMPTS_MAX:
                    raise
                items, cache = left, {}
                continue
            used = finished.usage or estimate_usage(told, len(text), context)
            spent = add_usage(spent, used)
            return _THOUGHT.sub("", text).strip(), finished.reason, spent


def _flaw(text: str, finish: str, limits: Budget) -> str:
    """Why a summary cannot be used; '' when it can."""
    if finish != "stop":
        return "too_long" if finish == "length" else finish
    if not text:
        return "empty"
    return "too_long" if estimate_text(text.encode()) > 2 * limits.summary else ""


def summary_call(call: ModelCall, items: list[ContextItem], cache: dict[str, object], limits: Budget) -> ModelCall:
    """The call for a summary: the run's own, to the byte the same at its beginning, and no tool to be called."""
    return msgspec.structs.replace(
        call,
        items=items,
        cache=cache,
        tool_choice="none",
        format=None,
        top_logprobs=None,
        verbosity=None,
        stop=(),
        prefill="",
        max_output_tokens=2 * limits.summary,
    )


def _less(items: list[ContextItem], context: Context) -> list[ContextItem] | None:
    """About half of what was too long to be read."""
    return fitted(items, estimate_items(items) // 2, pinned=context.summary) or shortened(items, pinned=context.summary)


async def _collect(backend: Backend, call: ModelCall, characters: int) -> tuple[str, Finished]:
    """The text of an answer; it ends as by a limit when there is far too much of it."""
    pieces: list[str] = []
    size = 0
    async with aclosing(backend.generate(call)) as batches:
        async for batch in batches:
            for delta in batch:
                if isinstance(delta, TextDelta):
                    pieces.append(delta.text)
                    size += len(delta.text)
                elif isinstance(delta, Finished):
                    return "".join(pieces), delta
            if size > characters:
                break
    return "".join(pieces), Finished("length")
