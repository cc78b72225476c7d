"""Answer the questions of a run, on its fenced thread, and let it go on when it waits for no other answer."""

import uuid
from collections.abc import Collection, Sequence
from typing import Any

from mailbox_app import hints
from mailbox_app.models import Dispatch, JournalEntry, Run, Thread, Ticket
from mailbox_app.operations import emit, enqueue, waits
from mailbox_app.states import ANSWER, LAPSE, LIVE_DISPATCH, DispatchStatus

RESUME = "resume"
CANCEL = "cancel"
ACTIONS = (RESUME, CANCEL)

# How a tool that asked goes on with its answer: called again, not at all, or with the answer as its argument. For the
# team's own code, which reads it from the answer.
RESUME_MODES = ("replay_tool_call", "use_decision_as_tool_result", "pass_decision_to_tool")

# How an answer reaches the agent: by the dispatch that was queued for it, by the worker that executes the run now, or
# at its next activation, whoever causes that.
_DURABLE, _LIVE, _STORED = "durable_dispatch", "live", "stored"


def open_of(run_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, list[Ticket]]:
    """The open questions of these runs, the oldest first, by run."""
    found: dict[uuid.UUID, list[Ticket]] = {run_id: [] for run_id in run_ids}
    for ticket in Ticket.objects.filter(run_id__in=list(run_ids)).open().order_by("created_at", "id"):
        found[ticket.run_id].append(ticket)
    return found


def unanswered(run_id: uuid.UUID, ticket_ids: Collection[str]) -> list[Ticket]:
    """Those of these questions that are still open."""
    return list(Ticket.objects.of_run(run_id).filter(ticket_id__in=list(ticket_ids)).open())


def answer(
    thread: Thread, run: Run, ticket: Ticket, *, action: str, payload: Any, decision_id: str, by: str
) -> Dispatch | None:
    """Give an open question its answer; returns the dispatch by which the run goes on, if it waited for no other.

    1. the dispatch; 2. the ticket; 3. the journal, where the replayed agent finds the answer; 4. the event.
    """
    dispatch = _go_on(thread, run, [ticket])
    known = _answer(action, payload, dispatch)
    given = {"answer": known, "decision_id": decision_id, "answered_by": by}
    thread.move(ticket, ANSWER, answered_at=thread.locked_at, **given)
    _journal(thread, ticket)
    _tell(thread, run, ticket, dispatch)
    return dispatch


def lapse(thread: Thread, run: Run, overdue: Sequence[Ticket]) -> None:
    """Nobody has answered these in time: that is an answer too, and the run goes on with it."""
    dispatch = _go_on(thread, run, overdue)
    for ticket in overdue:
        thread.move(ticket, LAPSE, answer=_answer(CANCEL, None, dispatch, expired=True))
        _journal(thread, ticket)
        _tell(thread, run, ticket, dispatch)


def _go_on(thread: Thread, run: Run, answered: Sequence[Ticket]) -> Dispatch | None:
    """Queue the run's one resuming dispatch, unless it does not wait for answers, or not for these alone."""
    waiting = run.waiting or {}
    if waiting.get("reason") != waits.TOOL_PERMISSION:
        return None
    now_answered = {ticket.pk for ticket in answered}
    if any(ticket.pk not in now_answered for ticket in unanswered(run.pk, waiting["ticket_ids"])):
        return None
    if Dispatch.objects.of_run(run.pk).filter(status__in=LIVE_DISPATCH).exists():
        return None
    return enqueue.resume(thread=thread, run=run, after=waits.last_dispatch(run), at=thread.locked_at)


def _answer(action: str, payload: Any, dispatch: Dispatch | None, *, expired: bool = False) -> dict[str, Any]:
    dispatch_id = None if dispatch is None else str(dispatch.pk)
    return {"action": action, "payload": payload, "expired": expired, "dispatch_id": dispatch_id}


def _journal(thread: Thread, ticket: Ticket) -> None:
    """Write what `ctx.ask` returns when its turn begins again, also as the turn of a replay."""
    thread.insert(
        JournalEntry(run_id=ticket.run_id, turn=ticket.turn, verb="ask", result=recorded(ticket), **ticket.entry)
    )


def recorded(ticket: Ticket) -> dict[str, Any]:
    """An answered ticket as the journal keeps it: {"action", "payload", "expired", "decision_id", "answered_by"}."""
    given = {name: value for name, value in (ticket.answer or {}).items() if name != "dispatch_id"}
    return {**given, "decision_id": ticket.decision_id, "answered_by": ticket.answered_by}


def _tell(thread: Thread, run: Run, ticket: Ticket, queued: Dispatch | None) -> None:
    claimed = None
    if queued is None:
        claimed = Dispatch.objects.of_run(run.pk).filter(status=DispatchStatus.CLAIMED).first()
    path = _DURABLE if queued is not None else _LIVE if claimed is not None else _STORED
    emit.decision_received(thread, ticket, dispatch=queued or claimed, path=path)
    if claimed is not None:
        hints.nudge(claimed)
