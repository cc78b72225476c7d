"""Runs that a run spawns: each on a thread of its own, told of by errands from one thread's outbox to the other's.

Whoever ends a run with a parent writes a wake to the parent's thread, and whoever cancels one with children a cancel to
each of theirs, in the transaction of that end. An errand is run under the target's fence, holding nothing of the
source: two threads never wait for each other. It stands behind nothing and keeps nothing from going.
"""

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from django.db.models.functions import Now

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput
from mailbox_app.models import Dispatch, Outbox, OutboxKind, Run, Thread, ask, columns, read
from mailbox_app.operations import accept, cancel, checkpoint, emit, enqueue, lineage, outbox, submission, waits
from mailbox_app.operations.inputs import NewMessage
from mailbox_app.operations.journal import Record
from mailbox_app.operations.ownership import Claim
from mailbox_app.states import DELIVER, LIVE_DISPATCH, OutboxStatus, RunStatus
from mailbox_app.telemetry import observe

CANCEL_REASON = "parent_cancelled"

# Whoever cancels a run with many children waits for so many errands; the due tick runs the others.
_MOST_AT_ONCE = 16

_ERRANDS = "status = 'pending' AND kind IN ('wake', 'cancel') AND available_at <= statement_timestamp()"
# The words of the indexes: a parameter in their place, and PostgreSQL might not see that they fit.
DUE = f"""
    SELECT target_thread_id FROM mailbox_outbox WHERE {_ERRANDS} ORDER BY available_at, id LIMIT %(limit)s
"""
NEXT = f"""
    SELECT {{columns}} FROM mailbox_outbox AS outbox
    WHERE {_ERRANDS} AND target_thread_id = %(target)s
    ORDER BY available_at, id
    LIMIT 1
"""


def spawn(
    claim: Claim,
    entry: Record,
    *,
    message: NewMessage,
    agent: str,
    options: Mapping[str, Any],
    metadata: Mapping[str, Any],
    priority: int | None,
    is_detached: bool,
) -> dict[str, str]:
    """Queue a child of the claim's run, on a new thread whose parent is the run's; returns its ids, as journalled.

    1. check; 2. prove the claim; 3. thread, run, message and dispatch of the child, the journal entry and the event of
    the parent, in one transaction; 4. after commit, wake a worker. The ids: {"run_id", "thread_id", "message_id",
    "agent"}. Raises InvalidInput (also for more children, or a deeper one, than the settings allow), UnknownAgent.
    """
    given = submission.check(
        scope=claim.scope,
        messages=[message],
        agent=agent,
        options=options,
        metadata=metadata,
        priority=priority,
        origin="child",
    )

    def child(thread: Thread, run: Run) -> dict[str, str]:
        depth = run.shown.depth + 1
        _refuse_too_many(run, depth)
        given.parent = submission.Parent(run_id=run.pk, depth=depth, is_detached=is_detached, adapter=run.shown.adapter)
        with Thread.objects.hold([Thread(scope=thread.scope, parent_id=thread.pk)]) as made:
            queued = accept.queue(given, made[0])
        hints.tell(*made)
        return {
            "run_id": str(queued.run.pk),
            "thread_id": str(made[0].pk),
            "message_id": str(queued.message_ids[0]),
            "agent": queued.run.agent,
        }

    return checkpoint.spawn(claim, entry, child=child)


def batch() -> int:
    """Run up to one batch of errands that are due; returns how many rows came to an end.

    A target that somebody holds just now is left for the next pass.
    """
    due = [target_id for (target_id,) in ask(DUE, {"limit": conf.batch_size})]
    return sum(_run_to(target_id) for target_id in dict.fromkeys(due))


def at_once(sender: Any, *, rows: Sequence[Outbox], **_: Any) -> None:
    """Run what has just been written, as well as it goes; what is lost with the process the due tick runs.

    A receiver of `models.outbox_written`.
    """
    for target_id in sorted({row.target_thread_id for row in rows if row.kind in _ACTS})[:_MOST_AT_ONCE]:
        try:
            _run_to(target_id)
        except Exception as error:  # whoever ended the run is not to fail of it
            observe("errand.left", level=logging.WARNING, thread_id=target_id, error=type(error).__name__)


def _run_to(target_id: uuid.UUID) -> int:
    """Run the errands to this thread; returns how many came to an end.

    It looks again after each: one that was written meanwhile found the thread held, by this.
    """
    ended = 0
    while ended < conf.batch_size:
        row = _next(target_id)
        if row is None or not outbox.end(row, partial(_run, row)):
            break
        ended += 1
    return ended


def _next(target_id: uuid.UUID) -> Outbox | None:
    for (row,) in read(Outbox, NEXT.replace("{columns}", columns(Outbox, "outbox")), {"target": target_id}):
        return row
    return None


def _run(row: Outbox) -> bool:
    target = Thread.objects.filter(pk=row.target_thread_id)
    with target.order_by("id").fence_free(limit=1) as threads:
        for thread in threads:
            if not Outbox.objects.filter(pk=row.pk, status=OutboxStatus.PENDING).exists():
                return True  # somebody else has run it meanwhile
            _ACTS[row.kind](thread, row.payload)
            thread.move(row, DELIVER, completed_at=thread.locked_at)
    for thread in threads:
        hints.tell(thread)
    if not threads and not target.not_deleted().exists():
        # With the thread went whatever it was for.
        Outbox.objects.filter(pk=row.pk, status=OutboxStatus.PENDING).move(DELIVER, completed_at=Now())
        return True
    return bool(threads)


def _wake(thread: Thread, payload: Mapping[str, Any]) -> None:
    """Tell the parent's thread that a child has ended; if it waited for no other, its open run goes on.

    That may be a replay of the run that spawned the child: whoever waits for it hears of it.
    """
    spawner, child_id = payload["run_id"], payload["child_run_id"]
    found = {str(run.pk): run for run in Run.objects.filter(pk__in=[spawner, child_id])}
    emit.child_ended(thread, found.get(spawner), child_id, found.get(child_id))
    waiting = None if thread.open_run_id is None else Run.objects.get(pk=thread.open_run_id)
    if waiting is None or not lineage.waits_for(waiting, child_id):
        return
    assert waiting.waiting is not None, "it waits"
    ended = lineage.outcomes(waiting.waiting["child_run_ids"])
    if ended is None or Dispatch.objects.of_run(waiting.pk).filter(status__in=LIVE_DISPATCH).exists():
        return
    lineage.record(thread, waiting, waiting.waiting["entry"], ended)
    enqueue.resume(thread=thread, run=waiting, after=waits.last_dispatch(waiting), at=thread.locked_at)


def _cancel(thread: Thread, payload: Mapping[str, Any]) -> None:
    """Cancel a child whose parent was; one that has ended first stays as it is."""
    child = Run.objects.filter(pk=payload["run_id"], thread=thread).first()
    if child is not None and child.status != RunStatus.DONE:
        cancel.fenced(thread, child, reason=CANCEL_REASON)


_ACTS: dict[str, Callable[[Thread, Mapping[str, Any]], None]] = {OutboxKind.WAKE: _wake, OutboxKind.CANCEL: _cancel}


def _refuse_too_many(run: Run, depth: int) -> None:
    if depth > conf.max_child_depth:
        raise InvalidInput(
            "agent",
            "too_deep",
            f"a child of run {run.pk} would have {depth} runs above it, at most {conf.max_child_depth} are allowed",
        )
    if Run.objects.filter(parent_run_id=run.pk).count() >= conf.max_children:
        raise InvalidInput(
            "agent", "too_many", f"run {run.pk} has spawned {conf.max_children} runs, as many as are allowed"
        )
