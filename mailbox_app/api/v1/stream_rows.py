"""What streams read of the database: the events of many threads in one statement, each told in the bytes all get."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from django.db import connection

from mailbox_app.api.v1.base import Renderer
from mailbox_app.api.v1.serializers import EventSerializer
from mailbox_app.models import Event, Kind, Role, ask, columns, loader

# Events of one thread in one reading.
PAGE = 100
_CLOSING = (Kind.TURN_STARTED, Kind.MESSAGE_COMMITTED)

_FACTS = """
    thread.id, thread.last_cursor, thread.pruned_cursor, thread.claim_count, thread.open_run_id,
    thread.deleted_at IS NOT NULL
"""
# One snapshot: with fewer than a page, the thread has no more up to its last cursor.
_OF_THREADS = f"""
    SELECT {_FACTS}, {{columns}}
    FROM unnest(%(threads)s::uuid[], %(cursors)s::bigint[]) AS wanted (thread_id, cursor)
    JOIN mailbox_thread AS thread ON thread.id = wanted.thread_id
    LEFT JOIN LATERAL (
        SELECT * FROM mailbox_event
        WHERE thread_id = wanted.thread_id AND cursor > wanted.cursor AND visibility = 'public'
        ORDER BY cursor LIMIT {PAGE}
    ) AS event ON TRUE
    ORDER BY thread.id, event.cursor
"""
_OF_RUN = f"""
    SELECT {_FACTS}, {{columns}}
    FROM mailbox_thread AS thread
    LEFT JOIN LATERAL (
        SELECT * FROM mailbox_event
        WHERE run_id = %(run)s AND cursor > %(cursor)s AND visibility = 'public'
        ORDER BY cursor LIMIT {PAGE}
    ) AS event ON TRUE
    WHERE thread.id = %(thread)s
    ORDER BY event.cursor
"""
_HEADS = "SELECT id, last_cursor FROM mailbox_thread WHERE id = ANY(%s::uuid[])"


@dataclass(frozen=True, slots=True)
class Told:
    """One event, as it is sent."""

    cursor: int
    run_id: uuid.UUID | None
    kind: str
    # Whether what its run said live until then is over: a message of its own holds it, or the next turn has begun.
    closes: bool
    frame: bytes


@dataclass(kw_only=True)
class Found:
    """What one reading found of a thread: events up to `head`, and how the thread stood then."""

    head: int
    pruned: int
    fence: int
    open_run_id: uuid.UUID | None
    is_gone: bool
    told: list[Told] = field(default_factory=list)

    @property
    def has_more(self) -> bool:
        """Whether the reading was full."""
        return len(self.told) >= PAGE


def of_threads(cursors: Mapping[uuid.UUID, int]) -> dict[uuid.UUID, Found]:
    """The next events of each thread past its cursor, by one statement; a thread that is not there has no entry."""
    sql = _OF_THREADS.replace("{columns}", columns(Event, "event"))
    return _found(ask(sql, {"threads": list(cursors), "cursors": list(cursors.values())}))


def of_run(thread_id: uuid.UUID, run_id: uuid.UUID | None, cursor: int) -> Found | None:
    """The next events of a run, or of a whole thread, past the cursor; None when the thread is not there."""
    if run_id is None:
        return of_threads({thread_id: cursor}).get(thread_id)
    sql = _OF_RUN.replace("{columns}", columns(Event, "event"))
    return _found(ask(sql, {"thread": thread_id, "run": run_id, "cursor": cursor})).get(thread_id)


def closing(run_id: uuid.UUID, after: int, until: int) -> list[Told]:
    """The latest events of the run between these cursors that may hold what it said live before them."""
    between = Event.objects.public().filter(run_id=run_id, cursor__gt=after, cursor__lte=until, kind__in=_CLOSING)
    return [_told(event) for event in between.order_by("-cursor")[:PAGE]]


def heads(thread_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
    """The last cursor of each thread, by one statement."""
    return dict(ask(_HEADS, [list(thread_ids)]))


def release() -> None:
    """Give the thread's connection back, as the project's CONN_MAX_AGE says."""
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def frame(name: str, data: object, *, cursor: int | None = None) -> bytes:
    """One event of a stream. A name of several lines becomes one: it would end the field."""
    at = b"" if cursor is None else b"id: %d\n" % cursor
    return b"%sevent: %s\ndata: %s\n\n" % (at, " ".join(name.split()).encode(), Renderer().render(data))


def _found(rows: Sequence[tuple[Any, ...]]) -> dict[uuid.UUID, Found]:
    load = loader(Event)
    found: dict[uuid.UUID, Found] = {}
    for thread_id, last, pruned, fence, open_run_id, is_gone, *of_event in rows:
        if thread_id not in found:
            found[thread_id] = Found(head=last, pruned=pruned, fence=fence, open_run_id=open_run_id, is_gone=is_gone)
        event = load(of_event)
        if event.pk is not None:
            found[thread_id].told.append(_told(event))
    for one in found.values():
        if one.has_more:
            one.head = one.told[-1].cursor
    return found


@cache
def _serializer() -> EventSerializer:
    """One for all events: to make one is nine tenths of what it costs to use it."""
    return EventSerializer()


def _told(event: Event) -> Told:
    return Told(
        cursor=event.cursor,
        run_id=event.run_id,
        kind=event.kind,
        closes=event.kind == Kind.TURN_STARTED or (event.kind == Kind.MESSAGE_COMMITTED and _is_its_own(event)),
        frame=frame(event.kind, _serializer().to_representation(event), cursor=event.cursor),
    )


def _is_its_own(event: Event) -> bool:
    """Whether the run has said the message; else it was given it to read, in whatever role."""
    run_id = str(event.run_id)
    # What was recorded before there was such a field is judged by the role alone.
    producer: str | None = event.payload.get("producer_run_id", run_id)
    return producer == run_id and event.payload.get("role") == Role.ASSISTANT
