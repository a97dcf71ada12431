"""Access keys: what is kept of them, who finds out about a change and when."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from stateroom.access.keys import PREFIX, KeyRing, Keys, open_keys
from stateroom.access.rates import Allowance
from stateroom.errors import StorageError
from tests.unit.runtime.stage import MovedClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.db"


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def keys(path: Path, clock: MovedClock) -> Iterator[Keys]:
    keys = open_keys(path, clock=clock)
    yield keys
    keys.close()


def make(keys: Keys, **asked: object) -> tuple[str, str]:
    """Id and text of a new key."""
    given = {"project": "shop", "name": "till", "scopes": ["write", "read"], **asked}
    key, secret = keys.create(**given)  # type: ignore[arg-type]  # keyword arguments of a test
    return key.id, secret


def test_a_key_is_long_random_and_never_the_same(keys: Keys) -> None:
    secrets = {make(keys)[1] for _ in range(200)}
    assert len(secrets) == 200
    for secret in secrets:
        assert secret.startswith(PREFIX)
        assert len(secret) == len(PREFIX) + 52
    used = {character for secret in secrets for character in secret[len(PREFIX) :]}
    assert len(used) == 32


def test_what_is_on_the_disk_does_not_give_a_key_away(keys: Keys, path: Path) -> None:
    _, secret = make(keys)
    files = [file for file in path.parent.iterdir() if file.name.startswith(path.name)]
    assert len(files) >= 2  # the write-ahead log is looked at, too
    for file in files:
        content = file.read_bytes()
        assert secret.encode() not in content
        assert secret[len(PREFIX) : -4].encode() not in content
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_ring_finds_a_key_by_its_whole_text_alone(keys: Keys, path: Path) -> None:
    key_id, secret = make(keys)
    ring = KeyRing(open_keys(path))
    found = ring.find(secret.encode())
    assert found is not None
    key, principal = found
    assert (key.id, key.name, key.hint, key.scopes) == (key_id, "till", secret[-4:], ("read", "write"))
    assert (principal.project, principal.key_id, principal.scopes) == ("shop", key_id, frozenset({"read", "write"}))
    for wrong in (secret[:-1], secret + "0", secret.upper(), secret[len(PREFIX) :], "", key_id):
        assert ring.find(wrong.encode()) is None
    ring.close()


def test_a_ring_sees_what_another_process_changes_at_once(path: Path) -> None:
    ring = KeyRing(open_keys(path))
    assert ring.is_empty
    program = "import sys; from pathlib import Path; from stateroom.access.keys import open_keys\n"
    create = "k, s = open_keys(Path(sys.argv[1])).create(project='p', name='', scopes=['read']); print(k.id, s)"
    ran = subprocess.run(
        [sys.executable, "-c", program + create, str(path)], capture_output=True, text=True, check=True
    )
    key_id, secret = ran.stdout.split()
    ring.refresh()
    assert not ring.is_empty
    assert ring.find(secret.encode()) is not None
    revoke = "open_keys(Path(sys.argv[1])).revoke(sys.argv[2])"
    subprocess.run([sys.executable, "-c", program + revoke, str(path), key_id], check=True)
    ring.refresh()
    found = ring.find(secret.encode())
    assert found is not None
    assert found[0].revoked_at > 0
    ring.close()


def test_the_ring_is_not_empty_again_when_its_last_key_has_ended(keys: Keys, path: Path, clock: MovedClock) -> None:
    revoked, _ = make(keys)
    keys.revoke(revoked)
    _, expiring = make(keys, expires_at=keys.now() + 1_000)
    clock.seconds += 2
    ring = KeyRing(open_keys(path, clock=clock))
    assert not ring.is_empty
    found = ring.find(expiring.encode())
    assert found is not None
    assert found[0].standing(ring.now()) == "expired"
    assert not keys.is_usable()
    make(keys)
    assert keys.is_usable()
    ring.close()


def test_revoking_says_what_was_revoked_and_keeps_the_first_time(keys: Keys, clock: MovedClock) -> None:
    key_id, _ = make(keys)
    first = keys.revoke(key_id)
    assert first is not None
    clock.seconds += 5
    assert keys.revoke(key_id) == first
    assert keys.revoke("key_other") is None


def test_limits_and_times_come_back_as_they_were_given(keys: Keys) -> None:
    allowance = Allowance(10, 2_000, 3)
    key_id, _ = make(keys, expires_at=5_000_000_000_000, allowance=allowance)
    [key] = keys.all()
    assert (key.id, key.allowance, key.expires_at) == (key_id, allowance, 5_000_000_000_000)


def test_a_file_of_another_program_is_left_alone(path: Path) -> None:
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE theirs (a)").fetchall()
    other.close()
    with pytest.raises(StorageError, match="another program"):
        open_keys(path)


def test_a_file_of_a_newer_version_is_not_opened(path: Path) -> None:
    open_keys(path).close()
    newer = apsw.Connection(str(path))
    newer.pragma("user_version", 99)
    newer.close()
    with pytest.raises(StorageError, match="newer version"):
        open_keys(path)


def test_a_ring_whose_file_cannot_be_read_lets_nobody_in(path: Path) -> None:
    ring = KeyRing(open_keys(path))
    ring.close()
    with pytest.raises(StorageError):
        ring.refresh()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_rights_is_a_clear_error(path: Path) -> None:
    open_keys(path).close()
    path.chmod(0)
    with pytest.raises(StorageError, match="cannot be read"):
        open_keys(path)
