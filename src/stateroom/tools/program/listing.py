"""The tool that the model sees: a function that takes code, with the tools the code may call listed as TypeScript.

Pure: the same tools in any order give the same text, byte for byte, so that model servers find it in their caches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from stateroom.tools.program.contract import ProgramTool
from stateroom.tools.tool import HostedFunction

NAME = "program"
LISTING_CHARACTERS = 32_000
"""Beyond it tools are listed by name only."""
_DESCRIPTION_CHARACTERS = 600
_NOTE_CHARACTERS = 200
_DEPTH = 6
_MEMBERS = 60
_NODES = 1000
"""Of one schema, that are looked at."""
_SIMPLE = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}
_PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*\Z")
_RESERVED = re.compile(
    r"arguments|async|await|break|case|catch|class|const|continue|debugger|default|delete|do|else|enum|eval|export|"
    r"extends|false|finally|for|function|if|implements|import|in|instanceof|interface|let|new|null|of|package|private|"
    r"protected|public|return|static|super|switch|this|throw|true|try|typeof|undefined|var|void|while|with|yield"
)
_INTRODUCTION = """\
Run a JavaScript program that calls tools. Use it when several calls belong together, or when what tools answer should \
be filtered, joined or counted before you read it. `code` is the body of an async function: use `await` freely, call \
independent tools together with `Promise.all`, and put out what you want to see with `text(value)` or `return value`. \
Only that comes back to you. A tool that fails throws an error. There is no network, no file system, no Node.js and \
no `import`; the clock stands still, and nothing stays between programs.

"""
_CODE = "Body of an async JavaScript function."


def program_function(tools: Sequence[ProgramTool]) -> HostedFunction:
    """What the model is offered."""
    lines, left = [], LISTING_CHARACTERS
    for tool in sorted(tools, key=lambda tool: tool.name):
        line = _declaration(tool)
        if len(line) > left:
            line = f"{_member(tool.name)}: (args: any) => Promise<any>;  // too long to be shown"
        left -= len(line)
        lines.append(line)
    listing = "declare const tools: {\n" + "\n".join(lines) + "\n};" if lines else "There are no tools to call."
    return HostedFunction(
        NAME,
        _INTRODUCTION + listing,
        {
            "type": "object",
            "properties": {"code": {"type": "string", "description": _CODE}},
            "required": ["code"],
            "additionalProperties": False,
        },
    )


def is_plain(name: str) -> bool:
    """Whether a program can write the name as it is; otherwise it is `tools["name"]`."""
    return _PLAIN.match(name) is not None and _RESERVED.fullmatch(name) is None


def _declaration(tool: ProgramTool) -> str:
    text = _comment(tool.description, _DESCRIPTION_CHARACTERS)
    comment = f"  /** {text} */\n" if text else ""
    takes = "text: string" if tool.parameters is None else f"args: {_Types(tool.parameters).of(tool.parameters)}"
    gives = "any" if tool.output_schema is None else _Types(tool.output_schema).of(tool.output_schema)
    return f"{comment}{_member(tool.name)}: ({takes}) => Promise<{gives}>;"


def _member(name: str) -> str:
    return f"  {name if is_plain(name) else json.dumps(name)}"


class _Types:
    """Says a JSON schema as a type. What cannot be said is `any`: it is to be read, nothing is checked against it."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._left = _NODES

    def of(self, schema: Any, depth: int = 0) -> str:
        self._left -= 1
        if not isinstance(schema, dict) or depth > _DEPTH or self._left < 0:
            return "any"
        if "$ref" in schema:
            return self.of(_referred(schema["$ref"], self._root), depth + 1)
        if "const" in schema:
            return _literal(schema["const"])
        if isinstance(schema.get("enum"), list):
            return _union([_literal(value) for value in schema["enum"][:_MEMBERS]])
        for word in ("anyOf", "oneOf"):
            if isinstance(schema.get(word), list):
                return _union([self.of(one, depth + 1) for one in schema[word][:_MEMBERS]])
        return self._of_kind(schema, schema.get("type"), depth)

    def _of_kind(self, schema: dict[str, Any], kind: Any, depth: int) -> str:
        if isinstance(kind, list):
            return _union([self._of_kind(schema, one, depth) for one in kind[:_MEMBERS] if isinstance(one, str)])
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema, depth)
        if kind == "array":
            return f"Array<{self.of(schema.get('items'), depth + 1)}>"
        return _SIMPLE.get(kind, "any") if isinstance(kind, str) else "any"

    def _object(self, schema: dict[str, Any], depth: int) -> str:
        properties, more = schema.get("properties"), schema.get("additionalProperties")
        if not isinstance(properties, dict) or not properties:
            if isinstance(more, dict):
                return f"{{ [key: string]: {self.of(more, depth + 1)} }}"
            return "{}" if more is False or properties == {} else "object"
        required = schema.get("required")
        members = []
        for name, one in list(properties.items())[:_MEMBERS]:
            written = name if _PLAIN.match(name) else json.dumps(name)
            optional = "" if isinstance(required, list) and name in required else "?"
            members.append(f"{written}{optional}: {self.of(one, depth + 1)}{_note(one)}")
        if len(properties) > _MEMBERS:
            members.append("[key: string]: any")
        return "{ " + "; ".join(members) + " }"


def _note(schema: Any) -> str:
    text = schema.get("description") if isinstance(schema, dict) else None
    return f" /* {_comment(text, _NOTE_CHARACTERS)} */" if isinstance(text, str) and text.strip() else ""


def _comment(text: str, most: int) -> str:
    text = " ".join(text.replace("*/", "* /").split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _referred(reference: Any, root: dict[str, Any]) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: Any = root
    for part in reference[1:].split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | int | float | bool | None) else "any"


def _union(types: list[str]) -> str:
    return " | ".join(dict.fromkeys(types)) or "never"
