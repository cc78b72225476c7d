"""What the streams of one web process share: one Redis subscription, one reading of each event, one look for all.

A thread that somebody streams has a feed: its latest events, read once for all, and its run's live text. Notices say
which feeds to read; all that are behind are read by one statement. A client takes what it has not had from its feed
when it can, so it is the client that waits, never the feed; one that has fallen behind what a feed keeps reads pages of
its own, shared by those at the same cursor. Without notices (Redis is away) each feed's last cursor is asked for
instead, by one statement for all.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from django.db import DatabaseError, InterfaceError

from mailbox_app.api.v1 import stream_cut, stream_rights, stream_rows
from mailbox_app.api.v1.stream_feed import Client, Feed, said_after
from mailbox_app.api.v1.stream_rows import Found
from mailbox_app.api.v1.stream_text import Came
from mailbox_app.conf import conf
from mailbox_app.hearing import Ear
from mailbox_app.telemetry import observe

ValueT = TypeVar("ValueT")

# Feeds of one statement.
_MOST_FEEDS = 100
# Threads that read for all streams of the process, each with a connection while it does.
_READERS = 3
# How often slow clients and old events are looked for, at most.
_TEND_SECONDS = 1.0
# How long a reading that failed is not repeated.
_RETRY_SECONDS = 1.0

_readers = ThreadPoolExecutor(_READERS, thread_name_prefix="mailbox-streams")


class Hub:
    """The feeds of one event loop."""

    def __init__(self) -> None:
        self._feeds: dict[str, Feed] = {}
        self._of_run: dict[uuid.UUID, Feed] = {}
        self._ear = Ear(self)
        self._behind: set[Feed] = set()
        self._has_work = asyncio.Event()
        self._pages: dict[tuple[Any, ...], asyncio.Task[Found | None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._under_way: set[str] = set()
        # Events sent, and questions to the database, since they were counted last.
        self.sent = self._asked = 0

    @property
    def is_idle(self) -> bool:
        """Whether nobody streams."""
        return not self._feeds

    def join(self, client: Client, thread_id: uuid.UUID, *, head: int) -> Feed:
        """Give the client its thread's feed; `head`: a cursor up to which the thread's events are there."""
        if self.is_idle:
            # Another one: the last may still be letting go of what it heard by, or have runs it was not told to leave.
            self._ear = Ear(self)
            for work in (self._ear.run, self._read, self._tend):
                self._start(_for_ever(work))
        feed = self._feeds.get(str(thread_id))
        if feed is None:
            feed = self._feeds[str(thread_id)] = Feed(thread_id, head=head)
            self._want(feed)
            observe("stream.feed", level=logging.DEBUG, change=1)
        feed.clients.add(client)
        return feed

    def leave(self, client: Client, feed: Feed) -> bool:
        """Forget the client, unless it was before; with the last one its feed, with the last feed the subscription."""
        if client not in feed.clients:
            return False
        feed.clients.remove(client)
        if feed.clients:
            return True
        del self._feeds[str(feed.thread_id)]
        self._behind.discard(feed)
        observe("stream.feed", level=logging.DEBUG, change=-1)
        for run_id in [run_id for run_id, other in self._of_run.items() if other is feed]:
            del self._of_run[run_id]
            self._start(self._ear.leave(run_id))
        if self.is_idle:
            self._tell()
            for task in list(self._tasks):
                task.cancel()
            self._tasks.clear()
        return True

    async def page(self, thread_id: uuid.UUID, run_id: uuid.UUID | None, cursor: int) -> Found | None:
        """Events past a cursor, from the database; clients that ask for the same meanwhile share the answer."""
        key = (thread_id, run_id, cursor)
        task = self._pages.get(key)
        if task is None:
            task = self._pages[key] = self._start(self._ask(partial(stream_rows.of_run, thread_id, run_id, cursor)))
            task.add_done_callback(lambda _: self._pages.pop(key, None))
        # One that leaves does not take the answer from the others.
        return await asyncio.shield(task)

    def up(self) -> None:
        """Notices arrive from now on: look once at all that was not told."""
        self._want(*self._feeds.values())

    def told(self, cursors: dict[str, int]) -> None:
        """Read the feeds that are behind these cursors."""
        for thread_id, cursor in cursors.items():
            feed = self._feeds.get(thread_id)
            if feed is not None and isinstance(cursor, int) and cursor > feed.head:
                self._want(feed)

    def joined(self, run_id: uuid.UUID) -> None:
        """Fetch what the run has said before."""
        feed = self._of_run.get(run_id)
        if feed is not None:
            self._start(self._fetch(feed, run_id, feed.fence))

    def said(self, run_id: uuid.UUID, piece: dict[str, Any]) -> None:
        """Pass a piece of live text on; fetch what is missing before it."""
        feed = self._of_run.get(run_id)
        came = Came.OLD if feed is None else feed.hear(run_id, piece)
        if feed is not None and came == Came.AHEAD:
            self._start(self._fetch(feed, run_id, int(piece["fence"]), piece))
        elif feed is not None and came == Came.NEW:
            if feed.text is not None and feed.text.after > feed.head:  # it waits for events that are not read yet
                self._want(feed)
            feed.wake()

    def _want(self, *feeds: Feed) -> None:
        self._behind.update(feeds)
        self._has_work.set()

    async def _read(self) -> None:
        while True:
            await self._has_work.wait()
            some = [self._behind.pop() for _ in range(min(len(self._behind), _MOST_FEEDS))]
            if not self._behind:
                self._has_work.clear()
            try:
                heads = {feed.thread_id: feed.head for feed in some}
                found = await self._ask(partial(stream_rows.of_threads, heads))
            except (DatabaseError, InterfaceError) as error:
                observe("stream.unread", level=logging.WARNING, error=type(error).__name__)
                self._behind.update(feed for feed in some if feed.clients)
                await asyncio.sleep(_RETRY_SECONDS)
                self._has_work.set()
                continue
            for feed in some:
                if feed.clients:
                    await self._apply(feed, found.get(feed.thread_id))

    async def _apply(self, feed: Feed, found: Found | None) -> None:
        if found is None:
            feed.is_gone = True
        else:
            before, fence = feed.open_run_id, feed.fence
            feed.take(found)
            if found.has_more:
                self._want(feed)
        feed.wake()
        if found is not None:
            await self._tune(feed, before, fence)

    async def _tune(self, feed: Feed, before: uuid.UUID | None, fence: int) -> None:
        """Hear the run that is open now, and no other."""
        now = feed.open_run_id
        if before != now:
            # Noted before anything is waited for: the feed's last client may leave meanwhile.
            if before is not None:
                self._of_run.pop(before, None)
            if now is not None:
                self._of_run[now] = feed
            if before is not None:
                await self._ear.leave(before)
            if now is not None and self._of_run.get(now) is feed:
                await self._ear.follow(now)
        elif now is not None and fence != feed.fence:
            self._start(self._fetch(feed, now, feed.fence))

    async def _fetch(self, feed: Feed, run_id: uuid.UUID, fence: int, piece: dict[str, Any] | None = None) -> None:
        found = await self._ear.text_of(run_id, fence)
        while found is None and self._of_run.get(run_id) is feed:  # its agent may say nothing more for long
            await asyncio.sleep(_RETRY_SECONDS)
            found = await self._ear.text_of(run_id, fence)
        await self._learn(feed, run_id, [*(found or ()), *([] if piece is None else [piece])])
        for number, kept in enumerate(found or ()):
            feed.hear(run_id, kept, anyhow=number == 0)
        if piece is not None:
            feed.hear(run_id, piece, anyhow=True)
        feed.wake()

    async def _learn(self, feed: Feed, run_id: uuid.UUID, pieces: Sequence[dict[str, Any]]) -> None:
        """Read what the run has recorded between this text and where the feed begins: a message there holds it."""
        after = max(map(said_after, pieces), default=0)
        while 0 < after < feed.began and self._of_run.get(run_id) is feed:
            try:
                feed.close(await self._ask(partial(stream_rows.closing, run_id, after, feed.began)))
                return
            except (DatabaseError, InterfaceError):
                await asyncio.sleep(_RETRY_SECONDS)

    async def _tend(self) -> None:
        looked_at = judged_at = time.monotonic()
        while True:
            pause = min(conf.wait_poll_seconds, conf.stream_poll_seconds, conf.stream_rights_seconds)
            await asyncio.sleep(min(_TEND_SECONDS, pause))
            now = time.monotonic()
            for feed in self._feeds.values():
                feed.tidy()
            self._tell()
            self._cut([client for client in self._clients() if client.is_stuck(now)])
            if now - judged_at >= conf.stream_rights_seconds:
                judged_at = now
                self._unless_under_way(self._judge)
            if now - looked_at >= (conf.stream_poll_seconds if self._ear.is_up else conf.wait_poll_seconds):
                looked_at = now
                self._unless_under_way(self._look)

    def _clients(self) -> list[Client]:
        return [client for feed in self._feeds.values() for client in feed.clients]

    def _cut(self, stuck: list[Client]) -> None:
        closed = stream_cut.close({client.ends for client in stuck if client.ends is not None})
        for client in stuck:
            client.cut(is_closed=client.ends in closed)

    async def _judge(self) -> None:
        """End the streams whose credentials are good no longer."""
        clients = self._clients()
        try:
            standing = await self._ask(partial(stream_rights.standing, {client.right for client in clients}))
        except (DatabaseError, InterfaceError):
            return  # whoever reads tells of it; they are asked for the next time
        for client in clients:
            if client.right not in standing:
                client.refuse()

    def _tell(self) -> None:
        """Count what was done since the last time."""
        if self.sent or self._asked:
            observe("stream.sent", level=logging.DEBUG, events=self.sent, readings=self._asked)
            self.sent = self._asked = 0

    async def _ask(self, read: Callable[[], ValueT]) -> ValueT:
        self._asked += 1
        return await _in_thread(read)

    async def _look(self) -> None:
        feeds = list(self._feeds.values())
        try:
            heads = await self._ask(partial(stream_rows.heads, [feed.thread_id for feed in feeds]))
        except (DatabaseError, InterfaceError):
            return  # whoever reads tells of it
        self._want(*(feed for feed in feeds if heads.get(feed.thread_id) != feed.head))

    def _unless_under_way(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do it beside the rest, which a database that does not answer must not hold up."""
        if work.__name__ not in self._under_way:
            self._under_way.add(work.__name__)
            self._start(_told_of(work)).add_done_callback(lambda _: self._under_way.discard(work.__name__))

    def _start(self, work: Coroutine[Any, Any, ValueT]) -> "asyncio.Task[ValueT]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


_hubs: "WeakKeyDictionary[asyncio.AbstractEventLoop, Hub]" = WeakKeyDictionary()


def hub() -> Hub:
    """The hub of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _hubs:
        _hubs[loop] = Hub()
    return _hubs[loop]


async def _for_ever(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        await _told_of(work)
        await asyncio.sleep(_RETRY_SECONDS)


async def _told_of(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Nothing that one feed brings up may end the streams of all."""
    try:
        await work()
    except Exception as error:
        observe("stream.failed", level=logging.ERROR, error=type(error).__name__, message=str(error)[:200])


async def _in_thread(read: Callable[[], ValueT]) -> ValueT:
    def work() -> ValueT:
        try:
            return read()
        finally:
            stream_rows.release()

    return await asyncio.get_running_loop().run_in_executor(_readers, work)
