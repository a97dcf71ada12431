"""What was said before stays on the server: name a response to go on from, or a conversation.

Run `stateroom serve`, and then `python examples/remember.py`.
"""

from __future__ import annotations

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "unused"),
)

# A chain: each response names the one that it goes on from. Only what is new is sent.
first = client.responses.create(model="default", input="What is the capital of France?")
second = client.responses.create(model="default", input="And of Japan?", previous_response_id=first.id)
print(second.output_text, "\n")

# A conversation: it has an id of its own, for every client that knows it, today or next month.
conversation = client.conversations.create(
    items=[
        {"role": "user", "content": "My dog is called Biscuit."},
        {"role": "assistant", "content": "That is a good name."},
    ]
)
client.responses.create(model="default", input="What is my dog called?", conversation=conversation.id)

for item in client.conversations.items.list(conversation.id, order="asc"):
    if item.type == "message":
        print(f"{item.role:>9}: {item.content[0].text}")
