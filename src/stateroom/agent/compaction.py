"""Compaction: what a model goes on seeing of a context that has become too long, and what a summary stands for. Pure.

A compaction item begins the model's context anew. Before it stays what people said (within a bound, the newest first;
system and developer messages always), then comes the summary, then the *tail*: the last few items word by word, and
calls that still wait for their results. The branch keeps everything: only what the model sees begins anew.

`compacted` is the field of a packed compaction item that says so. It is ours alone: callers may not send it, and it is
never shown. What they carry instead is `encrypted_content`, which holds the same with the items themselves in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from stateroom.agent.pairs import call_id_of, is_call, is_result, waiting_calls, without_strays
from stateroom.agent.tokens import estimate_item, estimate_text
from stateroom.agent.truncation import INSTRUCTING
from stateroom.journal.entries import ContextItem, Item

COMPACTION: Final = "compaction"
FALLBACK: Final = "stateroom:fallback"
"""`created_by` of a compaction whose summary no model wrote."""

KEEP_MAX: Final = 20_000
TAIL_MAX: Final = 8_000
SUMMARY_MIN: Final = 256
SUMMARY_MAX: Final = 4_096
WAITING_MAX: Final = 32
"""Calls without a result that a compaction takes along; the newest ones."""
CARRIED_MAX: Final = 16 * 1024 * 1024
"""Bytes of what is sealed; beyond it images and then the oldest messages are left out."""


class Budget(msgspec.Struct, frozen=True):
    """How much of a context may stay, in estimated tokens."""

    keep: int
    """What people said before the tail."""
    tail: int
    summary: int


class Compacted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a compaction item stands for."""

    summary: str
    keep: int = 0
    """Bound on what people said before it, in estimated tokens; 0: none."""
    tail_ids: list[str] | None = None
    """The tail, where it stands in the context before the item; None: it is in `tail`."""
    kept: list[Item] = []
    """What people said before it, for contexts that do not hold it themselves."""
    tail: list[Item] = []
    programs: list[Item] = []
    """Items of the programs that wait, for contexts that do not hold them themselves: the model sees none of these."""


class Carried(msgspec.Struct, frozen=True, tag_field="stateroom", tag="compaction/1"):
    """What clients carry for us in `encrypted_content`."""

    compacted: Compacted
    created_by: str = ""


_DECODE: Final = msgspec.json.Decoder(Carried)


def to_seal(carried: Carried) -> str:
    """What is to be sealed."""
    return msgspec.json.encode(carried).decode()


def from_sealed(text: str) -> Carried | None:
    """What was sealed; None when it is something else."""
    try:
        return _DECODE.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None


def budget(tokens: int) -> Budget:
    """What may stay of a context that is compacted at so many tokens: less than two thirds of them in all."""
    quarter = max(SUMMARY_MIN, tokens // 4)
    return Budget(min(KEEP_MAX, quarter), min(TAIL_MAX, tokens // 6), min(SUMMARY_MAX, quarter))


def compacted_of(item: Item) -> Compacted | None:
    """What a packed item compacts; None when it is no compaction item, or one of another server."""
    if item.get("type") != COMPACTION:
        return None
    said = item.get("compacted")
    return msgspec.convert(said, Compacted) if said is not None else None


def begin_anew(
    before: Sequence[ContextItem], summary: ContextItem | None, compaction: ContextItem
) -> tuple[list[ContextItem], ContextItem]:
    """The context after a compaction item, and the message in it that holds the summary.

    `before` is the context so far; `summary` is the message in it that an earlier compaction left, which goes.
    """
    said = compacted_of(compaction.item)
    assert said is not None, "only compaction items of ours begin a context anew"
    if said.tail_ids is not None:
        tail = _by_ids(before, said.tail_ids)
        again = {id(held) for held in tail}
        known = [held for held in before if is_said(held.item) and held is not summary and id(held) not in again]
        kept = known
    else:
        tail = _embedded(compaction, said.tail, "t")
        repeated = {_words(item) for item in said.tail if is_said(item)}
        known = [
            held for held in before if is_said(held.item) and held is not summary and _words(held.item) not in repeated
        ]
        there = {_words(held.item) for held in known}
        kept = [*known, *_embedded(compaction, [item for item in said.kept if _words(item) not in there], "k")]
    told = ContextItem(compaction.id, summary_message(said.summary), compaction.seq)
    return [*newest(kept, said.keep), told, *tail], told


def _embedded(compaction: ContextItem, items: Sequence[Item], mark: str) -> list[ContextItem]:
    """Items that came in a compaction item, with ids of their own below its id."""
    return [ContextItem(f"{compaction.id}/{mark}{n}", item, compaction.seq) for n, item in enumerate(items)]


def owner_of(item_id: str) -> str:
    """The compaction item that an id of the context belongs to; '' for other ids."""
    return item_id.rpartition("/")[0]


def is_said(item: Item) -> bool:
    """Whether it is a message of a person or of whoever set the model up: such messages outlive a compaction."""
    role = item.get("role")
    return item.get("type", "message") == "message" and (role == "user" or role in INSTRUCTING)


def newest(messages: Sequence[ContextItem], tokens: int) -> list[ContextItem]:
    """The newest of what users said within a bound, at least the last; other messages are kept whatever they count."""
    if not tokens:
        return list(messages)
    chosen: list[ContextItem] = []
    left, any_yet = tokens, False
    for held in reversed(messages):
        if held.item.get("role") == "user":
            if left < 0 and any_yet:
                continue
            left -= estimate_item(held.item)
            if left < 0 and any_yet:
                continue
            any_yet = True
        chosen.append(held)
    chosen.reverse()
    return chosen


def tail_of(items: Sequence[ContextItem], summary: ContextItem | None, tokens: int) -> list[ContextItem]:
    """The last items of a context within a bound, pairs of call and result whole; calls that still wait come first.

    A question that nothing has followed yet is among them however long it is: it is what is to be answered.
    """
    start, left = len(items), tokens
    while start and items[start - 1] is not summary:
        last = items[start - 1].item
        left -= estimate_item(last)
        if left < 0 and (start < len(items) or last.get("role") != "user"):
            break
        start -= 1
    newest_items = without_strays([held for held in items[start:] if held.item.get("role") not in INSTRUCTING])
    there = {id(held) for held in newest_items}
    waiting = [held for held in waiting_calls(items) if id(held) not in there][-WAITING_MAX:]
    return [*waiting, *newest_items]


def gain(items: Sequence[ContextItem], summary: ContextItem | None, limits: Budget) -> int:
    """How many tokens compacting would save at least, by an estimate; negative when it would not."""
    tail = {id(held) for held in tail_of(items, summary, limits.tail)}
    rest = [held for held in items if id(held) not in tail and held is not summary]
    stays = newest([held for held in rest if is_said(held.item)], limits.keep)
    return (
        sum(estimate_item(held.item) for held in rest)
        - sum(estimate_item(held.item) for held in stays)
        - limits.summary
    )


def visible_ids(items: Sequence[ContextItem]) -> frozenset[str]:
    """The ids of a branch's items that its model sees word by word."""
    seen: list[ContextItem] = []
    summary: ContextItem | None = None
    for held in items:
        if compacted_of(held.item) is None:
            seen.append(held)
        else:
            seen, summary = begin_anew(seen, summary, held)
    return frozenset(held.id for held in seen)


def relevant(items: Sequence[ContextItem]) -> Sequence[ContextItem]:
    """Those of a branch's items that may be seen word by word, so that what they refer to has to be read.

    More than are seen at times, never fewer; cheap for items without a compaction.
    """
    last = max((n for n, held in enumerate(items) if held.item.get("type") == COMPACTION), default=-1)
    said = compacted_of(items[last].item) if last >= 0 else None
    if said is None:
        return items
    tail = frozenset(said.tail_ids or ())
    kept = newest([held for held in items[:last] if is_said(held.item) and held.id not in tail], said.keep)
    return [*kept, *(held for held in items[:last] if held.id in tail), *items[last:]]


def portable(item: Item, *, images: bool) -> Item:
    """An item as it is sealed: without its id, and without images where they are to be left out."""
    bare = {name: value for name, value in item.items() if name != "id"}
    for field in ("content", "output"):
        parts = bare.get(field)
        if isinstance(parts, list):
            bare[field] = [_portable_part(part, images=images) for part in parts]
    return bare


def _portable_part(part: Any, *, images: bool) -> Any:
    if not isinstance(part, dict) or part.get("type") not in ("input_image", "input_file", "computer_screenshot"):
        return part
    if images and "blob" not in part and "text_blob" not in part:
        return part
    return {"type": "input_text", "text": "[a picture or file that is not carried along]"}


def _words(item: Item) -> tuple[Any, str]:
    """What tells messages apart: who said it, and the text."""
    return item.get("role"), text_of(item.get("content"))


def _by_ids(items: Sequence[ContextItem], wanted: Iterable[str]) -> list[ContextItem]:
    """The items with these ids, each the last of its id, in their order."""
    left = set(wanted)
    found = []
    for held in reversed(items):
        if held.id in left:
            left.discard(held.id)
            found.append(held)
    found.reverse()
    return found


def text_of(content: Any) -> str:
    """The text of a message's content or a result's output; a word for what is no text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else msgspec.json.encode(content).decode()
    texts = []
    for part in content:
        if isinstance(part, dict):
            text = part.get("text", part.get("refusal"))
            texts.append(text if isinstance(text, str) else f"[{part.get('type', 'something')}]")
    return "\n".join(texts)


# What the model is told.

_HEAD: Final = (
    "[What came before this point in the conversation was replaced by this summary of it. Go on from here; do not "
    "mention the summary unless you are asked about it.]\n\n"
)


def summary_message(summary: str) -> Item:
    """The summary as the model sees it."""
    return {"role": "user", "content": _HEAD + summary}


def prompt(limits: Budget) -> Item:
    """The request for a summary, which stands behind everything that is to be summarised."""
    words = max(100, limits.summary * 2 // 5)
    return {"role": "user", "content": PROMPT.format(words=words)}


PROMPT: Final = """\
[The conversation above has become too long and is about to be replaced by a summary. Write that summary now. Do not \
answer the last message, do not go on with the work, and call no tools.]

Whoever goes on from your summary sees nothing of the conversation but it and the latest messages of the user. Put \
down, as far as there is any of it:
- what the user wants, with every instruction, preference and limit they gave
- what is established: names, numbers, dates, identifiers, paths and URLs, letter by letter
- what was decided and why, and what was tried and failed
- which files were read, made or changed, and what in them matters
- what tools returned that will still be needed
- what is open: unfinished tasks, unanswered questions, the very next step

If the conversation begins with an earlier summary, take over what still holds. Write in the language of the user, as \
plain text of at most {words} words, and begin at once."""


# The summary that needs no model.

_USER_CHARACTERS: Final = 600
_ASSISTANT_CHARACTERS: Final = 400
_ARGUMENT_CHARACTERS: Final = 160
_RESULT_CHARACTERS: Final = 240
_LEFT_OUT: Final = "[… more came before, which is left out here …]"


def plain_summary(
    items: Sequence[ContextItem], summary: ContextItem | None, stays: Callable[[ContextItem], bool], tokens: int
) -> str:
    """A summary without a model: the beginnings of what was said, called and returned, the newest first to be kept.

    What `stays` in the context word by word is not repeated. Always gives something, within the bound.
    """
    earlier = ""
    if summary is not None:
        earlier = _cut_to(str(summary.item["content"]).removeprefix(_HEAD), tokens // 2)
    left = tokens - estimate_text(earlier.encode()) - estimate_text(_LEFT_OUT.encode()) - 8
    lines: list[str] = []
    complete = True
    for held in reversed(items):
        if held is summary or stays(held):
            continue
        line = _line(held.item)
        if not line:
            continue
        left -= estimate_text(line.encode()) + 1
        if left < 0:
            complete = False
            break
        lines.append(line)
    lines.reverse()
    parts = [earlier, *(() if complete else (_LEFT_OUT,)), *lines]
    return "\n".join(part for part in parts if part) or "[Nothing was said before this point that is not shown here.]"


def _line(item: Item) -> str:
    kind = item.get("type", "message")
    if kind == "message":
        who, most = (
            ("Assistant", _ASSISTANT_CHARACTERS) if item.get("role") == "assistant" else ("User", _USER_CHARACTERS)
        )
        said = _short(text_of(item.get("content")), most)
        return f"{who}: {said}" if said else ""
    if is_result(item):
        return f"Result of {call_id_of(item)[:40]}: {_short(text_of(item.get('output')), _RESULT_CHARACTERS)}"
    if is_call(item):
        given = item.get("arguments", item.get("input", item.get("action", "")))
        told = given if isinstance(given, str) else msgspec.json.encode(given).decode()
        name = str(item.get("name") or kind.removesuffix("_call"))
        return f"Called {name[:64]} ({call_id_of(item)[:40]}): {_short(told, _ARGUMENT_CHARACTERS)}"
    return ""


def _short(text: str, most: int) -> str:
    flat = " ".join(text.split()) if len(text) <= 8 * most else " ".join(text[: 8 * most].split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def _cut_to(text: str, tokens: int) -> str:
    """The beginning of a text within a bound."""
    while text and estimate_text(text.encode()) > tokens:
        text = text[: len(text) * 3 // 4]
    return text


def carried(
    compacted: Compacted,
    kept: Sequence[ContextItem],
    tail: Sequence[ContextItem],
    created_by: str,
    programs: Sequence[Item] = (),
) -> Carried:
    """What clients are to carry: the same with its items in it, within the bound on its size."""
    for images in (True, False):
        whole = Compacted(
            summary=compacted.summary,
            keep=compacted.keep,
            kept=[portable(held.item, images=False) for held in kept],
            tail=[portable(held.item, images=images) for held in tail],
            programs=list(programs),
        )
        if len(msgspec.json.encode(whole)) <= CARRIED_MAX:
            return Carried(whole, created_by)
    return Carried(Compacted(summary=compacted.summary, keep=compacted.keep), created_by)
