"""What a fork costs the server by how many commits its origin has: it must not read them all. No sandbox is needed."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.dialogues import LoadFailed
from benchmarks.measure import cpu_seconds
from benchmarks.processes import Server
from benchmarks.table import Row, number, spread
from benchmarks.wire import Connection

if TYPE_CHECKING:
    from benchmarks.scenarios import Bench

FORK_BUDGET_MS: Final = 1.0
FEW: Final = 10
WARMUP: Final = 10
FORKS: Final = 100
"""Of one repeat."""
_BOUNDARY: Final = "between"


def forks(bench: Bench) -> Iterator[Row]:
    """Forks of the latest commit, of two containers that have few and many of them, and of one amid many."""
    with bench.server() as server:
        yield from asyncio.run(_measured(server, bench.scale.fork_commits, bench.scale.repeats))


async def _measured(server: Server, many: int, repeats: int) -> list[Row]:
    connection = await Connection.open(server.port)
    client = _Client(connection)
    rows = []
    for commits in (FEW, many):
        origin, middle = await client.origin(commits)
        rows.append(await _row(server, client, f"of the latest of {number(commits)} commits", origin, "", repeats))
    rows.append(await _row(server, client, f"of one amid {number(many)} commits", origin, middle, repeats))
    connection.close()
    return rows


async def _row(server: Server, client: _Client, figure: str, origin: str, commit: str, repeats: int) -> Row:
    asked = {"commit": commit} if commit else {}
    for _ in range(WARMUP):
        await client.post(f"/v1/containers/{origin}/fork", asked)
    costs = []
    for _ in range(repeats):
        used = cpu_seconds(server.pid)
        for _ in range(FORKS):
            await client.post(f"/v1/containers/{origin}/fork", asked)
        costs.append((cpu_seconds(server.pid) - used) / FORKS * 1000)
    return Row(
        group="Fork of a container, by the commits of its origin",
        figure=f"CPU, {figure}",
        unit="ms",
        value=statistics.median(costs),
        budget=FORK_BUDGET_MS,
        values=costs,
        beside=spread(costs),
    )


class _Client:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def origin(self, commits: int) -> tuple[str, str]:
        """A container with so many commits, each of a file that is put there, and the one in their middle."""
        made = await self.post("/v1/containers", {"name": "origin"})
        container: str = msgspec.json.decode(made)["id"]
        for name in range(commits):
            head = f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="{name % FEW}.txt"\r\n\r\n'
            form = f"{head}{name}\r\n--{_BOUNDARY}--\r\n".encode()
            kind = f"multipart/form-data; boundary={_BOUNDARY}"
            _checked(await self._connection.post(f"/v1/containers/{container}/files", form, kind))
            if name == commits // 2:
                middle = await self._latest(container)
        return container, middle

    async def _latest(self, container: str) -> str:
        found = _checked(await self._connection.get(f"/v1/containers/{container}/commits?limit=1"))
        commit: str = msgspec.json.decode(found)["data"][0]["id"]
        return commit

    async def post(self, path: str, body: dict[str, str]) -> bytes:
        return _checked(await self._connection.post(path, msgspec.json.encode(body)))


def _checked(answer: tuple[int, bytes]) -> bytes:
    status, body = answer
    if status != 200:
        raise LoadFailed(f"a container was answered with {status}: {body[:500]!r}")
    return body
