"""Every operation of the document is carried out by a real server, and each answer is what the document says.

`wire.send` holds every answer against the document (see `contract`); here it is seen to that no operation is left out,
that the examples in the document work as they stand, and that OpenAI's own types take what is shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openai import types
from openai.types import chat, containers, conversations, responses, skills, webhooks
from openai.types.uploads import UploadPart
from pydantic import TypeAdapter

from stateroom.testing.process import ServerProcess
from tests.acceptance.contract import described, hold
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.wire import Answer, assert_fits, send

OPERATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, held in described()["paths"].items()
    for method, operation in held.items()
}
REFUSED = {
    "deleteModel": 405,
    # Its address is nobody's: what a delivered sample is answered with is seen in test_webhooks.py.
    "testWebhookEndpoint": 400,
}
OWN_TYPES: dict[str, Any] = {
    "createResponse": responses.Response,
    "getResponse": responses.Response,
    "cancelResponse": responses.Response,
    "createConversation": conversations.Conversation,
    "getConversation": conversations.Conversation,
    "updateConversation": conversations.Conversation,
    "addItems": conversations.ConversationItemList,
    "listItems": conversations.ConversationItemList,
    "getItem": conversations.ConversationItem,
    "listInputItems": responses.ResponseItemList,
    "createChatCompletion": chat.ChatCompletion,
    "getChatCompletion": chat.ChatCompletion,
    "createCompletion": types.Completion,
    "createEmbeddings": types.CreateEmbeddingResponse,
    "createFile": types.FileObject,
    "getFile": types.FileObject,
    "deleteFile": types.FileDeleted,
    "createUpload": types.Upload,
    "completeUpload": types.Upload,
    "addUploadPart": UploadPart,
    "createSkill": types.Skill,
    "getSkill": types.Skill,
    "updateSkill": types.Skill,
    "listSkills": types.SkillList,
    "deleteSkill": types.DeletedSkill,
    "createSkillVersion": skills.SkillVersion,
    "getSkillVersion": skills.SkillVersion,
    "listSkillVersions": skills.SkillVersionList,
    "deleteSkillVersion": skills.DeletedSkillVersion,
    "createContainer": types.ContainerCreateResponse,
    "getContainer": types.ContainerRetrieveResponse,
    "createContainerFile": containers.FileCreateResponse,
    "getContainerFile": containers.FileRetrieveResponse,
    "createBatch": types.Batch,
    "getBatch": types.Batch,
    "getModel": types.Model,
    "createWebhookEndpoint": webhooks.WebhookEndpointWithSecret,
    "rotateWebhookSecret": webhooks.WebhookEndpointWithSecret,
    "getWebhookEndpoint": webhooks.WebhookEndpoint,
    "listWebhookEndpoints": webhooks.WebhookEndpointList,
    "deleteWebhookEndpoint": webhooks.DeletedWebhookEndpoint,
}


class Walk:
    """Does things one after the other, and keeps what was answered and the ids of what was made."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.answers: dict[str, Answer] = {}
        self.named: dict[str, str] = {}

    def do(self, name: str, body: Any = None, query: str = "", **named: str) -> Any:
        """One operation; `named` are parameters of its path besides those that were kept."""
        method, path, operation = OPERATIONS[name]
        for parameter, identifier in {**self.named, **named}.items():
            path = path.replace(f"{{{parameter}}}", identifier)
        headers, raw = {}, None
        if isinstance(body, bytes):
            media = next(iter(operation["requestBody"]["content"]))
            headers, raw, body = {"content-type": f"{media}; boundary=cut"}, body, None
        answer = send(self.root, method, path + query, body, raw=raw, headers=headers)
        assert answer.status == REFUSED.get(name, 200), (name, answer.status, answer.body)
        self.answers[name] = answer
        return answer.json if answer.headers["content-type"] == "application/json" else answer.body

    def make(self, name: str, parameter: str, body: Any = None) -> Any:
        """One that makes something, whose id is kept."""
        made = self.do(name, body)
        self.named[parameter] = made["id"]
        return made


def form(name: str, content: str, **fields: str) -> bytes:
    parts = [f'--cut\r\ncontent-disposition: form-data; name="{key}"\r\n\r\n{fields[key]}\r\n' for key in fields]
    file = f'--cut\r\ncontent-disposition: form-data; name="{name}"; filename="a"\r\n\r\n{content}\r\n--cut--\r\n'
    return ("".join(parts) + file).encode()


SKILL = form("files", "---\nname: a\ndescription: b\n---\n").replace(b'filename="a"', b'filename="SKILL.md"')


def example(name: str, number: int = 0) -> Any:
    """One of the examples in the document."""
    (content,) = OPERATIONS[name][2]["requestBody"]["content"].values()
    return list(content["examples"].values())[number]["value"]


def walk_responses(walk: Walk) -> None:
    walk.make("createResponse", "response_id", {**example("createResponse"), "background": True})
    until(lambda: walk.do("getResponse")["status"] == "completed", "the response is whole")
    for name in ("cancelResponse", "listInputItems", "listResponses", "listResponseEvents", "exportResponse"):
        walk.do(name)
    walk.do("getResponse", query="?stream=true&starting_after=2")
    walk.do("getResponse")
    for name in ("countInputTokens", "compactResponse", "forkResponse"):
        walk.do(name, example(name))
    walk.do("createResponse", example("createResponse"))
    walk.do("deleteResponse")


def walk_conversations(walk: Walk) -> None:
    walk.make("createConversation", "conversation_id", example("createConversation"))
    walk.do("updateConversation", example("updateConversation"))
    walk.named["item_id"] = walk.do("addItems", example("addItems"))["data"][0]["id"]
    for name in ("getConversation", "listConversations", "listItems", "getItem"):
        walk.do(name)
    walk.do("importConversation", walk.do("exportConversation"), "?ids=new")
    walk.do("forkConversation", example("forkConversation"))
    walk.do("deleteItem")
    walk.do("deleteConversation")


def walk_chats(walk: Walk) -> None:
    walk.make("createChatCompletion", "completion_id", example("createChatCompletion", 1))
    walk.do("updateChatCompletion", example("updateChatCompletion"))
    for name in ("getChatCompletion", "listChatCompletions", "listChatMessages", "deleteChatCompletion"):
        walk.do(name)
    walk.do("createCompletion", example("createCompletion"))
    walk.do("createEmbeddings", example("createEmbeddings"))


def walk_files(walk: Walk) -> None:
    walk.make("createFile", "file_id", form("file", "hello", purpose="user_data"))
    for name in ("getFile", "listFiles", "getFileContent", "deleteFile"):
        walk.do(name)
    walk.make("createUpload", "upload_id", example("createUpload"))
    part = walk.do("addUploadPart", form("data", "hello there"))
    walk.do("completeUpload", {"part_ids": [part["id"]]})
    walk.make("createUpload", "upload_id", example("createUpload"))
    walk.do("cancelUpload")


def walk_skills(walk: Walk) -> None:
    walk.make("createSkill", "skill_id", SKILL)
    for version in ("2", "3"):
        walk.named["version"] = version
        assert walk.do("createSkillVersion", SKILL)["version"] == version
    for name in ("getSkill", "listSkills", "getSkillContent", "listSkillVersions", "getSkillVersion"):
        walk.do(name)
    walk.do("getSkillVersionContent")
    walk.do("updateSkill", example("updateSkill"))
    walk.do("deleteSkillVersion")
    walk.do("deleteSkill")


def walk_containers(walk: Walk) -> None:
    walk.make("createContainer", "container_id", example("createContainer"))
    walk.make("createContainerFile", "container_file_id", form("file", "hello"))
    for name in ("getContainer", "listContainers", "getContainerFile", "listContainerFiles", "getContainerFileContent"):
        walk.do(name)
    walk.do("execInContainer", example("execInContainer"))
    walk.named["commit_id"] = walk.do("listContainerCommits")["data"][0]["id"]
    walk.do("diffContainerCommits", query="?text=true")
    walk.do("restoreContainer", {"commit": walk.named["commit_id"]})
    walk.do("forkContainer")
    for name in ("listContainerEgress", "getContainerArchive", "deleteContainerFile", "deleteContainer"):
        walk.do(name)


def walk_batches(walk: Walk) -> None:
    asked = {"model": "scripted", "input": "say: one two"}
    line = {"method": "POST", "url": "/v1/responses", "body": asked}
    lines = [json.dumps({"custom_id": str(number), **line}) for number in range(300)]
    file = walk.do("createFile", form("file", "\n".join(lines), purpose="batch"))
    walk.named["file_id"] = file["id"]
    batch = {"input_file_id": file["id"], "endpoint": "/v1/responses", "completion_window": "24h"}
    walk.make("createBatch", "batch_id", batch)
    walk.do("cancelBatch")
    until(lambda: walk.do("getBatch")["status"] == "cancelled", "the batch is cancelled")
    walk.do("listBatches")


def walk_webhooks(walk: Walk) -> None:
    new = {**example("createWebhookEndpoint"), "url": "https://nobody.invalid/hook"}
    walk.make("createWebhookEndpoint", "webhook_endpoint_id", new)
    for name in ("updateWebhookEndpoint", "rotateWebhookSecret", "testWebhookEndpoint"):
        walk.do(name, example(name))
    for name in ("getWebhookEndpoint", "listWebhookEndpoints", "listWebhookEventTypes", "listWebhookDeliveries"):
        walk.do(name)
    walk.do("deleteWebhookEndpoint")


def walk_server(walk: Walk) -> None:
    walk.named["model"] = walk.do("listModels")["data"][0]["id"]
    for name in ("getModel", "deleteModel", "getHealth", "getReady", "getMetrics", "getOpenApi", "getDocs"):
        walk.do(name)


@pytest.fixture(scope="module")
def server(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("walk")
    settings = folder / "stateroom.toml"
    settings.write_text(f'[embeddings]\nembedded = false\nurl = "{model_host.url}"\nmodels = ["scripted"]\n')
    options = ("--config", str(settings))
    with ServerProcess(folder / "data", backends=(model_host.url,), options=options) as process:
        yield process


@pytest.fixture(scope="module")
def walked(server: ServerProcess) -> Walk:
    walk = Walk(server.url.removesuffix("/v1"))
    walk_responses(walk)
    walk_conversations(walk)
    walk_chats(walk)
    walk_files(walk)
    walk_skills(walk)
    walk_containers(walk)
    walk_batches(walk)
    walk_webhooks(walk)
    walk_server(walk)
    return walk


def test_no_operation_is_left_out(walked: Walk) -> None:
    assert sorted(walked.answers) == sorted(OPERATIONS)


@pytest.mark.parametrize("name", OWN_TYPES)
def test_what_is_answered_is_of_openai_s_own_types(walked: Walk, name: str) -> None:
    assert_fits(TypeAdapter(OWN_TYPES[name]), walked.answers[name].json)


def examples() -> Iterator[tuple[str, str]]:
    for name, (_, _, operation) in OPERATIONS.items():
        for content in operation.get("requestBody", {}).get("content", {}).values():
            yield from ((name, title) for title in content.get("examples", {}))


@pytest.mark.parametrize(("name", "title"), [each for each in examples() if each[0] not in REFUSED])
def test_the_examples_work_as_they_stand(server: ServerProcess, name: str, title: str) -> None:
    walk = Walk(server.url.removesuffix("/v1"))
    (content,) = OPERATIONS[name][2]["requestBody"]["content"].values()
    if "{response_id}" in OPERATIONS[name][1]:
        walk.make("createResponse", "response_id", example("createResponse"))
    if "{conversation_id}" in OPERATIONS[name][1]:
        walk.make("createConversation", "conversation_id")
    if "{completion_id}" in OPERATIONS[name][1]:
        walk.make("createChatCompletion", "completion_id", example("createChatCompletion", 1))
    if "{skill_id}" in OPERATIONS[name][1]:
        walk.make("createSkill", "skill_id", SKILL)
    if "{container_id}" in OPERATIONS[name][1]:
        walk.make("createContainer", "container_id", example("createContainer"))
    if "{webhook_endpoint_id}" in OPERATIONS[name][1]:
        walk.make("createWebhookEndpoint", "webhook_endpoint_id", example("createWebhookEndpoint"))
    walk.do(name, content["examples"][title]["value"])


def test_every_path_is_answered_to_a_wrong_method_with_those_that_it_has(server: ServerProcess) -> None:
    for path, held in described()["paths"].items():
        answer = send(server.url.removesuffix("/v1"), "PATCH", re.sub(r"{\w+}", "x", path))
        assert answer.error["code"] == "method_not_allowed"
        allowed = set(answer.headers["allow"].split(", ")) - {"HEAD"}
        assert allowed == {method.upper() for method in held}, path


def test_the_check_of_the_others_notices_what_the_document_does_not_say() -> None:
    whole = {"id": "conv_1", "object": "conversation", "created_at": 1, "metadata": {}}
    said = (200, "application/json")
    hold("GET", "/v1/conversations/conv_1", *said, json.dumps(whole).encode())
    for wrong in ({**whole, "more": 1}, {**whole, "created_at": "now"}, {"id": "conv_1"}):
        with pytest.raises(AssertionError):
            hold("GET", "/v1/conversations/conv_1", *said, json.dumps(wrong).encode())
    for status, media in ((418, "application/json"), (200, "text/html")):
        with pytest.raises(AssertionError):
            hold("GET", "/v1/conversations/conv_1", status, media, b"{}")
    with pytest.raises(AssertionError):
        hold("GET", "/v1/nowhere", *said, b"{}")
