"""Go back to an earlier turn and try something else: a fork shares the past and goes its own way.

Run `stateroom serve`, and then `python examples/fork.py`.
"""

from __future__ import annotations

import os

from openai import OpenAI
from openai.types.conversations import Conversation

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "unused"),
)


def ask(conversation: Conversation, text: str) -> str:
    return client.responses.create(model="default", input=text, conversation=conversation.id).id


def show(title: str, conversation: Conversation) -> None:
    print(f"{title} ({conversation.id})")
    for item in client.conversations.items.list(conversation.id, order="asc"):
        if item.type == "message":
            print(f"  {item.role:>9}: {item.content[0].text}")


original = client.conversations.create()
turn = ask(original, "What is the capital of France?")
ask(original, "And of Japan?")

# Forks are an extension of OpenAI's API, so they are called by their path.
fork = client.post(f"/conversations/{original.id}/fork", body={"response_id": turn}, cast_to=Conversation)
ask(fork, "And of Italy?")

show("original", original)
show("fork", fork)
