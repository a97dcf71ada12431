"""The Conversations API: its operations, and the shapes of its answers."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from stateroom.wire import parameters
from stateroom.wire.openapi.operations import AFTER, BEFORE, LIMIT, ORDER, PAGE, Body, Operation, Surface
from stateroom.wire.openapi.responses import INCLUDE
from stateroom.wire.openapi.schemas import Schema, Time, body_of, deleted, list_of, nullable, page_of, ref
from stateroom.wire.requests import CONVERSATION_ITEMS_MAX

_ITEMS: Final[Schema] = list_of(ref("InputItem"), maxItems=CONVERSATION_ITEMS_MAX)
_HELLO: Final = {"items": [{"role": "user", "content": "Call me Ada."}]}


class Conversation(msgspec.Struct):
    """Items in their order, which responses go on from and add to."""

    id: str
    object: Literal["conversation"]
    created_at: Time
    metadata: dict[str, str]


def surface() -> Surface:
    """All of it."""
    return Surface(
        name="Conversations",
        about="What was said, in its order, for as many responses as one likes; and forks of it.",
        operations=(*_conversations(), *_items()),
        shapes=(Conversation,),
        schemas={
            "CreateConversation": body_of(parameters.Conversation, replaced={"items": nullable(_ITEMS)}),
            "UpdateConversation": body_of(parameters.Update, about={"metadata": "Takes the place of what there was."}),
            "AddItems": body_of(parameters.Items, replaced={"items": _ITEMS, "include": nullable(INCLUDE.schema)}),
            "ConversationList": page_of("Conversation"),
            "ItemList": page_of("Item"),
            "DeletedConversation": deleted("conversation.deleted"),
        },
    )


def _conversations() -> tuple[Operation, ...]:
    return (
        Operation(
            place="POST /v1/conversations",
            name="createConversation",
            summary="Create a conversation",
            body=Body(ref("CreateConversation"), required=False, examples={"with something said": _HELLO}),
            answer=ref("Conversation"),
            errors=(404,),
            scope="write",
            makes=True,
            python='conversation = client.conversations.create(metadata={"topic": "a walk"})',
        ),
        Operation(
            place="GET /v1/conversations",
            name="listConversations",
            summary="List conversations",
            query=PAGE,
            answer=ref("ConversationList"),
            errors=(400, 404),
            scope="read",
            extension=True,
        ),
        Operation(
            place="GET /v1/conversations/{conversation_id}",
            name="getConversation",
            summary="Retrieve a conversation",
            answer=ref("Conversation"),
            errors=(404,),
            scope="read",
            python="client.conversations.retrieve(conversation.id)",
        ),
        Operation(
            place="POST /v1/conversations/{conversation_id}",
            name="updateConversation",
            summary="Replace the metadata of a conversation",
            body=Body(ref("UpdateConversation"), examples={"a name": {"metadata": {"name": "a walk"}}}),
            answer=ref("Conversation"),
            errors=(404,),
            scope="write",
            python='client.conversations.update(conversation.id, metadata={"name": "a walk"})',
        ),
        Operation(
            place="DELETE /v1/conversations/{conversation_id}",
            name="deleteConversation",
            summary="Delete a conversation",
            about="Everything in it is erased, for its forks as well as far as they share it.",
            answer=ref("DeletedConversation"),
            errors=(400, 404),
            scope="write",
            python="client.conversations.delete(conversation.id)",
        ),
        Operation(
            place="POST /v1/conversations/{conversation_id}/fork",
            name="forkConversation",
            summary="A new conversation with this one's items, up to one of them",
            about="`after_item_id` names the last item that the fork is to have, `response_id` the last response.",
            body=Body(ref("Fork"), required=False, examples={"at its end": {"metadata": {"name": "another end"}}}),
            answer=ref("Conversation"),
            errors=(404,),
            scope="write",
            makes=True,
            extension=True,
        ),
    )


def _items() -> tuple[Operation, ...]:
    return (
        Operation(
            place="GET /v1/conversations/{conversation_id}/items",
            name="listItems",
            summary="List the items of a conversation",
            query=(INCLUDE, AFTER, BEFORE, LIMIT, ORDER),
            answer=ref("ItemList"),
            errors=(400, 404),
            scope="read",
            python="client.conversations.items.list(conversation.id)",
        ),
        Operation(
            place="POST /v1/conversations/{conversation_id}/items",
            name="addItems",
            summary="Add items to a conversation",
            about="No model is asked. It answers with what was added.",
            body=Body(ref("AddItems"), examples={"a message": _HELLO}),
            answer=ref("ItemList"),
            errors=(404,),
            scope="write",
            makes=True,
            python="client.conversations.items.create(\n"
            '    conversation.id, items=[{"role": "user", "content": "Call me Ada."}]\n)',
        ),
        Operation(
            place="GET /v1/conversations/{conversation_id}/items/{item_id}",
            name="getItem",
            summary="Retrieve an item",
            answer=ref("Item"),
            errors=(404,),
            scope="read",
            python="client.conversations.items.retrieve(item.id, conversation_id=conversation.id)",
        ),
        Operation(
            place="DELETE /v1/conversations/{conversation_id}/items/{item_id}",
            name="deleteItem",
            summary="Delete an item",
            about="It answers with the conversation.",
            answer=ref("Conversation"),
            errors=(400, 404),
            scope="write",
            python="client.conversations.items.delete(item.id, conversation_id=conversation.id)",
        ),
    )
