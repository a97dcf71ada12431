"""Which backend serves a model name. It keeps a table of what every backend serves and asks again when a name is new.

One model name has one backend here: the first that serves it. `resolve` is where a choice by load belongs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Literal

from stateroom.clock import Clock, SystemClock
from stateroom.errors import BackendError, BackendUnavailable, NotFound, StateroomError
from stateroom.models.backend import Backend, Model

REFRESH_SECONDS: Final = 3.0
"""How long the table is believed when a name is not in it."""

_log = logging.getLogger(__name__)


class Router:
    """The backends, in the order of their settings, and the models that they serve."""

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        default_model: str = "",
        unknown_models: Literal["default", "reject"] = "default",
        clock: Clock | None = None,
    ) -> None:
        self.backends = list(backends)
        self.default_model = default_model
        """Serves unknown names; empty: the first model of the first backend that answers."""
        self.unknown_models = unknown_models
        self.problems: dict[str, BackendError] = {}
        """Why a backend could not be asked, by its name."""
        self._clock: Clock = clock or SystemClock()
        self._served: list[list[Model] | None] = [None] * len(self.backends)
        """What each backend served when it was last asked with success; None: never."""
        self._table: dict[str, tuple[Backend, Model]] = {}
        self._asked_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Ask every backend what it serves. One that cannot be asked keeps what it last said; nothing is raised."""
        task = self._refreshing
        if task is None:
            task = self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
            task.add_done_callback(self._refreshed)
        await asyncio.shield(task)

    def models(self) -> list[Model]:
        """Every model once, in the order of the backends."""
        return [model for _, model in self._table.values()]

    async def current(self) -> list[Model]:
        """The same, asked anew when the table is old."""
        if self._is_old():
            await self.refresh()
        return self.models()

    def resolve(self, name: str) -> tuple[Backend, str]:
        """The backend for a name, and the model's own name there. Raises NotFound or BackendUnavailable.

        Answers from the table. A name that is not in it makes a refresh begin behind the scenes when the table is old.
        """
        found = self._table.get(name)
        if found is None:
            if self._is_old():
                self._refresh_soon()
            found = self._stand_in(name)
        return found[0], found[1].id

    def window(self, name: str) -> int | None:
        """How many tokens the model that serves a name can read; None when that is not known."""
        model = self._model(name)
        return model.context_tokens if model is not None else None

    def temperature(self, name: str) -> float | None:
        """What the model that serves a name is asked with when nobody says; None when that is not known."""
        model = self._model(name)
        return model.temperature if model is not None else None

    def _model(self, name: str) -> Model | None:
        found = self._table.get(name)
        if found is None and self._table and self.unknown_models == "default":
            found = self._table.get(self.default_model) if self.default_model else next(iter(self._table.values()))
        return found[1] if found is not None else None

    async def find(self, name: str) -> tuple[Backend, str]:
        """The same, but a name that is not in an old table waits for the refresh first."""
        if name not in self._table and self._is_old():
            await self.refresh()
        return self.resolve(name)

    async def serving(self, name: str) -> Backend | None:
        """The backend that serves exactly this name. Raises BackendUnavailable when one that might was never heard."""
        if name not in self._table and self._is_old():
            await self.refresh()
        if (found := self._table.get(name)) is not None:
            return found[0]
        if (unheard := self._unheard()) is not None:
            raise unheard
        return None

    async def close(self) -> None:
        """Close the backends."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await asyncio.gather(*(backend.close() for backend in self.backends))

    def _is_old(self) -> bool:
        return self._clock.monotonic() - self._asked_at > REFRESH_SECONDS

    def _refresh_soon(self) -> None:
        """Begin a refresh if there is a loop to run it."""
        if self._refreshing is not None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._refreshing = loop.create_task(self._refresh())
        self._refreshing.add_done_callback(self._refreshed)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("asking the backends for their models failed", exc_info=error)

    async def _refresh(self) -> None:
        await asyncio.gather(*(self._ask(position) for position in range(len(self.backends))))
        table: dict[str, tuple[Backend, Model]] = {}
        for backend, served in zip(self.backends, self._served, strict=True):
            for model in served or ():
                table.setdefault(model.id, (backend, model))
        self._table = table
        self._asked_at = self._clock.monotonic()

    async def _ask(self, position: int) -> None:
        backend = self.backends[position]
        try:
            self._served[position] = list(await backend.models())
            self.problems.pop(backend.name, None)
        except BackendError as error:
            if backend.name not in self.problems:
                _log.warning("%s", error.message)
            self.problems[backend.name] = error

    def _stand_in(self, name: str) -> tuple[Backend, Model]:
        """What serves a name that nobody knows."""
        if not self._table:
            raise self._nobody()
        if self.unknown_models == "reject":
            raise self._unheard() or self._unknown(name)
        if not self.default_model:
            return next(iter(self._table.values()))
        found = self._table.get(self.default_model)
        if found is None:
            raise self._nobody() if self.problems else self._unknown(name, self.default_model)
        return found

    def _unheard(self) -> BackendUnavailable | None:
        """What is wrong with a backend that never said what it serves, and so may serve any name."""
        for backend, served in zip(self.backends, self._served, strict=True):
            if served is None and (problem := self.problems.get(backend.name)) is not None:
                return BackendUnavailable(problem.message)
        return None

    def _unknown(self, name: str, default: str = "") -> StateroomError:
        nor = f", nor does {default!r}, which `default_model` names in the settings" if default else ""
        text = f"The model {name[:200]!r} does not exist here{nor}. GET /v1/models lists those that do."
        return NotFound(text, code="model_not_found", param="model")

    def _nobody(self) -> StateroomError:
        if self.problems:
            return BackendUnavailable(next(iter(self.problems.values())).message)
        return BackendUnavailable("No backend serves any model yet.")
