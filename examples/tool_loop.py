"""The loop of an agent: the model asks for a function, this program carries it out, until there is an answer.

Run `stateroom serve`, and then `python examples/tool_loop.py`.
"""

from __future__ import annotations

import json
import os

from openai import OpenAI
from openai.types.responses import ResponseFunctionToolCall

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "unused"),
)


def weather(city: str) -> str:
    return f"18 degrees and sunny in {city}"


def carry_out(call: ResponseFunctionToolCall) -> dict[str, str]:
    output = functions[call.name](**json.loads(call.arguments))
    print(f"{call.name}({call.arguments}) = {output}")
    return {"type": "function_call_output", "call_id": call.call_id, "output": output}


functions = {"weather": weather}
parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "name": "weather", "description": "The weather in a city.", "parameters": parameters}]
new, previous = "How is the weather in Paris?", None

# The first step must call a function, later ones may, the last one must answer.
for choice in ("required", "auto", "none"):
    response = client.responses.create(
        model="default", input=new, previous_response_id=previous, tools=tools, tool_choice=choice
    )
    calls = [item for item in response.output if item.type == "function_call"]
    if not calls:
        break
    new, previous = [carry_out(call) for call in calls], response.id  # the server has the rest

print(response.output_text)
