"""Folding the journal: from entries to what a branch holds and where its open run stands. Pure and incremental.

`BranchState.apply` takes one entry after the other; applying all of them gives the same state whether it happens at
once after a crash or one by one while a run goes on. That is why there is no recovery code anywhere else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable
from typing import Any

import msgspec

from stateroom import ids
from stateroom.agent.compaction import COMPACTION
from stateroom.agent.hosted import is_client_call
from stateroom.agent.programs import BEGINNING, OpenPrograms, take
from stateroom.journal.entries import (
    ContextItem,
    ConversationCreated,
    ConversationDeleted,
    ConversationUpdated,
    Entry,
    Fact,
    Item,
    ItemAbandoned,
    ItemFinished,
    ItemsAdded,
    OutputItem,
    RunEnded,
    RunSettings,
    RunStarted,
    RunSteered,
    RunView,
    ToolDecided,
    ToolIntent,
    ToolOutcome,
    Usage,
    WorkspaceAt,
    decode,
    item_prefix,
)
from stateroom.journal.hosted_items import APPROVAL_RESPONSE, HOSTED_CALL, LISTING, caller_of

OPEN = "in_progress"
VISIBLE_ENDS = frozenset({"completed", "incomplete", "cancelled"})
"""Ends after which a run's items belong to its branch. A failed run leaves nothing: its caller is to try again."""

STEERING = frozenset({"additional_tools", "tool_search_output", LISTING, "configuration_update"})
"""Item types that make tools callable, or change the configuration, from then on."""


class RunState:
    """Where one run stands."""

    def __init__(self, start: int, started: RunStarted, at: int, programs: OpenPrograms | None = None) -> None:
        self.start = start
        """Seq of its first entry, by which the branch knows it."""
        self.started = started
        self.created_at = at
        self.output: list[OutputItem] = []
        self.intents: dict[int, ToolIntent] = {}
        self.outcomes: dict[int, ToolOutcome] = {}
        self.decided: dict[int, ToolDecided] = {}
        """What was last decided of hosted calls."""
        self.own: set[int] = set()
        """Output indexes of items that the runtime made, not the model."""
        self.next_index = 0
        """Output index of the next new item."""
        self.finish = ""
        """Why the model ended its latest answer; '' while the answer is not complete."""
        self.answers = 0
        """Model answers that are complete."""
        self.answer_start = 0
        """Position in `output` where the latest answer begins."""
        self.usage: Usage | None = None
        self.counted_tokens = 0
        """What the model said its latest answer and everything before it count; 0 when that is not known."""
        self.counted_outputs = 0
        """How many output items are in that count."""
        self.steers: list[RunSteered] = []
        """What its user said meanwhile, oldest first."""
        self.approvals = [item for item in started.input if item.get("type") == APPROVAL_RESPONSE]
        """What was answered to requests for an approval."""
        self.taken_up = {
            item["approval_request_id"]
            for item in started.input
            if "approval_request_id" in item and item.get("type") != APPROVAL_RESPONSE
        }
        """Ids of those requests whose call was made, or refused, in this run."""
        self.programs: OpenPrograms = dict(programs or {})
        """Programs without an output, those that earlier runs left waiting first."""
        if self.programs or any(item.get("type") in BEGINNING for item in started.input):
            for held in self.input_items(start):
                take(self.programs, held)
        self.ended: RunEnded | None = None
        self.ended_at = 0

    @property
    def awaits_client(self) -> bool:
        """Whether its client has to answer calls, or a request for an approval, before anything can go on."""
        if any(program.waits for program in self.programs.values()):
            return True
        answer = self.output[self.answer_start :]
        return any(is_client_call(output.item) and not caller_of(output.item) for output in answer)

    @property
    def key(self) -> str:
        return ids.key_of(self.started.id)

    def apply(self, record: Fact, at: int) -> None:
        """Take in one of this run's entries after the first."""
        match record:
            case ItemFinished():
                self._finish_item(record)
            case ItemAbandoned():
                self.next_index = max(self.next_index, record.index + 1)
            case ToolDecided():
                self.decided[record.index] = record
            case ToolIntent():
                self.intents[record.index] = record
            case ToolOutcome():
                self.outcomes[record.index] = record
                self._settle(record)
            case RunSteered():
                self.steers.append(record)
            case RunEnded():
                self.ended = record
                self.ended_at = at
            case _:
                pass

    def _finish_item(self, record: ItemFinished) -> None:
        if self.finish and not record.own:
            self.finish = ""
            self.answer_start = len(self.output)
        if record.own:
            self.own.add(record.index)
        if "approval_request_id" in record.item:
            self.taken_up.add(record.item["approval_request_id"])
        prefix = item_prefix(record.item)
        identifier = ids.item_id(prefix, self.key, ids.OUTPUT_BASE + record.index)
        self.output.append(OutputItem(record.index, identifier, record.item))
        if self.programs or record.item.get("type") in BEGINNING:
            take(self.programs, ContextItem(identifier, record.item, self.start))
        self.next_index = max(self.next_index, record.index + 1)
        self.usage = add_usage(self.usage, record.usage)
        if record.finish:
            self.finish = record.finish
            self.answers += 1
            # A caller who has it cut gets a count of what was left, which says nothing of the whole.
            known = (
                record.usage is not None and not record.usage.estimated and self.started.settings.truncation != "auto"
            )
            self.counted_tokens = record.usage.input + record.usage.output if record.usage and known else 0
            self.counted_outputs = len(self.output)
        elif record.item.get("type") == COMPACTION and "upstream" not in record.item:
            self.counted_tokens, self.counted_outputs = 0, len(self.output)

    def _settle(self, outcome: ToolOutcome) -> None:
        """Write the outcome of a hosted call into its item."""
        status = "incomplete" if outcome.unknown else "failed" if outcome.failed else "completed"
        for position, held in enumerate(self.output):
            if held.index == outcome.index:
                item = {**held.item, **outcome.fields}
                if held.item.get("type") == HOSTED_CALL:
                    item |= {"output": outcome.output, "status": status}
                self.output[position] = OutputItem(held.index, held.id, item)
                take(self.programs, ContextItem(held.id, item, self.start))

    def input_items(self, seq: int) -> list[ContextItem]:
        """Its input with ids, erased items left out."""
        return identified(self.key, self.started.input, seq)

    def output_items(self, seq: int) -> list[ContextItem]:
        """Its output so far, with ids."""
        return [ContextItem(output.id, output.item, seq) for output in self.output]

    def view(self, *, stored: bool = True, settings: RunSettings | None = None, status: str = OPEN) -> RunView:
        """All that a surface needs to show the run; `status` says how it stands while it has not ended."""
        ended = self.ended
        return RunView(
            id=self.started.id,
            created_at=self.created_at,
            settings=settings or self.started.settings,
            status=ended.status if ended else status,
            output=tuple(self.output),
            usage=(ended.usage if ended else None) or self.usage,
            reason=ended.reason if ended else "",
            error=ended.error if ended else None,
            ended_at=self.ended_at,
            previous=self.started.previous,
            conversation=self.started.conversation,
            background=self.started.background,
            stored=stored,
        )


class BranchState:
    """What a branch holds after its entries up to `head`."""

    def __init__(self) -> None:
        self.head = -1
        self.items: list[ContextItem] = []
        """What a model sees of it, oldest first; grows at its end only."""
        self.steering: list[Item] = []
        """Those of them that steer later runs: they bring tools along, or change the configuration."""
        self.open: RunState | None = None
        self.programs: OpenPrograms = {}
        """Programs without an output: they wait for what clients have to answer."""
        self.steers: list[RunSteered] = []
        """What was said to the run at its head and is still to be taken in, by the run that continues it."""
        self.workspaces: list[tuple[int, WorkspaceAt]] = []
        """How the runs of the chain left the container that was made for it, each with the seq of its end."""
        self.conversation = ""
        self.metadata: dict[str, str] = {}
        self.deleted = False
        self.created_at = 0
        self.size = 0
        """Bytes of the entries that it was folded from."""
        self.compacted_at = 0
        """How many of its items stand up to its latest compaction."""
        self.counted_at = 0
        """How many of its items are in `counted_tokens`."""
        self.counted_tokens = 0
        """What a model said the context counted after its latest answer; 0 when that is not known."""

    def apply(self, entry: Entry) -> None:
        """Take in the next entry of the branch."""
        self.size += len(entry.body)
        self.apply_record(entry.seq, entry.run, entry.at, decode(entry.kind, entry.body))

    def begin_own(self) -> None:
        """What comes next is the branch's own: of its parent it has the items, not the conversation or an open run."""
        self.conversation, self.metadata, self.created_at, self.deleted = "", {}, 0, False
        self.open, self.steers = None, []

    def apply_record(self, seq: int, run: int, at: int, record: Fact) -> None:
        """As `apply`, for a record that is decoded already."""
        self.head = seq
        match record:
            case RunStarted():
                self.open = RunState(seq, record, at, self.programs)
                self.steers = []
            case ItemsAdded():
                self._extend(identified(record.key, record.items, seq))
            case ConversationCreated():
                self.conversation = record.id
                self.metadata = record.metadata
                self.created_at = at
                self.deleted = False
            case ConversationUpdated():
                self.metadata = record.metadata
            case ConversationDeleted():
                self.deleted = True
            case _:
                if self.open is not None and self.open.start == run:
                    self.open.apply(record, at)
                    if self.open.ended is not None:
                        self._close(self.open, seq)

    def _close(self, run: RunState, seq: int) -> None:
        self.open = None
        if run.ended is not None and run.ended.status in VISIBLE_ENDS:
            self._extend(run.input_items(seq))
            self.steers = run.steers
            before = len(self.items)
            self._extend(run.output_items(seq))
            self.workspaces += [(seq, each) for each in run.ended.workspaces if each.auto]
            if run.counted_outputs:
                self.counted_at, self.counted_tokens = before + run.counted_outputs, run.counted_tokens

    def _extend(self, items: list[ContextItem]) -> None:
        for held in items:
            self.items.append(held)
            kind = held.item.get("type")
            if self.programs or kind in BEGINNING:
                take(self.programs, held)
            if kind in STEERING:
                self.steering.append(held.item)
            elif kind == COMPACTION and "upstream" not in held.item:  # another server's begins nothing anew here
                self.compacted_at = len(self.items)
                self.counted_at = self.counted_tokens = 0

    def steering_of(self, run: RunState) -> list[Item]:
        """What steers an open run of the branch: what did before, its input, and what it has brought along itself."""
        own = [output.item for output in run.output if output.item.get("type") in STEERING]
        return [*self.steering, *run.started.input, *own]

    def erase(self, gone: Container[tuple[str, int]]) -> int:
        """Forget visible items, by id and seq; returns how many there were."""
        before = len(self.items)
        kept = [held for held in self.items if (held.id, held.seq) not in gone]
        self.items, self.steering, self.programs = [], [], {}
        self.compacted_at = self.counted_at = self.counted_tokens = 0
        self._extend(kept)
        return before - len(kept)

    def fork(self, seq: int) -> BranchState:
        """The state of a new branch that shares this one up to `seq`."""
        forked = self.first(bisect_right(self.items, seq, key=lambda held: held.seq))
        forked.head = seq
        forked.workspaces = [held for held in self.workspaces if held[0] <= seq]
        return forked

    def first(self, count: int) -> BranchState:
        """The state of a new branch that begins with so many of this one's items."""
        forked = BranchState()
        forked.size = self.size
        if count == len(self.items):
            forked.items, forked.steering = self.items[:], self.steering[:]
            forked.compacted_at, forked.programs = self.compacted_at, self.programs.copy()
            forked.counted_at, forked.counted_tokens = self.counted_at, self.counted_tokens
            forked.workspaces = self.workspaces[:]
        else:
            forked._extend(self.items[:count])
        return forked


def identified(key: str, items: list[Item], seq: int) -> list[ContextItem]:
    """Items of a run's input or an addition with their ids; erased ones are left out but keep their ordinals."""
    return [
        ContextItem(item.get("id") or ids.item_id(item_prefix(item), key, position), item, seq)
        for position, item in enumerate(items)
        if item.get("type") != "erased"
    ]


def named_once(items: list[Item], held: Iterable[ContextItem]) -> list[Item]:
    """The items, without their own ids where these are another's already; `held` is what the branch has.

    Lists are paged by ids, and items are named by them.
    """
    if not any("id" in item for item in items):
        return items
    taken = {each.id for each in held}
    named: list[Item] = []
    for item in items:
        own = item.get("id")
        named.append({name: value for name, value in item.items() if name != "id"} if own in taken else item)
        if own is not None:
            taken.add(own)
    return named


def configured(settings: RunSettings, steering: Iterable[Item]) -> RunSettings:
    """The settings with what `configuration_update` items say, as far as the caller did not say otherwise."""
    reasoning: dict[str, Any] = {}
    text: dict[str, Any] = {}
    for item in steering:
        if item.get("type") == "configuration_update":
            reasoning.update(item.get("reasoning") or {})
            text.update(item.get("text") or {})
    if not reasoning and not text:
        return settings
    return msgspec.structs.replace(
        settings,
        reasoning={**reasoning, **(settings.reasoning or {})} or None,
        text={**text, **(settings.text or {})} or None,
    )


def add_usage(total: Usage | None, more: Usage | None) -> Usage | None:
    """The sum of two counts, either of which may be missing."""
    if total is None or more is None:
        return total or more
    return Usage(
        total.input + more.input,
        total.output + more.output,
        total.cached + more.cached,
        total.reasoning + more.reasoning,
        total.estimated or more.estimated,
    )


def fold_run(entries: list[Entry]) -> RunState | None:
    """The state of one run from its own entries; None when its first entry is erased or missing."""
    run: RunState | None = None
    for entry in entries:
        record = decode(entry.kind, entry.body)
        if isinstance(record, RunStarted):
            run = RunState(entry.seq, record, entry.at)
        elif run is not None:
            run.apply(record, entry.at)
    return run
