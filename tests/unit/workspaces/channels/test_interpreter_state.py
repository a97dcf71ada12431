"""Saving the variables of an interpreter and bringing them back in another process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stateroom.workspaces.channels.interpreter import Interpreter, told
from tests.unit.workspaces.kernels import interpreter

MIB = 1024 * 1024


@pytest.fixture
async def python(tmp_path: Path) -> AsyncIterator[Interpreter]:
    made = interpreter(tmp_path)
    yield made
    await made.close()


async def logs(python: Interpreter, code: str) -> str:
    result = await python.run(code, timeout=20, output_bytes=200_000)
    assert result.error is None, result.error
    return result.logs


async def saved(python: Interpreter, *, bytes_max: int = 64 * MIB, seconds_max: float = 5.0) -> bytes:
    state = await python.save(bytes_max=bytes_max, seconds_max=seconds_max)
    assert state is not None
    assert len(state) <= bytes_max
    return state


async def moved(python: Interpreter, **bounds: Any) -> None:
    """From one process to a new one."""
    before = await logs(python, "import os\nos.getpid()")
    await python.restore(await saved(python, **bounds))
    await logs(python, "import os")
    assert await logs(python, "os.getpid()") != before


KINDS = """
import collections, datetime, decimal, enum, fractions, functools, pathlib, re, typing, uuid, dataclasses, abc, xml.dom
text, raw, number, big, fraction = 'ä\\ud800', b'\\0raw', 1.5, 2 ** 4000, fractions.Fraction(1, 3)
when = datetime.datetime(2020, 2, 29, tzinfo=datetime.timezone.utc)
pattern, path, counter = re.compile('a+', re.I), pathlib.PurePath('a/b'), collections.Counter('aab')
Point = collections.namedtuple('Point', 'x y')
point = Point(1, 2)
class Colour(enum.Enum):
    RED = 1
    BLUE = 2
red = Colour.RED
class Flag(enum.Flag):
    A = 1
    B = 2
flags = Flag.A | Flag.B
@dataclasses.dataclass(frozen=True)
class Data:
    n: int
    more: list = dataclasses.field(default_factory=list)
data = Data(3)
class Base(abc.ABC):
    @abc.abstractmethod
    def act(self): ...
    @property
    def name(self): return type(self).__name__
class Derived(Base):
    shared = {}
    __slots__ = ('a',)
    def act(self): return super().name + str(self.a)
    @classmethod
    def made(cls, a):
        it = cls(); it.a = a; return it
    @staticmethod
    def static(): return scale
derived = Derived.made(5)
scale = 2
def scaled(n): return n * scale
def outer():
    count = [0]
    def inner():
        count[0] += 1
        return count[0]
    return inner, lambda: count[0]
step, look = outer()
step()
partial = functools.partial(scaled, 4)
@functools.lru_cache
def cached(n): return scaled(n)
bound = derived.act
class Meta(type):
    def __call__(cls, *a): return super().__call__(*a)
class WithMeta(metaclass=Meta): pass
instance = WithMeta()
T = typing.TypeVar('T')
class Box(typing.Generic[T]): pass
box = Box[int]
async def later(): return scale
error = ValueError('kept')
uid = uuid.UUID(int=7)
names = {'scaled': scaled, 'derived': derived, 'colour': Colour}
everything = globals()
"""
CHECKS = """
assert text == 'ä\\ud800' and raw == b'\\0raw' and number == 1.5 and big == 2 ** 4000 and fraction * 3 == 1
assert when.year == 2020 and pattern.match('AA') and path.name == 'b' and counter['a'] == 2
assert point.y == 2 and type(point) is Point
assert red is Colour.RED and Colour(2) is Colour.BLUE and flags == Flag.A | Flag.B and isinstance(red, Colour)
assert data == Data(3) and data.more == [] and type(data) is Data
assert derived.act() == 'Derived5' and isinstance(derived, Base) and type(derived) is Derived and bound() == 'Derived5'
assert bound.__self__ is derived and Derived.static() == 2
assert scaled(3) == 6 and partial() == 8 and cached(3) == 6
scale = 10
assert scaled(3) == 30 and partial() == 40 and Derived.static() == 10 and cached(4) == 40
assert step() == 2 and look() == 2
assert type(type(instance)) is Meta and box == Box[int]
assert await later() == 10
assert str(error) == 'kept' and uid.int == 7
assert names['scaled'] is scaled and names['derived'] is derived and names['colour'] is Colour
assert everything is globals() and scaled.__globals__ is everything
assert xml.dom.Node and json_is_not_there()
try: Base()
except TypeError: pass
else: raise AssertionError
def json_is_not_there(): return False
"""


async def test_values_functions_and_classes_of_every_kind_come_back(python: Interpreter) -> None:
    await logs(python, KINDS + "def json_is_not_there(): return 'json' not in globals()\n")
    await moved(python)
    assert (python.lost, python.unsaved) == ({}, {})
    await logs(python, CHECKS)


async def test_two_names_for_one_object_stay_two_names_for_one_object(python: Interpreter) -> None:
    await logs(python, "a = []\nb = [a, a]\na.append(b)\nclass N: pass\nn = N(); n.me = n; n.a = a\nd = {'n': n, N: a}")
    await moved(python)
    assert await logs(python, "b[0] is b[1] is a, a[0] is b, n.me is n, n.a is a, d['n'] is n, d[N] is a") == (
        "(True, True, True, True, True, True)\n"
    )


async def test_what_cannot_be_saved_is_named_with_its_type_and_spoils_nothing(python: Interpreter) -> None:
    code = """
import re, socket, sqlite3, threading, asyncio, os, mmap, io
shared = ['shared']
generator = (i for i in shared)
async def wait(): pass
coroutine = wait()
sock, lock, database, file = socket.socket(), threading.Lock(), sqlite3.connect(':memory:'), open('/etc/passwd')
raw_file, memory, match, thread = open('/etc/passwd', 'rb'), mmap.mmap(-1, 10), re.match('a', 'a'), threading.Thread()
frame, nested, mapping = __import__('sys')._getframe(), [shared, [generator]], {'lock': lock, 's': shared}
after, text_io = [shared], io.StringIO('kept')
class Holder: pass
holder = Holder(); holder.inside = {'socket': sock}
def uses(): return lock
"""
    await logs(python, code)
    state = await saved(python)
    assert python.unsaved == {
        "generator": "generator",
        "coroutine": "coroutine",
        "sock": "socket.socket",
        "lock": "_thread.lock",
        "database": "sqlite3.Connection",
        "file": "_io.TextIOWrapper",
        "raw_file": "_io.BufferedReader",
        "memory": "mmap.mmap",
        "match": "re.Match",
        "thread": python.unsaved["thread"],
        "frame": "frame",
        "nested": "list (holds a generator)",
        "mapping": "dict (holds a _thread.lock)",
        "holder": python.unsaved["holder"],
    }
    assert python.unsaved["thread"].startswith("threading.Thread")
    assert python.unsaved["holder"].startswith("Holder (holds a socket")
    assert python.state == "live"
    assert await logs(python, "next(generator), holder.inside['socket'] is sock, lock.locked()") == (
        "('shared', True, False)\n"
    )
    await python.restore(state)
    assert python.state == "partial"
    assert set(python.lost) == set(python.unsaved) or python.lost == python.unsaved
    said = f"[{told('partial', python.lost)}]\n"
    assert await logs(python, "after[0] is shared, text_io.getvalue()") == said + "(True, 'kept')\n"
    assert await logs(python, "'lock' in globals(), callable(uses)") == "(False, True)\n"


BOMBS = """
import os, sys, time, threading
first = {'kept': [1, 2]}
class Bomb:
    def __init__(self, act): self.act = act
    def __reduce__(self): return self.act() or (str, ('done',))
def mutate(): first['kept'].append('spoilt'); raise ValueError('after that')
def stubborn():
    while True:
        try:
            while True: time.sleep(0.01)
        except BaseException: pass
class Liar:
    __class__ = property(lambda self: dict)
    __reduce_ex__ = property(lambda self: 1 / 0)
    def __getattr__(self, name): raise SystemExit(name)
class Hidden(type):
    __name__ = property(lambda cls: 1 / 0)
    __qualname__ = 'pretends'
    def __instancecheck__(cls, one): raise RuntimeError
class Unnamed(metaclass=Hidden):
    def __reduce__(self): raise BaseException
hangs = Bomb(lambda: time.sleep(60))
raises = Bomb(lambda: 1 / 0)
leaves = Bomb(lambda: sys.exit(1))
prints = Bomb(lambda: print('noise' * 100))
mutates = Bomb(mutate)
liar, unnamed = Liar(), Unnamed()
deep = []
for _ in range(100_000): deep = [deep]
last = [first]
"""


async def test_what_hangs_raises_prints_or_lies_while_it_is_saved_costs_itself_only(python: Interpreter) -> None:
    await logs(python, BOMBS)
    state = await saved(python, seconds_max=1.0)
    lost = python.unsaved
    assert lost.pop("deep") == "list (nested too deeply)"
    assert lost.pop("hangs") == "Bomb (took too long)"
    assert lost.pop("raises") == "Bomb (ZeroDivisionError: division by zero)"
    assert lost.pop("leaves").startswith("Bomb (")
    assert lost.pop("mutates").startswith("Bomb (ValueError")
    assert set(lost) == {"liar", "Unnamed", "unnamed"}
    assert await logs(python, "first, len(globals()['hangs'].__dict__)") == "({'kept': [1, 2]}, 1)\n"
    await python.restore(state)
    assert (await logs(python, "last[0] is first, prints")).endswith("(True, 'done')\n")


@pytest.mark.parametrize(
    ("act", "why"),
    [("os._exit(9)", "was not reached"), ("os.kill(os.getpid(), 11)", "was not reached"), ("stubborn()", "")],
)
async def test_what_kills_its_own_saving_leaves_the_kernel_and_what_was_saved_before(
    python: Interpreter, act: str, why: str
) -> None:
    await logs(python, BOMBS.replace("hangs =", f"killer = Bomb(lambda: {act})\nhangs ="))
    state = await saved(python, seconds_max=0.5)
    assert python.unsaved["killer"].startswith("Bomb (")
    assert why in python.unsaved["killer"]
    assert "first" not in python.unsaved
    assert await logs(python, "first") == "{'kept': [1, 2]}\n"
    await python.restore(state)
    assert python.state == "partial"
    assert "killer" in python.lost
    assert (await logs(python, "first")).endswith("{'kept': [1, 2]}\n")


async def test_a_state_is_bounded_in_bytes_and_what_is_too_large_is_named(python: Interpreter) -> None:
    code = (
        "small = 'small'\nlarge = bytes(3_000_000)\nboth = [small, large]\nmany = list(range(400_000))\ntail = [small]"
    )
    await logs(python, code)
    state = await saved(python, bytes_max=MIB)
    assert python.unsaved == {"large": "bytes (too large)", "both": "list (too large)", "many": "list (too large)"}
    await python.restore(state)
    assert (await logs(python, "tail[0] is small or tail[0] == small")).endswith("True\n")
    tiny = await python.save(bytes_max=600, seconds_max=2)
    assert tiny is not None
    assert len(tiny) <= 600


async def test_a_variable_that_takes_too_long_leaves_time_for_the_others(python: Interpreter) -> None:
    code = "import time\nclass Slow:\n    def __reduce__(self): time.sleep(30)\na, b, c = Slow(), [1], Slow()"
    await logs(python, code)
    loop = asyncio.get_running_loop()
    began = loop.time()
    state = await saved(python, seconds_max=0.6)
    assert loop.time() - began < 3
    assert python.unsaved == {"a": "Slow (took too long)", "c": "Slow (took too long)"}
    await python.restore(state)
    assert (await logs(python, "b")).endswith("[1]\n")


async def test_a_module_that_is_missing_costs_the_variables_that_need_it(python: Interpreter, tmp_path: Path) -> None:
    (tmp_path / "gone.py").write_text("class Thing: pass\nthing = Thing()\n")
    code = (
        "import gone, math, datetime\nfrom gone import Thing\nown = [1]\n"
        "a = [own, gone.Thing(), datetime.date.max, ['in a']]\n"
        "b = [a[1], own]\nc = [own]\nd = b[0]\nday, inner, around = datetime.date.min, a[3], [a]\n"
        "def f(at=a): return at\ndef g(at=own): return at"
    )
    await logs(python, code)
    state = await saved(python)
    (tmp_path / "gone.py").unlink()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    await python.restore(state)
    assert python.state == "partial"
    assert set(python.lost) == {"gone", "Thing", "a", "b", "d", "around", "f"}
    assert python.lost["gone"] == "module (needs the module gone)"
    assert (await logs(python, "c[0] is own is g(), math.pi > 3, inner, day.year")).endswith(
        "(True, True, ['in a'], 1)\n"
    )


async def test_modules_of_the_workspace_come_back_from_its_files(python: Interpreter, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine.py").write_text("value = 1\n")
    await logs(python, "import os, sys\nos.chdir('lib')\nimport mine\nsys.path.append('/nowhere')\nmine.value = 2")
    await moved(python)
    assert await logs(python, "mine.value, os.path.basename(os.getcwd()), '/nowhere' in sys.path") == (
        "(1, 'lib', True)\n"
    )


async def test_what_hangs_or_kills_while_it_is_restored_is_bounded(python: Interpreter) -> None:
    code = "class B:\n    def __reduce__(self): return (exec, (self.code,))\nok = [1]\nb = B()\nrest = [ok]\n"
    await logs(python, code + "b.code = '1 / 0'")
    await python.restore(await saved(python))
    assert python.state == "partial"
    assert python.lost == {"b": "B (ZeroDivisionError: division by zero)"}
    await logs(python, "b = B(); b.code = 'import os; os._exit(1)'")
    await python.restore(await saved(python))
    assert python.state == "fresh"
    assert await logs(python, "'ok' in globals()") == f"[{told('fresh', {})}]\nFalse\n"


@pytest.mark.parametrize("state", [b"", b"no state", b"stateroom variables 2\n", b"stateroom variables 1\nH\0\0\0\1x"])
async def test_a_state_that_is_none_gives_a_fresh_interpreter(python: Interpreter, state: bytes) -> None:
    await python.restore(state)
    assert (python.state, python.lost) == ("fresh", {})
    assert await logs(python, "1") == f"[{told('fresh', {})}]\n1\n"


async def test_a_state_that_was_cut_or_changed_is_restored_as_far_as_it_goes(python: Interpreter) -> None:
    await logs(python, "a = [1]\nb = bytes(1_000_000)\nc = [a]")
    state = await saved(python)
    await python.restore(state[: len(state) // 2])
    assert (await logs(python, "a, 'b' in globals()")).endswith("([1], False)\n")
    for at in range(40, len(state), len(state) // 20):
        await python.restore(state[:at] + bytes([state[at] ^ 0x55]) + state[at + 1 :])
        assert (await logs(python, "1 + 1")).endswith("2\n")


async def test_nothing_is_saved_where_there_is_nothing(python: Interpreter) -> None:
    assert await python.save(bytes_max=MIB, seconds_max=1) is None
    await logs(python, "x = 1")
    assert python.is_dirty
    await saved(python)
    assert not python.is_dirty


async def test_saving_many_times_over_generations_keeps_everything(python: Interpreter) -> None:
    await logs(python, KINDS)
    for _ in range(3):
        await moved(python)
        assert python.lost == {}
    await logs(python, "def json_is_not_there(): return True\n" + CHECKS)


async def test_a_saved_function_still_shows_its_lines_in_tracebacks(python: Interpreter) -> None:
    await logs(python, "def fails():\n    raise KeyError('here')  # this line")
    await moved(python)
    result = await python.run("fails()", timeout=10, output_bytes=1000)
    assert result.error is not None
    assert "# this line" in result.error
    assert '"<cell 5>"' in result.error


def another_python() -> str:
    """One of another minor version; empty: this machine has none."""
    for minor in range(8, 20):
        found = shutil.which(f"python3.{minor}") if minor != sys.version_info[1] else None
        if found is not None and os.system(f"{found} -c 'import ctypes' >/dev/null 2>&1") == 0:
            return found
    return ""


@pytest.mark.skipif(not another_python(), reason="this machine has one Python only")
async def test_another_python_restores_data_and_names_the_code_that_it_cannot_take(tmp_path: Path) -> None:
    here, there = interpreter(tmp_path), interpreter(tmp_path, python=another_python())
    await logs(
        here, "data = {'a': [1.5, 'x', b'y']}\ndef f(): return 1\nimport math\nclass C: pass\nc, d = C(), [data]"
    )
    await there.restore(await saved(here))
    assert there.state == "partial"
    assert set(there.lost) == {"f", "C", "c"}
    assert there.lost["f"] == "function (has code of another Python)"
    assert (await logs(there, "d[0] is data, data, math.pi > 3")).endswith("x', b'y']}, True)\n")
    await here.close()
    await there.close()


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
KEYS = st.integers() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
LINKS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)), max_size=25)
WALK = """
def walk(names):
    seen, out, waiting = {}, [], [globals().get(n) for n in names]
    def number(v):
        if not isinstance(v, (list, dict, Node)): return repr(v)
        if id(v) not in seen:
            seen[id(v)] = (len(seen), v)
            waiting.append(v)
        return seen[id(v)][0]
    out.append([number(v) for v in list(waiting)])
    done = set()
    while waiting:
        v = waiting.pop(0)
        if id(v) in done or not isinstance(v, (list, dict, Node)): continue
        done.add(id(v))
        items = v if isinstance(v, list) else [p for kv in (v if isinstance(v, dict) else vars(v)).items() for p in kv]
        out.append([type(v).__name__, [number(i) for i in items]])
    import json
    return json.dumps(out)
"""


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # each example starts two processes: shrinking would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(values=st.lists(VALUES, min_size=1, max_size=5), links=LINKS, bad=st.sets(st.integers(0, 9), max_size=3))
def test_any_graph_comes_back_as_it_was(
    tmp_path: Path, values: list[Any], links: list[tuple[int, int, int]], bad: set[int]
) -> None:
    asyncio.run(_a_graph_comes_back(tmp_path, values, links, bad))


async def _a_graph_comes_back(
    tmp_path: Path, values: list[Any], links: list[tuple[int, int, int]], bad: set[int]
) -> None:
    """Ten nodes, of four kinds, linked anyhow; those in `bad` hold a generator, and whoever reaches one is lost."""
    python = interpreter(tmp_path)
    lines = ["class Node: pass", WALK]
    made = ["[]", "{}", "Node()", "[None]"]
    lines += [f"n{i} = {made[i % 4]}" for i in range(10)]
    lines += [f"v{i} = {value!r}" for i, value in enumerate(values)]
    reaches: dict[int, set[int]] = {i: {i} for i in range(10)}
    for source, target, key in links:
        put = (f".append(n{target})", f"[{key}] = n{target}", f".a{key} = n{target}", f".insert(0, n{target})")
        lines.append(f"n{source}{put[source % 4]}")
    for one in bad:
        put = (".append(g())", "['g'] = g()", ".g = g()", ".append(g())")
        lines.append(f"n{one}{put[one % 4]}")
    lines.insert(0, "def g(): yield 1")
    edges: dict[int, dict[Any, int]] = {i: {} for i in range(10)}
    for at, (source, target, key) in enumerate(links):
        edges[source][at if source % 4 in (0, 3) else key] = target
    for _ in range(10):
        for source in range(10):
            for target in edges[source].values():
                reaches[source] |= reaches[target]
    lost = {f"n{i}" for i in range(10) if reaches[i] & bad}
    names = [f"n{i}" for i in range(10) if f"n{i}" not in lost] + [f"v{i}" for i in range(len(values))]
    try:
        await logs(python, "\n".join(lines))
        before = await logs(python, f"print(walk({names}))")
        state = await saved(python)
        assert set(python.unsaved) == lost
        await python.restore(state)
        assert set(python.lost) == lost
        after = (await logs(python, f"print(walk({names}))")).splitlines()[-1]
        assert json.loads(after) == json.loads(before)
    finally:
        await python.close()
