"""OpenAI's Agents SDK with its session on the server: `pip install openai-agents`.

Run `stateroom serve`, and then `python examples/agents_sdk.py`.
"""

from __future__ import annotations

import os

from agents import Agent, OpenAIConversationsSession, OpenAIResponsesModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI

client = AsyncOpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "unused"),
)
set_tracing_disabled(True)  # otherwise traces go to OpenAI

agent = Agent(
    name="geographer",
    instructions="Answer in one short sentence.",
    model=OpenAIResponsesModel(model="default", openai_client=client),
)
session = OpenAIConversationsSession(openai_client=client)

for question in ("What is the capital of France?", "And of Japan?"):
    result = Runner.run_sync(agent, question, session=session)
    print(f"{question} {result.final_output}")
