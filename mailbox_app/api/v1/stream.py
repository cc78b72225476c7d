"""One client's stream: what it is sent, in which order, and when that ends (server-sent events)."""

import asyncio
import contextlib
import functools
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgiref.sync import SyncToAsync, sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db import DatabaseError, InterfaceError, connection
from django.http import StreamingHttpResponse
from drf_spectacular.utils import OpenApiResponse
from rest_framework import serializers
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from mailbox_app.api.v1 import finding, stream_cut, stream_rights, stream_rows
from mailbox_app.api.v1.pagination import number_of
from mailbox_app.api.v1.stream_feed import Feed
from mailbox_app.api.v1.stream_hub import Hub, hub
from mailbox_app.api.v1.stream_rows import Found, Told, frame
from mailbox_app.conf import conf
from mailbox_app.errors import CursorPruned
from mailbox_app.models import TERMINAL_KINDS, Event, Kind, Run, Thread
from mailbox_app.states import RunStatus
from mailbox_app.telemetry import observe

MEDIA_TYPE = "text/event-stream"
LAST_EVENT_ID = "Last-Event-ID"
# Clients that lost their server come back spread over this time (milliseconds).
_RECONNECT_MS = (500, 2_000)
# Frames are joined up to about so many bytes.
_PIECE_BYTES = 65_536
# Of the heartbeat's time, so that those who came together are not all told at the same instant.
_BEAT = (0.8, 1.0)
_HEARTBEAT = b": heartbeat\n\n"
_AGAIN = b": that is all for now; connect again\n\n"
# Beside the events' own kinds.
METADATA, END, ERROR = "metadata", "end", "error"
# Why a stream ended that was not told its end.
CUT, REFUSED = "cut", "refused"


# No proxy is to keep a stream, to hold it back until it is complete, or to compress it.
HEADERS = {"Cache-Control": "no-cache, no-store, no-transform", "X-Accel-Buffering": "no"}


class StreamedSerializer(serializers.Serializer[Any]):
    """One event of a stream, for the document."""

    id = serializers.CharField(required=False, help_text="The cursor; not of `metadata`, `delta`, `end` and `error`.")
    event = serializers.CharField(required=False, help_text="The kind, or `metadata`, `delta`, `end`, `error`.")
    data = serializers.CharField(  # type: ignore[assignment]  # the framework's name for something else
        required=False, help_text="JSON: of a kind, the same object as in a page of events."
    )


ANSWERS = {(200, MEDIA_TYPE): OpenApiResponse(StreamedSerializer, description="Server-sent events.")}


class EventStreamRenderer(BaseRenderer):
    """Lets a route be asked for a stream; what it sends is made elsewhere."""

    media_type = MEDIA_TYPE
    format = "stream"
    charset = None
    render_style = "binary"

    def render(self, data: Any, accepted_media_type: Any = None, renderer_context: Any = None) -> bytes:
        """Nothing: only an answer without a body comes here."""
        return b""


def cursor_of(request: Request, given: dict[str, str]) -> int:
    """Where to begin: after the event a client that reconnects names in the header, else after `cursor`, else 0."""
    sent = request.headers.get(LAST_EVENT_ID)
    if sent is not None:
        return number_of({LAST_EVENT_ID: sent}, LAST_EVENT_ID) or 0
    return number_of(given, "cursor") or 0


def of_thread(request: Request, thread: Thread, *, cursor: int) -> StreamingHttpResponse:
    """Stream all public events of a thread past the cursor, and the live text of its open run. Raises CursorPruned."""
    return _answer(request, _Client(request, thread, cursor=cursor))


def of_run(request: Request, run: Run, *, cursor: int, may_wait: bool = True) -> StreamingHttpResponse | None:
    """Stream a run's public events past the cursor and its live text, until it is done; None if it is and has no more.

    `may_wait`: a run that waits for somebody ends the stream if this is False. Raises CursorPruned.
    """
    client = _Client(request, run.thread, cursor=cursor, run=run, may_wait=may_wait)
    if run.status == RunStatus.DONE and not Event.objects.filter(run_id=run.pk).public().after(cursor).exists():
        return None
    return _answer(request, client)


def _answer(request: Request, client: "_Client") -> StreamingHttpResponse:
    is_async = isinstance(request._request, ASGIRequest)
    _release_connection()
    frames = client.frames() if is_async else client.past()
    return StreamingHttpResponse(frames, content_type=MEDIA_TYPE)


class _Client:
    """One stream: of a thread, or of a run on it."""

    def __init__(
        self, request: Request, thread: Thread, *, cursor: int, run: Run | None = None, may_wait: bool = True
    ) -> None:
        _refuse_pruned(cursor, thread.pruned_cursor, thread.pk)
        self.news = asyncio.Event()
        self.right = stream_rights.of(request)
        self.ends = stream_cut.ends_of(getattr(request._request, "scope", {}))
        self._kind = "thread" if run is None else "run" if may_wait else "post"
        # How it ended, as far as is known: else because the client has left.
        self._ended, self._is_refused = "left", False
        self._thread_id, self._run_id = thread.pk, None if run is None else run.pk
        # What is past the end has not happened yet: a stream begins with what comes next.
        self._head = thread.last_cursor
        self.cursor = min(cursor, self._head)
        self._may_wait = may_wait
        # What its past says again, as far as that is still to be sent.
        self._is_waiting = run is not None and run.status == RunStatus.WAITING
        self._is_done = run is not None and run.status == RunStatus.DONE
        self._opening = b"retry: %d\n\n" % random.randint(*_RECONNECT_MS)
        if run is not None:
            self._opening += frame(METADATA, {"run_id": str(run.pk), "attempt": finding.attempt_of(run.pk)})
        # How far the live text was sent, and of which activation.
        self._activation, self._said = "", 0
        self._task: asyncio.Task[Any] | None = None
        self._sending_since: float | None = None

    def is_stuck(self, now: float) -> bool:
        """Whether what was sent to it has not been taken for too long."""
        return self._sending_since is not None and now - self._sending_since > conf.stream_send_seconds

    def cut(self, *, is_closed: bool) -> None:
        """End it: its client does not read. The run goes on, and the client may come back for the rest."""
        was_cut, self._ended = self._ended == CUT, CUT
        if not was_cut:
            observe("stream.cut", level=logging.WARNING, thread_id=self._thread_id, run_id=self._run_id)
        # A server that has lost the connection ends the request itself, and does not complain of an answer cut short.
        if self._task is not None and (was_cut or not is_closed):
            self._task.cancel()

    def refuse(self) -> None:
        """End it: its credentials are good no longer."""
        self._is_refused = True
        self.news.set()

    def past(self) -> Iterator[bytes]:
        """What there is now, for WSGI: a stream that went on would keep a worker's thread for as long as it is open.

        A client that connects again, as EventSource does, misses nothing but live text.
        """
        observe("stream.polled", level=logging.DEBUG, kind=self._kind)
        _tell_of_wsgi()
        yield self._opening
        found: Found | None = None
        while found is None or found.has_more:
            found = stream_rows.of_run(self._thread_id, self._run_id, self.cursor)
            if found is None:
                return
            yield from _joined([told.frame for told in self._mine(found.told)])
            self.cursor = found.head
        yield self._end(is_gone=found.is_gone) or _AGAIN

    async def frames(self) -> AsyncIterator[bytes]:
        """What is sent, until it ends or the client leaves."""
        self._task = asyncio.current_task()
        await _release_thread()
        closes_at = time.monotonic() + conf.stream_seconds
        shared = hub()
        feed = shared.join(self, self._thread_id, head=self._head)
        observe("stream.opened", level=logging.DEBUG, kind=self._kind)
        leave = functools.partial(self._leave, shared, feed)
        if self._task is not None:
            # One that ends while a piece is being sent does not come back here before the garbage is collected.
            self._task.add_done_callback(leave)
        try:
            async for piece in self._pieces(feed, closes_at):
                self._sending_since = time.monotonic()
                yield piece
                self._sending_since = None
        except (DatabaseError, InterfaceError):
            self._ended = ERROR
            yield frame(ERROR, {"code": "unavailable", "detail": "The database did not answer; connect again."})
        except CursorPruned as error:
            self._ended = ERROR
            yield frame(ERROR, {"code": error.code, "detail": error.message})
        finally:
            leave()

    def _leave(self, shared: Hub, feed: Feed, _: object = None) -> None:
        self._task = None
        if shared.leave(self, feed):
            observe("stream.ended", level=logging.DEBUG, kind=self._kind, reason=self._ended)

    async def _pieces(self, feed: Feed, closes_at: float) -> AsyncIterator[bytes]:
        yield self._opening
        while time.monotonic() < closes_at:
            self.news.clear()
            if self._is_refused:
                self._ended = REFUSED
                yield frame(ERROR, {"code": "authentication_failed", "detail": "The credentials are good no longer."})
                return
            told, head, is_all = await self._next(feed)
            for piece in _joined([one.frame for one in told]):
                yield piece
            hub().sent += len(told)
            self.cursor = max(self.cursor, head)
            # What came while this was being taken goes before what is said of how it stands now.
            if not is_all or self.cursor < feed.head:
                continue
            live = self._live(feed)
            if live:
                yield live
            if end := self._end(is_gone=feed.is_gone):
                self._ended = END
                yield end
                return
            if not told and not live and not await self._hears(closes_at):
                yield _HEARTBEAT
        self._ended = "again"
        yield _AGAIN

    async def _next(self, feed: Feed) -> tuple[list[Told], int, bool]:
        """The next events, the cursor up to which that is all, and whether it is all there is now."""
        kept, head, is_all = feed.since(self.cursor), feed.head, True
        if kept is None:
            found = await hub().page(self._thread_id, self._run_id, self.cursor)
            if found is None:
                feed.is_gone = True
                return [], feed.head, True
            _refuse_pruned(self.cursor, found.pruned, self._thread_id)
            kept, head, is_all = found.told, found.head, not found.has_more
            feed.close(kept)
        return self._mine(kept), head, is_all

    def _mine(self, told: list[Told]) -> list[Told]:
        """Those of them that are sent, and what they say of the run."""
        mine = [one for one in told if self._run_id in (None, one.run_id)]
        for one in mine:
            if one.kind in TERMINAL_KINDS:
                self._is_done = True
            elif one.kind in (Kind.RUN_STARTED, Kind.RUN_RESUMED, Kind.RUN_SUSPENDED):
                self._is_waiting = one.kind == Kind.RUN_SUSPENDED
        return mine

    def _live(self, feed: Feed) -> bytes:
        """What the open run has said since the last look."""
        text = feed.text
        # Text waits for the events before it: a message that was sent after it would seem to hold it.
        if text is None or self._run_id not in (None, text.run_id) or text.after > self.cursor:
            return b""
        if text.activation != self._activation:
            self._activation, self._said = text.activation, 0
        told, self._said = text.told(self._said), text.end
        return told

    def _end(self, *, is_gone: bool) -> bytes:
        if self._run_id is not None and (self._is_done or (self._is_waiting and not self._may_wait)):
            status = RunStatus.DONE if self._is_done else RunStatus.WAITING
            return frame(END, {"run_id": str(self._run_id), "status": status})
        if is_gone:
            return frame(END, {"thread_id": str(self._thread_id), "status": "deleted"})
        return b""

    async def _hears(self, closes_at: float) -> bool:
        """Wait for news; False after a while without."""
        seconds = min(conf.stream_heartbeat_seconds * random.uniform(*_BEAT), max(closes_at - time.monotonic(), 0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self.news.wait()
        return False


def _refuse_pruned(cursor: int, pruned: int, thread_id: uuid.UUID) -> None:
    if 0 < cursor < pruned:
        raise CursorPruned(
            f"events up to {pruned} are past their retention; cursor must be 0 or from {pruned}, not {cursor}",
            thread_id=thread_id,
            oldest_cursor=pruned,
        )


def _joined(frames: list[bytes]) -> list[bytes]:
    """The frames in few pieces."""
    pieces: list[list[bytes]] = []
    size = _PIECE_BYTES
    for one in frames:
        if size + len(one) > _PIECE_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append(one)
        size += len(one)
    return [b"".join(piece) for piece in pieces]


@functools.cache
def _tell_of_wsgi() -> None:
    """Tell once who runs this that its streams are not what they could be."""
    observe("stream.wsgi", level=logging.WARNING, meaning="streams end at once and are polled: serve ASGI")


def _release_connection() -> None:
    if not connection.in_atomic_block:  # else the transaction is not ours: that of a test
        connection.close()


async def _release_thread() -> None:
    """End the thread that served the request so far: Django keeps one for each request until that is over.

    A thousand idle streams would keep a thousand. What still needs one (the end of the request) gets another.
    """
    await sync_to_async(_release_connection)()  # a middleware may have taken one since
    context: Any = SyncToAsync.thread_sensitive_context.get(None)
    executor = None if context is None else SyncToAsync.context_to_thread_executor.pop(context, None)
    if executor is not None:
        executor.shutdown(wait=False)
