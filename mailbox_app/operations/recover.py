"""Find what was lost: leases of workers that are gone, signals nobody received, flags nobody rewrote.

The story of one lease. A worker claims a dispatch until `lease_until` and prolongs that every `renewal_seconds`. It is
killed. Nothing happens until the lease is over; then the next sweep takes the thread's fence, finds the lease still
over, and queues the dispatch again: `lost_count` goes up, attempts do not. Whoever claims it next replays the turn from
its journal. Should the first worker have been only asleep, its token now owns nothing, and each of its writes is
refused. One that has cost `quarantine_after` workers their lease goes on in a queue of its own, if somebody serves
that, so that its neighbours are not taken along again. A dispatch that costs `max_lost` workers their lease is a dead
letter. One that was to stop is not queued again: its run ends cancelled, with its lease or, where leases are long, when
a worker would long have ended it.
"""

import logging
import uuid
from collections.abc import Callable, Sequence

from django.db import InterfaceError, OperationalError

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.models import UNCLAIMED, AgentRegistration, Dispatch, Kind, Thread, ask
from mailbox_app.operations import candidates, emit, ending, permits
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
    return _each(list(expired[: conf.batch_size]), _reclaim_on, "reclaim.failed")


def finish_cancelled() -> int:
    """End up to one batch of runs that were asked to stop and whose worker does nothing about it; returns how many.

    A worker that lives learns of the request with its next renewal at the latest, and ends the run itself when
    `cancel_grace_seconds` are over: it is given that time.
    """
    ignoring = Dispatch.objects.ignoring(seconds=_patience()).order_by("cancel_requested_at", "id")
    threads = ignoring.values_list("thread_id", flat=True)
    return _each(list(threads[: conf.batch_size]), _finish_cancelled_on, "finish_cancelled.failed")


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


def _each(thread_ids: Sequence[uuid.UUID], act: Callable[[uuid.UUID], int], failed: str) -> int:
    done = 0
    for thread_id in thread_ids:
        try:
            done += act(thread_id)
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:  # one bad row keeps nobody else from what is due to it
            observe(failed, level=logging.ERROR, thread_id=thread_id, error=type(error).__name__)
    return done


def _patience() -> float:
    return float(conf.cancel_grace_seconds + conf.renewal_seconds)


def _finish_cancelled_on(thread_id: uuid.UUID) -> int:
    ended = 0
    with Thread.objects.filter(pk=thread_id).order_by("id").fence_free(limit=1) as threads:
        for thread in threads:
            ignoring = Dispatch.objects.filter(thread=thread).ignoring(seconds=_patience())
            for dispatch in ignoring.select_related("run"):
                _disown(dispatch)
                ids = {"thread_id": thread_id, "run_id": dispatch.run_id, "dispatch_id": dispatch.pk}
                observe("run.cancel_ignored", level=logging.WARNING, **ids, worker=dispatch.claimed_by)
                ending.cancel(thread, dispatch)
                ended += 1
    permits.tell(*threads)
    return ended


def _reclaim_on(thread_id: uuid.UUID) -> int:
    with Thread.objects.filter(pk=thread_id).order_by("id").fence_free(limit=1) as threads:
        for thread in threads:
            # The row is locked too: a renewal takes no fence, and one that came first has saved the claim.
            expired = Dispatch.objects.filter(thread=thread).expired().select_related("run")
            dispatch = expired.select_for_update(no_key=True, of=("self",)).first()
            if dispatch is None:
                return 0
            _disown(dispatch)
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
                    queue=_queue_for(dispatch),
                    available_at=thread.locked_at,
                    **UNCLAIMED,
                )
                thread.active_run_id = None
                emit.of_dispatch(thread, Kind.RUN_RESCHEDULED, dispatch, reason="expired_lease_reclaimed")
    for thread in threads:
        observe("lease.expired", level=logging.WARNING, dispatch_id=dispatch_id, worker=worker)
        permits.tell(thread)
    return len(threads)


def _queue_for(dispatch: Dispatch) -> str:
    """Where a dispatch that lost another lease goes on. In quarantine only if a worker is there: nobody else looks."""
    if dispatch.lost_count < conf.quarantine_after or dispatch.queue == conf.quarantine_queue:
        return dispatch.queue
    there = AgentRegistration.objects.live().filter(agent=dispatch.agent, queues__contains=[conf.quarantine_queue])
    if not conf.quarantine_queue or not there.exists():
        return dispatch.queue
    observe("dispatch.quarantined", level=logging.WARNING, dispatch_id=dispatch.pk, run_id=dispatch.run_id)
    return str(conf.quarantine_queue)


def _disown(dispatch: Dispatch) -> None:
    """What ends the claim here must not look to its worker like the end it gave it itself."""
    Dispatch.objects.filter(pk=dispatch.pk).update(instance_id=None)
