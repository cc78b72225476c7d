"""Many clients on one event loop: each reads one stream, and comes back with the last id when it was dropped."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mailbox_app.models import TERMINAL_KINDS
from tests.races.actors import until

# Until a server has said how long.
_RETRY_SECONDS = 1.0
_TERMINAL = {str(kind).encode() for kind in TERMINAL_KINDS}


class Reader:
    """One client. It has ended when its stream has, or, of a thread, when the run has."""

    def __init__(self, port: int, path: str, token: str) -> None:
        self.path, self.ids = path, list[int]()
        self.connections = 0
        self.has_ended = False
        self._port, self._token, self._retry_seconds = port, token, _RETRY_SECONDS

    @property
    def last(self) -> int:
        return self.ids[-1] if self.ids else 0

    async def read(self) -> None:
        """Read until the end, over as many connections as it takes."""
        while not self.has_ended:
            with suppress(OSError, EOFError):
                await self._connected()
            if not self.has_ended:
                await asyncio.sleep(self._retry_seconds)

    async def _connected(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(
                f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._token}\r\n"
                f"Last-Event-ID: {self.last}\r\n\r\n".encode()
            )
            status = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            if status == b"503":  # it had no connection to spare: come back
                return
            assert status in (b"200", b"204"), f"{self.path} was answered {status!r}"
            self.connections += 1
            self.has_ended = status == b"204"
            rest = b""
            while not self.has_ended and (size := int(await reader.readuntil(b"\r\n"), 16)):
                chunk = await reader.readexactly(size + 2)
                *frames, rest = (rest + chunk[:-2]).split(b"\n\n")
                for frame in frames:
                    self._hear(frame)
        finally:
            writer.close()

    def _hear(self, frame: bytes) -> None:
        fields = dict(line.split(b": ", 1) for line in frame.split(b"\n") if not line.startswith(b":"))
        name = fields.get(b"event")
        if b"retry" in fields:
            self._retry_seconds = int(fields[b"retry"]) / 1000
        if b"id" in fields:
            self.ids.append(int(fields[b"id"]))
            self.has_ended = name in _TERMINAL and "/threads/" in self.path
        elif name == b"end":
            self.has_ended = True


class Crowd:
    """The clients, in a thread of their own."""

    def __init__(self, readers: list[Reader]) -> None:
        self.readers = readers
        self._loop = asyncio.new_event_loop()
        self._tasks: asyncio.Future[list[BaseException | None]] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def until_all(self, is_it: Callable[[Reader], bool], what: str, *, seconds: float = 120.0) -> None:
        """Wait until it is true of every client."""
        until(lambda: all(is_it(one) for one in self.readers) or not self._thread.is_alive(), what, seconds=seconds)
        assert all(is_it(one) for one in self.readers), "a client has failed"

    def leave(self) -> None:
        """Stop them where they are."""
        with suppress(RuntimeError):  # the loop has ended with them
            self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _stop(self) -> None:
        if self._tasks is not None:
            self._tasks.cancel()

    def _run(self) -> None:
        async def all_of_them() -> None:
            self._tasks = asyncio.gather(*(one.read() for one in self.readers))
            with suppress(asyncio.CancelledError):
                await self._tasks

        try:
            self._loop.run_until_complete(all_of_them())
        finally:
            self._loop.close()


@contextmanager
def crowd(readers: list[Reader]) -> Iterator[Crowd]:
    """The clients, reading while the block runs."""
    clients = Crowd(readers)
    try:
        yield clients
    finally:
        clients.leave()
