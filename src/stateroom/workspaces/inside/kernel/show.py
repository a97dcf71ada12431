"""What a cell shows besides what it prints: results, images, figures, and what went wrong."""

from __future__ import annotations

import base64
import importlib.abc
import io
import linecache
import os
import sys
import traceback
from typing import Any, Callable, Iterator

from . import frames

CELL = "<cell "
"""How the file names of cells begin."""
ERROR_CHARS = 32 * 1024
_HERE = os.path.dirname(os.path.abspath(__file__))
_PNG = b"\x89PNG\r\n\x1a\n"


class Screen:
    """Where results go. `image` sends one, `text` prints."""

    def __init__(self, image: Callable[[bytes], None], text: Callable[[str], None]) -> None:
        self._image = image
        self._text = text
        self._left = frames.IMAGES

    def begin(self) -> None:
        self._left = frames.IMAGES

    def display(self, *values: Any) -> None:
        """Show each as a notebook would: an image where it is one, else its repr."""
        for value in values:
            self.show(value)

    def show(self, value: Any) -> None:
        figure = _figure_type()
        if figure is not None and isinstance(value, figure):
            self._figure(value)
            return
        drawn = _drawn(value)
        if drawn is None:
            self._text(repr(value) + "\n")
        else:
            self.image(drawn)

    def image(self, png: bytes) -> None:
        if not png.startswith(_PNG):
            self._text("[an image that is no PNG was left out]\n")
        elif len(png) > frames.IMAGE_BYTES:
            self._text(f"[an image of {len(png)} bytes was left out: save it to a file]\n")
        elif self._left <= 0:
            self._text(f"[more than {frames.IMAGES} images: left out]\n")
        else:
            self._left -= 1
            self._image(png)

    def figures(self) -> None:
        """Show and close matplotlib's open figures."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        numbers = getattr(pyplot, "get_fignums", None)
        if pyplot is None or numbers is None:
            return
        try:
            for number in numbers():
                self._figure(pyplot.figure(number))
        finally:
            pyplot.close("all")

    def _figure(self, figure: Any) -> None:
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", bbox_inches="tight")
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            pyplot.close(figure)
        self.image(drawn.getvalue())


def _figure_type() -> Any:
    kind = getattr(sys.modules.get("matplotlib.figure"), "Figure", None)
    return kind if isinstance(kind, type) else None


def _drawn(value: Any) -> bytes | None:
    """Its own PNG, if its class draws one."""
    if isinstance(value, type) or getattr(type(value), "_repr_png_", None) is None:
        return None
    drawn = value._repr_png_()
    if isinstance(drawn, tuple) and drawn:
        drawn = drawn[0]
    if isinstance(drawn, str):
        drawn = base64.b64decode(drawn)
    return bytes(drawn) if isinstance(drawn, (bytes, bytearray, memoryview)) else None


class Figures(importlib.abc.MetaPathFinder):
    """Makes `pyplot.show()` show, once somebody imports pyplot, and imports nothing itself."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "matplotlib.pyplot":
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target) if finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Patched(spec.loader, self._screen)  # type: ignore[assignment]  # stands for a loader
                return spec
        return None


class _Patched:
    """A loader that changes `show` of what it has loaded."""

    def __init__(self, loader: Any, screen: Screen) -> None:
        self._loader = loader
        self._screen = screen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        screen = self._screen

        def show(*args: Any, **kwargs: Any) -> None:
            """Show and close every open figure."""
            screen.figures()

        module.show = show


def remember(filename: str, code: str) -> None:
    """So that tracebacks and `inspect` find the lines of a cell."""
    lines = [line + "\n" for line in code.split("\n")]
    linecache.cache[filename] = (len(code), None, lines, filename)


def told(error: BaseException) -> str:
    """A traceback without our own frames, in bounds."""
    try:
        shown = traceback.TracebackException(type(error), error, error.__traceback__)
        for one in _chain(shown):
            first = next((at for at, f in enumerate(one.stack) if f.filename.startswith(CELL)), 0)
            kept = [f for f in one.stack[first:] if not f.filename.startswith(_HERE)]
            one.stack = traceback.StackSummary.from_list(kept)
        text = "".join(shown.format())
    except Exception:  # an exception may do anything while it is described
        text = f"{type(error).__name__} (which cannot be shown)\n"
    if len(text) > ERROR_CHARS:
        half = ERROR_CHARS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    return text


def _chain(shown: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    waiting = [shown]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [e for e in (one.__cause__, one.__context__) if e is not None]
        waiting += getattr(one, "exceptions", None) or []
