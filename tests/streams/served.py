"""A server of the test's own, and clients that read its streams."""

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from mailbox_app.api.v1 import stream_hub
from mailbox_project.asgi import application

# Much longer than anything takes; a test that waits so long has failed.
PATIENCE_SECONDS = 30.0


class Server(uvicorn.Server):
    """uvicorn in a thread of this process, on a free port."""

    def __init__(self) -> None:
        config = uvicorn.Config(application, port=0, lifespan="off", log_level="critical", timeout_graceful_shutdown=1)
        super().__init__(config)
        self.is_up = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}"


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server while the block runs."""
    server = Server()
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.is_up.wait(PATIENCE_SECONDS)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        _await_readers()


def _await_readers() -> None:
    """A reading that is under way holds locks on tables which the end of the test empties."""
    are_idle = threading.Barrier(stream_hub._READERS + 1)
    for _ in range(stream_hub._READERS):
        stream_hub._readers.submit(are_idle.wait, PATIENCE_SECONDS)
    are_idle.wait(PATIENCE_SECONDS)


@dataclass(frozen=True)
class Heard:
    """One event of a stream; `name` "comment" is a comment."""

    name: str
    data: Any = None
    id: str | None = None


@dataclass
class Listening:
    """A client that reads a stream in a thread of its own."""

    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    problem: Any = None
    heard: list[Heard] = field(default_factory=list)
    has_ended: bool = False
    _incoming: "queue.Queue[Heard | None]" = field(default_factory=queue.Queue)

    def until(self, is_it: Callable[[Heard], bool], seconds: float = PATIENCE_SECONDS) -> Heard:
        """Read on until something is heard; returns it."""
        give_up_at = time.monotonic() + seconds
        while True:
            try:
                one = self._incoming.get(timeout=max(give_up_at - time.monotonic(), 0.001))
            except queue.Empty:
                raise AssertionError(f"it was not heard; heard was {self.heard}") from None
            if one is None:
                self.has_ended = True
                raise AssertionError(f"the stream has ended; heard was {self.heard}")
            self.heard.append(one)
            if is_it(one):
                return one

    def until_named(self, name: str, **data: Any) -> Heard:
        """Read on until an event of this name, whose data hold these values."""
        return self.until(lambda one: one.name == name and data.items() <= (one.data or {}).items())

    def to_the_end(self) -> list[Heard]:
        """Read on until the server closes the stream; returns all that was heard."""
        with contextlib.suppress(AssertionError):
            self.until(lambda one: False)
        assert self.has_ended, self.heard
        return self.heard

    def names(self) -> list[str]:
        return [one.name for one in self.heard if one.name != "comment"]

    def events(self) -> list[Heard]:
        """What has an id: the durable events."""
        return [one for one in self.heard if one.id is not None]

    def text(self) -> str:
        """The live text as a page would show it: an offset 0 begins anew, another goes on where it says."""
        shown = ""
        for one in self.heard:
            if one.name == "delta":
                shown = shown[: one.data["offset"]] + one.data["text"]
        return shown


@contextlib.contextmanager
def listening(
    url: str, *, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None
) -> Iterator[Listening]:
    """A client of the stream while the block runs; it has its status when the block begins."""
    found, is_open, is_over = Listening(), threading.Event(), threading.Event()

    def read() -> None:
        try:
            with (
                httpx.Client(timeout=httpx.Timeout(10, read=0.1)) as client,
                client.stream(
                    method, url, json=body, headers=headers, timeout=httpx.Timeout(PATIENCE_SECONDS)
                ) as answer,
            ):
                found.status, found.headers = answer.status_code, answer.headers
                if not str(answer.headers.get("content-type", "")).startswith("text/event-stream"):
                    raw = answer.read()
                    found.problem = json.loads(raw) if raw else None
                    return
                is_open.set()
                for one in parsed(answer.iter_lines()):
                    found._incoming.put(one)
                    if is_over.is_set():
                        return
        except httpx.HTTPError:
            pass
        finally:
            found._incoming.put(None)
            is_open.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert is_open.wait(PATIENCE_SECONDS)
    try:
        yield found
    finally:
        is_over.set()


def parsed(lines: Iterator[str]) -> Iterator[Heard]:
    """The events of a stream's lines, as the standard says."""
    name, data, cursor = "", [], None
    for line in lines:
        if line.startswith(":"):
            yield Heard("comment", line[1:].strip())
        elif not line:
            if data:
                yield Heard(name or "message", json.loads("\n".join(data)), cursor)
            name, data, cursor = "", [], None
        else:
            key, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if key == "event":
                name = value
            elif key == "data":
                data.append(value)
            elif key == "id":
                cursor = value
