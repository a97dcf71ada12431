"""Access keys: who may do what, in a small SQLite file beside the journal. Configuration, not history.

A key is 256 random bits and is shown once. Only its SHA-256 is kept: nothing can be guessed about a number of that
size, so that neither salt nor a slow hash would add anything (they protect what people choose), and a look-up by the
hash tells a caller who measures time nothing about any key.

The command line writes the file beside a running server. The server asks the file before every request whether it was
changed (about a microsecond) and reads it again when it was, so that a key that was revoked is dead at once.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import apsw
import msgspec

from stateroom import ids
from stateroom.access.principal import SCOPES, Principal
from stateroom.access.rates import Allowance
from stateroom.clock import Clock, SystemClock
from stateroom.errors import ServerStopping, StorageError

FILE: Final = "access.db"
"""Its name in the data directory."""
PREFIX: Final = "sk-stateroom-"

_APPLICATION_ID: Final = 0x53724163
"""Marks the file as ours ("SrAc")."""
_BUSY_MILLISECONDS: Final = 2_000

_MIGRATIONS: Final = (
    """
    CREATE TABLE keys (
      id TEXT PRIMARY KEY,
      hash BLOB NOT NULL UNIQUE,
      hint TEXT NOT NULL,
      project TEXT NOT NULL,
      name TEXT NOT NULL,
      scopes TEXT NOT NULL,
      created_at INTEGER NOT NULL,
      expires_at INTEGER NOT NULL,
      revoked_at INTEGER NOT NULL,
      requests_per_minute INTEGER NOT NULL,
      tokens_per_minute INTEGER NOT NULL,
      runs INTEGER NOT NULL
    ) STRICT;
    """,
)


class Key(msgspec.Struct, frozen=True):
    """What is known of a key; times in milliseconds since the epoch, 0: never."""

    id: str
    project: str
    name: str
    scopes: tuple[str, ...]
    hint: str
    """Its last four characters."""
    created_at: int
    expires_at: int = 0
    revoked_at: int = 0
    allowance: Allowance = Allowance()

    def standing(self, now: int) -> str:
        """active, expired or revoked."""
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= now else "active"


class Keys:
    """The file, for whoever changes it. Made by `open_keys`."""

    def __init__(self, connection: apsw.Connection, clock: Clock) -> None:
        self._connection = connection
        self._execute = connection.cursor().execute
        self._clock = clock

    def create(
        self,
        *,
        project: str,
        name: str,
        scopes: Iterable[str],
        expires_at: int = 0,
        allowance: Allowance | None = None,
    ) -> tuple[Key, str]:
        """A new key, and the text that its holder shows: nobody can read that again. Raises StorageError."""
        secret = PREFIX + ids.new_secret()
        key = Key(
            id=ids.new_id("key"),
            project=project,
            name=name,
            scopes=tuple(scope for scope in SCOPES if scope in set(scopes)),
            hint=secret[-4:],
            created_at=self.now(),
            expires_at=expires_at,
            allowance=allowance or Allowance(),
        )
        limits = (key.allowance.requests_per_minute, key.allowance.tokens_per_minute, key.allowance.runs)
        row = (key.id, _hash(secret.encode()), key.hint, key.project, key.name, " ".join(key.scopes))
        with _translated():
            self._execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)",
                (*row, key.created_at, key.expires_at, *limits),
            )
        return key, secret

    def all(self) -> list[Key]:
        """Every key there ever was, oldest first."""
        return [key for _, key in self.hashed()]

    def revoke(self, key_id: str) -> Key | None:
        """From now on the key opens nothing; None when there is none of this id. Raises StorageError."""
        with _translated():
            self._execute("UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at = 0", (self.now(), key_id))
        return next((key for key in self.all() if key.id == key_id), None)

    def retire(self, project: str) -> int:
        """Revoke every key of a project and forget what they were called; how many there are. Raises StorageError.

        Their lines stay: a server that ever had keys must not become one without.
        """
        with _translated():
            self._execute(
                "UPDATE keys SET name = '', revoked_at = iif(revoked_at = 0, ?, revoked_at) WHERE project = ?",
                (self.now(), project),
            )
            count = self._connection.changes()
            # Nothing of the names stays in room that is free now, nor in the log.
            self._execute("VACUUM")
            self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return count

    def is_usable(self) -> bool:
        """Whether any key opens anything."""
        now = self.now()
        return any(key.standing(now) == "active" for key in self.all())

    def hashed(self) -> list[tuple[bytes, Key]]:
        """All keys with their hashes."""
        with _translated():
            rows: Any = self._execute(
                "SELECT hash, id, project, name, scopes, hint, created_at, expires_at, revoked_at, "
                "requests_per_minute, tokens_per_minute, runs FROM keys ORDER BY created_at, id"
            ).fetchall()
        return [(row[0], _read(*row[1:])) for row in rows]

    def version(self) -> int:
        """A number that changes when another process or connection has changed the file."""
        # fetchall, because a statement that is not read to its end would keep a transaction open.
        [(version,)] = self._execute("PRAGMA data_version").fetchall()
        return cast("int", version)

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._clock.now() * 1000)

    def close(self) -> None:
        self._connection.close()


class KeyRing:
    """The keys as a server holds them: found by what a caller shows, read anew when the file was changed."""

    def __init__(self, keys: Keys) -> None:
        """Raises StorageError."""
        self._keys = keys
        self._version = -1
        self._by_hash: dict[bytes, tuple[bytes, Key, Principal]] = {}
        self._by_id: dict[str, Key] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it was changed. Raises StorageError."""
        try:
            version = self._keys.version()
        except apsw.ConnectionClosedError:
            raise ServerStopping from None
        except apsw.Error as error:
            raise StorageError(f"The access keys cannot be read: {error}.") from error
        if version != self._version:
            held = self._keys.hashed()
            self._by_hash = {digest: (digest, key, _principal(key)) for digest, key in held}
            self._by_id = {key.id: key for _, key in held}
            self._version = version

    @property
    def is_empty(self) -> bool:
        """Whether no key was ever made. One that was revoked counts: its end must not open the door to everybody."""
        return not self._by_hash

    @property
    def is_usable(self) -> bool:
        """Whether any key opens anything."""
        return self._keys.is_usable()

    def find(self, shown: bytes) -> tuple[Key, Principal] | None:
        """The key with this text, whatever its standing."""
        digest = _hash(shown)
        found = self._by_hash.get(digest)
        if found is None or not hmac.compare_digest(found[0], digest):
            return None
        return found[1], found[2]

    def allowance(self, key_id: str) -> Allowance | None:
        """What the key of this id may use."""
        key = self._by_id.get(key_id)
        return key.allowance if key is not None else None

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return self._keys.now()

    def close(self) -> None:
        self._keys.close()


def open_keys(path: Path, *, clock: Clock | None = None) -> Keys:
    """Open the file, made or brought up to date as needed; readable by its owner alone. Raises StorageError."""
    with _translated():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.set_busy_timeout(_BUSY_MILLISECONDS)
            # Who is let in must not be forgotten by a power cut: a revoked key would come back to life.
            connection.execute(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA trusted_schema = OFF"
            ).fetchall()
            _migrate(connection, path)
        except BaseException:
            connection.close()
            raise
    return Keys(connection, clock or SystemClock())


def _migrate(connection: apsw.Connection, path: Path) -> None:
    """Each migration in a transaction that also says so; somebody else may be doing the same at this moment."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version: int = connection.pragma("user_version")
        owner = connection.pragma("application_id")
        if owner != _APPLICATION_ID and (owner or connection.execute("SELECT 1 FROM sqlite_schema").fetchall()):
            raise StorageError(f"{path} is a SQLite database of another program.")
        if version > len(_MIGRATIONS):
            raise StorageError(f"{path} was written by a newer version of Stateroom. Start that version.")
        for number, sql in enumerate(_MIGRATIONS[version:], version + 1):
            connection.execute(f"{sql} PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _hash(shown: bytes) -> bytes:
    return hashlib.sha256(shown).digest()


def _principal(key: Key) -> Principal:
    return Principal(key.project, key.id, frozenset(key.scopes))


def _read(*row: Any) -> Key:
    key_id, project, name, scopes, hint, created_at, expires_at, revoked_at, *limits = row
    return Key(
        key_id, project, name, tuple(scopes.split()), hint, created_at, expires_at, revoked_at, Allowance(*limits)
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (apsw.Error, OSError) as error:
        raise StorageError(f"The access keys cannot be read or written: {error}.") from error
