"""Reading on where a variable could not be restored, for the sake of what others share with it.

Pickles refer to what stood in earlier ones: to a list that was part of a lost variable, but also to a class that was
merely mentioned there first. What can be made is made; what cannot, and whatever holds it, is left out of the memo.
"""

from __future__ import annotations

import gc
import pickle
import types
from typing import Any, Callable

_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, str, bytes, int, float, bool, type(None))


def is_plain(value: Any) -> bool:
    """Whether it holds nothing, or was there before."""
    return issubclass(type(value), _OPAQUE) and getattr(value, "__module__", "") != "__main__"


class _Gone:
    """Stands for what could not be made, and takes whatever it is filled with."""

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


GONE = _Gone()


_Unpickler: Any = pickle._Unpickler  # the one in Python, whose operations can be replaced


class Salvage(_Unpickler):  # type: ignore[misc]  # see above
    """An unpickler that goes on."""

    dispatch = dict(_Unpickler.dispatch)

    def __init__(self, file: Any, find: Callable[[str, str], Any], namespace: dict[str, Any], memo: Any) -> None:
        super().__init__(file)
        self.memo = memo
        self._find = find
        self._namespace = namespace
        self._bad: dict[int, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._find(module, name)
        except Exception:  # a module that is missing, or fails to load in its own way
            return GONE

    def holds_gone(self, root: Any) -> bool:
        """Whether it is, or leads to, what could not be made."""
        seen: set[int] = set()
        waiting = [root]
        while waiting:
            one = waiting.pop()
            if one is GONE or id(one) in self._bad:
                return True
            if id(one) in seen or one is self._namespace or issubclass(type(one), _OPAQUE):
                continue
            seen.add(id(one))
            if type(one) is types.FunctionType:
                waiting += [one.__defaults__, one.__kwdefaults__, one.__closure__, one.__dict__]
            else:
                waiting += gc.get_referents(one)
        return False

    def reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        made: Any = GONE
        if not self.holds_gone((function, args)):
            try:
                made = function(*args)
            except Exception:  # as when it was tried first
                made = GONE
        if made is GONE and getattr(function, "__name__", "").endswith("_setstate"):
            self._bad[id(args[0])] = args[0]  # cloudpickle fills functions and classes by a call
        self.stack[-1] = made

    def new_object(self) -> None:
        args = self.stack.pop()
        kind = self.stack.pop()
        self.stack.append(GONE if self.holds_gone((kind, args)) else self._new(kind, args, {}))

    def new_object_with_names(self) -> None:
        kwargs = self.stack.pop()
        args = self.stack.pop()
        kind = self.stack.pop()
        self.stack.append(GONE if self.holds_gone((kind, args, kwargs)) else self._new(kind, args, kwargs))

    @staticmethod
    def _new(kind: Any, args: Any, kwargs: Any) -> Any:
        try:
            return kind.__new__(kind, *args, **kwargs)
        except Exception:  # as when it was tried first
            return GONE

    def build(self) -> None:
        made, state = self.stack[-2], self.stack[-1]
        if made is not GONE and not self.holds_gone(state):
            try:
                _Unpickler.load_build(self)
                return
            except Exception:  # as when it was tried first
                pass
        self.stack[-2:] = [made]
        self._bad[id(made)] = made


for _code, _operation in (
    (pickle.REDUCE, Salvage.reduce),
    (pickle.NEWOBJ, Salvage.new_object),
    (pickle.NEWOBJ_EX, Salvage.new_object_with_names),
    (pickle.BUILD, Salvage.build),
):
    Salvage.dispatch[_code[0]] = _operation
