"""An agent that deploys, and whose server is killed in the middle: nobody knows how far it came, so it asks.

It starts a server of its own, with a rule by which a person agrees to each deployment. Name a model that calls tools:

    STATEROOM_BACKENDS=http://host:9001/v1 python examples/safe_deployment.py
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types.responses import Response

RULES = r"""
[[policy]]
tool = "shell"
arguments = 'deploy\.sh'
decision = "ask"
reason = "A person agrees to each deployment."
"""
DEPLOY = b"""
for step in "$@"; do
    echo "begin $step" | tee -a production.log
    sleep 1
    echo "end $step" | tee -a production.log
done
"""
BRIEF = (
    "You deploy with `sh deploy.sh STEP...`, which writes production.log. A step must not be done twice. "
    "If the outcome of a call is unknown, read production.log before you do anything else."
)
TASK = "Deploy release 42: the steps are backup, migrate, switch."


class Server:
    """`stateroom serve`, on one data directory and one port through all its lives."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "stateroom.toml").write_text(RULES)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "stateroom.cli.main", "serve", "--port", str(self.port), "--data", "data"]
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.home, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(300):
            try:
                opener.open(f"{self.url}/ready", timeout=2).close()
                return
            except OSError:
                time.sleep(0.1)
        sys.exit(f"the server did not start:\n{(self.home / 'server.log').read_text()}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="stateroom-deployment-") as home:
        server = Server(Path(home))
        server.start()
        try:
            deploy(server, OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0))
        finally:
            server.process.terminate()
            server.process.wait()


def deploy(server: Server, client: OpenAI) -> None:
    container = client.containers.create(name="production")
    client.containers.files.create(container.id, file=("deploy.sh", DEPLOY))
    environment = {"type": "container_reference", "container_id": container.id}
    asked: dict[str, Any] = {
        "model": "default",
        "instructions": BRIEF,
        "tools": [{"type": "shell", "environment": environment}],
        "background": True,
        "stream": True,
    }
    response = follow(server, client, client.responses.create(input=TASK, **asked))
    dies = True  # once, in the first deployment that is agreed to
    while answers := approvals(response):
        stream = client.responses.create(input=answers, previous_response_id=response.id, **asked)
        response = follow(server, client, stream, dies=dies)
        dies = False
    print(response.output_text)
    audit(client, response)


def follow(server: Server, client: OpenAI, events: Iterable[Any], *, dies: bool = False) -> Response:
    """Show what is done while it is done; the response as it ended. `dies`: the server does, in the second step."""
    response = None
    for event in events:
        response = getattr(event, "response", response)
        show(event)
        if dies and event.type == "response.shell_call_output_content.delta" and "begin migrate" in event.delta.stdout:
            server.kill()
            print("--- kill -9; and started again ---")
            server.start()
            assert response is not None, "the first event holds it"
            rest = client.responses.retrieve(response.id, stream=True, starting_after=event.sequence_number)
            return follow(server, client, rest)
    assert response is not None, "the stream has ended without an end"
    return response


def show(event: Any) -> None:
    if event.type == "response.shell_call_command.done":
        print(f"$ {event.command}")
    elif event.type == "response.shell_call_output_content.delta":
        print(event.delta.stdout + event.delta.stderr, end="")
    elif event.type == "response.output_item.done" and event.item.type == "shell_call_output":
        for chunk in event.item.output:
            if event.item.status == "incomplete":
                print(chunk.stderr)


def approvals(response: Response) -> list[Any]:
    """Ask the person in front of the terminal for each call that was held back."""
    answers = []
    for item in response.output:
        if item.type == "mcp_approval_request":
            said = input(f"May it do {item.name} {item.arguments}? [y/n] ")
            print()
            approve = said.strip().lower().startswith("y")
            answers.append({"type": "mcp_approval_response", "approval_request_id": item.id, "approve": approve})
    return answers


def audit(client: OpenAI, response: Response) -> None:
    """Who decided on which call, and what came of it, from the journal of the whole chain. An extension."""
    chain: list[str] = []
    current: Response | None = response
    while current is not None:
        chain.append(current.id)
        previous = current.previous_response_id
        current = client.responses.retrieve(previous) if previous else None
    for response_id in reversed(chain):
        events: Any = client.get(f"/responses/{response_id}/events", cast_to=object)
        for event in events["data"]:
            if event["kind"] == "tool.decided":
                print(f"  {event['item_id'][-8:]}: {event['decision']} by {event['decided_by']}")
            elif event["kind"] == "tool.outcome":
                print(f"  {event['item_id'][-8:]}: {event['outcome']}")


if __name__ == "__main__":
    main()
