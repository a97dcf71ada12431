"""The proxies of live workspaces: one Unix socket for each, and who connects to it is that workspace.

A sandbox has no network. What listens inside carries its bytes to this socket; the file belongs to the sandbox's user
alone, and whoever else connects is turned away. What may be reached the workspace's policy says, which may be changed
while it is open. Nothing is loaded before the first workspace with a policy is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from stateroom.clock import Clock, SystemClock
from stateroom.telemetry.metrics import Counter
from stateroom.workspaces.egress.decisions import Decisions, Verdict
from stateroom.workspaces.egress.domains import Entry, Target, read_entry
from stateroom.workspaces.egress.policy import NetworkPolicy, refusal_of
from stateroom.workspaces.workspace import Mount

if TYPE_CHECKING:
    from stateroom.workspaces.egress.authority import Authority
    from stateroom.workspaces.egress.conversation import Conversation
    from stateroom.workspaces.egress.dial import Dialer, Resolve
    from stateroom.workspaces.egress.http import Bounds

log = logging.getLogger("stateroom.egress")

PORT: Final = 3128
"""Where the proxy is inside."""
TRUST: Final = "/opt/stateroom-egress"
"""Where the bundle of certificates is inside, for workspaces with secrets."""
_BUNDLE: Final = "ca-bundle.pem"
_BUNDLE_VARIABLES: Final = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
)
_NOT_PROXIED: Final = "localhost,127.0.0.1,::1"
_PATH_MAX: Final = 100
"""Bytes of a socket's path that fit into its address everywhere."""
_METHOD_MAX: Final = 16
_FAILURES: Final = frozenset({"unresolved", "unreachable", "broken"})
"""Reasons that are the other side's."""

OnDecision: TypeAlias = Callable[[str, str, int, bool, str], None]
"""Workspace, host, port, whether it was let through, and why in one word."""


class EgressProxy:
    """All proxies of one server."""

    def __init__(
        self,
        directory: Path,
        *,
        egress_domains: tuple[str, ...] = ("*",),
        allow_private: bool = False,
        roots: Path | None = None,
        on_decision: OnDecision | None = None,
        bounds: Bounds | None = None,
        resolve: Resolve | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`directory`: of the authority, made on first need. `roots`: by whom servers are verified, not the system's.

        Raises ValueError for what is no domain.
        """
        self.decisions = Counter()
        """By verdict (allowed, refused, failed) and reason."""
        self.decided = Decisions(clock or SystemClock())
        """By workspace, for whoever writes them down."""
        self.sent_bytes = 0
        self.received_bytes = 0
        self.egress_domains: tuple[Entry, ...] = tuple(read_entry(text) for text in egress_domains)
        self.on_decision = on_decision
        self._directory = directory
        self._allow_private = allow_private
        self._roots = roots
        self._bounds = bounds
        self._resolve = resolve
        self._shared: Shared | None = None
        self._listeners: dict[str, Listener] = {}

    @property
    def connections(self) -> int:
        """That sandboxes have open now."""
        return sum(listener.connections for listener in self._listeners.values())

    async def open(
        self, workspace_id: str, policy: NetworkPolicy, path: str | Path, owner_uid: int | None = None
    ) -> Listener:
        """Listen for a workspace on a socket that only `owner_uid` may use; without one, this process's own user.

        Whatever listened for the workspace before is closed. Raises OSError.
        """
        await self.close(workspace_id)
        shared = self._shared = self._shared or self._share()
        if policy.secrets:
            await asyncio.to_thread(shared.prepare)
        listener = Listener(self, shared, workspace_id, policy, Path(path), owner_uid)
        await listener.start()
        self._listeners[workspace_id] = listener
        return listener

    async def change(self, workspace_id: str, policy: NetworkPolicy) -> None:
        """From now on the workspace has another policy; its connections that the new one would refuse are ended."""
        listener = self._listeners.get(workspace_id)
        if listener is None:
            return
        if policy.secrets and self._shared is not None:
            await asyncio.to_thread(self._shared.prepare)
        listener.change(policy)

    def give(self, workspace_id: str, owner_uid: int) -> None:
        """From now on the socket is for this user: a driver may find one only when it starts the sandbox.

        Raises OSError.
        """
        listener = self._listeners.get(workspace_id)
        if listener is not None:
            listener.give(owner_uid)

    async def close(self, workspace_id: str) -> None:
        """End its connections, and remove its socket. Nothing happens when it is not open."""
        listener = self._listeners.pop(workspace_id, None)
        if listener is not None:
            await listener.close()

    async def close_all(self) -> None:
        for workspace_id in list(self._listeners):
            await self.close(workspace_id)
        if self._shared is not None:
            self._shared.dialer.close()
            self._shared = None

    def environment(self, policy: NetworkPolicy | None, *, trust: str = TRUST) -> dict[str, str]:
        """Variables for the programs of a sandbox; none without a policy. `trust`: where the bundle's mount is."""
        if policy is None:
            return {}
        found: dict[str, str] = {"NODE_USE_ENV_PROXY": "1"}
        for name, value in (
            ("http_proxy", f"http://127.0.0.1:{PORT}"),
            ("https_proxy", f"http://127.0.0.1:{PORT}"),
            ("no_proxy", _NOT_PROXIED),
        ):
            found |= {name: value, name.upper(): value}
        if policy.secrets:
            found |= dict.fromkeys(_BUNDLE_VARIABLES, f"{trust}/{_BUNDLE}")
        return found | {secret.name: secret.placeholder for secret in policy.secrets}

    def mounts(self, policy: NetworkPolicy | None) -> tuple[Mount, ...]:
        """What a sandbox must see for :meth:`environment` to be true. Call it when the workspace is open.

        A directory, so that a bundle that is replaced is seen inside.
        """
        if policy is None or not policy.secrets:
            return ()
        return (Mount(str(self._directory / "trust"), TRUST),)

    def _share(self) -> Shared:
        from stateroom.workspaces.egress.authority import Authority  # lazy: most servers open no workspace to anywhere
        from stateroom.workspaces.egress.dial import Dialer  # lazy: as above
        from stateroom.workspaces.egress.http import Bounds  # lazy: as above, h11

        bounds = self._bounds or Bounds()
        dialer = Dialer(
            allow_private=self._allow_private, connect_seconds=bounds.connect_seconds, resolve=self._resolve
        )
        return Shared(Authority(self._directory, roots=self._roots), dialer, bounds)


class Shared:
    """What all conversations share."""

    def __init__(self, authority: Authority, dialer: Dialer, bounds: Bounds) -> None:
        self.authority = authority
        self.dialer = dialer
        self.bounds = bounds

    def prepare(self) -> None:
        """Have at hand what takes long to make. Blocks."""
        self.authority.prepare()
        self.authority.upstream()


class Listener:
    """The socket of one workspace."""

    def __init__(
        self,
        proxy: EgressProxy,
        shared: Shared,
        workspace_id: str,
        policy: NetworkPolicy,
        path: Path,
        owner_uid: int | None,
    ) -> None:
        from stateroom.workspaces.egress.dial import lookup_turns  # lazy: most servers open no workspace to anywhere

        self.workspace_id = workspace_id
        self.path = path
        self.policy = policy
        self.turns = lookup_turns()
        self._proxy = proxy
        self._shared = shared
        self.owner_uid = os.geteuid() if owner_uid is None else owner_uid
        self._server: asyncio.Server | None = None
        self._conversations: dict[asyncio.Task[None], Conversation] = {}

    @property
    def connections(self) -> int:
        return len(self._conversations)

    async def start(self) -> None:
        """Raises OSError."""
        listening = _bind(self.path, self.owner_uid)
        try:
            self._server = await asyncio.start_unix_server(self._accept, sock=listening, limit=65536)
        except BaseException:
            listening.close()
            raise

    def change(self, policy: NetworkPolicy) -> None:
        before, self.policy = self.policy, policy
        for task, conversation in self._conversations.items():
            target = conversation.target
            if target is None:
                continue
            if self.judge(target) or before.secrets_for(target) != policy.secrets_for(target):
                task.cancel()

    def give(self, owner_uid: int) -> None:
        if os.geteuid() == 0:
            os.chown(self.path, owner_uid, -1, follow_symlinks=False)
        elif owner_uid != os.geteuid():
            self.path.chmod(0o666)  # whose it is cannot be changed; who connects is looked at
        self.owner_uid = owner_uid

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._conversations:
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        with contextlib.suppress(OSError):
            self.path.unlink()

    def judge(self, target: Target) -> str:
        return refusal_of(self.policy, self._proxy.egress_domains, target)

    def decided(self, target: Target | None, method: str, reason: str) -> None:
        allowed = reason == "listed"
        host, port = (target.host, target.port) if target is not None else ("-", 0)
        verdict: Verdict = "allowed" if allowed else "failed" if reason in _FAILURES else "refused"
        self._proxy.decisions.add((verdict, reason))
        self._proxy.decided.add(self.workspace_id, host, port, verdict, reason)
        log.log(
            logging.INFO if allowed else logging.WARNING,
            "egress.decision workspace=%s host=%s port=%s method=%s allowed=%s reason=%s",
            self.workspace_id,
            host,
            port,
            method if len(method) <= _METHOD_MAX else "-",
            allowed,
            reason,
        )
        if self._proxy.on_decision is not None:
            self._proxy.on_decision(self.workspace_id, host, port, allowed, reason)

    def carried(self, sent: int, received: int) -> None:
        self._proxy.sent_bytes += sent
        self._proxy.received_bytes += received

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from stateroom.workspaces.egress.conversation import Conversation  # lazy: most servers open no workspace
        from stateroom.workspaces.egress.pipe import SocketPipe  # lazy: as above
        from stateroom.workspaces.egress.refusals import Refused  # lazy: as above

        pipe = SocketPipe(reader, writer)
        if _peer(writer) not in (None, self.owner_uid):
            self.decided(None, "-", "foreign_user")
            return pipe.abort()
        task = asyncio.current_task()
        assert task is not None
        before, most = len(self._conversations), self._shared.bounds.connections
        if before >= 2 * most:  # even to be told takes a place
            return pipe.abort()
        conversation = self._conversations[task] = Conversation(self._shared, self, pipe)
        try:
            if before >= most:
                await conversation.refuse(Refused("too_many_connections"))
            else:
                await conversation.run()
        except asyncio.CancelledError:
            return None  # asked for by change and close alone
        except Exception:  # whatever goes wrong in one connection ends that one only
            log.exception("egress.conversation_failed workspace=%s", self.workspace_id)
        finally:
            del self._conversations[task]


def _bind(path: Path, owner: int) -> socket.socket:
    """A socket that from its first moment only its owner can connect to. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} is there already and is no socket")
        path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = -1
    try:
        is_given_away = owner != os.geteuid()
        can_give = os.geteuid() == 0
        os.fchmod(listening.fileno(), 0o600 if can_give or not is_given_away else 0o666)
        address = str(path)
        if len(os.fsencode(address)) > _PATH_MAX:
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
            address = f"/proc/self/fd/{folder}/{path.name}"
        listening.bind(address)
        if is_given_away and can_give:
            os.chown(path, owner, -1, follow_symlinks=False)
    except BaseException:
        listening.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return listening


def _peer(writer: asyncio.StreamWriter) -> int | None:
    """The user at the other end; None where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("iII", credentials)[1])
