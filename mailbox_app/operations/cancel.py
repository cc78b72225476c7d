"""Stop a run, wherever it stands: at once when nobody executes it, by request when a worker does."""

import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mailbox_app import hints
from mailbox_app.errors import RunNotFound
from mailbox_app.models import Dispatch, Kind, Message, Run, TerminationType, Thread
from mailbox_app.operations import ending, enqueue, freeze, inputs, joining, waits
from mailbox_app.states import RETRACT, WITHDRAW, RunStatus

RETRACT_REASON = "run_cancelled"


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


@dataclass(frozen=True, kw_only=True)
class Cleared:
    """The runs of a thread that have ended by the call, and the one whose worker was asked to stop."""

    thread_id: uuid.UUID
    cancelled_run_ids: list[uuid.UUID]
    requested_run_id: uuid.UUID | None


def run(*, scope: str, run_id: uuid.UUID, reason: str = "", by: str | None = None) -> Receipt:
    """Cancel a run: at once, or as soon as the worker that executes it looks.

    1. find its thread and take the fence; 2. look at the run and its live dispatch; 3. a claimed one gets the request
    on its row, which a second request leaves as it is, and its worker is nudged; 4. any other ends here: unread
    messages are retracted, open tickets closed, what is queued withdrawn, the run is done; 5. the event.

    The agent is stopped at its next checkpoint or verb, an async one where it waits. If it ignores that for
    `cancel_grace_seconds`, its run ends without its code. A run that is done is left alone, and the receipt says so. A
    completion that comes before the worker has looked stands. `reason` is told with the events. `by`: who cancels, as
    he was named when he said something that joined the run: what others have said to it is read by another run. Raises
    InvalidInput, RunNotFound, Gone.
    """
    reason = inputs.text("reason", reason, may_be_blank=True)
    thread_id = Run.objects.in_scope(scope).filter(pk=run_id).values_list("thread_id", flat=True).first()
    if thread_id is None:
        raise RunNotFound(f"run not found: {run_id}", run_id=run_id)
    with Thread.objects.fence(thread_id, scope=scope) as thread:
        found = Run.objects.get(pk=run_id)
        outcome = fenced(thread, found, reason=reason, by=by)
    hints.tell(thread)
    return _receipt(found, outcome)


def fenced(thread: Thread, found: Run, *, reason: str, by: str | None = None) -> Outcome:
    """`run`, under the fence."""
    if found.status == RunStatus.DONE:
        return Outcome.ALREADY_DONE
    claimed = Dispatch.objects.of_run(found.pk).claimed().first()
    if claimed is not None:
        ending.ask(thread, claimed, Kind.RUN_CANCEL_REQUESTED, reason=reason)
        return Outcome.REQUESTED
    _end(thread, found, reason, by=by)
    return Outcome.CANCELLED


def thread(*, scope: str, thread_id: uuid.UUID | str, reason: str = "") -> Cleared:
    """Cancel every run of a thread that is not done: the open one, the queued, the scheduled.

    What they have not read is retracted, but for what an interrupt holds; so nothing starts in their place. On a thread
    without one, and when it is repeated, it changes nothing. Raises InvalidInput, ThreadNotFound, Gone.
    """
    inputs.text("scope", scope)
    reason = inputs.text("reason", reason, may_be_blank=True)
    found_id = inputs.identifier("thread_id", thread_id) or uuid.UUID(int=0)
    with Thread.objects.fence(found_id, scope=scope) as fenced:
        claimed = Dispatch.objects.filter(thread=fenced).claimed().first()
        if claimed is not None:
            ending.ask(fenced, claimed, Kind.RUN_CANCEL_REQUESTED, reason=reason)
        rows = Run.objects.filter(thread=fenced).not_done().order_by("order", "id")
        ended = [run for run in rows if claimed is None or run.pk != claimed.run_id]
        unread = Message.objects.filter(thread=fenced, held=False).pending()
        if (ended or claimed) and unread.move(RETRACT, retract_reason=RETRACT_REASON):
            fenced.pending_revision += 1
        for run in ended:
            _end(fenced, run, reason)
    hints.tell(fenced)
    return Cleared(
        thread_id=fenced.pk,
        cancelled_run_ids=[run.pk for run in ended],
        requested_run_id=None if claimed is None else claimed.run_id,
    )


def _end(thread: Thread, run: Run, reason: str, *, by: str | None = None) -> None:
    """End a run that nobody executes; under the fence."""
    termination = {"type": TerminationType.CANCELLED, **({"detail": reason} if reason else {})}
    queued = Dispatch.objects.of_run(run.pk).queued().first()
    unread = freeze.unread(thread=thread, run=run)
    is_open = thread.open_run_id == run.pk
    # What was said to it, and to nobody else, is read by another run; and what others have said than he who cancels.
    others = [message for message in unread if message.run_id is None] if is_open else []
    if run.status == RunStatus.CREATED:
        others = joining.of_others(run, unread, by=by)
    own = Message.objects.filter(thread=thread, run=run).pending().exclude(pk__in=[message.pk for message in others])
    if own.move(RETRACT, retract_reason=RETRACT_REASON):
        thread.pending_revision += 1
    last = (queued or waits.last_dispatch(run)) if others else None
    ending.drop(thread, run, queued, by=WITHDRAW, termination=termination, reason=reason)
    if last is not None:
        enqueue.unread(thread=thread, ended=run, dispatch=last, messages=others)


def _receipt(run: Run, outcome: Outcome) -> Receipt:
    return Receipt(
        thread_id=run.thread_id, run_id=run.pk, outcome=outcome, status=run.status, termination=run.termination
    )
