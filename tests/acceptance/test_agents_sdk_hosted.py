"""The Agents SDK's hosted tools, unmodified: MCP servers with approvals, shells, the code interpreter, patches."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    ApplyPatchTool,
    CodeInterpreterTool,
    HostedMCPTool,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    ShellTool,
    SQLiteSession,
    ToolSearchTool,
    apply_diff,
    function_tool,
    set_tracing_disabled,
)
from agents.tool import MCPToolApprovalRequest, ShellCommandRequest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from stateroom.testing.mcp_server import ScriptedMcp, served
from stateroom.testing.process import ServerProcess
from tests.acceptance.contract import hold_async_answer
from tests.acceptance.hosted import patch, python, shell
from tests.acceptance.modelhost import ModelHost, Seen

QUIET = RunConfig(tracing_disabled=True)
AUTO: Any = {"type": "container_auto"}


@pytest.fixture(autouse=True)
def no_traces() -> None:
    """Nothing is sent to OpenAI."""
    set_tracing_disabled(True)


@pytest.fixture(scope="module")
def server(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("agents")
    process = ServerProcess(folder / "data", backends=(model_host.url,))
    with process.start(environment={"STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true"}):
        yield process
        process.terminate()


@pytest.fixture
async def openai(server: ServerProcess) -> AsyncIterator[AsyncOpenAI]:
    checked = DefaultAsyncHttpxClient(base_url=server.url, event_hooks={"response": [hold_async_answer]})
    async with AsyncOpenAI(base_url=server.url, api_key="unused", max_retries=0, http_client=checked) as client:
        yield client


@pytest.fixture
def model(openai: AsyncOpenAI) -> OpenAIResponsesModel:
    return OpenAIResponsesModel(model="scripted", openai_client=openai)


@pytest.fixture
def mcp() -> Iterator[tuple[ScriptedMcp, str]]:
    script = ScriptedMcp()
    with served(script.app()) as url:
        yield script, url


def declared(url: str, approval: str) -> Any:
    return {"type": "mcp", "server_label": "notes", "server_url": url, "require_approval": approval}


async def run(agent: Agent[Any], words: Any, *, streamed: bool = False, **more: Any) -> Any:
    if not streamed:
        return await Runner.run(agent, words, run_config=QUIET, **more)
    result = Runner.run_streamed(agent, words, run_config=QUIET, **more)
    async for _ in result.stream_events():
        pass
    return result


def item_types(result: Any) -> list[str]:
    return [item.type for item in result.new_items]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_hosted_mcp_server_is_called(
    model: OpenAIResponsesModel, mcp: tuple[ScriptedMcp, str], streamed: bool
) -> None:
    script, url = mcp
    agent = Agent(name="notes", tools=[HostedMCPTool(tool_config=declared(url, "never"))], model=model)
    result = await run(agent, 'call: notes__write_note {"text":"hello"}', streamed=streamed)
    assert "the note is: hello" in result.final_output
    assert item_types(result) == ["mcp_list_tools_item", "tool_call_item", "message_output_item"]
    again = await run(agent, [*result.to_input_list(), {"role": "user", "content": "call: notes__read_note {}"}])
    assert "hello" in again.final_output
    assert [name for name, _ in script.calls] == ["write_note", "read_note"]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("approved", [False, True])
async def test_approvals_are_given_by_a_function(
    model: OpenAIResponsesModel, mcp: tuple[ScriptedMcp, str], streamed: bool, approved: bool
) -> None:
    script, url = mcp
    asked: list[str] = []

    def decide(request: MCPToolApprovalRequest) -> Any:
        asked.append(request.data.name)
        return {"approve": True} if approved else {"approve": False, "reason": "not now"}

    tool = HostedMCPTool(tool_config=declared(url, "always"), on_approval_request=decide)
    agent = Agent(name="notes", tools=[tool], model=model)
    result = await run(agent, 'call: notes__write_note {"text":"hello"}', streamed=streamed)
    assert asked == ["write_note"]
    assert len(script.calls) == approved
    assert ("the note is: hello" if approved else "not now") in result.final_output


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("approved", [False, True])
async def test_approvals_interrupt_the_run(
    model: OpenAIResponsesModel, mcp: tuple[ScriptedMcp, str], streamed: bool, approved: bool
) -> None:
    script, url = mcp
    agent = Agent(name="notes", tools=[HostedMCPTool(tool_config=declared(url, "always"))], model=model)
    result = await run(agent, 'call: notes__write_note {"text":"hello"}', streamed=streamed)
    [waiting] = result.interruptions
    assert script.calls == []
    state = result.to_state()
    if approved:
        state.approve(waiting)
    else:
        state.reject(waiting)
    result = await run(agent, state, streamed=streamed)
    assert result.interruptions == []
    assert len(script.calls) == approved
    assert "the note is: hello" in result.final_output if approved else "refused" in result.final_output


async def test_approvals_work_with_a_conversation(
    model: OpenAIResponsesModel, openai: AsyncOpenAI, mcp: tuple[ScriptedMcp, str]
) -> None:
    script, url = mcp
    conversation = await openai.conversations.create()

    def decide(request: MCPToolApprovalRequest) -> Any:
        return {"approve": True}

    tool = HostedMCPTool(tool_config=declared(url, "always"), on_approval_request=decide)
    agent = Agent(name="notes", tools=[tool], model=model)
    for number, text in enumerate(("a", "b"), 1):
        result = await run(
            agent, f'call: notes__write_note {{"text":"{text}"}}', conversation_id=conversation.id, streamed=number == 2
        )
        assert len(script.calls) == number
    assert "the note is: ab" in result.final_output
    assert script.lists == len(script.tools) // script.page + 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_hosted_shell_works(model: OpenAIResponsesModel, streamed: bool) -> None:
    agent = Agent(name="worker", tools=[ShellTool(environment=AUTO)], model=model)
    first = await run(agent, shell("echo kept > a; cat a"), streamed=streamed)
    assert first.final_output == "The tool answered: kept"
    assert item_types(first) == ["tool_call_item", "tool_call_output_item", "message_output_item"]
    second = await run(agent, shell("cat a"), streamed=streamed, previous_response_id=first.last_response_id)
    assert second.final_output == "The tool answered: kept"


async def test_a_hosted_shell_keeps_its_files_in_a_session(model: OpenAIResponsesModel, openai: AsyncOpenAI) -> None:
    session = OpenAIConversationsSession(openai_client=openai)
    agent = Agent(name="worker", tools=[ShellTool(environment=AUTO)], model=model)
    await run(agent, shell("echo 1 > a"), session=session)
    await run(agent, "say: between", session=session, streamed=True)
    items = await session.get_items()
    assert [item.get("type", "message") for item in items].count("shell_call") == 1
    result = await run(agent, shell("cat a"), session=session)
    assert result.final_output == "The tool answered: 1"
    conversation = await openai.conversations.create()
    await run(agent, shell("echo 2 > a"), conversation_id=conversation.id)
    result = await run(agent, shell("cat a"), conversation_id=conversation.id, streamed=True)
    assert result.final_output == "The tool answered: 2"
    local = SQLiteSession("local")
    await run(agent, shell("echo 3 > a"), session=local)
    result = await run(agent, shell("cat a"), session=local, streamed=True)
    assert result.final_output == "The tool answered: 3"


async def test_a_container_that_is_named_is_used(model: OpenAIResponsesModel, openai: AsyncOpenAI) -> None:
    made = await openai.containers.create(name="mine")
    await openai.containers.files.create(made.id, file=("in.txt", b"given"))
    named: Any = {"type": "container_reference", "container_id": made.id}
    agent = Agent(name="worker", tools=[ShellTool(environment=named)], model=model)
    result = await run(agent, shell("cat in.txt; echo out > out.txt"))
    assert result.final_output == "The tool answered: given"
    paths = [file.path async for file in openai.containers.files.list(made.id, order="asc")]
    assert paths == ["/mnt/data/in.txt", "/mnt/data/out.txt"]


async def test_the_client_runs_a_local_shell(model: OpenAIResponsesModel) -> None:
    ran: list[list[str]] = []

    def execute(request: ShellCommandRequest) -> str:
        ran.append(list(request.data.action.commands))
        return "from here"

    agent = Agent(name="worker", tools=[ShellTool(executor=execute)], model=model)
    result = await run(agent, shell("ls", "pwd"))
    assert ran == [["ls", "pwd"]]
    assert "from here" in result.final_output
    streamed = await run(agent, shell("ls"), streamed=True)
    assert "from here" in streamed.final_output


async def test_skills_of_a_local_shell_are_told(model: OpenAIResponsesModel, seen: Seen, tmp_path: Path) -> None:
    environment: Any = {
        "type": "local",
        "skills": [{"name": "deploying", "description": "Deploys things.", "path": str(tmp_path / "deploying")}],
    }
    tool = ShellTool(executor=lambda request: "ok", environment=environment)
    await run(Agent(name="worker", instructions="Be brief.", tools=[tool], model=model), "say: hi")
    system = seen.messages[0]["content"]
    assert system.startswith("Be brief.")
    assert f"- deploying: Deploys things. ({tmp_path}/deploying/SKILL.md)" in system


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_code_interpreter_works(model: OpenAIResponsesModel, streamed: bool) -> None:
    tool = CodeInterpreterTool(tool_config={"type": "code_interpreter", "container": {"type": "auto"}})
    agent = Agent(name="analyst", tools=[tool], model=model)
    first = await run(agent, python("x = 20\nx + 22"), streamed=streamed)
    assert first.final_output == "The tool answered: 42"
    again = await run(agent, python("x"), streamed=streamed, previous_response_id=first.last_response_id)
    assert again.final_output == "The tool answered: 20"


class Editor:
    """Files in memory, changed by the SDK's own reading of diffs."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def create_file(self, operation: Any) -> Any:
        self.files[operation.path] = apply_diff("", operation.diff, mode="create")
        return f"made {operation.path}"

    def update_file(self, operation: Any) -> Any:
        self.files[operation.path] = apply_diff(self.files[operation.path], operation.diff)
        return f"changed {operation.path}"

    def delete_file(self, operation: Any) -> Any:
        del self.files[operation.path]
        return f"removed {operation.path}"


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_client_applies_patches(model: OpenAIResponsesModel, streamed: bool) -> None:
    editor = Editor()
    agent = Agent(name="coder", tools=[ApplyPatchTool(editor=editor)], model=model)
    words = [
        patch("create_file", "a.txt", "+one\n+two\n"),
        patch("update_file", "a.txt", "@@\n one\n-two\n+three\n"),
        patch("create_file", "b.txt", "+x\n"),
        patch("delete_file", "b.txt"),
    ]
    result = await run(agent, "\n".join(words), streamed=streamed)
    assert editor.files == {"a.txt": "one\nthree"}
    assert result.final_output == ("The tool answered: made a.txt; changed a.txt; made b.txt; removed b.txt")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("approved", [False, True])
async def test_a_command_that_a_rule_asks_about_interrupts_the_run(
    asking: AsyncOpenAI, streamed: bool, approved: bool
) -> None:
    """The SDK wants the server of each approval declared, and this one stands for the tools that have none."""
    asked = HostedMCPTool(tool_config={"type": "mcp", "server_label": "stateroom"})
    model = OpenAIResponsesModel(model="scripted", openai_client=asking)
    agent = Agent(name="worker", tools=[ShellTool(environment=AUTO), asked], model=model)
    result = await run(agent, shell("echo done"), streamed=streamed)
    [waiting] = result.interruptions
    assert (waiting.raw_item.name, waiting.raw_item.server_label) == ("shell", "stateroom")
    state = result.to_state()
    if approved:
        state.approve(waiting)
    else:
        state.reject(waiting)
    result = await run(agent, state, streamed=streamed)
    said = "done" if approved else "[stderr]\nThe user refused this call.\n[exit code 1]"
    assert result.final_output.endswith(f"; {said}")


@pytest.fixture
async def asking(model_host: ModelHost, tmp_path: Path) -> AsyncIterator[AsyncOpenAI]:
    file = tmp_path / "stateroom.toml"
    file.write_text('[[policy]]\ntool = "shell"\ndecision = "ask"\n')
    process = ServerProcess(tmp_path / "data", backends=(model_host.url,), options=("--config", str(file)))
    with process.start():
        async with AsyncOpenAI(base_url=process.url, api_key="unused", max_retries=0) as client:
            yield client
        process.terminate()


@pytest.mark.parametrize("streamed", [False, True])
async def test_deferred_functions_are_found_and_called(model: OpenAIResponsesModel, streamed: bool) -> None:
    @function_tool(defer_loading=True)
    def price(of: str) -> str:
        """The price of an article."""
        return f"{of}: 3"

    words = 'call: tool_search {"query":"price"}\ncall: price {"of":"tea"}'
    agent = Agent(name="seller", tools=[price, ToolSearchTool()], model=model)
    result = await run(agent, words, streamed=streamed)
    assert result.final_output.endswith("; tea: 3")


async def test_all_hosted_tools_work_side_by_side(model: OpenAIResponsesModel, mcp: tuple[ScriptedMcp, str]) -> None:
    _, url = mcp
    tools: list[Any] = [
        ShellTool(environment=AUTO),
        CodeInterpreterTool(tool_config={"type": "code_interpreter", "container": {"type": "auto"}}),
        HostedMCPTool(tool_config=declared(url, "never")),
    ]
    words = [shell("echo 5 > n"), python("int(open('n').read()) * 2"), 'call: notes__write_note {"text":"ten"}']
    result = await run(Agent(name="all", tools=tools, model=model), "\n".join(words), streamed=True)
    assert result.final_output.endswith("10; the note is: ten")
    assert json.dumps(result.to_input_list())
