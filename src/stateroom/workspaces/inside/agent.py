"""The agent: the one program of ours inside a sandbox. It starts processes, carries their bytes, and ends them.

It speaks to the server over one stream, in frames: kind, number, length, body. It runs wherever a sandbox is, so it is
one file, needs nothing but Python 3.8's standard library, and imports little of that. It decides nothing and knows no
secret: whatever runs beside it can reach it, so the server takes what it says for as hostile as any program's output.

Everything it starts it can end: a process belongs to the command whose session it is in, or whose mark it carries, or
that its parent belongs to. Without work it waits in one system call.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import time

TYPE_CHECKING = False  # the module typing costs 3 ms of every start
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

HEADER = struct.Struct(">BII")
"""Kind, number of the process or request, length of the body."""
BODY_BYTES = 65_536
"""Longest body that an agent sends."""

# To the agent.
SPAWN, INPUT, INPUT_END, SIGNAL, KILL, CREDIT, JOBS, JOB_KILL, JOB_OUTPUT = range(1, 10)
# From the agent.
READY, STARTED, REFUSED, STDOUT, STDERR, GAP, INPUT_CREDIT, EXITED, ANSWER = range(64, 73)

MARK = "STATEROOM_JOB"
WORKSPACE = "/workspace"
DATA = "/mnt/data"
LOGS = "/tmp/jobs"  # noqa: S108  # /tmp of the sandbox, where nobody else is
LOG_BYTES = 1 << 20
INPUT_WINDOW = 262_144
ENDED_JOBS = 64
FIRST_TO_GO = 500
"""Of 1,000: adds half of what is allowed to what a command is taken to hold, when the kernel chooses whom to end."""
_GRACE_SECONDS = 0.03
"""How long output may be held open by others once a command has ended, before those are its background."""
_READ_BYTES = 262_144
_COMMAND_CHARACTERS = 300
_CONNECTIONS = 256


def pack(fields: Iterable[bytes]) -> bytes:
    """Fields, each with its length."""
    return b"".join([struct.pack(">I", len(field)) + field for field in fields])


def unpack(body: bytes) -> list[bytes]:
    """Raises ValueError."""
    fields, at = [], 0
    while at < len(body):
        if at + 4 > len(body):
            raise ValueError("a field without its length")
        (length,) = struct.unpack_from(">I", body, at)
        at += 4
        if at + length > len(body):
            raise ValueError("a field longer than its body")
        fields.append(bytes(body[at : at + length]))
        at += length
    return fields


class Output:
    """One stream of a command on its way out: all of it, or its head and its tail."""

    def __init__(self, fd: int, kind: int, keep: int) -> None:
        self.fd = fd
        self.kind = kind
        self.keep = keep
        self.head = keep - keep // 2
        self.tail_bytes = keep // 2
        self.pending: list[tuple[int, bytes]] = []
        self.tail: list[bytes] = []
        self.in_tail = 0
        self.dropped = 0
        self.watched = False

    def take(self, data: bytes) -> None:
        if not self.keep:
            self.pending.append((self.kind, data))
            return
        if self.head:
            first, data = data[: self.head], data[self.head :]
            self.head -= len(first)
            self.pending.append((self.kind, first))
        if data:
            self.tail.append(data)
            self.in_tail += len(data)
            while self.tail and self.in_tail - len(self.tail[0]) >= self.tail_bytes:
                self.in_tail -= len(self.tail[0])
                self.dropped += len(self.tail.pop(0))

    def finish(self) -> None:
        """Nothing more comes: the tail follows, and before it how much was left out."""
        data = b"".join(self.tail)
        surplus = max(0, len(data) - self.tail_bytes)
        self.dropped += surplus
        self.tail, self.in_tail = [], 0
        if self.dropped:
            self.pending.append((GAP, pack([b"%d" % self.kind, b"%d" % self.dropped])))
        if data[surplus:]:
            self.pending.append((self.kind, data[surplus:]))


class Command:
    """A process that was asked for, and once it has ended, what it left running."""

    def __init__(self, number: int, pid: int, words: str, credit: int, outputs: list[Output], stdin: int) -> None:
        self.number = number
        self.pid = pid
        self.words = words
        self.credit = credit
        self.outputs = outputs
        self.stdin = stdin
        self.input: list[bytes] = []
        self.input_ends = False
        self.status: int | None = None
        self.killed = False
        self.deadline = 0.0
        self.left: list[int] = []
        self.closing = False
        self.log = -1
        self.logged = 0
        self.log_path = ""


class Rank:
    """Memory that runs short costs a command, not the agent: what starts while the agent is lowered goes first.

    It and all that it starts keep that from their first moment on. Going back takes no privilege.
    """

    def __init__(self, options: dict[str, str]) -> None:
        self.fd = int(options.get("rank", -1))  # opened by who started us, where /proc cannot be written
        self.own = self.lowest = b""
        try:
            if self.fd < 0:
                self.fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
            os.set_inheritable(self.fd, False)
            self.own = os.pread(self.fd, 16, 0).strip()
            self.lowest = b"%d" % max(FIRST_TO_GO, int(self.own))
        except OSError:
            return

    def lower(self) -> None:
        self.write(self.lowest)

    def restore(self) -> None:
        self.write(self.own)

    def write(self, score: bytes) -> None:
        try:
            os.pwrite(self.fd, score, 0)
        except OSError:
            return  # it is not ours to change: then the largest goes first


class Agent:
    def __init__(self, channel: int, options: dict[str, str], out: int = -1) -> None:
        self.channel = channel
        self.out = channel if out < 0 else out
        self.options = options
        self.epoll = select.epoll()
        self.callbacks: dict[int, Callable[[int], None]] = {}
        self.received = bytearray()
        self.outgoing: list[bytes] = []
        self.commands: dict[int, Command] = {}
        self.jobs: dict[int, Command] = {}
        self.by_pid: dict[int, Command] = {}
        self.adopted: dict[int, tuple[int, int]] = {}
        self.places = _places(options)
        self.logs = options.get("logs", LOGS)
        self.rank = Rank(options)
        self.is_first = os.getpid() == 1
        self.nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    # Frames

    def send(self, kind: int, number: int, body: bytes = b"") -> None:
        self.outgoing.append(HEADER.pack(kind, number, len(body)) + body)

    def flush(self) -> None:
        while self.outgoing:
            data = self.outgoing[0] if len(self.outgoing) == 1 else b"".join(self.outgoing)
            try:
                sent = os.write(self.out, data)
            except BlockingIOError:
                self.outgoing = [data]
                break
            except OSError:
                self.quit()
            self.outgoing = [data[sent:]] if sent < len(data) else []
        if self.out == self.channel:
            self.epoll.modify(self.channel, select.EPOLLIN | (select.EPOLLOUT if self.outgoing else 0))
        elif self.outgoing:
            self.watch(self.out, select.EPOLLOUT, lambda events: None)
        else:
            self.unwatch(self.out)

    def on_channel(self, events: int) -> None:
        if not events & ~select.EPOLLOUT:
            return
        data = _read_now(self.channel, _READ_BYTES)
        if data is None:
            return
        if not data:
            self.quit()
        self.received += data
        at = 0
        while len(self.received) - at >= HEADER.size:
            kind, number, length = HEADER.unpack_from(self.received, at)
            if len(self.received) - at - HEADER.size < length:
                break
            at += HEADER.size
            self.on_frame(kind, number, bytes(self.received[at : at + length]))
            at += length
        del self.received[:at]

    def on_frame(self, kind: int, number: int, body: bytes) -> None:
        if kind == SPAWN:
            self.spawn(number, body)
        elif kind == JOBS:
            self.list_jobs(number)
        elif kind == JOB_KILL:
            self.kill_job(number, int(body))
        elif kind == JOB_OUTPUT:
            self.job_output(number, unpack(body))
        elif number in self.commands:
            self.on_command_frame(kind, self.commands[number], body)

    def on_command_frame(self, kind: int, command: Command, body: bytes) -> None:
        if kind == INPUT:
            command.input.append(body)
            self.feed(command)
        elif kind == INPUT_END:
            command.input_ends = True
            self.feed(command)
        elif kind == CREDIT:
            command.credit += int(body)
            self.carry(command)
        elif kind == SIGNAL:
            if command.status is None:
                _signal_group(command.pid, int(body))
        elif kind == KILL:
            command.killed = True
            self.end(command)
            if command.status is not None and not command.closing:
                self.settle(command)

    # Starting

    def spawn(self, number: int, body: bytes) -> None:
        fields = unpack(body)
        directory, keep, credit, wants_input, count = fields[0], *[int(field) for field in fields[1:5]]
        argv = [self.place(word) for word in fields[5 : 5 + count]]
        env = dict(os.environb)
        env.update([(name, self.place(value)) for name, value in map(_pair, fields[5 + count :])])
        env[MARK.encode()] = b"%d" % number
        fds: list[int] = []
        try:
            os.chdir(self.place(directory))
            program = _find(argv[0], env.get(b"PATH", b"/usr/bin:/bin"))
            out, err = _pipe(fds), _pipe(fds)
            stdin = _pipe(fds) if wants_input else (self.nothing, -1)
            self.rank.lower()
            try:
                pid = os.posix_spawn(
                    program,
                    argv,
                    env,
                    file_actions=[(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate((stdin[0], out[1], err[1]))],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
                )
            finally:
                self.rank.restore()
        except (OSError, ValueError) as error:
            for fd in fds:
                os.close(fd)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.send(REFUSED, number, pack([b"%d" % (getattr(error, "errno", 0) or 0), (reason or "").encode()]))
            return
        for fd in (out[1], err[1]) + ((stdin[0],) if wants_input else ()):
            os.close(fd)
        words = b" ".join(argv).decode("utf-8", "replace")[:_COMMAND_CHARACTERS]
        outputs = [Output(out[0], STDOUT, keep), Output(err[0], STDERR, keep)]
        command = Command(number, pid, words, credit, outputs, stdin[1])
        self.commands[number] = self.by_pid[pid] = command
        for fd in (out[0], err[0]) + ((stdin[1],) if wants_input else ()):
            os.set_blocking(fd, False)
        self.send(STARTED, number, b"%d" % pid)
        self.carry(command)

    def place(self, path: bytes) -> bytes:
        """Where something is: without mounts of its own, neither the workspace nor what is mounted is at its name."""
        for name, actual in self.places:
            if (path + b"/").startswith(name + b"/"):
                return actual + path[len(name) :]
        return path

    # Input

    def feed(self, command: Command) -> None:
        fd = command.stdin
        taken = 0
        if fd < 0:  # it is closed, or never was: what comes is let go of, so that nobody waits for it
            taken, command.input = sum(map(len, command.input)), []
            if taken:
                self.send(INPUT_CREDIT, command.number, b"%d" % taken)
            return
        while command.input:
            try:
                count = os.write(fd, command.input[0])
            except BlockingIOError:
                self.watch(fd, select.EPOLLOUT, lambda events: self.feed(command))
                break
            except OSError:
                taken += sum(map(len, command.input))
                command.input, command.input_ends = [], True
                break
            taken += count
            command.input[0] = command.input[0][count:]
            if not command.input[0]:
                del command.input[0]
        if taken:
            self.send(INPUT_CREDIT, command.number, b"%d" % taken)
        if not command.input:
            self.unwatch(fd)
            if command.input_ends:
                os.close(fd)
                command.stdin = -1

    # Output

    def carry(self, command: Command) -> None:
        """Send what is there as far as there is credit, and read where more can be taken."""
        for output in command.outputs:
            while output.pending and (command.credit or output.pending[0][0] == GAP):
                kind, data = output.pending.pop(0)
                room = min(command.credit, BODY_BYTES) if kind != GAP else len(data)
                if len(data) > room:
                    output.pending.insert(0, (kind, data[room:]))
                    data = data[:room]
                command.credit -= len(data) if kind != GAP else 0
                self.send(kind, command.number, data)
        for output in command.outputs:
            wanted = output.fd >= 0 and (output.keep > 0 or (not output.pending and command.credit > 0))
            if wanted != output.watched and output.fd >= 0:
                output.watched = wanted
                if wanted:
                    self.watch(output.fd, select.EPOLLIN, self.reading(command, output))
                else:
                    self.unwatch(output.fd)
        if command.closing and not any(output.pending for output in command.outputs):
            self.close(command)

    def reading(self, command: Command, output: Output) -> Callable[[int], None]:
        def read(events: int) -> None:
            if command.number in self.jobs:
                self.keep_log(command, output)
                return
            self.read(command, output)
            self.carry(command)
            if command.status is not None and all(other.fd < 0 for other in command.outputs):
                self.settle(command)

        return read

    def read(self, command: Command, output: Output) -> bool:
        """Whether there was something."""
        room = _READ_BYTES if output.keep else min(_READ_BYTES, command.credit)
        data = _read_now(output.fd, room)
        if data is None:
            return False
        if data:
            output.take(data)
        else:
            self.drop(output)
        return bool(data)

    def drop(self, output: Output) -> None:
        self.unwatch(output.fd)
        os.close(output.fd)
        output.fd = -1

    # Ending

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.adopted.pop(pid, None)
            command = self.by_pid.pop(pid, None)
            if command is not None:
                command.status = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                self.ended(command)

    def ended(self, command: Command) -> None:
        if command.stdin >= 0:
            self.unwatch(command.stdin)
            os.close(command.stdin)
            command.stdin = -1
        for output in command.outputs:
            for _ in range(16):
                if output.fd < 0 or not (output.keep or command.credit) or not self.read(command, output):
                    break
                if not output.keep:
                    self.carry(command)
        self.carry(command)
        open_ = any(output.fd >= 0 for output in command.outputs)
        if command.killed or not (open_ or self.strays()):
            self.settle(command)
        else:
            command.deadline = time.monotonic() + _GRACE_SECONDS

    def settle(self, command: Command) -> None:
        """What still holds its output, or lives on, is its background; then nothing of it is left but to be sent."""
        if command.closing:
            return
        if command.killed:
            self.end(command)
        elif command.deadline or any(output.fd >= 0 for output in command.outputs):
            command.left = sorted(self.owned(command.number))
        is_job = bool(command.left) and not command.killed
        for output in command.outputs:
            if output.fd >= 0 and not is_job:
                self.drop(output)
            output.finish()
        command.deadline = 0.0
        if is_job:
            self.jobs[command.number] = command
            self.open_log(command)
        command.closing = True
        self.carry(command)

    def close(self, command: Command) -> None:
        if self.commands.pop(command.number, None) is None:
            return
        is_job = command.number in self.jobs
        fields = [b"%d" % (command.status or 0), b"%d" % command.killed, b"%d" % is_job, command.log_path.encode()]
        self.send(EXITED, command.number, pack(fields + [b"%d" % pid for pid in command.left[:256]]))
        self.forget_jobs()

    def strays(self) -> set[int]:
        """Children that nobody asked for: whoever started them has ended."""
        return {pid for pid in _children() if pid not in self.by_pid and pid not in self.adopted}

    def table(self) -> dict[int, tuple[int, int, str, int]]:
        """Every process below this one: its parent, session, state and time of birth."""
        found = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                row = _stat(int(name))
                if row:
                    found[int(name)] = row
        me = os.getpid()
        if self.is_first:
            found.pop(me, None)
            return found
        below: set[int] = {me}
        size = 0
        while size != len(below):
            size = len(below)
            below |= {pid for pid, row in found.items() if row[0] in below}
        return {pid: found[pid] for pid in below if pid in found and pid != me}

    def owned(self, claimant: int) -> set[int]:
        """Living processes of a command. One that can be told to be nobody's is the claimant's from then on."""
        table, me = self.table(), os.getpid()
        sessions = {command.pid: command.number for command in list(self.jobs.values()) + list(self.commands.values())}
        known: dict[int, int | None] = {}

        def owner(pid: int) -> int | None:
            if pid not in known:
                parent, session, _, born = table[pid]
                known[pid] = sessions.get(session)
                adopter = self.adopted.get(pid)
                if known[pid] is None and adopter and adopter[0] == born:
                    known[pid] = adopter[1]
                if known[pid] is None:
                    known[pid] = _mark(pid)
                if known[pid] is None and parent in table:
                    known[pid] = owner(parent)
            return known[pid]

        mine = set()
        for pid, row in table.items():
            number = owner(pid)
            if number is None or (number != claimant and number not in self.commands and number not in self.jobs):
                number = claimant
            if row[0] == me and pid not in self.by_pid:
                self.adopted[pid] = (row[3], number)
            if number == claimant and row[2] not in "ZX":
                mine.add(pid)
        return mine

    def end(self, command: Command) -> None:
        """Kill everything of it. All are stopped first: what stands still starts nothing that would get away."""
        stopped: set[int] = set()
        for _ in range(200):
            alive = self.owned(command.number)
            if not alive:
                break
            fresh = alive - stopped
            for pid in fresh or alive:
                _send_signal(pid, signal.SIGSTOP if fresh else signal.SIGKILL)
            if not fresh:
                time.sleep(0.001)
            stopped |= fresh
        command.left = []

    # Background

    def open_log(self, command: Command) -> None:
        if all(output.fd < 0 for output in command.outputs):
            return
        command.log_path = self.logs + "/%d.log" % command.number
        try:
            os.makedirs(self.logs, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            command.log = os.open(command.log_path, flags, 0o644)
        except OSError:
            command.log, command.log_path = -1, ""
        for output in command.outputs:
            if output.fd >= 0 and not output.watched:
                output.watched = True
                self.watch(output.fd, select.EPOLLIN, self.reading(command, output))

    def keep_log(self, command: Command, output: Output) -> None:
        data = _read_now(output.fd, _READ_BYTES)
        if data is None:
            return
        if not data:
            self.drop(output)
            if all(other.fd < 0 for other in command.outputs) and command.log >= 0:
                os.close(command.log)
                command.log = -1
            return
        try:
            if command.log >= 0 and command.logged + len(data) > LOG_BYTES:
                os.rename(command.log_path, command.log_path + ".1")
                os.close(command.log)
                command.log, command.logged = -1, 0
                self.open_log(command)
            if command.log >= 0:
                command.logged += os.write(command.log, data)
        except OSError:
            return  # its log is full or gone: a background process is not to be held up by that

    def forget_jobs(self) -> None:
        """Keep the latest of those that have ended."""
        if len(self.jobs) <= ENDED_JOBS:
            return
        for number in sorted(self.jobs):
            if len(self.jobs) <= ENDED_JOBS:
                break
            command = self.jobs[number]
            is_silent = number not in self.commands and all(output.fd < 0 for output in command.outputs)
            if is_silent and not self.owned(number):
                del self.jobs[number]

    def list_jobs(self, request: int) -> None:
        fields: list[bytes] = []
        for number in sorted(self.jobs)[-2 * ENDED_JOBS :]:
            command = self.jobs[number]
            pids = sorted(self.owned(number))[:16]
            words = command.words.encode("utf-8", "replace")[:_COMMAND_CHARACTERS]
            fields += [b"%d" % number, words, command.log_path.encode(), b" ".join([b"%d" % pid for pid in pids])]
        self.send(ANSWER, request, pack(fields))

    def kill_job(self, request: int, number: int) -> None:
        command = self.jobs.get(number)
        if command is not None:
            self.end(command)
        self.send(ANSWER, request, b"1" if command is not None else b"0")

    def job_output(self, request: int, fields: list[bytes]) -> None:
        """The last bytes of its log."""
        command, count = self.jobs.get(int(fields[0])), min(int(fields[1]), BODY_BYTES)
        data = b""
        if command is not None and command.log_path:
            data = _last_bytes(command.log_path, count)
            if len(data) < count:
                data = _last_bytes(command.log_path + ".1", count - len(data)) + data
        self.send(ANSWER, request, data)

    # The loop

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        if fd in self.callbacks:
            self.epoll.modify(fd, events)
        else:
            self.epoll.register(fd, events)
        self.callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        if self.callbacks.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def run(self) -> None:
        waker, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)

        def woken(events: int) -> None:
            os.read(waker, 4096)
            self.reap()

        self.watch(waker, select.EPOLLIN, woken)
        self.watch(self.channel, select.EPOLLIN, self.on_channel)
        if self.options.get("egress"):
            Bridge(self, self.options["egress"], int(self.options["port"]))
        self.send(READY, os.getpid(), pack([b"1", sys.version.split()[0].encode()]))
        self.flush()
        while True:
            waiting = [command for command in self.commands.values() if command.deadline]
            timeout = min([command.deadline for command in waiting]) - time.monotonic() if waiting else -1
            for fd, events in self.epoll.poll(max(timeout, 0) if waiting else -1):
                callback = self.callbacks.get(fd)
                if callback is not None:
                    callback(events)
            self.overdue(waiting)
            if self.outgoing:
                self.flush()

    def overdue(self, waiting: list[Command]) -> None:
        now = time.monotonic()
        for command in waiting:
            if command.deadline and now >= command.deadline:
                held_up = command.credit == 0 and any(out.fd >= 0 and not out.keep for out in command.outputs)
                if held_up:  # the server has not read yet what it wrote: that says nothing of who holds it open
                    command.deadline = now + 1.0
                else:
                    self.settle(command)

    def quit(self) -> None:
        """The server is gone. The first process of a namespace takes all others along; elsewhere that is done here."""
        if not self.is_first:
            self.commands, self.jobs, self.by_pid = {}, {}, {}
            self.end(Command(0, 0, "", 0, [], -1))
        os._exit(0)


class Bridge:
    """Connections to a port of this sandbox's own loopback, carried to the proxy's socket."""

    def __init__(self, agent: Agent, path: str, port: int) -> None:
        import socket  # only sandboxes with egress need it, and it takes 5 ms

        self.agent = agent
        self.path = path
        self.open = 0
        self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", port))
        self.listener.listen(128)
        self.listener.setblocking(False)
        agent.watch(self.listener.fileno(), select.EPOLLIN, self.accept)

    def accept(self, events: int) -> None:
        import socket  # as above

        try:
            inner = self.listener.accept()[0]
        except OSError:
            return
        outer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        outer.setblocking(False)
        inner.setblocking(False)
        try:
            if self.open >= _CONNECTIONS:
                raise OSError
            outer.connect(self.path)
        except OSError:
            inner.close()
            outer.close()
            return
        self.open += 1
        Link(self, inner, outer)


class Link:
    """Two sockets, each of which gets what the other says."""

    def __init__(self, bridge: Bridge, inner: socket.socket, outer: socket.socket) -> None:
        self.bridge = bridge
        self.ends = (inner, outer)
        self.waiting = [b"", b""]
        self.ended = [False, False]
        self.turn()

    def turn(self) -> None:
        for at, end in enumerate(self.ends):
            wants_more = not self.ended[at] and not self.waiting[1 - at]
            events = (select.EPOLLIN if wants_more else 0) | (select.EPOLLOUT if self.waiting[at] else 0)
            if events:
                self.bridge.agent.watch(end.fileno(), events, self.on(at))
            else:
                self.bridge.agent.unwatch(end.fileno())
        if all(self.ended) and not any(self.waiting):
            self.close()

    def on(self, at: int) -> Callable[[int], None]:
        def act(events: int) -> None:
            try:
                if self.waiting[at]:
                    self.waiting[at] = self.waiting[at][self.ends[at].send(self.waiting[at]) :]
                elif not self.ended[at]:
                    self.take(at)
                for to in (0, 1):
                    if self.ended[1 - to] and not self.waiting[to]:
                        self.ends[to].shutdown(1)
            except BlockingIOError:
                pass
            except OSError:
                self.close()
                return
            self.turn()

        return act

    def take(self, at: int) -> None:
        data = self.ends[at].recv(BODY_BYTES)
        self.ended[at] = not data
        if data:
            try:
                sent = self.ends[1 - at].send(data)
            except BlockingIOError:
                sent = 0
            self.waiting[1 - at] = data[sent:]

    def close(self) -> None:
        self.bridge.open -= 1
        for end in self.ends:
            self.bridge.agent.unwatch(end.fileno())
            end.close()


def _places(options: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Names inside, and where what they name is on this machine: `files=PATH`, `place.N=NAME:PATH`."""
    rows = [value.partition(":")[::2] for name, value in options.items() if name.startswith("place.")]
    if options.get("files"):
        rows += [(WORKSPACE, options["files"]), (DATA, options["files"])]
    return [(os.fsencode(name), os.fsencode(actual)) for name, actual in rows]


def _read_now(fd: int, count: int) -> bytes | None:
    """What is there; empty: it has ended; None: there is nothing now."""
    try:
        return os.read(fd, count)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _pipe(fds: list[int]) -> tuple[int, int]:
    pair = os.pipe2(os.O_CLOEXEC)
    fds += pair
    return pair


def _pair(field: bytes) -> tuple[bytes, bytes]:
    name, _, value = field.partition(b"=")
    return name, value


def _find(name: bytes, path: bytes) -> bytes:
    if b"/" in name:
        return name
    for directory in path.split(b":"):
        candidate = (directory or b".") + b"/" + name
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    raise FileNotFoundError(2, "No such file or directory")


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except OSError:
        return  # nobody is left in it


def _send_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return  # it has ended meanwhile


def _children() -> set[int]:
    try:
        with open("/proc/self/task/%d/children" % os.getpid()) as children:
            return {int(word) for word in children.read().split()}
    except OSError:
        me, pids = os.getpid(), [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return {pid for pid, row in [(pid, _stat(pid)) for pid in pids] if row and row[0] == me}


def _stat(pid: int) -> tuple[int, int, str, int] | None:
    try:
        with open("/proc/%d/stat" % pid, "rb") as stat:
            words = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(words[1]), int(words[3]), words[0].decode(), int(words[19])


def _mark(pid: int) -> int | None:
    """Which command it says it comes from, unless it has washed that off."""
    try:
        with open("/proc/%d/environ" % pid, "rb") as environ:
            for word in environ.read(1 << 20).split(b"\0"):
                if word.startswith(MARK.encode() + b"="):
                    return int(word[len(MARK) + 1 :])
    except (OSError, ValueError):
        pass
    return None


def _last_bytes(path: str, count: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, count, max(0, os.fstat(fd).st_size - count))
    except OSError:
        return b""
    finally:
        os.close(fd)


def _nothing(number: int, frame: object) -> None:
    """A signal has to have a handler to wake anything."""


def _prepare(options: dict[str, str]) -> tuple[int, int]:
    """Bounds, orphans, and the channel out of the reach of what will be started."""
    limits = [(name[len("limit.") :], int(value)) for name, value in options.items() if name.startswith("limit.")]
    if limits:
        import resource  # only where the driver could not set them itself

        for name, value in limits:
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    if os.getpid() != 1:
        import ctypes  # only without a namespace of its own

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    channel = os.dup(0)
    out = os.dup(1) if options.get("out") else -1  # over two pipes instead of one stream
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.close(nothing)
    os.set_blocking(channel, False)
    if out >= 0:
        os.set_blocking(out, False)
    return channel, out


def main() -> None:
    options = dict([word.partition("=")[::2] for word in sys.argv[1:]])
    channel, out = _prepare(options)
    Agent(channel, options, out).run()


if __name__ == "__main__":
    main()
