"""Content in the shape of Chat Completions: texts, user parts, tool outputs. Pure; chat_history makes the messages.

What callers name by URL is downloaded, under guard, before it gets here, and is a data URL by then. Any other URL goes
to no model server: many would fetch it, from a place in the network that callers must not reach through them.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

PART_SEPARATOR: Final = "\n"
"""Between text parts that become one string: what vLLM and llama.cpp put there themselves."""

IMAGES_BELOW: Final = "[The images that the tool returned are in the next message.]"

_encode = msgspec.json.Encoder().encode


def encode(value: Any) -> bytes:
    return _encode(value)


def plain_text(content: Any) -> str:
    """The text of a content that may hold nothing else: assistant and system messages, reasoning."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part_text(part) for part in content if isinstance(part, dict)]
    return PART_SEPARATOR.join([text for text in texts if text])


def part_text(part: dict[str, Any]) -> str:
    """The text of one part, whatever kind of text it is."""
    for field in ("text", "refusal", "transcript"):
        value = part.get(field)
        if isinstance(value, str):
            return value
    return ""


def user_content(content: Any) -> str | list[dict[str, Any]]:
    """The content of a user message: a string when there is only text, else parts."""
    if isinstance(content, str):
        return content
    given = content if isinstance(content, list) else []
    parts = [user_part(part) for part in given if isinstance(part, dict)]
    if all(part["type"] == "text" for part in parts):
        return PART_SEPARATOR.join([part["text"] for part in parts])
    return parts


def user_part(part: dict[str, Any]) -> dict[str, Any]:
    """One part of a user message. What has no place in the dialect is named in a text."""
    kind = part.get("type")
    if (image := image_part(part)) is not None:
        return image
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return _audio_part(part["input_audio"])
    if kind == "input_file":
        return _file_part(part)
    text = part_text(part)
    return {"type": "text", "text": text or ("" if "text" in part else f"[{kind}]")}


def image_part(part: dict[str, Any]) -> dict[str, Any] | None:
    """An image in the dialect's shape; None when the part is no image."""
    if part.get("type") not in ("input_image", "computer_screenshot"):
        return None
    url = part.get("image_url")
    if not isinstance(url, str) or not url.startswith("data:"):
        return {"type": "text", "text": "[an image that is not available]"}
    image = {"url": url}
    if part.get("detail") in ("low", "high"):
        image["detail"] = part["detail"]
    return {"type": "image_url", "image_url": image}


def _file_part(part: dict[str, Any]) -> dict[str, Any]:
    name = part.get("filename") or "file"
    data = part.get("file_data")
    if _is_content(data):
        return {"type": "file", "file": {"filename": name, "file_data": data}}
    return {"type": "text", "text": f"[the file {name} is not available]"}


def _audio_part(audio: dict[str, Any]) -> dict[str, Any]:
    if not _is_content(audio.get("data")):
        return {"type": "text", "text": "[a recording that is not available]"}
    return {"type": "input_audio", "input_audio": {name: audio[name] for name in ("data", "format") if name in audio}}


def _is_content(data: Any) -> bool:
    """Whether it is base64 or a data URL, as opposed to a URL that leads elsewhere."""
    return isinstance(data, str) and bool(data) and (data.startswith("data:") or ":" not in data)


def tool_output(output: Any) -> tuple[str, list[dict[str, Any]]]:
    """The text of a tool's output, and the images in it, which only a user message can hold."""
    if isinstance(output, str):
        return output, []
    if output is None:
        return "", []
    texts: list[str] = []
    images: list[dict[str, Any]] = []
    for part in output if isinstance(output, list) else [output]:
        if not isinstance(part, dict):
            texts.append(part if isinstance(part, str) else encode(part).decode())
        elif (image := image_part(part)) is not None:
            if image["type"] == "image_url":
                images.append(image)
            else:
                texts.append(image["text"])
        elif part.get("type") == "input_file":
            texts.append(f"[the file {part.get('filename') or 'file'}]")
        else:
            texts.append(part["text"] if isinstance(part.get("text"), str) else encode(part).decode())
    return PART_SEPARATOR.join(texts) or (IMAGES_BELOW if images else ""), images


def arguments_object(arguments: Any) -> str:
    """The arguments of a call as JSON of an object, which chat templates insist on."""
    if isinstance(arguments, dict):
        return encode(arguments).decode()
    text = arguments if isinstance(arguments, str) else ""
    if not text.strip():
        return "{}"
    try:
        held = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        held = None
    return text if isinstance(held, dict) else encode({"input": text}).decode()
