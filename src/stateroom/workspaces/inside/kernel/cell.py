"""One cell: compiled as a notebook would, carried out, its last expression shown."""

from __future__ import annotations
import __future__

import ast
import builtins
import inspect
import linecache
from typing import Any

from . import magics, show

_SOURCES_CHARS = 256 * 1024
"""Lines of earlier cells that are kept with the variables, for tracebacks."""
_FUTURE = 0
for _name in __future__.all_feature_names:
    _FUTURE |= getattr(__future__, _name).compiler_flag


class Cells:
    """The cells of one namespace."""

    def __init__(self, namespace: dict[str, Any], screen: show.Screen) -> None:
        self.namespace = namespace
        self.screen = screen
        self.count = 0
        self.future = 0
        self.sources: dict[str, str] = {}
        self._loop: Any = None

    def next(self, code: str) -> Cell:
        self.count += 1
        filename = f"{show.CELL}{self.count}>"
        self.remember(filename, code)
        return Cell(self, filename, code)

    def remember(self, filename: str, code: str) -> None:
        self.sources[filename] = code
        while len(self.sources) > 1 and sum(map(len, self.sources.values())) > _SOURCES_CHARS:
            oldest = next(iter(self.sources))
            del self.sources[oldest]
            linecache.cache.pop(oldest, None)
        show.remember(filename, code)

    def wait_for(self, coroutine: Any) -> Any:
        """Run it in a loop that is the same in all cells, so that what belongs to a loop can be used in later ones."""
        import asyncio  # only for cells that wait

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                self._loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            raise


class Cell:
    def __init__(self, cells: Cells, filename: str, code: str) -> None:
        self._cells = cells
        self._filename = filename
        self._code = code

    def run(self) -> None:
        """Raises whatever it raises."""
        try:
            body, last = self._compiled()
        except (SyntaxError, ValueError) as error:
            error.__traceback__ = None  # the compiler's frames say nothing
            raise
        if body is not None:
            self._execute(body)
        if last is not None:
            value = self._execute(last)
            if value is not None:
                setattr(builtins, "_", value)
                self._cells.screen.show(value)

    def _compiled(self) -> tuple[Any, Any]:
        tree = magics.parse(self._code, self._filename)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not self._is_silenced():
            last = self._compile(ast.Expression(tree.body.pop().value), "eval")  # type: ignore[attr-defined]  # an Expr
        return self._compile(tree, "exec") if tree.body else None, last

    def _is_silenced(self) -> bool:
        """Whether it ends with a semicolon."""
        last = self._code.rstrip().rpartition("\n")[2]
        return last.partition("#")[0].rstrip().endswith(";")

    def _compile(self, tree: Any, mode: str) -> Any:
        flags = self._cells.future | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(tree, self._filename, mode, flags=flags, dont_inherit=True)
        self._cells.future |= code.co_flags & _FUTURE
        return code

    def _execute(self, code: Any) -> Any:
        value = eval(code, self._cells.namespace)
        if code.co_flags & inspect.CO_COROUTINE:
            return self._cells.wait_for(value)
        return value
