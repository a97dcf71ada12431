"""Front matter is read as YAML has it, and refused where readers of YAML might differ."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from stateroom.errors import InvalidRequest
from stateroom.runtime.skills.front_matter import HEAD_BYTES, Unreadable, read_front_matter
from stateroom.runtime.skills.manifest import Manifest, read_manifest

WANTED = ("name", "description")
PIECES = st.sampled_from(
    [
        *(
            "a",
            "b",
            "é",
            "0",
            "#",
            " ",
            "  ",
            "\n",
            "\n  ",
            "\n\n",
            "\n    ",
            "'",
            '"',
            ":",
            ": ",
            "- ",
            "\n- a",
            "|",
            ">",
        ),
        *("\\n", "\\", "\\x41", "&", "*", "!", "{", "}", "[", "]", "?", "~", "\t", "|-\n  ", ">\n  ", ">+\n   "),
        *("name: ", "description: ", "x: ", "null", "# c", "\n# c\n", "''"),
    ]
)


def read(text: str) -> dict[str, str]:
    return read_front_matter(f"---\n{text}\n---\n".encode(), WANTED)


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("description: plain text, with 'quotes' and a-dash", "plain text, with 'quotes' and a-dash"),
        ("description: see https://example.org/a#b  # a comment", "see https://example.org/a#b"),
        ('description: "colons: are \\"fine\\" \\u00e9"', 'colons: are "fine" é'),
        ("description: 'it''s fine: here'", "it's fine: here"),
        ("description: over\n  two lines\n\n  and a paragraph", "over two lines\nand a paragraph"),
        ("description: 'over\n  two lines'", "over two lines"),
        ("description:\n  below its name", "below its name"),
        ("description: >-\n  folded\n  text\n\n  paragraph", "folded text\nparagraph"),
        ("description: |\n  as it\n    stands", "as it\n  stands"),
        ("license: MIT\nmetadata:\n  author: x\n  tags: [a, b]\nallowed-tools:\n- Read\ndescription: last", "last"),
        ("# a comment\n\n'description': quoted name", "quoted name"),
    ],
)
def test_texts_are_read_in_every_style(text: str, description: str) -> None:
    assert read(text)["description"].strip() == description
    assert yaml.safe_load(text)["description"].strip() == description


@pytest.mark.parametrize(
    "text",
    [
        *("description: a: b", "description: [a]", "description: {a: b}", "description: &x a", "description: *x"),
        *("description: !!str a", "description: @a", "description: `a`", "description: %a", "description: ~"),
        *("description: null", "description: yes", "description:", "description: ''' a", 'description: "\\q"'),
        *('description: "\\ud800"', 'description: "a', "description: 'a' b", "description: a\ndescription: b"),
        *("description: - a", "description:\n- a", "description:\n  a: b", "description: a\tb", "description: |x\n  a"),
        *("description: |\n    a\n  b", " description: a", "no field", "? description", "description: >\n  \ta"),
        *("description: a\u2028b", "description: a\x07", "description: a # c\n  b", "\tdescription: a"),
    ],
)
def test_what_is_no_text_to_everybody_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        read(text)


@given(st.lists(PIECES, min_size=1, max_size=12).map("".join))
@example(">\n   \n  #*description: ")
@example("|-\n  \t")
def test_what_is_read_is_what_yaml_says(text: str) -> None:
    text = f"description: {text}\n"
    try:
        found = read(text)
    except Unreadable:
        return
    try:
        said = yaml.safe_load(text)
    except yaml.YAMLError:
        return  # a field that is passed over may hold what it likes
    for field in WANTED:
        if isinstance(said.get(field), int | float):  # a number is the text in which it is written
            continue
        assert found.get(field, "").strip() == (said.get(field) or "").strip()
        assert (field in found) == (field in said)


@pytest.mark.parametrize(
    "head",
    [
        *(b"", b"# Title\n", b"---\nname: a\n", b" ---\nname: a\n---\n", b"---\nname: \xff\n---\n"),
        b"---\nname: a\ndescription: " + b"x" * HEAD_BYTES + b"\n---\n",
    ],
)
def test_front_matter_that_is_none_is_refused(head: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_manifest(head)
    assert refused.value.code == "invalid_skill_manifest"


@pytest.mark.parametrize("name", ["", "Upper", "a_b", "-a", "a-", "a--b", "a/b", "..", "é", "a" * 65, "a b"])
def test_a_name_is_fit_for_a_folder(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_manifest(f"---\nname: '{name}'\ndescription: x\n---\n".encode())
    assert (refused.value.code, refused.value.param) == ("invalid_skill_manifest", "files")


@pytest.mark.parametrize("description", ["''", "' '", "x" * 1_025, '"\\x00"', '"\\e[2J"'])
def test_a_description_is_a_short_text(description: str) -> None:
    with pytest.raises(InvalidRequest):
        read_manifest(f"---\nname: a\ndescription: {description}\n---\n".encode())


def test_a_manifest_of_windows_is_one() -> None:
    head = b"\xef\xbb\xbf---\r\nname: geometry\r\ndescription: >\r\n  a\r\n  b\r\n---\r\n# Title\r\n"
    assert read_manifest(head) == Manifest("geometry", "a b")
    assert read_manifest(b"---\nname: geometry\ndescription: a\n---") == Manifest("geometry", "a")
