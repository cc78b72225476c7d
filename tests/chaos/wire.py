"""A wire between a process and PostgreSQL: it can be cut, or made to wait, at one message of one transaction.

A transaction is known by what was sent in it, texts and values alike: the event it records, the table it writes to.
Nothing in the process knows of the wire, so what it meets there is what it meets when a server or a network goes away.
"""

import contextlib
import enum
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

import psutil

from tests.chaos.live import SLACK_SECONDS

# The first words of a connection have no type: what is asked for in front of the start itself is answered by a byte.
_ASKS_FIRST = {80877103, 80877104}
_QUERY, _PARSE, _BIND, _READY = b"Q", b"P", b"B", b"Z"
# What opens, ends and undoes a transaction, as psycopg says it.
_BEGIN, _COMMIT, _ROLLBACK = b"BEGIN", b"COMMIT", b"ROLLBACK"


class Moment(enum.Enum):
    """Where in a transaction: what ends it is held back, or its answer is, or what would begin the next one."""

    COMMIT = "before its COMMIT arrives"
    ANSWER = "after its COMMIT, before the answer"
    NEXT = "before the next transaction begins"


@dataclass
class Trap:
    """What to wait for, and whether the wire is cut there; if not, it holds still until `release`.

    `words`: all of them stand in the transaction. `by`: only on a connection that has sent such a transaction before.
    """

    words: tuple[bytes, ...]
    moment: Moment
    cuts: bool = False
    by: bytes = b""
    # For Moment.NEXT: the transaction was answered.
    is_due: bool = False
    is_taken: bool = False
    sprung: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    # Of the process that sent it.
    port: int = 0
    line: socket.socket | None = None

    def knows(self, sent: bytes) -> bool:
        """Whether this is the transaction."""
        return all(word in sent for word in self.words)

    def wait(self, seconds: float = SLACK_SECONDS) -> None:
        """Wait until it has sprung."""
        assert self.sprung.wait(seconds), f"nothing came for {self.words} to be stopped {self.moment.value}"

    def release(self) -> None:
        """Let the message pass, if whoever sent it is still there."""
        self.released.set()

    def has_gone(self) -> bool:
        """Whether who sent it has closed its end. A process that was killed does so when its last thread is gone."""
        assert self.line is not None, "it has not sprung"
        return _has_gone(self.line)

    def sender(self, parent: int) -> int:
        """Which of this process and its children has sent it."""
        for process in (psutil.Process(parent), *psutil.Process(parent).children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                if any(one.laddr and one.laddr.port == self.port for one in process.net_connections("tcp")):
                    return int(process.pid)
        raise AssertionError(f"port {self.port} is nobody's")


class Wire:
    """Listens on a port of its own and passes on to the server of `url` whatever comes, both ways."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname, url
        assert parts.port, url
        self.server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        account = parts.netloc.rpartition("@")[0]
        port = self._listener.getsockname()[1]
        query = "&".join(filter(None, (parts.query, "sslmode=disable&gssencmode=disable")))
        self.url = urlunsplit((parts.scheme, f"{account}@127.0.0.1:{port}", parts.path, query, ""))
        self._changing = threading.Lock()
        self._trap: Trap | None = None
        threading.Thread(target=self._listen, name=f"wire-{port}", daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those there are end with their processes."""
        self._listener.close()

    @contextlib.contextmanager
    def trap(self, *words: bytes, moment: Moment, cuts: bool = False, by: bytes = b"") -> Iterator[Trap]:
        """Stop the first such transaction that comes in this block; nothing waits any more after it."""
        trap = Trap(words, moment, cuts, by)
        with self._changing:
            self._trap = trap
        try:
            yield trap
        finally:
            with self._changing:
                self._trap = None
            trap.release()

    def met(self, sent: bytes, earlier: bytes, line: socket.socket, port: int, *moments: Moment) -> Trap | None:
        """The trap that this transaction has run into, at one of these moments; each is run into once."""
        with self._changing:
            trap = self._trap
            if trap is None or trap.is_taken or trap.moment not in moments or trap.by not in earlier:
                return None
            if not (trap.is_due if trap.moment is Moment.NEXT else trap.knows(sent)):
                return None
            trap.is_taken, trap.line, trap.port = True, line, port
            return trap

    def answered(self, sent: bytes) -> None:
        """A transaction was committed and its sender told."""
        with self._changing:
            if self._trap is not None and self._trap.moment is Moment.NEXT and self._trap.knows(sent):
                self._trap.is_due = True

    def _listen(self) -> None:
        while True:
            try:
                client, (_, port) = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(self.server, timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Connection(self, client, server, port).start()


class _Connection:
    """One connection through the wire: a thread each way."""

    def __init__(self, wire: Wire, client: socket.socket, server: socket.socket, port: int) -> None:
        self._wire, self._client, self._server, self._port = wire, client, server, port
        self._statements: dict[bytes, bytes] = {}
        # What the open transaction has sent, what those before it have, and which of them waits for its answer.
        self._sent, self._earlier, self._committing = b"", b"", b""
        self._is_open = False
        self._holds: Trap | None = None

    def start(self) -> None:
        for work in (self._upwards, self._downwards):
            threading.Thread(target=self._until_cut, args=(work,), name=f"wire-of-{self._port}", daemon=True).start()

    def _until_cut(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            work()
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _upwards(self) -> None:
        """What the process says."""
        said = self._client.makefile("rb")
        while True:  # its first words
            head = _take(said, 8)
            length, code = struct.unpack("!ii", head)
            if code not in _ASKS_FIRST:
                self._server.sendall(head + _take(said, length - 8))
                break
            self._client.sendall(b"N")
        while True:
            kind, raw = _message(said)
            trap = self._noticed(kind, raw[5:])
            if trap is not None and trap.moment is Moment.ANSWER:
                self._holds = trap
            elif trap is not None:
                trap.sprung.set()
                if trap.cuts:
                    return
                trap.released.wait()
                if _has_gone(self._client):
                    return
            self._server.sendall(raw)

    def _downwards(self) -> None:
        """What the server answers."""
        answers, held = self._server.makefile("rb"), b""
        while True:
            kind, raw = _message(answers)
            trap = self._holds
            if trap is not None:
                held += raw
                if kind != _READY:
                    continue
                # Whatever it was, it is committed now.
                trap.sprung.set()
                if trap.cuts:
                    return
                trap.released.wait()
                raw, held, self._holds = held, b"", None
            committed, self._committing = (self._committing, b"") if kind == _READY else (b"", self._committing)
            if committed:
                # Before its sender can go on.
                self._wire.answered(committed)
            self._client.sendall(raw)

    def _noticed(self, kind: bytes, body: bytes) -> Trap | None:
        """Follow what is sent; the trap that this message runs into."""
        if kind == _PARSE:
            name, text, _ = body.split(b"\0", 2)
            self._statements[name] = text
            return None
        if kind == _BIND:
            _, name, values = body.split(b"\0", 2)
            said = self._statements.get(name, b"") + values
        elif kind == _QUERY:
            said = body
        else:
            return None
        word = said.lstrip()[:8].upper()
        if word.startswith(_BEGIN):
            self._is_open, self._sent = True, b""
            return self._wire.met(b"", self._earlier, self._client, self._port, Moment.NEXT)
        if word.startswith(_ROLLBACK) and not said.lstrip()[:20].upper().startswith(_ROLLBACK + b" TO"):
            self._is_open = False
            return None
        if self._is_open and not word.startswith(_COMMIT):
            self._sent += said
            return None
        # A statement outside a transaction is one by itself.
        sent = self._sent if self._is_open else said
        self._is_open, self._sent, self._committing = False, b"", sent
        trap = self._wire.met(sent, self._earlier, self._client, self._port, Moment.COMMIT, Moment.ANSWER)
        self._earlier = (self._earlier + sent)[-100_000:]
        return trap


def _has_gone(line: socket.socket) -> bool:
    """Whether the process has closed its end: who is gone sends nothing."""
    readable, _, _ = select.select([line], [], [], 0)
    return bool(readable) and not line.recv(1, socket.MSG_PEEK)


def _message(stream: BinaryIO) -> tuple[bytes, bytes]:
    """The next message: its type, and all of it."""
    head = _take(stream, 5)
    return head[:1], head + _take(stream, struct.unpack("!i", head[1:])[0] - 4)


def _take(stream: BinaryIO, size: int) -> bytes:
    """So many bytes; ConnectionError if the other end has gone."""
    taken = stream.read(size)
    if len(taken) < size:
        raise ConnectionResetError
    return taken
