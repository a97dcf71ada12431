"""A stream that is dropped in mid-answer and read on from where it stopped: no event is lost, none comes twice.

Run `stateroom serve`, and then `python examples/resume_stream.py`.
"""

from __future__ import annotations

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "unused"),
)

# In the background: the answer goes on without us.
question = "Tell me a story about a ship, in three sentences."
stream = client.responses.create(model="default", input=question, background=True, stream=True)
for event in stream:
    seen = event.sequence_number
    if event.type == "response.created":
        response_id = event.response.id
    if event.type == "response.output_text.delta":
        print(event.delta, end="", flush=True)
    if seen == 6:
        stream.close()  # the train enters a tunnel
        break

print(f"\n[dropped behind event {seen}]")
for event in client.responses.retrieve(response_id, stream=True, starting_after=seen):
    assert event.sequence_number == seen + 1
    seen = event.sequence_number
    if event.type == "response.output_text.delta":
        print(event.delta, end="", flush=True)

print(f"\n[event {seen} is {event.type}]")
