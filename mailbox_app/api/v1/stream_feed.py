"""One thread that is streamed: what a web process keeps of it for all its clients, and who these are."""

import asyncio
import uuid
from collections import deque
from collections.abc import Iterable
from itertools import takewhile
from typing import Any, Protocol

from mailbox_app.api.v1.stream_cut import Ends
from mailbox_app.api.v1.stream_rights import Right
from mailbox_app.api.v1.stream_rows import Found, Told
from mailbox_app.api.v1.stream_text import Came, RunText
from mailbox_app.conf import conf

# Bytes of events one feed keeps; of more, the latest.
_MOST_BYTES = 1_048_576


class Client(Protocol):
    """Whoever streams, as its hub sees it."""

    news: asyncio.Event
    cursor: int
    right: Right
    ends: Ends | None

    def is_stuck(self, now: float) -> bool:
        """Whether it has not taken what it was sent for too long."""

    def cut(self, *, is_closed: bool) -> None:
        """End it; `is_closed`: its connection is, so that it should end by itself."""

    def refuse(self) -> None:
        """End it: its credentials are good no longer."""


class Feed:
    """One thread that is streamed: its latest events, all after `floor` and up to `head`, and its run's live text."""

    def __init__(self, thread_id: uuid.UUID, *, head: int) -> None:
        self.thread_id, self.head, self.floor = thread_id, head, head
        # Where its reading began: it has not seen which messages there are before.
        self.began = head
        self.fence = 0
        self.open_run_id: uuid.UUID | None = None
        self.is_gone = False
        self.text: RunText | None = None
        # The last message that holds what was said live before it.
        self._closed_at = 0
        self.clients: set[Client] = set()
        self._recent: deque[Told] = deque()
        self._bytes = 0

    def since(self, cursor: int) -> list[Told] | None:
        """The events past the cursor; None when some of them are kept no longer."""
        if cursor < self.floor:
            return None
        if cursor >= self.head:
            return []
        # From the latest: one that takes long keeps many here, and the others are not to look at all of them.
        found = list(takewhile(lambda told: told.cursor > cursor, reversed(self._recent)))
        found.reverse()
        return found

    def take(self, found: Found) -> None:
        """Add what was read past `head`."""
        if found.pruned > self.head:  # some are gone that nobody has read: who has not had them is to be told so
            self._recent.clear()
            self._bytes, self.floor = 0, found.pruned
        for told in found.told:
            self._recent.append(told)
            self._bytes += len(told.frame)
        self.close(found.told)
        self.head, self.fence, self.open_run_id = max(self.head, found.head), found.fence, found.open_run_id
        # Not before all of its events were read: who is told that it is gone leaves.
        self.is_gone = found.is_gone and not found.has_more
        if self.text is not None and (self.text.run_id != self.open_run_id or self.text.fence < self.fence):
            self.text = None
        while len(self._recent) > conf.stream_buffer_entries or self._bytes > _MOST_BYTES:
            self._drop()

    def close(self, told: Iterable[Told]) -> None:
        """Take notice of messages: what was said live before them is told no more."""
        for one in told:
            if one.closes and one.cursor > self._closed_at:
                self._closed_at = one.cursor
                if self.text is not None and self.text.run_id == one.run_id:
                    self.text.close(one.cursor)

    def tidy(self) -> None:
        """Drop what every client has had."""
        had = min((client.cursor for client in self.clients), default=self.head)
        while self._recent and self._recent[0].cursor <= had:
            self._drop()

    def _drop(self) -> None:
        told = self._recent.popleft()
        self._bytes -= len(told.frame)
        self.floor = told.cursor

    def hear(self, run_id: uuid.UUID, piece: dict[str, Any], *, anyhow: bool = False) -> Came:
        """Add a piece of live text, unless it is of a run that is not open here."""
        if run_id != self.open_run_id:
            return Came.OLD
        if self.text is None:
            # A message may hold it that stands between it and where this feed began.
            if not anyhow and 0 < said_after(piece) < self.began:
                return Came.AHEAD
            self.text = RunText(run_id, fence=self.fence, closed_at=self._closed_at)
        return self.text.add(piece, anyhow=anyhow)

    def wake(self) -> None:
        """Let each client look."""
        for client in self.clients:
            client.news.set()


def said_after(piece: dict[str, Any]) -> int:
    """The event after which a piece of live text was said; 0: that is not known."""
    after = piece.get("after", 0)
    return after if isinstance(after, int) else 0
