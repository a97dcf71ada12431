"""The child process that reads a PDF: whatever a hostile file has it do, it does within bounds, and to nobody else.

Run as a script by `runtime.documents`, which writes one line of JSON with the bounds to its standard input, then the
file. It answers with one line of JSON and the text. It imports nothing of Stateroom.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import resource
import signal
import sys
import unicodedata
from typing import Any

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Read one file, answer, end."""
    answer = sys.stdout.buffer
    told = json.loads(sys.stdin.buffer.readline())
    _bound(told)
    text, said = "", {"error": "unreadable", "detail": "", "pages": 0}
    try:
        text = _read(sys.stdin.buffer.read(), told, said)
    except MemoryError:
        said["error"] = "too_complex"
    except (Exception, RecursionError) as error:  # whatever a hostile file brings about, the parent has to hear of it
        said["detail"] = type(error).__name__
    answer.write(json.dumps(said).encode() + b"\n" + text.encode("utf-8", "replace"))
    answer.flush()
    os._exit(0)  # nothing is left to be tidied, and large object graphs take long


def _bound(told: dict[str, Any]) -> None:
    """Die with the parent, and sooner than take its machine."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != told["parent"]:
        os._exit(1)
    sys.setrecursionlimit(2_000)
    bounds = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CPU, told["seconds"])]
    if sys.platform == "linux":  # elsewhere address space is counted in another way
        bounds.append((resource.RLIMIT_AS, told["memory"]))
    for what, most in bounds:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (most, most))


def _read(data: bytes, told: dict[str, Any], said: dict[str, Any]) -> str:
    """The text of all pages; why there is none goes into `said`."""
    import pypdf  # lazy: the bounds are set before any of its code runs

    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        said["error"] = "encrypted"
        return ""
    said["pages"] = len(reader.pages)
    if said["pages"] > told["pages"]:
        said["error"] = "too_many_pages"
        return ""
    texts: list[str] = []
    size, any_text = 0, False
    for number, page in enumerate(reader.pages, 1):
        try:
            text = _plain(page.extract_text()).strip()
            any_text = any_text or bool(text)
        except MemoryError:
            raise
        except (Exception, RecursionError):  # one page that is damaged does not spoil the others
            text = "[this page could not be read]"
        texts.append(f"[page {number}]\n{text}")
        size += len(texts[-1])
        if size > told["text"]:
            said["error"] = "too_much_text"
            return ""
    said["error"] = "" if any_text else "no_text"
    return "\n\n".join(texts) if any_text else ""


def _plain(text: str) -> str:
    """Without characters that are no text."""
    if text.isprintable():
        return text
    return "".join(each for each in text if each in "\n\t" or unicodedata.category(each) not in ("Cc", "Cs"))


if __name__ == "__main__":
    main()
