"""Where the hosted calls of runs work: in which containers, which skills are there, and how a run leaves them.

A run that continues another goes on with how that left its container.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from stateroom.agent.hosted import tool_of
from stateroom.agent.state import BranchState
from stateroom.errors import StateroomError
from stateroom.journal.entries import Item, WorkspaceAt
from stateroom.journal.hosted_items import HOSTED
from stateroom.runtime.live import LiveRun
from stateroom.runtime.skills.mounting import MountedSkill, instructions
from stateroom.runtime.surface import ToolPlan

_LOOKED_MAX: Final = 32
"""Containers that are looked for among the calls of a history."""
_FILES_GONE: Final = (
    "The container in which earlier calls of this conversation worked is gone, and its files with it: it was deleted or"
    " has expired. Tools work in a new one, which began without them."
)
_NEEDS_PROCESSES: Final = frozenset({"shell", "code_interpreter", "mcp"})


class Containers(Protocol):
    """What is needed of `runtime.containers`."""

    def check_driver(self) -> None: ...

    async def resolve(
        self, project: str, key: str, declared: Mapping[str, Any], base: WorkspaceAt | None, *, branch: str, param: str
    ) -> str: ...

    async def skills(
        self, project: str, container_id: str, declared: Mapping[str, Any], base: WorkspaceAt | None
    ) -> list[MountedSkill]: ...

    async def is_gone(self, project: str, container_id: str) -> bool: ...

    async def left_by(self, project: str, container_id: str, item_id: str) -> WorkspaceAt | None: ...

    async def open(
        self, project: str, container_id: str, *, key: str, declared: Mapping[str, Any], base: WorkspaceAt | None
    ) -> Any: ...

    async def finish(self, project: str, container_ids: Sequence[str], run_id: str) -> list[WorkspaceAt]: ...


class Places:
    """The containers of all runs. `containers` None: there are none."""

    def __init__(self, containers: Containers | None) -> None:
        self._containers = containers

    async def base(self, project: str, branch: BranchState, items: Sequence[Item]) -> WorkspaceAt | None:
        """How the container was left with which a run goes on that has this input."""
        if self._containers is None:
            return base_of(branch)
        # What a client sends along comes after all that its branch has.
        sent = ((item, item.get("id") or "") for item in reversed(items))
        worked = await self._worked(project, sent)
        if worked is not None or branch.workspaces:
            return worked or base_of(branch)
        return await self._worked(project, ((held.item, held.id) for held in reversed(branch.items)))

    async def _worked(self, project: str, calls: Iterable[tuple[Item, str]]) -> WorkspaceAt | None:
        """How the first of these calls left its container. Of those that were never made there may be none."""
        assert self._containers is not None, "whoever asks has looked"
        looked: set[str] = set()
        for item, item_id in calls:
            container_id = named_in(item)
            if not container_id or container_id in looked:
                continue
            left = await self._containers.left_by(project, container_id, item_id)
            if left is not None:
                return left
            looked.add(container_id)
            if len(looked) == _LOOKED_MAX:
                break
        return None

    async def settle(
        self, project: str, key: str, plan: ToolPlan, base: WorkspaceAt | None, *, branch: str = ""
    ) -> None:
        """Settle which containers a run's tools are to work in. Raises RequestError, NoSandbox."""
        plan.base = base
        if self._containers is not None:
            if not _NEEDS_PROCESSES.isdisjoint(plan.environments):
                self._containers.check_driver()
            for kind, declared in plan.environments.items():
                place = plan.places.get(kind, "environment")
                plan.containers[kind] = await self._containers.resolve(
                    project, key, declared, base, branch=branch, param=place
                )

    async def find(self, run: LiveRun) -> bool:
        """A run that a crash cut off goes on in the container where it was. Whether it is settled where that is."""
        plan = run.plan
        if not plan.environments or plan.containers:
            return True
        plan.base = await self.base(run.project, run.branch.state, run.state.started.input)
        own = next((found for output in run.state.output if (found := container_of(output.item))), "")
        if own and all(declared.get("type") == "container_auto" for declared in plan.environments.values()):
            plan.containers.update(dict.fromkeys(plan.environments, own))
            return True
        return False

    async def reopen(self, run: LiveRun) -> None:
        """What a run that was cut off still says may name the files that it has made."""
        for container_id in worked_in(run):
            open_it = self.opener(run, "", container_id)
            if open_it is not None:
                with suppress(StateroomError):  # without them nothing is cited
                    await (await open_it()).prepare()

    async def told(self, run: LiveRun) -> str:
        """What the model is told of the skills there, and of files that it will miss."""
        if self._containers is None:
            return ""
        skills: dict[str, MountedSkill] = {}
        for kind, declared in run.plan.environments.items():
            container = run.plan.containers[kind]
            found = await self._containers.skills(run.project, container, declared, run.plan.base)
            skills.update({skill.name: skill for skill in found})
        texts = [instructions(list(skills.values())), _FILES_GONE if await self._misses_files(run) else ""]
        return "\n\n".join([text for text in texts if text])

    async def _misses_files(self, run: LiveRun) -> bool:
        """Whether a container was made, or will be, that should have begun with files which are gone."""
        plan, base = run.plan, run.plan.base
        if base is not None:
            origin = base.container if base.commit else ""
        else:  # a client that brings its own history
            origin = next((named for item in reversed(run.state.started.input) if (named := named_in(item))), "")
        made = [kind for kind, declared in plan.environments.items() if declared.get("type") != "container_reference"]
        if self._containers is None or not origin or all(plan.containers[kind] == origin for kind in made):
            return False
        return await self._containers.is_gone(run.project, origin)

    def opener(self, run: LiveRun, kind: str, container: str = "") -> Callable[[], Awaitable[Any]] | None:
        """How a call gets its workspace, which starts when it is asked for; None: there is none for it."""
        containers = self._containers
        container_id = container or run.plan.containers.get(kind, "")
        if containers is None or not container_id:
            return None
        declared = run.plan.environments.get(kind, {"type": "container_reference", "container_id": container_id})
        base = run.plan.base

        async def open_it() -> Any:
            key = run.state.key
            workspace = await containers.open(run.project, container_id, key=key, declared=declared, base=base)
            run.folders[container_id] = workspace.folder
            return workspace

        return open_it

    async def keep_files(self, run: LiveRun) -> list[WorkspaceAt]:
        """Keep the files of the containers that the run worked in; how it leaves them."""
        touched = worked_in(run)
        if self._containers is None or not touched:
            return []
        # To its end, even when the run is cancelled meanwhile: then this is asked for again, and has to wait for it.
        keeping = asyncio.ensure_future(self._containers.finish(run.project, touched, run.id))
        keeping.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(keeping)


def container_of(item: Item) -> str:
    """In which container a hosted call is carried out; '' for others."""
    if not item.get(HOSTED):
        return ""
    environment = item.get("environment")
    if isinstance(environment, dict):
        return str(environment.get("container_id") or "")
    return str(item.get("container_id") or item.get("in_container") or "")


def named_in(item: Item) -> str:
    """The container in which a call was carried out that a client sends along; '' for others."""
    if item.get("type") == "code_interpreter_call":
        return str(item.get("container_id") or "")
    if item.get("in_container"):
        return str(item["in_container"])
    environment = item.get("environment") if item.get("type") == "shell_call" else None
    return str(environment.get("container_id") or "") if isinstance(environment, dict) else ""


def worked_in(run: LiveRun) -> list[str]:
    """The containers in which a call of the run was begun."""
    found: dict[str, None] = {}
    for output in run.state.output:
        if output.index in run.state.intents:
            kind = tool_of(output.item)
            container = container_of(output.item) or (run.plan.containers.get("mcp", "") if kind == "mcp" else "")
            if container:
                found[container] = None
    return list(found)


def base_of(branch: BranchState) -> WorkspaceAt | None:
    """How the runs of a branch left the container that was made for them."""
    return branch.workspaces[-1][1] if branch.workspaces else None
