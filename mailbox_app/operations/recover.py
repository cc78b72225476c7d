"""Find what was lost: leases of workers that are gone, signals nobody received, flags nobody rewrote.

The story of one lease. A worker claims a dispatch until `lease_until` and prolongs that every `renewal_seconds`. It is
killed. Nothing happens until the lease is over; then the next sweep takes the thread's fence, finds the lease still
over, and queues the dispatch again: `lost_count` goes up, attempts do not. Whoever claims it next replays the turn from
its journal. Should the first worker have been only asleep, its token now owns nothing, and each of its writes is
refused. A dispatch that costs `max_lost` workers their lease is a dead letter.
"""

import logging
import uuid

from django.db import InterfaceError, OperationalError

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.models import UNCLAIMED, AgentRegistration, Dispatch, Kind, Thread, ask
from mailbox_app.operations import candidates, emit, ending
from mailbox_app.states import RECLAIM
from mailbox_app.telemetry import observe

# Threads looked at by one `repair`.
_WINDOW = 200
# The next threads that have queued work, in the order of their ids: one hop each, whatever waits on them; and whether
# nothing says so.
_WITH_QUEUED_WORK = """
    WITH RECURSIVE hop AS (
        (
            SELECT thread_id, 1 AS nth FROM mailbox_dispatch
            WHERE status = 'queued' AND thread_id > %(after)s ORDER BY thread_id LIMIT 1
        )
        UNION ALL
        SELECT following.thread_id, nth + 1
        FROM hop CROSS JOIN LATERAL (
            SELECT thread_id FROM mailbox_dispatch
            WHERE status = 'queued' AND thread_id > hop.thread_id ORDER BY thread_id LIMIT 1
        ) AS following
        WHERE nth < %(limit)s
    )
    SELECT thread.id, due_at IS NULL AND wakes_at IS NULL AND active_run_id IS NULL AND blocked_reason = ''
        AND deleted_at IS NULL
    FROM hop JOIN mailbox_thread AS thread ON thread.id = hop.thread_id
    ORDER BY thread.id
"""
_START = uuid.UUID(int=0)
# How far this process has come.
_looked_until = _START


def reclaim() -> int:
    """Take back up to one batch of expired claims, one transaction a thread; returns how many."""
    expired = Dispatch.objects.expired().order_by("lease_until", "id").values_list("thread_id", flat=True)
    reclaimed = 0
    for thread_id in list(expired[: conf.batch_size]):
        try:
            reclaimed += _reclaim_on(thread_id)
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:  # one bad row keeps no other lease from being taken back
            facts = {"thread_id": thread_id, "error": type(error).__name__}
            observe("reclaim.failed", level=logging.ERROR, **facts)
    return reclaimed


def repair() -> int:
    """Rewrite the flag of threads with queued work that are neither due, waking, claimed nor blocked; returns how many.

    There must be none: each fence rewrites the flag. A find is an error in the app, repaired and told. One window of
    the threads that have queued work; the next look goes on where this one ended.
    """
    global _looked_until
    looked_at = ask(_WITH_QUEUED_WORK, {"after": _looked_until, "limit": _WINDOW})
    _looked_until = looked_at[-1][0] if len(looked_at) == _WINDOW else _START
    found = [thread_id for thread_id, is_forgotten in looked_at if is_forgotten]
    if not found:
        return 0
    with (
        Thread.objects.filter(pk__in=found, due_at=None, wakes_at=None)
        .order_by("id")
        .fence_free(limit=_WINDOW) as threads
    ):
        pass  # leaving the fence judges each thread again
    repaired = [thread for thread in threads if thread.due_at or thread.wakes_at or thread.blocked_reason]
    for thread in repaired:
        observe("thread.flag_repaired", level=logging.ERROR, thread_id=thread.pk)
        hints.tell(thread)
    return len(repaired)


def signal() -> int:
    """Wake a worker for every queue that has due work, as many times as it has slots and threads; returns how many.

    Makes up for each signal that was lost. Never more than there are slots wait in the queue: nobody would be there to
    take them, and they would pile up.
    """
    served = AgentRegistration.objects.live().by_queue()
    # One where no worker is known.
    slots = {queue: max(1, number) for queue, (_, number) in served.items()}
    due = candidates.due_queues(most=max(slots.values(), default=1))
    return sum(hints.fill(queue, signals=min(threads, slots.get(queue, 1))) for queue, threads in due.items())


def _reclaim_on(thread_id: uuid.UUID) -> int:
    with Thread.objects.filter(pk=thread_id).order_by("id").fence_free(limit=1) as threads:
        for thread in threads:
            # The row is locked too: a renewal takes no fence, and one that came first has saved the claim.
            expired = Dispatch.objects.filter(thread=thread).expired().select_related("run")
            dispatch = expired.select_for_update(no_key=True, of=("self",)).first()
            if dispatch is None:
                return 0
            # What ends the claim here must not look to its worker like the end it gave it itself.
            Dispatch.objects.filter(pk=dispatch.pk).update(instance_id=None)
            dispatch.lost_count += 1
            reason = f"the lease of {dispatch.claimed_by} ran out at {dispatch.lease_until}"
            worker, dispatch_id = dispatch.claimed_by, dispatch.pk
            if dispatch.cancel_requested_at is not None:
                ending.cancel(thread, dispatch)
            elif dispatch.lost_count >= conf.max_lost:
                ending.bury(thread, dispatch, code="lost", message=f"{reason}; lost {dispatch.lost_count} times")
            else:
                thread.move(
                    dispatch,
                    RECLAIM,
                    lost_count=dispatch.lost_count,
                    last_error=reason,
                    available_at=thread.locked_at,
                    **UNCLAIMED,
                )
                thread.active_run_id = None
                emit.of_dispatch(thread, Kind.RUN_RESCHEDULED, dispatch, reason="expired_lease_reclaimed")
    for thread in threads:
        observe("lease.expired", level=logging.WARNING, dispatch_id=dispatch_id, worker=worker)
        hints.tell(thread)
    return len(threads)
