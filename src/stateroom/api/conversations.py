"""The Conversations API: translate, check access, call the runtime, translate back."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom.api.claims import Make, claim, conversation_once
from stateroom.api.http import Json, included, listed, page_of, read_body, slice_page
from stateroom.api.item_pages import render_items
from stateroom.api.responses import principal
from stateroom.runtime.conversations import Conversation, Conversations
from stateroom.runtime.idempotency import Idempotency
from stateroom.wire.items import unpack, withheld
from stateroom.wire.requests import (
    Bounds,
    decode_conversation,
    decode_fork,
    decode_items,
    decode_metadata,
)
from stateroom.wire.responses import (
    conversation_object,
    render_conversation,
    render_deleted_conversation,
    render_list,
)


class ConversationsApi:
    """Handlers over the runtime."""

    def __init__(self, conversations: Conversations, idempotency: Idempotency, bounds: Bounds, body_bytes: int) -> None:
        self._conversations = conversations
        self._idempotency = idempotency
        self._bounds = bounds
        self._body_bytes = body_bytes

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        return [
            Route("/conversations", self.create, methods=["POST"]),
            Route("/conversations", self.page, methods=["GET"]),
            Route("/conversations/{conversation_id}", self.retrieve, methods=["GET"]),
            Route("/conversations/{conversation_id}", self.update, methods=["POST"]),
            Route("/conversations/{conversation_id}", self.delete, methods=["DELETE"]),
            Route("/conversations/{conversation_id}/fork", self.fork, methods=["POST"]),
            Route("/conversations/{conversation_id}/items", self.items, methods=["GET"]),
            Route("/conversations/{conversation_id}/items", self.add_items, methods=["POST"]),
            Route("/conversations/{conversation_id}/items/{item_id}", self.item, methods=["GET"]),
            Route("/conversations/{conversation_id}/items/{item_id}", self.delete_item, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await self._body(request)
        asked = decode_conversation(body, self._bounds)
        project = principal(request).project
        return await self._once(
            request,
            body,
            lambda new_id, also: self._conversations.create(
                project, metadata=asked.metadata, items=asked.items, new_id=new_id, also=also
            ),
        )

    async def page(self, request: Request) -> Response:
        project = principal(request).project
        return await listed(
            request.query_params,
            partial(self._conversations.page, project),
            lambda each: conversation_object(each.id, each.created_at, each.metadata),
        )

    async def retrieve(self, request: Request) -> Response:
        return _shown(await self._conversations.get(principal(request).project, _id(request)))

    async def update(self, request: Request) -> Response:
        metadata = decode_metadata(await self._body(request), self._bounds)
        return _shown(await self._conversations.update(principal(request).project, _id(request), metadata))

    async def delete(self, request: Request) -> Response:
        await self._conversations.delete(principal(request).project, _id(request))
        return Json(render_deleted_conversation(_id(request)))

    async def fork(self, request: Request) -> Response:
        body = await self._body(request)
        asked = decode_fork(body, self._bounds)
        project = principal(request).project
        return await self._once(
            request,
            body,
            lambda new_id, also: self._conversations.fork(
                project,
                _id(request),
                after_item_id=asked.after_item_id,
                response_id=asked.response_id,
                metadata=asked.metadata,
                new_id=new_id,
                also=also,
            ),
        )

    async def items(self, request: Request) -> Response:
        query = request.query_params
        include = included(query)
        held = await self._conversations.items(principal(request).project, _id(request))
        part, more = slice_page(held, page_of(query))
        return Json(await render_items(part, more, self._conversations.shown, include))

    async def add_items(self, request: Request) -> Response:
        body = await self._body(request)
        items, include = decode_items(body, self._bounds), included(request.query_params)
        project = principal(request).project
        async with claim(self._idempotency, request, body) as claimed:
            if claimed.made:
                added = await self._conversations.added(project, _id(request), int(claimed.made))
            else:
                added = await self._conversations.add_items(project, _id(request), items, also=claimed.also)
        return Json(render_list([withheld(unpack(each.item, each.id), include) for each in added], False))

    async def item(self, request: Request) -> Response:
        include = included(request.query_params)
        found = await self._conversations.item(principal(request).project, _id(request), request.path_params["item_id"])
        return Json(msgspec.json.encode(withheld(unpack(found.item, found.id), include)))

    async def delete_item(self, request: Request) -> Response:
        return _shown(
            await self._conversations.delete_item(
                principal(request).project, _id(request), request.path_params["item_id"]
            )
        )

    async def _once(self, request: Request, body: bytes, make: Make) -> Response:
        return _shown(await conversation_once(self._idempotency, self._conversations, request, body, make))

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self._body_bytes)


def _id(request: Request) -> str:
    identifier: str = request.path_params["conversation_id"]
    return identifier


def _shown(conversation: Conversation) -> Response:
    return Json(render_conversation(conversation.id, conversation.created_at, conversation.metadata))
