"""The front matter of a SKILL.md: the little of YAML in which texts are written, read strictly.

Plain, quoted and block texts of the fields that are asked for; other fields may hold what they like and are passed
over. What is read here is what every reader of YAML would read. What they might read otherwise is refused: anchors,
aliases, tags, lists and mappings where a text belongs, an unquoted colon, the words that stand for no text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

HEAD_BYTES: Final = 64 * 1024
"""In which the front matter has to end."""

_BLOCK: Final = re.compile(rb"\A(?:\xef\xbb\xbf)?---[ ]*\r?\n((?:.*\n)*?)---[ ]*(?:\r?\n|\Z)")
_UNSEEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_KEY: Final = re.compile(r"""(?:"([^"\\]*)"|'([^']*)'|([A-Za-z_][\w.-]*))[ ]*:(?:[ ]+(.*))?""")
_HEADER: Final = re.compile(r"[|>](?:([1-9])[+-]?|[+-]([1-9])?)?(?:[ ]+#.*)?")
_NO_TEXT: Final = re.compile(r"~|null|true|false|yes|no|on|off|=|<<", re.IGNORECASE)
_ESCAPE: Final = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})")
_ESCAPED: Final = {
    **{"0": "\0", "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b"},
    **{" ": " ", '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029"},
}


class Unreadable(ValueError):
    """It is none, or says what is asked for in no way that is read here. The text says what to change."""


def read_front_matter(head: bytes, wanted: Collection[str]) -> dict[str, str]:
    """The texts of the fields that are wanted, as far as they are there. `head` is the file's beginning.

    Raises Unreadable.
    """
    block = _BLOCK.match(head[:HEAD_BYTES])
    if block is None:
        raise Unreadable(f"has to begin with a line `---`, and a second one within {HEAD_BYTES} bytes")
    try:
        text = block.group(1).decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise Unreadable("is not UTF-8") from None
    if _UNSEEN.search(text):
        raise Unreadable("has characters that cannot be seen")
    return _fields(text.split("\n"), wanted)


def _fields(lines: Sequence[str], wanted: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    seen: set[str] = set()
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line.strip(" ") or line.startswith("#"):
            continue
        match = _KEY.fullmatch(line)
        if match is None:
            raise Unreadable(f"has in line {at + 1} no `name: text`")
        key = next(each for each in match.groups()[:3] if each is not None)
        if key in seen:
            raise Unreadable(f"has `{key[:64]}` twice")
        seen.add(key)
        begin = at
        while at < len(lines) and _goes_on(lines[at], texts=key in wanted):
            at += 1
        if key in wanted:
            try:
                found[key] = _text((match.group(4) or "").strip(" "), lines[begin:at])
            except Unreadable as why:
                raise Unreadable(f"has a `{key}` that {why}") from None
    return found


def _goes_on(line: str, *, texts: bool) -> bool:
    """Whether a line belongs to the field above it. Lists and comments may stand at the margin, texts may not."""
    return not line or line[0] in " \t" or (not texts and (line[0] == "#" or line[:2] in ("-", "- ")))


def _text(rest: str, body: Sequence[str]) -> str:
    if not rest or rest.startswith("#"):
        blank = next((number for number, line in enumerate(body) if line.strip(" ")), len(body))
        if blank == len(body):
            raise Unreadable("is empty")
        rest, body = body[blank].strip(" "), body[blank + 1 :]
        if rest[:1] in "|>#":
            raise Unreadable("does not begin beside its name")
    if rest[0] in "|>":
        return _block(rest, body)
    if any("\t" in line for line in (rest, *body)):
        raise Unreadable("has a tab; use spaces")
    if rest[0] in "\"'":
        return _quoted(rest[0], "\n".join((rest[1:], *(line.strip(" ") for line in body))))
    return _plain([rest, *body])


def _plain(lines: Sequence[str]) -> str:
    if lines[0][0] in "[]{},&*!%@`" or re.match(r"[-?:](?:\s|\Z)", lines[0]):
        raise Unreadable("is no text; put it in quotes if it is meant as one")
    said: list[str] = []
    ended = False
    for line in lines:
        line = line.strip(" ")
        if ended and line and not line.startswith("#"):
            raise Unreadable("goes on behind a comment; put it in quotes")
        if line.startswith("#"):
            ended = True
            continue
        line, comment, _ = re.sub(r"[ ]+#", "\0", line, count=1).partition("\0")
        ended = ended or bool(comment)
        if re.search(r":(?: |\Z)", line):
            raise Unreadable("has a colon followed by a space; put it in quotes")
        said.append(line)
    while not said[-1]:
        said.pop()
    text = _folded(said)
    if _NO_TEXT.fullmatch(text):
        raise Unreadable("stands for no text; put it in quotes")
    return text


def _quoted(quote: str, text: str) -> str:
    """`text` is what follows the opening quote."""
    said: list[str] = []
    line = ""
    at = 0
    while at < len(text):
        each = text[at]
        at += 1
        if each == quote:
            if quote == "'" and text[at : at + 1] == "'":
                line, at = line + "'", at + 1
                continue
            if re.fullmatch(r"[ ]*(?:[ ]#[^\n]*)?(?:\n(?:[ ]*#[^\n]*)?)*", text[at:]) is None:
                raise Unreadable("goes on behind its closing quote")
            return _folded([*said, line])
        if each == "\n":
            said.append(line.rstrip(" "))
            line = ""
        elif each == "\\" and quote == '"':
            escaped, at = _unescaped(text, at)
            line += escaped
        else:
            line += each
    raise Unreadable("has no closing quote")


def _unescaped(text: str, at: int) -> tuple[str, int]:
    if match := _ESCAPE.match(text, at):
        code = int(next(digits for digits in match.groups() if digits), 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise Unreadable("has an escape that is no character")
        return chr(code), match.end()
    if text[at : at + 1] not in _ESCAPED:  # a line that is to be joined to the next one is among these
        raise Unreadable("has a backslash that escapes nothing known; use single quotes")
    return _ESCAPED[text[at]], at + 1


def _block(header: str, body: Sequence[str]) -> str:
    match = _HEADER.fullmatch(header)
    if match is None:
        raise Unreadable(f"begins with `{header[:1]}`; put it in quotes if that is a part of it")
    given = match.group(1) or match.group(2)
    first = next((line for line in body if line.strip(" ")), "")
    indent = int(given) if given else len(first) - len(first.lstrip(" "))
    before = body[: body.index(first)] if first else ()
    if first.lstrip(" ")[:1] == "\t" or any(len(line) > indent for line in before):
        raise Unreadable("is indented unevenly")
    lines: list[str] = []
    for line in body:
        if line.strip(" ") and len(line) - len(line.lstrip(" ")) < indent:
            raise Unreadable("is indented unevenly")
        lines.append(line[indent:])
    if header[0] == "|":
        return "\n".join(lines)
    text, before, breaks = "", "", 0
    for line in lines:
        if not line:
            breaks += 1
            continue
        # Lines that are indented further stand as they are written.
        apart = not before or line[0] in " \t" or before[0] in " \t"
        text += "\n" * (breaks + 1) + line if apart else ("\n" * breaks or " ") + line
        before, breaks = line, 0
    return text


def _folded(lines: Sequence[str]) -> str:
    """Lines of a text that is no block: breaks between them are spaces, empty lines between them breaks."""
    text, breaks = "", 0
    for number, line in enumerate(lines):
        if not line and 0 < number < len(lines) - 1:
            breaks += 1
            continue
        text += ("\n" * breaks or " ") + line if number else line
        breaks = 0
    return text
