"""Programs that mean harm, or loop by mistake: bounded, told of it, and harmless to everyone else."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stateroom.tools.program import child
from stateroom.tools.program.confinement import filter_for
from stateroom.tools.program.contract import Failed, Finished, ProgramAnswer, ProgramCall, ProgramLimits
from stateroom.tools.program.engine import Programs
from stateroom.tools.program.process import EngineProcess, Gone
from tests.unit.tools.program.stage import KEY, SMALL, Tools, children, is_running, mine, run, until

LOOPS = [
    "for (;;);",
    "for (;;) { try { for (;;); } catch {} }",
    "for (;;) await null",
    "await a({}); for (;;);",
    "setTimeout(() => { for (;;); }); await new Promise(() => {})",
    "return {toJSON() { for (;;); }}",
    "throw {get message() { for (;;); }, toJSON() { for (;;); }}",
    "Object.defineProperty(Promise.prototype, 'constructor', {get() { for (;;); }}); await a({})",
    "class E extends Error { toString() { for (;;); } }; throw new E()",
    "text({[Symbol.toPrimitive]() { for (;;); }, toJSON() { for (;;); }})",
    "return /(a+)+$/.test('a'.repeat(60) + 'b')",
    "return /^(\\w+\\s?)*$/.test('word '.repeat(40) + '!')",
    "return 'a'.repeat(50000).replace(/a*a*a*a*a*b/g, '').length",
    "let x = 3n; for (;;) x = (x * x) % (1n << 4000n)",
    "new Function('for (;;);')()",
    "eval('for (;;);')",
    "[3, 1, 2].sort(() => { for (;;); })",
    "function* g() { for (;;) yield 1 } for (const x of g());",
    "new Proxy({}, {get() { for (;;); }}).x",
    "a({}).finally(() => { for (;;); }); await new Promise(() => {})",
]

BOMBS = [
    "const again = () => Promise.resolve().then(again); await again()",
    "const a = []; for (;;) a.push(new Array(100000).fill(1))",
    "const a = []; for (;;) a.push({})",
    "let s = 'x'; for (;;) s += s",
    "return 'x'.repeat(2 ** 30)",
    "return new Uint8Array(2 ** 31)",
    "const all = []; for (;;) all.push(new ArrayBuffer(1 << 20))",
    "const m = new Map(); for (let i = 0; ; i++) m.set(i, {})",
    "const o = {}; for (let i = 0; ; i++) o['k' + i] = i",
    "const s = new Set(); for (let i = 0; ; i++) s.add(Symbol())",
    "const keep = []; for (;;) keep.push(new Promise(() => {}))",
    "for (;;) setTimeout(() => 0)",
    "return new Array(2 ** 32 - 1).fill(0)",
    "return 2n ** (2n ** 40n)",
    "return [1].concat(...new Array(1000000).fill([1]))",
    "return JSON.parse('['.repeat(5000000))",
    "let x = []; for (let i = 0; i < 1000000; i++) x = [x]; return x",
    "const f = () => f() + 1; return f()",
    "class A { constructor() { new A() } } new A()",
    "let p = Promise.resolve(); for (;;) p = p.then(() => 1)",
    "return '1'.repeat(20000000).replace(/1/g, '11')",
    "return 'x'.padEnd(2 ** 29).split('')",
    "return new RegExp('('.repeat(1000000))",
    "eval('('.repeat(1000000))",
    "eval('x = [' + '['.repeat(300000))",
]


@pytest.mark.parametrize("code", LOOPS)
async def test_a_loop_without_end_is_ended(code: str) -> None:
    began = time.monotonic()
    outcome = await run(code)
    assert isinstance(outcome, Failed)
    assert outcome.why == "limit"
    assert outcome.error == "The program computed for longer than 0.25 seconds, tools not counted"
    assert time.monotonic() - began < 10
    assert mine() == []


@pytest.mark.parametrize("code", BOMBS)
async def test_a_bomb_goes_off_in_its_own_process(code: str) -> None:
    own, before = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    outcome = await run(code)
    assert isinstance(outcome, Failed)
    assert outcome.why in ("limit", "error")
    assert mine() == []
    # Of the biggest child so far: other tests had some; it shares this process's until it becomes another program; and
    # then there is the bound, the answer on its way out, and Python.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(own, before, 250 * 1024)


async def test_memory_that_ran_out_can_be_caught_and_tools_can_still_be_called() -> None:
    code = (
        "try { const a = []; for (;;) a.push(new Array(100000).fill(1)) } catch (e) { text(`${e}`) } return await a({})"
    )

    async def call(call: ProgramCall) -> ProgramAnswer:
        return ProgramAnswer("fine")

    assert await run(code, call) == Finished("InternalError: out of memory\nfine")


async def test_time_spent_in_tools_does_not_count() -> None:
    async def call(call: ProgramCall) -> ProgramAnswer:
        await asyncio.sleep(0.3)
        return ProgramAnswer("x")

    limits = ProgramLimits(cpu_seconds=0.2, wall_seconds=0.5)
    assert await run("for (let i = 0; i < 3; i++) await a({}); return 1", call, limits=limits) == Finished("1")


async def test_the_bound_on_time_is_over_all_steps_together() -> None:
    tools = Tools()
    code = "for (;;) { for (let i = 0; i < 300000; i++); await a({}) }"
    outcome = await run(code, tools, limits=ProgramLimits(cpu_seconds=0.3, calls=100_000))
    assert isinstance(outcome, Failed)
    assert outcome.why == "limit"
    assert 1 < len(tools.calls) < 1000


async def test_a_process_that_does_not_move_is_ended_after_the_wall_time() -> None:
    async def call(call: ProgramCall) -> ProgramAnswer:
        for pid in mine():
            os.kill(pid, signal.SIGSTOP)
        return ProgramAnswer("x")

    outcome = await run("await a({})", call, limits=ProgramLimits(wall_seconds=1.0))
    assert outcome == Failed("The program took longer than 1 seconds", "limit")
    assert mine() == []


async def test_output_is_cut_off() -> None:
    limits = ProgramLimits(output_bytes=10)
    outcome = await run("text('12345678'); text('abcdef'); text('more'); console.log('x'.repeat(50))", limits=limits)
    assert outcome == Finished("12345678\nab\n\n[cut off after 10 characters]", "x" * 10, True)


async def test_calls_are_counted() -> None:
    tools = Tools()
    outcome = await run("for (;;) await a({})", tools, limits=ProgramLimits(calls=7))
    assert isinstance(outcome, Failed)
    assert "no more than 7 tool calls" in outcome.error
    assert len(tools.calls) == 7


async def test_arguments_are_bounded_together() -> None:
    tools = Tools()
    limits = ProgramLimits(arguments_bytes=1000)
    outcome = await run("for (;;) await a({x: 'y'.repeat(300)})", tools, limits=limits)
    assert isinstance(outcome, Failed)
    assert "arguments of the program's calls are too long" in outcome.error
    assert len(tools.calls) == 3


async def test_an_answer_that_is_too_long_is_a_failure_the_program_hears_of() -> None:
    async def call(call: ProgramCall) -> ProgramAnswer:
        return ProgramAnswer("x" * 1001)

    code = "try { await a({}) } catch (e) { return e.message }"
    outcome = await run(code, call, limits=ProgramLimits(answer_bytes=1000))
    assert outcome == Finished("The tool's answer is 1001 bytes long; a program is given 1000 at most")


async def test_code_is_bounded() -> None:
    outcome = await run("/*" + "x" * 1000 + "*/", limits=ProgramLimits(code_bytes=100))
    assert outcome == Failed("The program is longer than 100 bytes", "limit")


async def test_timers_are_counted() -> None:
    outcome = await run("const again = () => setTimeout(again); again(); await new Promise(() => {})")
    assert isinstance(outcome, Failed)
    assert "too many timers" in outcome.error


async def test_rewriting_what_is_built_in_does_not_reach_the_bridge() -> None:
    code = """
    const evil = () => { throw new Error('evil') };
    for (const of of [Object, Array, String, Promise, Function, RegExp, Error, Number, Map, Symbol]) {
      for (const where of [of, of.prototype]) {
        for (const name of Object.getOwnPropertyNames(where)) {
          if (['prototype', 'constructor'].includes(name)) continue;
          try { where[name] = evil } catch {}
        }
      }
    }
    JSON.stringify = JSON.parse = Reflect.apply = Reflect.construct = evil;
    Object.prototype.toJSON = Object.prototype.get = Object.prototype.value = evil;
    for (const name of ['0', 'resolve', 'reject', 'tool', 'then', 'name', 'arguments', 'failed', 'writable']) {
      try { Reflect.defineProperty(Object.prototype, name, {__proto__: null, get: evil, set: evil}) } catch {}
    }
    text('out');
    return await a({x: 'in'})
    """
    tools = Tools()

    async def call(call: ProgramCall) -> ProgramAnswer:
        await tools(call)
        return ProgramAnswer("back")

    outcome = await run(code, call)
    # What `{x: 'in'}` is as JSON is for the program to spoil: the call is made or fails, but nothing else happens.
    assert isinstance(outcome, Finished | Failed)
    assert [call.name for call in tools.calls] in (["a"], [])
    if isinstance(outcome, Finished):
        assert outcome.result == "out\nback"
    else:
        assert "evil" in outcome.error


async def test_the_tools_cannot_be_changed_and_the_bridge_not_be_found() -> None:
    code = """
    const found = [];
    try { 'use strict'; tools.a = 1; found.push('tools') } catch {}
    try { Object.setPrototypeOf(tools, {}); found.push('prototype') } catch {}
    Error.prepareStackTrace = (_, sites) => { for (const s of sites) found.push(`${s.getFunction?.()}`); return 'x' };
    try { null.x } catch (e) { e.stack }
    try { tools.zz } catch (e) { e.stack }
    for (const name of Object.getOwnPropertyNames(globalThis)) {
      if (/bridge|told|pending|host/.test(name)) found.push(name);
    }
    found.push(...[typeof arguments, typeof a.caller].filter(x => x === 'function'));
    return found
    """
    outcome = await run(code)
    assert isinstance(outcome, Finished | Failed)
    assert "settle" not in str(outcome)
    assert "pending" not in str(outcome)


async def test_there_is_nothing_of_the_machine_to_be_had() -> None:
    names = (
        "WebAssembly SharedArrayBuffer Atomics Intl process require module fetch XMLHttpRequest Deno Bun std os "
        "scriptArgs performance WeakRef FinalizationRegistry gc navigator Worker loadScript load read quit"
    )
    code = f"return '{names}'.split(' ').filter(name => name in globalThis)"
    assert await run(code) == Finished("[]")


@pytest.mark.parametrize("name", ["/etc/passwd", "std", "os", "qjs:os", "fs", "node:fs", "./prelude.js", "http://x/"])
async def test_nothing_can_be_imported(name: str) -> None:
    outcome = await run(f"return Object.keys(await import('{name}'))")
    assert isinstance(outcome, Failed)
    assert "could not load module" in outcome.error


TRIES = """
import ctypes, json, mmap, os, signal, socket, sys, threading
sys.path[:] = [path for path in sys.path if "lib" in path]
import importlib.util
spec = importlib.util.spec_from_file_location("child", sys.argv[1])
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
libc = ctypes.CDLL(None, use_errno=True)
out = os.dup(1)
parent = os.getppid()
child._confine(json.loads(sys.argv[2]) | {"parent": parent})
tries = {
    "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "write": lambda: os.open("/tmp/x", os.O_WRONLY | os.O_CREAT),
    "list": lambda: os.listdir("/"),
    "stat": lambda: os.stat("/"),
    "socket": lambda: socket.socket(),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "fork": lambda: os.fork(),
    "thread": lambda: threading.Thread(target=int).start(),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(parent, 0),
    "pipe": lambda: os.pipe(),
    "memfd": lambda: os.memfd_create("x"),
    "executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "root": lambda: os.setuid(0),
    "chroot": lambda: os.chroot("/"),
    "core": lambda: child.resource.setrlimit(child.resource.RLIMIT_CORE, (1, 1)),
    "ptrace": lambda: libc.ptrace(16, parent, 0, 0) == 0 or (_ for _ in ()).throw(OSError()),
    "unshare": lambda: libc.unshare(0x10000000) == 0 or (_ for _ in ()).throw(OSError()),
    "dup": lambda: os.dup(1),
}
held = []
for name, attempt in tries.items():
    try:
        attempt()
        os.write(out, f"{name} WORKED\\n".encode())
    except (OSError, RuntimeError, ValueError):
        held.append(name)
os.write(out, (",".join(held) + "\\n").encode())
os._exit(0)
"""


@pytest.mark.skipif(filter_for() is None, reason="no system call filter for this machine")
def test_the_process_can_do_nothing_to_the_machine() -> None:
    filter = filter_for()
    assert filter is not None
    told = json.dumps({"memory_bytes": 64 * 2**20, "cpu_seconds": 1.0, "filter": filter.hex()})
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", TRIES, child.__file__, told], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert "WORKED" not in done.stdout
    assert done.stdout.strip().count(",") == 18
    assert done.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_process_has_nothing_open_but_its_two_ends_and_no_rights() -> None:
    seen: dict[str, str] = {}

    async def call(call: ProgramCall) -> ProgramAnswer:
        seen.update(_seen_of(mine()[0]))
        return ProgramAnswer("x")

    inherited = os.dup(2)
    os.set_inheritable(inherited, True)
    await run("await a({})", call)
    os.close(inherited)
    assert seen["Seccomp"] == ("2" if filter_for() is not None else "0")
    assert seen["NoNewPrivs"] == "1"
    assert seen["CapEff"] == "0000000000000000"
    if os.geteuid() == 0:
        assert seen["files"] == "0,1,2"
        assert seen["environment"] == "TZ=UTC0\0LC_ALL=C\0"
        assert seen["Uid"].split()[0] == "65534"


def _seen_of(pid: int) -> dict[str, str]:
    seen = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        seen[name] = value.strip()
    if os.geteuid() == 0:
        seen["files"] = ",".join(sorted(entry.name for entry in Path(f"/proc/{pid}/fd").iterdir()))
        seen["environment"] = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return seen


SERVER = """
import asyncio, sys
from stateroom.tools.program.engine import Programs
from stateroom.tools.program.contract import ProgramLimits, ProgramTool

async def call(call):
    print("called", flush=True)
    await asyncio.Event().wait()

async def main():
    programs = Programs(bytes(32))
    code = sys.argv[1]
    fingerprint = programs.fingerprints.make(code, project="p", seed="s", time=0)
    await programs.run(code, fingerprint=fingerprint, project="p", tools=[ProgramTool("a", parameters={})], answers=[],
                       call=call, limits=ProgramLimits(cpu_seconds=60, wall_seconds=60))

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("code", ["await a({})", "a({}); for (;;);"])
async def test_no_process_outlives_the_server(code: str) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER, code], stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        assert server.stdout is not None
        if "for" in code:
            await until(lambda: children(server.pid) and _cpu(children(server.pid)[0]) > 0.1)
        else:
            assert await asyncio.to_thread(server.stdout.readline) == b"called\n"
        [pid] = children(server.pid)
        assert is_running(pid)
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()
    await until(lambda: not is_running(pid))


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    "said",
    [
        "pass",
        "print()",
        "print('nonsense')",
        "print('{}')",
        """print('{"state": "gone"}')""",
        """print('{"state": "done", "texts": [5]}')""",
        """print('{"state": "done"', end='')""",
        "[print('x' * 1000, end='') for _ in range(10 ** 9)]",
        "import os; os.abort()",
    ],
)
async def test_a_process_that_talks_nonsense_is_not_believed(said: str) -> None:
    limits = ProgramLimits(output_bytes=10, arguments_bytes=10)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", said, stdin=pipe, stdout=pipe, stderr=pipe)
    engine = EngineProcess(process, limits)
    with pytest.raises(Gone):
        await engine.step(b"{}", asyncio.Semaphore(1))
    await engine.end()
    assert mine() == []


async def test_half_a_character_in_code_or_answer_does_no_harm() -> None:
    async def call(call: ProgramCall) -> ProgramAnswer:
        return ProgramAnswer("\ud83d|\ud83d\ude00")

    assert await run("return '\ud800' + await a({})", call) == Finished("\ufffd\ufffd|\U0001f600")


async def test_a_storm_of_bad_programs_does_not_keep_good_ones_from_running() -> None:
    programs = Programs(KEY, processes=4, computing=2)
    bad = [asyncio.create_task(run(code, programs=programs, limits=SMALL)) for code in (LOOPS[0], BOMBS[0]) * 3]
    assert await run("return 1", programs=programs) == Finished("1")
    assert {type(outcome) for outcome in await asyncio.gather(*bad)} == {Failed}
