from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from stateroom.errors import BackendUnavailable, NotFound
from stateroom.models.backend import Delta, Model, ModelCall
from stateroom.models.chat import ChatBackend
from stateroom.models.router import REFRESH_SECONDS, Router
from stateroom.settings import BackendSettings
from stateroom.testing.scripted import ScriptedServer


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class Listing:
    """A backend of which only its models matter; None: it is down."""

    can_prefill = False

    def __init__(self, name: str, *models: str) -> None:
        self.name = name
        self.serves: tuple[str, ...] | None = models
        self.asked = 0
        self.closed = False
        self.gate: asyncio.Event | None = None

    async def models(self) -> list[Model]:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.serves is None:
            raise BackendUnavailable(f"{self.name} is down")
        return [Model(one, owned_by=self.name) for one in self.serves]

    async def generate(self, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
        raise AssertionError("not asked to generate")
        yield ()

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        raise AssertionError("not asked to count")

    async def close(self) -> None:
        self.closed = True


def down(name: str) -> Listing:
    backend = Listing(name)
    backend.serves = None
    return backend


async def refreshed(*backends: Listing, **options: str) -> Router:
    router = Router(backends, clock=HandClock(), **options)  # type: ignore[arg-type]  # options are strings of the literal
    await router.refresh()
    return router


async def test_a_model_is_served_by_the_backend_that_lists_it() -> None:
    one, two = Listing("one", "a", "b"), Listing("two", "c")
    router = await refreshed(one, two)
    assert router.resolve("c") == (two, "c")
    assert [model.id for model in router.models()] == ["a", "b", "c"]


async def test_the_first_backend_wins_a_name_that_two_serve() -> None:
    one, two = Listing("one", "a"), Listing("two", "a", "b")
    router = await refreshed(one, two)
    assert router.resolve("a") == (one, "a")
    assert [(model.id, model.owned_by) for model in router.models()] == [("a", "one"), ("b", "two")]


async def test_an_unknown_name_goes_to_the_default() -> None:
    one, two = Listing("one", "a"), Listing("two", "b")
    assert (await refreshed(one, two)).resolve("gpt-4.1") == (one, "a")
    assert (await refreshed(one, two, default_model="b")).resolve("gpt-4.1") == (two, "b")


async def test_an_unknown_name_is_refused_when_the_settings_say_so() -> None:
    router = await refreshed(Listing("one", "a"), unknown_models="reject")
    with pytest.raises(NotFound) as caught:
        router.resolve("gpt-4.1")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")


async def test_no_name_is_refused_while_a_backend_was_never_heard() -> None:
    two = down("two")
    router = await refreshed(Listing("one", "a"), two, unknown_models="reject")
    with pytest.raises(BackendUnavailable, match="two is down"):
        router.resolve("b")
    two.serves = ("b",)
    await router.refresh()
    assert router.resolve("b") == (two, "b")
    two.serves = None
    await router.refresh()
    with pytest.raises(NotFound):
        router.resolve("c")


async def test_a_default_that_nobody_serves_is_named() -> None:
    with pytest.raises(NotFound, match="'x' does not exist here, nor does 'missing-default', which `default_model`"):
        (await refreshed(Listing("one", "a"), default_model="missing-default")).resolve("x")
    with pytest.raises(BackendUnavailable):
        (await refreshed(Listing("one", "a"), down("two"), default_model="missing-default")).resolve("x")


async def test_without_any_backend_that_answers_the_reason_is_given() -> None:
    with pytest.raises(BackendUnavailable, match="one is down"):
        (await refreshed(down("one"))).resolve("a")
    with pytest.raises(BackendUnavailable, match="No backend"):
        Router([]).resolve("a")


async def test_a_backend_that_is_down_does_not_hide_the_others() -> None:
    two = Listing("two", "b")
    router = await refreshed(down("one"), two)
    assert router.resolve("b") == (two, "b")
    assert set(router.problems) == {"one"}


async def test_a_backend_that_goes_down_keeps_its_names() -> None:
    one = Listing("one", "a")
    router = await refreshed(one)
    one.serves = None
    await router.refresh()
    assert router.resolve("a") == (one, "a")
    assert set(router.problems) == {"one"}
    one.serves = ("a",)
    await router.refresh()
    assert not router.problems


async def test_a_new_name_is_looked_for_when_the_table_is_old() -> None:
    clock = HandClock()
    one, two = Listing("one", "a"), down("two")
    router = Router([one, two], clock=clock)
    await router.refresh()
    two.serves = ("b",)
    assert await router.find("b") == (one, "a")
    assert two.asked == 1
    clock.time += REFRESH_SECONDS + 1
    assert await router.find("b") == (two, "b")
    assert two.asked == 2


async def test_resolving_a_new_name_begins_a_refresh_behind_the_scenes() -> None:
    clock = HandClock()
    one = Listing("one", "a")
    router = Router([one], unknown_models="reject", clock=clock)
    await router.refresh()
    one.serves = ("a", "b")
    clock.time += REFRESH_SECONDS + 1
    for _ in range(3):
        with pytest.raises(NotFound):
            router.resolve("b")
    await router.refresh()
    assert router.resolve("b") == (one, "b")
    assert one.asked == 2


async def test_refreshes_at_the_same_time_ask_once() -> None:
    one = Listing("one", "a")
    one.gate = asyncio.Event()
    router = Router([one])
    tasks = [asyncio.create_task(router.refresh()) for _ in range(5)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    one.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert one.asked == 1
    assert [model.id for model in router.models()] == ["a"]


async def test_current_asks_again_when_the_table_is_old() -> None:
    clock = HandClock()
    one = Listing("one", "a")
    router = Router([one], clock=clock)
    assert [model.id for model in await router.current()] == ["a"]
    one.serves = ("b",)
    assert [model.id for model in await router.current()] == ["a"]
    clock.time += REFRESH_SECONDS + 1
    assert [model.id for model in await router.current()] == ["b"]


async def test_closing_closes_every_backend_and_a_refresh_under_way() -> None:
    one = Listing("one", "a")
    one.gate = asyncio.Event()
    router = Router([one])
    task = asyncio.create_task(router.refresh())
    await asyncio.sleep(0)
    await router.close()
    assert one.closed
    assert (await asyncio.gather(task, return_exceptions=True)) != [None]


async def test_a_server_that_starts_late_is_found() -> None:
    clock = HandClock()
    async with ScriptedServer(models=("late",)) as server:
        port = int(server.url.rsplit(":", 1)[1].split("/")[0])
        backend = ChatBackend(BackendSettings(server.url))
        router = Router([backend], unknown_models="reject", clock=clock)
        await server.stop()
        await router.refresh()
        with pytest.raises(BackendUnavailable):
            router.resolve("late")
        clock.time += REFRESH_SECONDS + 1
        await server.start(port=port)
        assert await router.find("late") == (backend, "late")
        await router.close()
