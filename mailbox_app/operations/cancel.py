"""Stop a run, wherever it stands: at once when nobody executes it, by request when a worker does."""

import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from django.db.models.functions import Now

from mailbox_app import hints
from mailbox_app.errors import RunNotFound
from mailbox_app.models import Dispatch, Kind, Message, Run, TerminationType, Thread, Ticket
from mailbox_app.operations import emit, enqueue, freeze, inputs, waits
from mailbox_app.states import CLOSE, DROP, END_WAIT, FINISH, RETRACT, WITHDRAW, Move, RunStatus

RETRACT_REASON = "run_cancelled"

# How a run that nobody executes ends, by where it stands.
_ENDS: dict[str, Move] = {RunStatus.CREATED: DROP, RunStatus.RUNNING: FINISH, RunStatus.WAITING: END_WAIT}


class Outcome(StrEnum):
    """What came of asking."""

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    ALREADY_DONE = "already_done"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Where the run stands now, and what the call did about it."""

    thread_id: uuid.UUID
    run_id: uuid.UUID
    outcome: Outcome
    status: str
    termination: dict[str, Any] | None


def run(*, scope: str, run_id: uuid.UUID, reason: str = "") -> Receipt:
    """Cancel a run: at once, or as soon as the worker that executes it looks.

    1. find its thread and take the fence; 2. look at the run and its live dispatch; 3. a claimed one gets the request
    on its row, which the agent sees at its next checkpoint and which a second request leaves as it is; 4. any other
    ends here: unread messages are retracted, open tickets closed, what is queued withdrawn, the run is done; 5. the
    event.

    A run that is done is left alone, and the receipt says so. A completion that comes before the worker has looked
    stands. `reason` is told with the events. Raises InvalidInput, RunNotFound, Gone.
    """
    reason = inputs.text("reason", reason, may_be_blank=True)
    thread_id = Run.objects.in_scope(scope).filter(pk=run_id).values_list("thread_id", flat=True).first()
    if thread_id is None:
        raise RunNotFound(f"run not found: {run_id}", run_id=run_id)
    with Thread.objects.fence(thread_id, scope=scope) as thread:
        found = Run.objects.get(pk=run_id)
        if found.status == RunStatus.DONE:
            return _receipt(found, Outcome.ALREADY_DONE)
        claimed = Dispatch.objects.of_run(found.pk).claimed().first()
        if claimed is not None:
            if Dispatch.objects.filter(pk=claimed.pk, cancel_requested_at=None).update(cancel_requested_at=Now()):
                emit.of_dispatch(thread, emit.RUN_CANCEL_REQUESTED, claimed, reason=reason)
            return _receipt(found, Outcome.REQUESTED)
        _end(thread, found, reason)
    hints.tell(thread)
    return _receipt(Run.objects.get(pk=found.pk), Outcome.CANCELLED)


def _end(thread: Thread, run: Run, reason: str) -> None:
    """End a run that nobody executes; under the fence."""
    termination = {"type": TerminationType.CANCELLED, **({"detail": reason} if reason else {})}
    queued = Dispatch.objects.of_run(run.pk).queued().first()
    if queued is not None:
        ended = {"completed_at": thread.locked_at, "run_status": RunStatus.DONE, "termination": termination}
        thread.move(queued, WITHDRAW, **ended)
    unread = freeze.unread(thread=thread, run=run)
    if Message.objects.filter(thread=thread, run=run).pending().move(RETRACT, retract_reason=RETRACT_REASON):
        thread.pending_revision += 1
    Ticket.objects.filter(run=run).open().move(CLOSE)
    is_open = thread.open_run_id == run.pk
    last = (queued or waits.last_dispatch(run)) if is_open else None
    thread.move(run, _ENDS[run.status], finished_at=thread.locked_at, termination=termination, **waits.NOT_WAITING)
    facts: dict[str, Any] = {"termination": termination, "reason": reason}
    if queued is not None:
        emit.of_dispatch(thread, Kind.RUN_CANCELLED, queued, **facts)
    else:
        emit.of_run(thread, Kind.RUN_CANCELLED, run, **facts)
    if last is not None:
        thread.open_run_id = None
        # What was said to it, and to nobody else, is read by another run.
        others = [message for message in unread if message.run_id is None]
        enqueue.unread(thread=thread, ended=run, dispatch=last, messages=others)


def _receipt(run: Run, outcome: Outcome) -> Receipt:
    return Receipt(
        thread_id=run.thread_id, run_id=run.pk, outcome=outcome, status=run.status, termination=run.termination
    )
