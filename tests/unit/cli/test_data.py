"""The operator's commands: what they say, to people and to programs, and the exit codes that scripts go by."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import apsw
import pytest

from stateroom.cli.main import main
from stateroom.journal.lock import lock_directory
from stateroom.journal.sqlite import open_sqlite
from stateroom.testing.journal_stage import begin, turn


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "secret.key").write_bytes(bytes(32))
    (folder / "secret.key").chmod(0o600)
    (folder / "blobs").mkdir()

    async def write() -> None:
        journal = open_sqlite(folder / "journal.db")
        await begin(journal, "br", turn("resp_1"))
        await journal.close()

    asyncio.run(write())
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def damage(data: Path, sql: str) -> None:
    connection = apsw.Connection(str(data / "journal.db"))
    connection.execute(sql).fetchall()
    connection.close()


def test_verify_says_that_all_is_well(capsys, data: Path) -> None:
    code, out, err = run(capsys, "verify", "--data", data)
    assert code == 0
    assert "branches 1, entries 3" in out
    assert "Everything is as it was written." in out
    assert "verifying entries" in err


def test_verify_names_the_damage_and_what_to_do(capsys, data: Path) -> None:
    damage(data, "DELETE FROM run_ids; UPDATE branches SET head = 5")
    code, out, _ = run(capsys, "verify", "--data", data)
    assert code == 1
    assert "branch: branch 'br' of project 'project': entries 3 to 5 are missing, at its end" in out
    assert "→ Restore the data directory from a backup" in out
    assert "'resp_1', 1 is missing\n  → Stop the server and run `stateroom rebuild`." in out
    assert "Damaged: branch 1, index 1." in out


def test_verify_tells_programs(capsys, data: Path) -> None:
    damage(data, "DELETE FROM run_ids")
    code, out, _ = run(capsys, "verify", "--data", data, "--json")
    assert code == 1
    told = json.loads(out)
    assert (told["ok"], told["counts"]["entries"]) == (False, 3)
    [finding] = told["findings"]
    assert set(finding) == {"part", "where", "problem", "advice"}
    assert finding["part"] == "index"


def test_what_a_stranger_wrote_does_not_steer_the_terminal(capsys, data: Path) -> None:
    damage(data, "UPDATE branches SET head = 5, name = 'br' || char(27) || '[2J'")
    _, out, _ = run(capsys, "verify", "--data", data)
    assert "\x1b" not in out


def test_verify_of_no_data_directory_is_an_error(capsys, tmp_path: Path) -> None:
    code, _, err = run(capsys, "verify", "--data", tmp_path)
    assert code == 1
    assert "no data directory of Stateroom" in err


def test_backup_and_restore_say_what_they_did(capsys, data: Path, tmp_path: Path) -> None:
    code, out, err = run(capsys, "backup", tmp_path / "backup", "--data", data)
    assert code == 0
    assert "It has the secret key: keep it from others." in out
    assert "backing up journal.db" in err
    code, out, _ = run(capsys, "restore", tmp_path / "backup", "--data", tmp_path / "again")
    assert code == 0
    assert f"`stateroom serve --data {tmp_path / 'again'}` goes on from there." in out


def test_a_backup_of_what_is_damaged_fails(capsys, data: Path, tmp_path: Path) -> None:
    damage(data, "UPDATE branches SET head = 5")
    code, out, _ = run(capsys, "backup", tmp_path / "backup", "--data", data)
    assert code == 1
    assert "is no backup that can be restored" in out
    code, _, err = run(capsys, "restore", tmp_path / "backup", "--data", tmp_path / "again")
    assert code == 1
    assert "no backup, or one that was cut off" in err


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_target_that_is_not_empty_is_refused(capsys, data: Path, tmp_path: Path, command: str) -> None:
    run(capsys, "backup", tmp_path / "backup", "--data", data)
    arguments = [data, "--data", data] if command == "backup" else [tmp_path / "backup", "--data", data]
    code, _, err = run(capsys, command, *arguments)
    assert code == 1
    assert "is not empty" in err


def test_a_target_that_cannot_be_written_is_a_clear_error(capsys, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = run(capsys, "backup", tmp_path / "file" / "backup", "--data", data)
    assert code == 1
    assert "cannot be used: Not a directory" in err


def test_rebuild_says_what_it_made(capsys, data: Path) -> None:
    code, out, err = run(capsys, "rebuild", "--data", data)
    assert code == 0
    assert "made anew from 3 entries" in out
    assert "rebuilding replay" in err
    code, out, _ = run(capsys, "rebuild", "--data", data, "--json")
    assert json.loads(out)["runs"] == 1


def test_rebuild_beside_a_server_is_refused(capsys, data: Path) -> None:
    lock = lock_directory(data)
    code, _, err = run(capsys, "rebuild", "--data", data)
    lock.release()
    assert code == 3
    assert "Stop that server first." in err
