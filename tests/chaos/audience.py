"""Many clients of a real stack's streams, on one event loop; each comes back as EventSource does, whatever drops it.

What each was told over all its connections is written down, and judged by the table at the end (`faults`).
"""

import asyncio
import contextlib
import random
import socket
import struct
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.live import Live
from tests.chaos.streamers.agents import PIECE_CHARACTERS, SAYS_EVERY, spoken
from tests.streams.wire import Answer, Told

_RETRY_SECONDS = (0.05, 0.4)
_READ_BYTES = 65_536
# How long an answer's head may take: a server that has ended accepts nothing, one that is starting may be slow.
_HEAD_SECONDS = 20.0
# Statuses of a server, a database or a proxy that is not there just now.
_AGAIN = (429, 500, 502, 503, 504)
_ABORTS = struct.pack("ii", 1, 0)


@dataclass
class Viewer:
    """One client: of a thread, of a run, or of what it posts."""

    stack: Live
    thread_id: str = ""
    run_id: str = ""
    body: dict[str, Any] | None = None
    last: int | None = None
    told: list[tuple[int, str]] = field(default_factory=list)
    ended: str = ""
    # Left before its end: what it was told is then a beginning.
    has_left: bool = False
    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    heard_at: float = 0.0
    _key: str = field(default_factory=lambda: str(uuid.uuid4()))
    # Of this connection: the attempt that speaks, how far, and how far that is in a message.
    _speaks: tuple[str, int] = ("", 0)
    _to: int = 0
    _closed: int = 0

    @property
    def attempt(self) -> int:
        """The one that was heard last."""
        return self._speaks[1]

    async def watch(self, goes_on: Callable[[], bool], drop: Callable[["Viewer"], "Drop | None"]) -> None:
        """Follow until the end, or while `goes_on`; `drop` says how the next connection is to end, if not by itself."""
        while not self.ended and goes_on():
            try:
                await self._connected(goes_on, drop(self))
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                self.counts["refused connections"] += 1
            if not self.ended:
                await asyncio.sleep(random.uniform(*_RETRY_SECONDS))
        self.has_left = not self.ended

    async def _connected(self, goes_on: Callable[[], bool], drop: "Drop | None") -> None:
        host, _, port = self.stack.stack.facts["urls"]["web"].removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self._speaks, self._to, self._closed = ("", 0), 0, 0
        try:
            answer = Answer()
            writer.write(self._request(answer))
            async with asyncio.timeout(_HEAD_SECONDS):
                while not answer.status and not answer.is_over:
                    self._take(answer, await reader.read(_READ_BYTES))
            self.counts[f"{answer.status} answers"] += 1
            if self._is_refused(answer):
                return
            self._name(answer)
            drops_at = None if drop is None else time.monotonic() + drop.seconds
            while not answer.is_over and not self.ended and goes_on():
                if drops_at is not None and time.monotonic() >= drops_at:
                    assert drop is not None
                    self.counts[drop.how] += 1
                    if drop.how != "stall":
                        drop.leave(writer)
                        return
                    drops_at = None
                    await asyncio.sleep(drop.pause)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.25):
                        size = 37 if drop is not None and drop.how == "half" else _READ_BYTES
                        self._take(answer, await reader.read(size))
            self.counts["closed by the server"] += answer.is_over and not self.ended
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _request(self, answer: Answer) -> bytes:
        headers = {"Authorization": f"Bearer {self.stack.stack.token}"}
        if self.last is not None:
            headers["Last-Event-ID"] = str(self.last)
        if self.body is not None:
            headers["Idempotency-Key"] = self._key
            return answer.request("POST", "/v1/runs", headers=headers, body=self.body)
        path = f"/v1/runs/{self.run_id}" if self.run_id else f"/v1/threads/{self.thread_id}"
        return answer.request("GET", f"{path}/events/stream", headers=headers)

    def _is_refused(self, answer: Answer) -> bool:
        if answer.status == 204:
            self.ended = "204"
        # In flight still: the first request under this key lost its client, or its server.
        # 0: the server went before it could say anything.
        elif answer.status not in (0, 200, 409, *_AGAIN):
            self.ended = f"status {answer.status}"
            self.faults.append(f"answered {answer.status} {answer.body!r}")
        return answer.status != 200

    def _name(self, answer: Answer) -> None:
        if self.body is not None:
            self.run_id = answer.headers["location"].rpartition("/")[2]

    def _take(self, answer: Answer, received: bytes) -> None:
        for one in answer.take(received):
            self.counts["frames"] += 1
            if one.cursor is not None:
                self._event(one, one.cursor)
            elif one.name == "delta":
                self._delta(**one.data)
            elif one.name == "end":
                self.ended = one.data["status"]
            elif one.name == "error":
                self.counts[f"error {one.data['code']}"] += 1

    def _event(self, one: Told, cursor: int) -> None:
        if self.last is not None and cursor <= self.last:
            self.faults.append(f"{cursor} after {self.last}")
        self.told.append((cursor, one.name))
        self.last = cursor
        self.heard_at = time.monotonic()
        if one.name == "MessageCommitted" and one.data["payload"]["role"] == "assistant":
            words = one.data["payload"]["content"].split()
            # The answer itself comes with the last of them.
            if int(words[0]) % SAYS_EVERY == 0 and one.data["run_id"] == self._speaks[0]:
                self._closed = int(words[0]) * PIECE_CHARACTERS

    def _delta(self, *, run_id: str, attempt: int, activation: str, offset: int, text: str) -> None:
        self.counts["deltas"] += 1
        if spoken(attempt, offset, len(text)) != text:
            self.faults.append(f"attempt {attempt} has not said {text!r} at {offset}")
        if self._speaks[0] == run_id and attempt < self._speaks[1]:
            self.faults.append(f"attempt {attempt} was heard after {self._speaks[1]}")
        if self._speaks != (run_id, attempt):
            self._speaks, self._to, self._closed = (run_id, attempt), 0, 0
        if offset < self._to:
            self.faults.append(f"text goes back from {self._to} to {offset}")
        if offset < self._closed:
            self.counts["deltas of what a message holds"] += 1
        self.counts["gaps in the text"] += offset > max(self._to, self._closed)
        self._to = offset + len(text)


@dataclass(frozen=True)
class Drop:
    """How a connection ends early: abort, close, half (read in small bites until then), stall (read on later)."""

    how: str
    seconds: float
    pause: float = 0.0

    def leave(self, writer: asyncio.StreamWriter) -> None:
        if self.how == "abort":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTS)
        writer.transport.abort()


def any_drop(dice: random.Random) -> Drop | None:
    """Most connections are dropped, most of these soon."""
    how = dice.choice(("abort", "abort", "close", "half", "stall", ""))
    return Drop(how, dice.expovariate(1 / 8.0), dice.uniform(1.0, 5.0)) if how else None


async def till(is_so: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float, every: float = 0.2) -> bool:
    """Whether it came to be so in this time."""
    give_up_at = time.monotonic() + seconds
    while True:
        found = is_so()
        if (await found) if not isinstance(found, bool) else found:
            return True
        if time.monotonic() >= give_up_at:
            return False
        await asyncio.sleep(every)


Rows = dict[str, list[tuple[int, str, str]]]


def table(live: Live) -> Rows:
    """The public events of each thread: cursor, run, kind. Each thread's cursors have no gap."""
    found: Rows = {}
    cursors: dict[str, int] = Counter()
    for row in live.rows(
        "SELECT thread_id::text AS thread, cursor, run_id::text AS run, kind, visibility FROM mailbox_event "
        "ORDER BY thread_id, cursor"
    ):
        cursors[row["thread"]] += 1
        assert cursors[row["thread"]] == row["cursor"], row
        if row["visibility"] == "public":
            found.setdefault(row["thread"], []).append((row["cursor"], row["run"], row["kind"]))
    return found


def faults(viewers: list[Viewer], rows: Rows) -> list[str]:
    """What each was told and should not have been, or the other way round."""
    by_run: dict[str, list[tuple[int, str]]] = {}
    for events in rows.values():
        for cursor, run, kind in events:
            by_run.setdefault(run, []).append((cursor, kind))
    found = [fault for viewer in viewers for fault in viewer.faults]
    for viewer in viewers:
        if viewer.run_id:
            expected = by_run.get(viewer.run_id, [])
        else:
            expected = [(cursor, kind) for cursor, _, kind in rows.get(viewer.thread_id, [])]
        told = viewer.told
        if told != (expected[: len(told)] if viewer.has_left else expected):
            at = next((n for n, (a, b) in enumerate(zip(told, expected, strict=False)) if a != b), len(told))
            found.append(
                f"{viewer.run_id or viewer.thread_id}: told {len(told)} of {len(expected)}, ended {viewer.ended!r}; "
                f"at {at} {told[at : at + 2]} where {expected[at : at + 2]} should be"
            )
    return found
