"""A process that writes a journal until it is killed or stopped; run by test_crashes.py.

appender.py many PATH DURABILITY    appends on several branches as fast as it can; prints `branch seq` when acknowledged
appender.py lease PATH              takes a branch, says so, waits for a line on stdin, appends again, says how it went
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from stateroom.errors import StateroomError
from stateroom.journal.entries import Frame, RunEnded
from stateroom.journal.sqlite import SqliteJournal, open_sqlite
from stateroom.journal.store import THIS, Append, Branch, Lease
from stateroom.testing.journal_stage import P, begin, draft, note, started, turn


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def chain(journal: SqliteJournal, branch: str) -> None:
    """Whole runs, begun runs with frames, and their ends, one append after the other."""
    head, lease, create = -1, None, Branch(branch, P)
    number = 0
    while True:
        number += 1
        name = f"resp_{branch}_{number}"
        more: dict[str, Any] = {"acquire": "appender"} if lease is None else {"lease": lease}
        if number % 3:
            change = Append(P, branch, head, turn(name, "x" * (number % 900)), create=create, **more)
        else:
            frames = [Frame(0, 3, b"begun" * 40)]
            first = [started(name)]
            change = Append(P, branch, head, first, create=create, frames_run=THIS, frames=frames, **more)
        answer = await journal.append(change)
        create, head, lease = None, answer.head, answer.lease
        say(f"{branch} {head}")
        if number % 3 == 0:
            whole = [Frame(0, 9, b"whole" * 90)]
            ended = [draft(RunEnded("completed"), run=head)]
            change = Append(P, branch, head, ended, lease=lease, frames_run=head, frames=whole, seal=True)
            head = (await journal.append(change)).head
            say(f"{branch} {head}")


async def many(path: str, durability: Any) -> None:
    journal = open_sqlite(path, durability=durability)
    start = f"{os.getpid()}"
    await asyncio.gather(*[chain(journal, f"{start}-{number}") for number in range(8)])


async def lease(path: str) -> None:
    journal = open_sqlite(path)
    answer = await begin(journal, "b", [note("mine")], acquire="child", lease_seconds=3_600)
    say(f"took {answer.lease}")
    await asyncio.to_thread(sys.stdin.readline)
    held = answer.lease or Lease("b", 0)
    for change in (
        Append(P, "b", 0, [note("late")], lease=held),
        Append(P, "b", None, lease=held, frames_run=0, frames=[Frame(0, 0, b"late")]),
        Append(P, "late", -1, [note("late")], create=Branch("late", P)),
        Append(P, "b", 1, [note("late")], acquire="child"),
    ):
        try:
            say(f"wrote {await journal.append(change)}")
        except StateroomError as error:
            say(f"refused {type(error).__name__}")
    try:
        say(f"renewed {await journal.renew([held], 60)}")
    except StateroomError as error:
        say(f"refused {type(error).__name__}")
    await journal.close()


if __name__ == "__main__":
    asyncio.run(many(*sys.argv[2:]) if sys.argv[1] == "many" else lease(sys.argv[2]))
