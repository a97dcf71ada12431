"""A fork of work: two fixes of one bug are tried side by side, each in files of its own, and the smaller one is kept.

Run `stateroom serve --backend URL` with a model that can call tools, and then `python examples/two_fixes.py`.
"""

from __future__ import annotations

import os
from typing import Any

from openai import OpenAI
from openai.types.responses import Response

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "unused"),
)

SLUG = b'def slug(title):\n    return title.lower().replace(" ", "-")\n'
TEST = b"""import unittest
from slug import slug


class SlugTest(unittest.TestCase):
    def test_runs_of_spaces_become_one_dash(self):
        self.assertEqual(slug("Two  fixes "), "two-fixes")
"""
BRIEF = (
    "You mend Python code in the working directory. End by running `python3 -B -m unittest -q`. Do not change tests."
)


def ask(text: str, previous: str | None = None) -> Response:
    return client.responses.create(
        model="default",
        instructions=BRIEF,
        input=text,
        previous_response_id=previous,
        tools=[
            {"type": "shell", "environment": {"type": "container_auto", "file_ids": files}},
            {"type": "apply_patch"},
        ],
    )


def passes(response: Response) -> bool:
    """Whether the last command, the tests, ended well."""
    outcomes = [item.output[-1].outcome for item in response.output if item.type == "shell_call_output"]
    return outcomes[-1].type == "exit" and outcomes[-1].exit_code == 0


def container_of(response: Response) -> str:
    calls = [item for item in response.output if item.type == "shell_call"]
    return calls[-1].environment.container_id


def diff_of(response: Response) -> str:
    """What a response did to the files. Commits are an extension of OpenAI's API, so they are asked for by path."""
    container = container_of(response)
    commits: Any = client.get(f"/containers/{container}/commits", cast_to=object)
    commit = next(each["id"] for each in commits["data"] if each["response_id"] == response.id)
    diff: Any = client.get(f"/containers/{container}/commits/{commit}/diff?text=true", cast_to=object)
    return "".join(change["text"] or "" for change in diff["changes"] if change["path"].endswith(".py"))


def size(diff: str) -> int:
    return sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in diff.splitlines())


files = [
    client.files.create(file=(name, content), purpose="user_data").id
    for name, content in (("slug.py", SLUG), ("test_slug.py", TEST))
]
start = ask("Run the tests and say in one sentence what is wrong. Change nothing yet.")
print(f"{start.output_text}\n")

# Two children of one response: each goes on with the files as they were then, and neither sees the other's.
fixes = [
    ask("Mend slug.py with a regular expression.", start.id),
    ask("Mend slug.py with `str.split`, in one line.", start.id),
]
diffs = {fix.id: diff_of(fix) for fix in fixes}
for fix in fixes:
    print(f"{container_of(fix)}: tests {'pass' if passes(fix) else 'fail'}, {size(diffs[fix.id])} lines")
    print(diffs[fix.id])

best = min((fix for fix in fixes if passes(fix)), key=lambda fix: size(diffs[fix.id]))
for fix in fixes:
    if fix is not best:
        client.responses.delete(fix.id)
kept = ask("Show slug.py as it is now, and run the tests once more.", best.id)
print(f"kept {best.id}, in {container_of(kept)}: {kept.output_text}")
