"""What every driver of sandboxes must do. Each case raises AssertionError when a promise is broken.

A test runs them all over its driver, each in a fresh sandbox:

    @pytest.mark.parametrize("case", driver_conformance.CASES)
    async def test_it_conforms(case, tmp_path):
        async with driver_conformance.opened(driver, tmp_path) as bench:
            await case(bench)

Those for drivers that keep anything in stand in driver_isolation.py.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from stateroom.errors import SandboxFailed
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.channels.process import Finished
from stateroom.workspaces.drivers import processes
from stateroom.workspaces.workspace import Driver, Sandbox, SandboxSpec

MEMORY_BYTES: Final = 512 * 1024 * 1024
DISK_BYTES: Final = 64 * 1024 * 1024
DISK_FILES: Final = 2_000
PROCESSES: Final = 64
KEEP_BYTES: Final = 65_536
SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.02


class Bench(msgspec.Struct, frozen=True):
    """A sandbox that was started, and where its files are."""

    driver: Driver
    sandbox: Sandbox
    agent: Agent
    files: Path

    async def shell(self, command: str, *, timeout: float = SECONDS, keep_bytes: int = KEEP_BYTES) -> Finished:
        return await self.agent.run(["/bin/sh", "-c", command], timeout=timeout, keep_bytes=keep_bytes)


Case: TypeAlias = Callable[[Bench], Awaitable[None]]


def specification(
    name: str, files: Path, *, egress: str = "", environment: dict[str, str] | None = None
) -> SandboxSpec:
    return SandboxSpec(
        id=name,
        files=str(files),
        memory_bytes=MEMORY_BYTES,
        processes=PROCESSES,
        disk_bytes=DISK_BYTES,
        disk_files=DISK_FILES,
        environment=environment or {},
        egress=egress,
    )


@asynccontextmanager
async def opened(
    driver: Driver, folder: Path, *, name: str = "one", environment: dict[str, str] | None = None
) -> AsyncIterator[Bench]:
    """A sandbox of a driver, over a directory of its own below `folder`."""
    files = folder / f"{name}-files"
    files.mkdir(exist_ok=True)
    sandbox = await driver.start(specification(name, files, environment=environment))
    try:
        agent = await Agent.connect(sandbox)
        try:
            yield Bench(driver, sandbox, agent, files)
        finally:
            await agent.close()
    finally:
        await sandbox.stop()


async def until(holds: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(POLL_SECONDS)


def processes_with(word: str) -> list[int]:
    """Processes of this machine that were started with this word."""
    found = []
    for pid in processes.all_pids():
        if pid != os.getpid() and word.encode() in processes.command_line(pid):
            found.append(pid)
    return found


async def a_command_runs_where_the_files_are(bench: Bench) -> None:
    (bench.files / "given").write_text("from outside")
    done = await bench.shell("cat given; printf made > made; printf oops >&2; exit 7")
    assert (done.code, done.stdout, done.stderr) == (7, b"from outside", b"oops")
    assert (bench.files / "made").read_text() == "made"
    assert not done.dropped
    assert done.job is None


async def what_cannot_be_started_says_why(bench: Bench) -> None:
    for argv, error in ((["no-such-program"], FileNotFoundError), (["/"], PermissionError), (["x" * 200_000], OSError)):
        try:
            await bench.agent.spawn(argv)
        except error:
            continue
        raise AssertionError(argv[0][:20])
    try:
        await bench.agent.spawn(["/bin/true"], cwd="/workspace/nowhere")
    except FileNotFoundError:
        return
    raise AssertionError("a directory that is not there")


async def a_signal_is_the_exit_code_and_reaches_the_group(bench: Bench) -> None:
    process = await bench.agent.spawn(["/bin/sh", "-c", "echo ready; sleep 54321 | sleep 54321"])
    async for _ in process.read():
        process.signal(signal.SIGTERM)
        break
    assert await process.wait() == -signal.SIGTERM
    await until(lambda: not processes_with("54321"), "members of the group live on")


async def output_comes_while_the_command_runs(bench: Bench) -> None:
    process = await bench.agent.spawn(["/bin/sh", "-c", "echo one; read line; echo got $line"], stdin=True)
    seen = b""
    async for stream, data in process.read():
        assert stream == "stdout"
        seen += data
        if seen == b"one\n":
            await process.write(b"two\n")
            process.close_stdin()
    assert seen == b"one\ngot two\n"
    assert await process.wait() == 0


async def much_input_comes_through_whole(bench: Bench) -> None:
    data = os.urandom(3_000_000)
    done = await bench.agent.run(["/bin/cat"], timeout=SECONDS, keep_bytes=0, stdin=data)
    assert done.stdout == data


async def input_that_nobody_wants_holds_nobody_up(bench: Bench) -> None:
    done = await bench.agent.run(
        ["/bin/sh", "-c", "exec <&-; sleep 0.2; echo done"], timeout=SECONDS, keep_bytes=100, stdin=b"x" * 3_000_000
    )
    assert done.stdout == b"done\n"
    process = await bench.agent.spawn(["/bin/cat"])
    await process.write(b"x" * 3_000_000)
    assert await process.wait() == 0


async def of_endless_output_the_middle_is_left_out(bench: Bench) -> None:
    done = await bench.shell("echo first; head -c 50000000 /dev/zero; echo last", keep_bytes=10_000)
    assert done.stdout.startswith(b"first\n")
    assert done.stdout.endswith(b"last\n")
    left_out = 50_000_000 + 6 + 5 - 10_000
    assert done.dropped == {"stdout": left_out}
    kept = done.stdout.replace(b"\n[... %d bytes left out ...]\n" % left_out, b"")
    assert len(kept) == 10_000
    assert len(done.stdout) > len(kept), "it is said where something is left out"


async def a_gigabyte_of_output_costs_the_server_no_memory(bench: Bench) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = await bench.shell("head -c 1073741824 /dev/zero", keep_bytes=1_000_000, timeout=120)
    assert done.dropped == {"stdout": 1073741824 - 1_000_000}
    process = await bench.agent.spawn(["/bin/sh", "-c", "head -c 1073741824 /dev/zero"])
    await asyncio.sleep(0.2)  # nobody reads it: what it writes has to stay inside
    process.kill()
    await process.wait()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 32_768, f"{grown} KiB"


async def a_command_beyond_its_time_ends_with_all_it_started(bench: Bench) -> None:
    tricks = (
        "env -i setsid -f sleep 54322; (setsid sleep 54322 &) ; (setsid sh -c 'sleep 54322 & sleep 54322' &) ;"
        " sleep 54322 & nohup sleep 54322"
    )
    begin = time.monotonic()
    done = await bench.shell(tricks, timeout=0.5)
    assert done.code is None
    assert time.monotonic() - begin < 10
    await until(lambda: not processes_with("54322"), "descendants live on", 5)
    assert not [job for job in await bench.agent.jobs() if job.pids]


async def background_outlives_its_command_and_can_be_ended(bench: Bench) -> None:
    done = await bench.shell("(echo early; sleep 0.2; echo late; sleep 54323) & echo command")
    assert done.code == 0
    assert done.job is not None
    assert done.job.pids
    assert b"command\n" in done.stdout
    assert b"late" not in done.stdout
    number = done.job.number
    output = b""
    deadline = time.monotonic() + SECONDS
    while b"late" not in output:
        assert time.monotonic() < deadline
        output = await bench.agent.job_output(number)
        await asyncio.sleep(POLL_SECONDS)
    [job] = [job for job in await bench.agent.jobs() if job.number == number]
    assert "54323" in job.command
    assert job.pids
    assert await bench.agent.kill_job(number)
    [job] = [job for job in await bench.agent.jobs() if job.number == number]
    assert not job.pids
    assert not await bench.agent.kill_job(999_999)


async def background_that_shares_nothing_is_found_too(bench: Bench) -> None:
    done = await bench.shell("setsid -f sleep 54324 </dev/null >/dev/null 2>&1")
    assert done.job is not None
    assert not done.job.log
    other = await bench.shell("true")
    assert other.job is None, "what one command left is not another's"
    assert await bench.agent.kill_job(done.job.number)
    await until(lambda: not processes_with("54324"), "it lives on")


async def commands_run_beside_each_other(bench: Bench) -> None:
    done = await asyncio.gather(*[bench.shell(f"sleep 0.05; echo {number}") for number in range(20)])
    assert [result.stdout for result in done] == [b"%d\n" % number for number in range(20)]


async def when_memory_runs_short_a_command_goes_before_the_agent(bench: Bench) -> None:
    score = "cat /proc/self/oom_score_adj"
    done = await bench.shell(f"{score}; (({score}) & wait); cat /proc/$PPID/oom_score_adj")
    own, below, agent = map(int, done.stdout.split())
    assert own == below > agent
    assert own >= 500


async def frozen_writers_stand_still(bench: Bench) -> None:
    process = await bench.agent.spawn(["/bin/sh", "-c", "while :; do echo x >> grows; done"])
    grows = bench.files / "grows"
    await until(lambda: grows.exists() and grows.stat().st_size > 0, "it never began")
    for _ in range(3):
        await bench.sandbox.freeze()
        size = grows.stat().st_size
        await asyncio.sleep(0.1)  # time in which it would write, if it could
        assert grows.stat().st_size == size
        await bench.sandbox.thaw()
        await until(lambda size=size: grows.stat().st_size > size, "it did not go on")  # type: ignore[misc]  # mypy cannot tell the type of a lambda with a default
    process.kill()
    await process.wait()


async def what_the_server_has_open_and_knows_stays_with_it(bench: Bench) -> None:
    os.environ["STATEROOM_TEST_SECRET"] = "not for them"  # noqa: S105  # made up
    try:
        async with opened(bench.driver, bench.files.parent, name="leak") as other:
            done = await other.shell("env; ls -l /proc/self/fd /proc/$$/fd; cat /proc/$PPID/environ")
            assert b"not for them" not in done.stdout
            count = await other.agent.run(["/bin/sh", "-c", "ls /proc/$$/fd"], timeout=SECONDS, keep_bytes=KEEP_BYTES)
            assert set(count.stdout.split()) <= {b"0", b"1", b"2", b"10", b"255"}, count.stdout
    finally:
        del os.environ["STATEROOM_TEST_SECRET"]


async def the_environment_is_what_was_asked_for(bench: Bench) -> None:
    async with opened(bench.driver, bench.files.parent, name="env", environment={"GIVEN": "a b=c"}) as other:
        done = await other.agent.run(
            ["/bin/sh", "-c", "echo $GIVEN; echo $MORE"], env={"MORE": "x\ny"}, timeout=SECONDS, keep_bytes=KEEP_BYTES
        )
        assert done.stdout == b"a b=c\nx y\n"


async def a_killed_agent_ends_the_sandbox(bench: Bench) -> None:
    async with opened(bench.driver, bench.files.parent, name="killed") as other:
        process = await other.agent.spawn(["/bin/sleep", "54325"])
        await until(lambda: len(processes_with("54325")) == 1, "it was not started")
        os.kill(processes.parent_of(processes_with("54325")[0]), signal.SIGKILL)
        try:
            await process.wait()
        except SandboxFailed:
            await until(lambda: not other.sandbox.is_alive, "it says that it lives")
        else:
            raise AssertionError("a process ended well in a sandbox without an agent")
    assert not processes_with("54325")


async def stopping_leaves_no_process(bench: Bench) -> None:
    async with opened(bench.driver, bench.files.parent, name="stopped") as other:
        await other.shell("setsid -f sleep 54326 >/dev/null 2>&1; sleep 54326 &")
        assert processes_with("54326")
        await other.sandbox.stop()
        assert not processes_with("54326")
        assert not other.sandbox.is_alive
        await other.sandbox.stop()


async def a_workspace_has_its_files_again(bench: Bench) -> None:
    for number in range(3):
        async with opened(bench.driver, bench.files.parent, name="again") as other:
            (other.files / f"outside-{number}").mkdir(exist_ok=True)
            done = await other.shell(f"echo {number} >> kept; cat kept; echo x > first-{number}; ls")
            assert done.stdout.startswith(b"".join(b"%d\n" % before for before in range(number + 1)))


CASES: Final[tuple[Case, ...]] = (
    a_command_runs_where_the_files_are,
    what_cannot_be_started_says_why,
    a_signal_is_the_exit_code_and_reaches_the_group,
    output_comes_while_the_command_runs,
    much_input_comes_through_whole,
    input_that_nobody_wants_holds_nobody_up,
    of_endless_output_the_middle_is_left_out,
    a_gigabyte_of_output_costs_the_server_no_memory,
    a_command_beyond_its_time_ends_with_all_it_started,
    background_outlives_its_command_and_can_be_ended,
    background_that_shares_nothing_is_found_too,
    commands_run_beside_each_other,
    when_memory_runs_short_a_command_goes_before_the_agent,
    frozen_writers_stand_still,
    what_the_server_has_open_and_knows_stays_with_it,
    the_environment_is_what_was_asked_for,
    a_killed_agent_ends_the_sandbox,
    stopping_leaves_no_process,
    a_workspace_has_its_files_again,
)
