"""Zips of strangers: honest ones come out as they went in, hostile ones are refused before anything of them is kept."""

from __future__ import annotations

import io
import os
import stat
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stateroom.errors import RequestError
from stateroom.runtime.skills.bundle import Packed, extract, members_of_folder, members_of_zip, pack
from stateroom.runtime.skills.zip_reader import Bounds, list_files, read_file
from tests.bundles import FILES, MANIFEST, Entry, files_of, manifest, raw_zip, zip_of

BOUNDS = Bounds(files=20, file_bytes=2_000_000, bytes=3_000_000, ratio=50)
SKILL = Entry(b"geometry/SKILL.md", MANIFEST)


def packed_of(data: bytes, bounds: Bounds = BOUNDS) -> tuple[Packed, bytes]:
    out = io.BytesIO()
    packed = pack(members_of_zip(io.BytesIO(data), bounds), out)
    return packed, out.getvalue()


def code_of(data: bytes, bounds: Bounds = BOUNDS) -> str:
    with pytest.raises(RequestError) as refused:
        packed_of(data, bounds)
    assert len(refused.value.message) < 600
    assert refused.value.message.isprintable()
    return refused.value.code


def test_what_is_kept_is_the_same_whatever_way_it_came() -> None:
    out = io.BytesIO()
    sent, listed = io.BytesIO(), []
    for path, content in reversed(FILES.items()):
        listed.append((f"folder/{path}", sent.tell(), len(content), zlib.crc32(content)))
        sent.write(content)
    folder = pack(members_of_folder(sent, listed, BOUNDS), out)
    ways = [zip_of(), zip_of(folder=""), zip_of(folder="other_folder/", method=zipfile.ZIP_STORED)]
    kept = [packed_of(way) for way in ways]
    # Neither a zip made here nor a folder says what can be executed; `#!` does.
    assert {data for _, data in kept} == {out.getvalue()}
    assert [packed for packed, _ in kept] == [folder] * 3
    assert (folder.manifest.name, folder.files, folder.bytes) == ("geometry", 3, sum(map(len, FILES.values())))
    assert files_of(kept[0][1]) == {f"geometry/{path}": content for path, content in FILES.items()}
    assert files_of(out.getvalue()) == files_of(kept[0][1])


def test_what_is_kept_can_be_sent_again_and_stays_the_same() -> None:
    packed, data = packed_of(zip_of())
    assert packed_of(data) == (packed, data)


def test_what_macos_adds_is_left_out() -> None:
    added = {"__MACOSX/geometry/._area.py": b"x", "geometry/.DS_Store": b"y", "geometry/data/.DS_Store": b"z"}
    sent = zip_of({**{f"geometry/{path}": content for path, content in FILES.items()}, **added}, folder="")
    assert packed_of(sent) == packed_of(zip_of())


def test_a_manifest_may_be_spelled_in_any_case_and_is_kept_in_one() -> None:
    _, data = packed_of(zip_of({"skill.MD": MANIFEST}))
    assert files_of(data) == {"geometry/SKILL.md": MANIFEST}


@pytest.mark.parametrize(
    "paths",
    [
        ["geometry/area.py"],
        ["geometry/SKILL.md", "geometry/skill.md.txt", "other/area.py"],
        ["a/geometry/SKILL.md"],
        ["SKILL.md", "geometry/SKILL.md"],
        ["geometry/SKILL.md", "geometry/more/skill.md"],
        [],
    ],
)
def test_there_is_one_manifest_at_the_top(paths: list[str]) -> None:
    assert code_of(zip_of(dict.fromkeys(paths, MANIFEST), folder="")) == "invalid_skill_manifest"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../x",
            "geometry/../../x",
            "geometry/..",
            "/etc/passwd",
            "//x",
            "geometry//x",
            "./geometry/x",
            "geometry/./x",
        ),
        *("geometry\\x", "..\\x", "C:/x", "c:x", "geometry/a\nb", "geometry/a\x00b", "geometry/a\x1b[2Jb"),
        *("geometry/a\u202eb", "geometry/\u2028", "geometry/" + "n" * 256, "geometry/" + "é" * 128, "d/" * 40 + "x"),
        "geometry/" + "/".join(["n" * 200] * 6),
    ],
)
def test_a_path_that_is_not_plain_is_refused(name: str) -> None:
    assert code_of(raw_zip([SKILL, Entry(name.encode(), b"x")])) == "invalid_skill_path"


@pytest.mark.parametrize(
    "names", [("a", "a"), ("a", "A"), ("d/x", "D/y"), ("a", "a/b"), ("a/b", "a"), ("é", "e\u0301")]
)
def test_two_paths_that_are_one_on_some_file_system_are_refused(names: tuple[str, str]) -> None:
    entries = [Entry(f"geometry/{name}".encode(), b"x") for name in names]
    assert code_of(raw_zip([SKILL, *entries])) == "duplicate_skill_path"


@pytest.mark.parametrize(
    "entry",
    [
        *[
            Entry(b"geometry/x", b"/etc/passwd", mode=kind | 0o777)
            for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK)
        ],
        *[Entry(b"geometry/x", mode=kind | 0o777) for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR, 0o170000)],
        Entry(b"geometry/x", b"/etc/passwd", mode=stat.S_IFLNK | 0o777, made_by=20),
        Entry(b"geometry/x", b"x", attributes=0x400, made_by=20),
        Entry(b"geometry/x", attributes=0x10, made_by=20),
        Entry(b"geometry/x/", b"content", mode=stat.S_IFDIR | 0o755),
        Entry(b"geometry/x/", mode=stat.S_IFREG | 0o644),
    ],
)
def test_what_is_no_file_and_no_folder_is_refused(entry: Entry) -> None:
    assert code_of(raw_zip([SKILL, entry])) == "unsupported_skill_file"


@pytest.mark.parametrize("flags", [0x0001, 0x0041, 0x2000])
def test_a_zip_with_a_password_is_refused(flags: int) -> None:
    assert code_of(raw_zip([SKILL, Entry(b"geometry/x", b"x", flags=flags)])) == "skill_archive_encrypted"
    aes = Entry(b"geometry/x", b"x", method=99)
    assert code_of(raw_zip([SKILL, aes])) == "skill_archive_encrypted"


ZIP64 = struct.pack("<HHQ", 1, 8, 5)
LIES = {
    "no zip": b"no zip at all",
    "nothing": b"PK",
    "cut off": zip_of()[:-10],
    "without its first half": zip_of()[100:],
    "something behind": zip_of() + b"more",
    "something before": b"more" + zip_of(),
    "many disks": raw_zip([SKILL], end={"disk": 1}),
    "fewer entries": raw_zip([SKILL, Entry(b"geometry/x")], end={"count": 1}),
    "more entries": raw_zip([SKILL], end={"count": 2}),
    "zip64 by its count": raw_zip([SKILL], end={"count": 0xFFFF}),
    "zip64 by its offset": raw_zip([SKILL], end={"offset": 0xFFFFFFFF}),
    "zip64 by a field": raw_zip([SKILL, Entry(b"geometry/x", b"x", extra=ZIP64)]),
    "zip64 by a size": raw_zip([SKILL, Entry(b"geometry/x", b"x", central={"size": 0xFFFFFFFF})]),
    "the list elsewhere": raw_zip([SKILL], end={"offset": 0}),
    "the list longer": raw_zip([SKILL], end={"size": 1 << 30}),
    "another name": raw_zip([SKILL, Entry(b"geometry/x", b"x", local={"name": b"../../../x"})]),
    "another size": raw_zip([SKILL, Entry(b"geometry/x", b"x" * 9, local={"size": 8})]),
    "another sum": raw_zip([SKILL, Entry(b"geometry/x", b"x", local={"crc": 1})]),
    "a wrong sum": raw_zip([SKILL, Entry(b"geometry/x", b"x", local={"crc": 1}, central={"crc": 1})]),
    "another method": raw_zip([SKILL, Entry(b"geometry/x", b"x", local={"method": 8})]),
    "an unknown method": raw_zip([SKILL, Entry(b"geometry/x", b"x", method=14)]),
    "a patch": raw_zip([SKILL, Entry(b"geometry/x", b"x", flags=0x20)]),
    "two sizes": raw_zip([SKILL, Entry(b"geometry/x", b"x", central={"size": 2}, local={"size": 2})]),
    "beyond the end": raw_zip([SKILL, Entry(b"geometry/x", b"x", central={"offset": 1 << 31})]),
    "into the list": raw_zip([SKILL, Entry(b"geometry/x", b"", flags=8, central={"packed": 500, "size": 500})]),
    "on each other": raw_zip([SKILL, Entry(b"geometry/SKILL.mdx", MANIFEST, central={"offset": 0})]),
    "not UTF-8": raw_zip([SKILL, Entry(b"geometry/\xff\xfe", b"x")]),
    "damaged": raw_zip([SKILL, Entry(b"geometry/x", b"x" * 99, method=8, local={"bytes": b"\xff" * 20})]),
    "longer than it says": raw_zip([SKILL, Entry(b"g/x", b"x" * 99, method=8, central={"size": 9}, local={"size": 9})]),
    "shorter than it says": raw_zip(
        [SKILL, Entry(b"geometry/x", b"x" * 9, method=8, central={"size": 99}, local={"size": 99})]
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_zip_that_contradicts_itself_is_refused(lie: str) -> None:
    expected = {"longer than it says": {"invalid_skill_archive", "invalid_skill_manifest"}}
    assert code_of(LIES[lie]) in expected.get(lie, {"invalid_skill_archive"})


def test_entries_that_share_bytes_are_refused() -> None:
    """The bomb that needs no compression in compression: thousands of entries over one and the same kernel."""
    shared = Entry(b"geometry/a", b"\0" * 100_000, method=8)
    twice = raw_zip([SKILL, shared, Entry(b"geometry/b", b"\0" * 100_000, method=8)])
    first = twice.index(b"PK\x03\x04", 10)
    at = twice.rindex(b"PK\x01\x02")
    overlapping = twice[: at + 42] + struct.pack("<L", first) + twice[at + 46 :]
    assert code_of(overlapping) == "invalid_skill_archive"


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zip_of({"SKILL.md": MANIFEST, "zeros": b"\0" * 1_900_000})
    assert code_of(bomb) == "skill_too_large"
    assert packed_of(bomb, Bounds(files=20, file_bytes=2_000_000, bytes=3_000_000, ratio=2_000))[0].bytes > 1_900_000


def test_a_bomb_that_lies_is_refused_as_soon_as_it_is_longer_than_it_said() -> None:
    zeros = b"\0" * 300_000_000
    said = {"size": 1_000}
    bomb = raw_zip([SKILL, Entry(b"geometry/zeros", zeros, method=8, central=said, local=said)])
    del zeros
    tracemalloc.start()
    try:
        assert code_of(bomb) == "invalid_skill_archive"
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"x": os.urandom(1_100_000), "y": os.urandom(1_100_000), "z": os.urandom(1_100_000)}, "skill_too_large"),
        ({"x": os.urandom(2_000_001)}, "skill_too_large"),
        ({str(number): b"" for number in range(20)}, "too_many_skill_files"),
        ({f"{number}/": b"" for number in range(20_000)}, "too_many_skill_files"),
    ],
)
def test_the_bounds_are_kept(files: dict[str, bytes], code: str) -> None:
    assert code_of(zip_of({"SKILL.md": MANIFEST, **files})) == code


def test_a_zip_within_a_skill_is_a_file_like_any_other() -> None:
    inner = zip_of({"SKILL.md": MANIFEST, "zeros": b"\0" * 1_000_000})
    _, kept = packed_of(zip_of({**FILES, "template.zip": inner}))
    assert files_of(kept)["geometry/template.zip"] == inner


def test_sizes_may_stand_behind_the_bytes_as_packers_of_streams_have_it() -> None:
    class OneWay(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += bytes(data)
            return len(data)

    out = OneWay()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:  # type: ignore[call-overload]
        for path, content in FILES.items():
            made.writestr(f"geometry/{path}", content)
    assert packed_of(out.data) == packed_of(zip_of())


def test_scripts_can_be_executed_and_nothing_can_be_written(tmp_path: Path) -> None:
    entries = [
        SKILL,
        Entry(b"geometry/run", b"binary", mode=0o100755),
        Entry(b"geometry/plain", b"#!/bin/sh", mode=0o100644),
        Entry(b"geometry/of_windows", b"#!/bin/sh", made_by=20, attributes=0),
        Entry(b"geometry/of_python", b"#!/bin/sh", mode=0o600),
        Entry(b"geometry/sub/", mode=stat.S_IFDIR | 0o777),
        Entry(b"geometry/sub/deep", b"x", mode=0o104777),
    ]
    folder = tmp_path / "skill"
    folder.mkdir()
    _, kept = packed_of(raw_zip(entries))
    assert extract(io.BytesIO(kept), folder) >= len(MANIFEST)
    modes = {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    expected = {"run": 0o555, "of_windows": 0o555, "of_python": 0o555, "sub": 0o555, "sub/deep": 0o555}
    assert modes == {**expected, "plain": 0o444, "SKILL.md": 0o444}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o555
    for each in (folder, folder / "sub"):
        each.chmod(0o755)


NAMES = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_characters="/\\:.\x7f"), min_size=1, max_size=8
)
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=200), max_size=6)


@given(TREES, st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), st.sampled_from(["", "top/"]))
def test_what_is_packed_is_unpacked_the_same(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, bytes], method: int, top: str
) -> None:
    files = {**tree, "SKILL.md": manifest()}
    try:
        _, kept = packed_of(zip_of(files, folder=top, method=method))
    except RequestError:
        assume(False)  # two of the names are one on some file system
    folder = tmp_path_factory.mktemp("skill")
    extract(io.BytesIO(kept), folder)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == files
    for each in [folder, *folder.rglob("*")]:
        if each.is_dir():
            each.chmod(0o755)


@given(st.data())
def test_a_zip_that_was_changed_anywhere_is_refused_or_says_the_same_as_to_others(data: st.DataObject) -> None:
    changed = bytearray(zip_of())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        files = list_files(io.BytesIO(changed), BOUNDS)
        read = {file.path: b"".join(read_file(io.BytesIO(changed), file)) for file in files}
    except RequestError:
        return
    # Only what says nothing of files was changed: dates, versions, attributes.
    assert sorted(read.values()) == sorted(FILES.values())
