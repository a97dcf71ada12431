"""The part of the conformance suite for drivers that keep anything in: what is inside harms nobody and is bounded.

It is run as the other cases are; see driver_conformance.py.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Final

from stateroom.testing.driver_conformance import DISK_BYTES, KEEP_BYTES, POLL_SECONDS, SECONDS, Bench, Case, opened


async def two_sandboxes_do_not_see_each_other(bench: Bench) -> None:
    async with opened(bench.driver, bench.files.parent, name="other") as other:
        (other.files / "secret").write_text("of the other")
        other_process = await other.agent.spawn(["/bin/sleep", "54327"])
        done = await bench.shell(f"cat {other.files}/secret; ls /workspace; cat /proc/[0-9]*/cmdline")
        assert b"of the other" not in done.stdout
        if bench.driver.caps.hides_processes:
            assert b"54327" not in done.stdout.replace(str(other.files).encode(), b"")
        assert (await bench.shell("kill -9 -1")).code is not None
        done = await other.shell("echo lives")
        assert done.stdout == b"lives\n"
        other_process.kill()


async def a_fork_bomb_is_contained(bench: Bench) -> None:
    async with opened(bench.driver, bench.files.parent, name="bomb") as other:
        done = await other.shell("b() { b | b & b; }; b", timeout=2)
        assert done.code != 0
        well = await bench.shell("echo unharmed")
        assert well.stdout == b"unharmed\n"
        await until_answers(other)


async def until_answers(bench: Bench) -> None:
    """Bombs may burn on for a moment."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            done = await bench.shell("echo works", timeout=5)
            if done.stdout == b"works\n":
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, "it does not come to itself"
        for job in await bench.agent.jobs():
            await bench.agent.kill_job(job.number)


async def memory_is_bounded(bench: Bench) -> None:
    hog = "python3 -c \"x = ' ' * 70_000_000; import time; time.sleep(1.5)\""
    many = " ".join([f"({hog}; echo ended $?) &" for _ in range(12)])
    async with opened(bench.driver, bench.files.parent, name="memory") as other:
        done = await other.shell(f"{many} wait")
        assert done.stdout.count(b"ended 0\n") < 12, "all of them had what only half of them may have"
        assert other.sandbox.breach() or bench.driver.caps.memory == "rlimit"
        assert (await other.shell("echo works")).stdout == b"works\n"


async def disk_is_bounded(bench: Bench) -> None:
    async with opened(bench.driver, bench.files.parent, name="disk") as other:
        fill = "i=0; while [ $i -lt 400 ]; do head -c 4194304 /dev/zero > big$i || exit 1; i=$((i+1)); done"
        await other.shell(fill, timeout=30)
        await until_breach(other)
        used = sum(file.stat().st_size for file in other.files.iterdir())
        assert used < 12 * DISK_BYTES, used
        done = await other.shell("rm big*; echo removed")
        assert done.stdout == b"removed\n", "files can be removed again"


async def the_number_of_files_is_bounded(bench: Bench) -> None:
    async with opened(bench.driver, bench.files.parent, name="many") as other:
        await other.shell("i=0; while :; do : > f$i; i=$((i+1)); done", timeout=20)
        await until_breach(other)


async def until_breach(bench: Bench) -> None:
    said = ""
    deadline = time.monotonic() + 5
    while not said:
        assert time.monotonic() < deadline, "no breach was told"
        said = bench.sandbox.breach()
        await asyncio.sleep(POLL_SECONDS)
    assert "allowed" in said


async def there_is_no_network(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 3)"
        done = await bench.agent.run(["python3", "-c", code], timeout=SECONDS, keep_bytes=KEEP_BYTES)
        assert done.code == 1
        assert b"Error" in done.stderr


async def the_rest_of_the_machine_is_read_only_or_not_there(bench: Bench) -> None:
    writes = ("touch /usr/x", "touch /etc/x", "touch /x", "echo 1 > /proc/sys/kernel/pid_max")
    for command in (*writes, "cat /etc/shadow", "ls /root/"):
        assert (await bench.shell(command)).code != 0, command


ISOLATION: Final[tuple[Case, ...]] = (
    two_sandboxes_do_not_see_each_other,
    a_fork_bomb_is_contained,
    memory_is_bounded,
    disk_is_bounded,
    the_number_of_files_is_bounded,
    there_is_no_network,
    the_rest_of_the_machine_is_read_only_or_not_there,
)
"""For drivers that keep anything in."""
