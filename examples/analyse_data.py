"""A data analyst: it computes with Python on the server, keeps its variables, and makes files that you download.

Run `stateroom serve --backend URL` with a model that can call tools, and then `python examples/analyse_data.py`.
"""

from __future__ import annotations

import os

from openai import OpenAI
from openai.types.responses import Response

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "unused"),
)

SALES = b"region,month,revenue\nnorth,1,120\nnorth,2,95\nsouth,1,210\nsouth,2,240\nwest,1,80\nwest,2,35\n"
BRIEF = "You analyse data with Python. Use its standard library only. Answer in one sentence."


def show(response: Response) -> None:
    """What was computed, and what came of it."""
    for item in response.output:
        if item.type == "code_interpreter_call":
            for line in (item.code or "").splitlines():
                print(f"  > {line}")
            for output in item.outputs or ():
                if output.type == "logs":
                    print(f"    {output.logs}")
    print(f"{response.output_text}\n")


def ask(text: str, previous: str | None = None) -> Response:
    response = client.responses.create(
        model="default",
        instructions=BRIEF,
        input=text,
        previous_response_id=previous,
        tools=[{"type": "code_interpreter", "container": {"type": "auto", "file_ids": [sales.id]}}],
        include=["code_interpreter_call.outputs"],
    )
    show(response)
    return response


sales = client.files.create(file=("sales.csv", SALES), purpose="user_data")
first = ask(
    "Read /mnt/data/sales.csv and add up the revenue of each region in a dict `totals`. "
    "Write it to summary.json, and draw it as bars in chart.svg."
)

# The files are in the container, for as long as the response is kept.
container = next(item.container_id for item in first.output if item.type == "code_interpreter_call")
for file in sorted(client.containers.files.list(container), key=lambda file: file.path):
    content = client.containers.files.content.retrieve(file.id, container_id=container).read()
    print(f"{file.path} ({file.source}): {len(content)} bytes")
    if file.path.endswith(".json"):
        print(f"  {content.decode()}")

# The next turn finds the variables where they are; so it would after a restart of the server.
ask("Which share of the whole does the strongest region have? `totals` is still there.", first.id)
