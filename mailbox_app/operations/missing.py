"""Work that no live worker can run: shown as such, and after `missing_agent_ttl_seconds` a dead letter.

Only what has not started: an open run waits for its worker however long that takes. And nothing that is paused: its
time begins when it is resumed. A lane is one agent on one queue; whoever registers for it lately enough is live. All
due work is looked at, a window of each missing lane in every sweep, so that the cost depends neither on the backlog of
live agents nor on that of missing ones.
"""

import logging
import uuid
from datetime import timedelta
from typing import Any

from django.db import InterfaceError, OperationalError, connection
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.models import AgentRegistration, Dispatch, Thread
from mailbox_app.operations import candidates, ending, pauses
from mailbox_app.states import RunStatus
from mailbox_app.telemetry import observe

CODE = "agent_missing"

Lane = tuple[str, str]

# Threads, and dispatches, that one look goes through: most of them have been seen to by an earlier one.
_WINDOW = 200

# The next threads of a lane whose head has not started; the place is that of the last one looked at.
NEXT = """
    SELECT id, due_priority, due_at FROM mailbox_thread
    WHERE due_at IS NOT NULL AND due_queue = %(queue)s AND due_agent = %(agent)s AND due_version = ''
        AND (due_priority, due_at, id) > (%(priority)s, %(at)s::timestamptz, %(id)s::uuid)
    ORDER BY due_priority, due_at, id
    LIMIT %(limit)s
"""
_START = {"priority": -1, "at": "-infinity", "id": uuid.UUID(int=0)}

# No fence: nothing but the clock is written, on a row that is still queued then. SKIP LOCKED: whoever holds one is
# claiming or ending it, and several taken in another order than a verb takes its own would deadlock.
_STAMP = """
    UPDATE mailbox_dispatch AS dispatch SET unrunnable_since = statement_timestamp()
    FROM (
        SELECT id FROM mailbox_dispatch
        WHERE thread_id = ANY(%(threads)s::uuid[]) AND status = 'queued' AND version_key = ''
            AND queue = %(queue)s AND agent = %(agent)s AND available_at <= statement_timestamp()
            AND unrunnable_since IS NULL
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS found
    WHERE dispatch.id = found.id
"""
_CLEAR = """
    UPDATE mailbox_dispatch AS dispatch SET unrunnable_since = NULL
    FROM (
        SELECT id FROM mailbox_dispatch
        WHERE id = ANY(%(dispatches)s::uuid[]) AND status = 'queued'
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS found
    WHERE dispatch.id = found.id
"""

# How far this process has come: in the threads of each missing lane, and in what is stamped. Another one begins anew.
_places: dict[Lane, dict[str, Any]] = {}
_stamped_after: dict[str, Any] = {}


def note() -> int:
    """Stamp due, unstarted work of lanes that no live worker serves; clear the stamps where one does again.

    One window of each; returns how many stamps were changed.
    """
    live = _Live()
    missing = [lane for lane in candidates.due_lanes() if lane not in live]
    for lane in set(_places) - set(missing):
        del _places[lane]
    return sum(_stamp(lane) for lane in missing) + _clear(live)


def expire() -> int:
    """Make up to one batch of work a dead letter that no live worker could run for too long; returns how many ended.

    Each in a transaction of its own. One whose lane is served again, or which is paused, is cleared instead.
    """
    live = _Live()
    too_old = Now() - timedelta(seconds=conf.missing_agent_ttl_seconds)
    stamped = Dispatch.objects.queued().filter(unrunnable_since__lte=too_old).order_by("unrunnable_since", "id")
    found = list(stamped.values_list("id", "thread_id", "queue", "agent")[: conf.batch_size])
    _unstamp([pk for pk, _, queue, agent in found if (queue, agent) in live])
    expired = 0
    overdue = [(pk, thread_id) for pk, thread_id, queue, agent in found if (queue, agent) not in live]
    for dispatch_id, thread_id in overdue:
        try:
            expired += _expire_on(thread_id, stamped.filter(pk=dispatch_id))
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:  # one bad row keeps no other from its end
            observe("expire.failed", level=logging.ERROR, dispatch_id=dispatch_id, error=type(error).__name__)
    return expired


class _Live:
    """Lanes whose work is not missing a worker: live ones serve them, or somebody has paused them."""

    def __init__(self) -> None:
        rows = AgentRegistration.objects.live().order_by().values_list("agent", "queues").distinct()
        self._served = {(queue, agent) for agent, queues in rows for queue in queues}
        self._paused = pauses.standing()

    def __contains__(self, lane: Lane) -> bool:
        return lane in self._served or self._paused.covers(*lane)


def _stamp(lane: Lane) -> int:
    queue, agent = lane
    place = _places.get(lane, _START)
    with connection.cursor() as cursor:
        cursor.execute(NEXT, {"queue": queue, "agent": agent, "limit": _WINDOW, **place})
        threads = cursor.fetchall()
        if len(threads) < _WINDOW:
            _places[lane] = _START
        else:
            _places[lane] = dict(zip(("id", "priority", "at"), threads[-1], strict=True))
        if not threads:
            return 0
        cursor.execute(_STAMP, {"queue": queue, "agent": agent, "threads": [row[0] for row in threads]})
        stamped = int(cursor.rowcount)
    if stamped:
        observe("work.unrunnable", level=logging.WARNING, queue=queue, agent=agent, dispatches=stamped)
    return stamped


def _clear(live: _Live) -> int:
    stamped = Dispatch.objects.queued().filter(unrunnable_since__isnull=False).order_by("unrunnable_since", "id")
    if _stamped_after:
        since, pk = _stamped_after["since"], _stamped_after["pk"]
        stamped = stamped.filter(unrunnable_since__gte=since).filter(Q(unrunnable_since__gt=since) | Q(pk__gt=pk))
    found = list(stamped.values_list("pk", "unrunnable_since", "queue", "agent")[:_WINDOW])
    _stamped_after.clear()
    if len(found) == _WINDOW:
        _stamped_after.update(pk=found[-1][0], since=found[-1][1])
    return _unstamp([pk for pk, _, queue, agent in found if (queue, agent) in live])


def _unstamp(dispatches: list[uuid.UUID]) -> int:
    if not dispatches:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(_CLEAR, {"dispatches": dispatches})
        return int(cursor.rowcount)


def _expire_on(thread_id: uuid.UUID, stamped: Any) -> int:
    """End the run of the one dispatch found, if it still is to end."""
    with Thread.objects.filter(pk=thread_id).order_by("id").fence_free(limit=1) as threads:
        for thread in threads:
            dispatch = stamped.select_related("run").first()
            if dispatch is None or dispatch.run.status != RunStatus.CREATED:
                return 0
            if thread.is_paused:  # it was stamped while somebody paused it
                thread.change(dispatch, unrunnable_since=None)
                return 0
            since = dispatch.unrunnable_since.isoformat(timespec="seconds")
            message = f"no live worker has run agent {dispatch.agent!r} on queue {dispatch.queue!r} since {since}"
            ending.expire(thread, dispatch, code=CODE, message=message)
    for thread in threads:
        observe(
            "work.expired", level=logging.WARNING, thread_id=thread.pk, dispatch_id=dispatch.pk, agent=dispatch.agent
        )
        hints.tell(thread)
    return len(threads)
