"""What a good model would do in the examples: scripted, so that they can be tried without one.

Each answer belongs to a phrase of the user's message, and to how many times the model has called something since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from stateroom.testing.script import Call, ChatRequest, Reply, obey

Answer = Call | str


def python(code: str) -> Call:
    return Call("python", json.dumps({"code": code}))


def shell(*commands: str) -> Call:
    return Call("shell", json.dumps({"commands": commands}))


def patch(path: str, diff: str) -> Call:
    operation = {"type": "update_file", "path": path, "diff": diff}
    return Call("apply_patch", json.dumps({"operation": operation}))


SUM_UP = """\
import csv, json
from collections import Counter
totals = Counter()
for row in csv.DictReader(open("/mnt/data/sales.csv")):
    totals[row["region"]] += int(row["revenue"])
json.dump(totals, open("summary.json", "w"))
bars = [f'<rect y="{20 * at}" width="{value}" height="16"/>' for at, value in enumerate(totals.values())]
open("chart.svg", "w").write(f'<svg xmlns="http://www.w3.org/2000/svg">{"".join(bars)}</svg>')
print(dict(totals))"""
SHARE = "round(100 * max(totals.values()) / sum(totals.values()))"

TESTS = "python3 -B -m unittest -q"
LONG_DIFF = """\
@@
-def slug(title):
-    return title.lower().replace(" ", "-")
+import re
+
+
+def slug(title):
+    words = re.split(r"\\s+", title.strip())
+    return "-".join(words).lower()
"""
SHORT_DIFF = """\
@@ def slug(title):
-    return title.lower().replace(" ", "-")
+    return "-".join(title.lower().split())
"""

DEPLOY = "sh deploy.sh backup migrate switch"
GO_ON = "sh deploy.sh migrate switch"
DONE_LATER = "The model is not asked here: its call waits for an approval, and is made as a call of its own then."

SCRIPT: dict[str, Sequence[Answer]] = {
    "Read /mnt/data/sales.csv": (python(SUM_UP), "South is the strongest region; see chart.svg and summary.json."),
    "Which share of the whole": (python(SHARE), "South has 58 percent."),
    "Run the tests and say": (shell(TESTS), "Several spaces become several dashes."),
    "with a regular expression": (patch("slug.py", LONG_DIFF), shell(TESTS), "It is mended."),
    "with `str.split`": (patch("slug.py", SHORT_DIFF), shell(TESTS), "It is mended."),
    "Show slug.py": (shell("cat slug.py", TESTS), "The tests pass."),
    "Deploy release 42": (
        shell(DEPLOY),
        DONE_LATER,
        # It was approved, cut off by kill -9 and settled as unknown: the model looks first.
        shell("cat production.log"),
        shell(GO_ON),
        DONE_LATER,
        "Release 42 is live.",
    ),
}


def respond(request: ChatRequest) -> Reply:
    """The next answer to what was asked; for other messages, what their control words say."""
    asked = max(at for at, message in enumerate(request.messages) if message.role == "user")
    text = request.messages[asked].text
    answers = next((answers for phrase, answers in SCRIPT.items() if phrase in text), None)
    if answers is None:
        return obey(request)
    if "The user refused this call" in request.messages[-1].text:
        return Reply(text="Then it is left as it is.")
    calls = sum(len(message.tool_calls or ()) for message in request.messages[asked + 1 :])
    answer = answers[min(calls, len(answers) - 1)]
    return Reply(calls=(answer,)) if isinstance(answer, Call) else Reply(text=answer)
