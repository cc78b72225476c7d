"""The clients that docs/streaming.md gives to copy, as they stand there."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from httpx_sse import ServerSentEvent

from mailbox_app.devtools.files import read
from tests.races.actors import until
from tests.streams.served import PATIENCE_SECONDS, Heard, parsed

PAGE = Path(__file__).resolve().parents[2] / "docs/streaming.md"


def recipe(language: str) -> str:
    """The page's only block in this language."""
    [(indent, block)] = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", PAGE.read_text(), re.M | re.S)
    return re.sub(rf"^{indent}", "", block, flags=re.M)


class Following:
    """The recipe for httpx-sse, followed in a thread of its own from when it is started."""

    def __init__(self, method: str, url: str, *, headers: dict[str, str], **body: Any) -> None:
        self.heard: list[ServerSentEvent] = []
        # Each request it made: method, path, the last id it named. How long it waited before the next one.
        self.requests: list[tuple[str, str, str]] = []
        self.waits: list[float] = []
        self.error: Exception | None = None
        self.has_ended = False
        self._given = (method, url, headers, body)
        self._loop, self._is_left = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def until(self, is_it: Callable[[ServerSentEvent], bool], what: str) -> None:
        """Wait until such an event has been heard."""
        until(lambda: self.error or any(is_it(one) for one in list(self.heard)), what, seconds=PATIENCE_SECONDS)
        assert self.error is None, self.error

    def until_named(self, name: str) -> None:
        self.until(lambda one: one.event == name, f"{name} is heard")

    def to_the_end(self) -> None:
        """Wait until it ends by itself."""
        until(lambda: self.has_ended, "it ends", seconds=PATIENCE_SECONDS)
        assert self.error is None, self.error

    def cursors(self) -> list[int]:
        """Of each durable event, which must be its id as well."""
        durable = [one for one in self.heard if "cursor" in one.json()]
        assert [one.id for one in durable] == [str(one.json()["cursor"]) for one in durable]
        return [one.json()["cursor"] for one in durable]

    def leave(self) -> None:
        """Stop it where it is."""
        self._loop.call_soon_threadsafe(self._is_left.set)
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._until_left())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    async def _until_left(self) -> None:
        following, left = asyncio.create_task(self._follow()), asyncio.create_task(self._is_left.wait())
        await asyncio.wait([following, left], return_when=asyncio.FIRST_COMPLETED)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await left

    async def _follow(self) -> None:
        method, url, headers, body = self._given
        namespace: dict[str, Any] = {}
        exec(compile(recipe("python"), str(PAGE), "exec"), namespace)
        namespace["asyncio"] = SimpleNamespace(sleep=self._wait)
        try:
            async with (
                httpx.AsyncClient(headers=headers, event_hooks={"request": [self._asked]}) as client,
                contextlib.aclosing(namespace["follow"](client, method, url, **body)) as events,
            ):
                async for event in events:
                    self.heard.append(event)
        except Exception as error:
            self.error = error
        finally:
            self.has_ended = True

    async def _asked(self, request: httpx.Request) -> None:
        self.requests.append((request.method, request.url.path, request.headers["Last-Event-ID"]))

    async def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(seconds)


@contextlib.contextmanager
def following(method: str, url: str, *, headers: dict[str, str], **body: Any) -> Iterator[Following]:
    """The recipe for httpx-sse while the block runs."""
    client = Following(method, url, headers=headers, **body)
    try:
        yield client
    finally:
        client.leave()


class Curl:
    """A program that prints a stream: curl itself, or the recipe for it."""

    def __init__(self, folder: Path, *command: str, token: str) -> None:
        self._out, self._errors = folder / "out", folder / "errors"
        with self._out.open("wb") as out, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True,
                env={"PATH": os.environ["PATH"], "TOKEN": token},
            )  # fmt: skip

    @property
    def complaints(self) -> str:
        return read(self._errors)

    def heard(self) -> list[Heard]:
        """What it has printed so far, in whole events."""
        text = self._out.read_text()
        return list(parsed(iter(text[: text.rfind("\n\n") + 2].splitlines())))

    def until(self, is_it: Callable[[Heard], bool], what: str) -> Heard:
        """Wait until it has printed such an event."""
        found: Heard = until(
            lambda: next(filter(is_it, self.heard()), None), f"{what} ({self.complaints})", seconds=PATIENCE_SECONDS
        )
        return found

    def until_named(self, name: str) -> Heard:
        return self.until(lambda one: one.name == name, f"{name} is heard")

    def cursors(self) -> list[int]:
        return [int(one.id) for one in self.heard() if one.id is not None]

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        """End it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
