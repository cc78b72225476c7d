"""Record an event on a fenced thread: the one place that shapes what an event says."""

import logging
import uuid
from typing import Any

from mailbox_app.models import Dispatch, Event, Kind, Message, Outbox, Run, Thread, Ticket, Visibility
from mailbox_app.states import RunStatus
from mailbox_app.telemetry import observe_on_commit

_CLAIMED = (Kind.RUN_STARTED, Kind.RUN_RESUMED)
# How a move ends an activation, in one word for metrics, traces and Flower; a reason is looked for before a kind.
_OUTCOMES: dict[str, str] = {
    "retry_backoff": "retry",
    "expired_lease_reclaimed": "lease_lost",
    "handed_back": "handed_back",
    Kind.RUN_FINISHED: "natural_end",
    Kind.RUN_ERRORED: "dead_letter",
    Kind.RUN_CANCELLED: "cancelled",
    Kind.RUN_SUSPENDED: "suspended",
}


def thread_created(thread: Thread) -> Event:
    """The first event of a thread."""
    return thread.record(
        Event(
            kind=Kind.THREAD_CREATED,
            payload={"thread_id": str(thread.pk), "key": thread.key, "title": thread.title},
            correlation_id=str(thread.pk),
        )
    )


def of_thread(thread: Thread, kind: str, **facts: Any) -> Event:
    """An event about the thread itself."""
    if thread.last_cursor == 0:  # made by who sends to its key, and nothing has arrived yet
        thread_created(thread)
    payload = {"thread_id": str(thread.pk), **facts}
    return thread.record(Event(kind=kind, payload=payload, correlation_id=str(thread.pk)))


def of_run(thread: Thread, kind: str, run: Run, **facts: Any) -> Event:
    """An event about a run that has no dispatch to speak of."""
    payload = {"thread_id": str(thread.pk), "run_id": str(run.pk), "agent": run.agent, **facts}
    return thread.record(Event(run_id=run.pk, kind=kind, payload=payload, correlation_id=str(run.pk)))


def of_operator(thread: Thread, kind: str, dispatch: Dispatch, **facts: Any) -> Event:
    """What an operator did about one activation; not for those who watch the thread."""
    event = of_dispatch(thread, kind, dispatch, **facts)
    event.visibility = Visibility.INTERNAL
    return event


def of_dispatch(thread: Thread, kind: str, dispatch: Dispatch, **facts: Any) -> Event:
    """An event about one activation of a run. No payload holds a value that renewal moves."""
    payload = {
        "thread_id": str(thread.pk),
        "run_id": str(dispatch.run_id),
        "dispatch_id": str(dispatch.pk),
        "agent": dispatch.agent,
        "dispatch_epoch": dispatch.epoch,
        "attempt_count": dispatch.attempt_count,
        "lost_count": dispatch.lost_count,
        **facts,
    }
    _tell(thread, kind, dispatch, facts)
    return thread.record(
        Event(
            run_id=dispatch.run_id,
            dispatch_id=dispatch.pk,
            kind=kind,
            payload=payload,
            correlation_id=str(dispatch.pk),
        )
    )


def ticket_opened(thread: Thread, ticket: Ticket, dispatch: Dispatch) -> Event:
    """A run has put a question to a human."""
    facts = {name: getattr(ticket, name) for name in ("name", "question", "arguments", "schema", "resume_mode")}
    expires_at = None if ticket.expires_at is None else ticket.expires_at.isoformat()
    return _of_ticket(thread, Kind.TOOL_PERMISSION_REQUESTED, ticket, dispatch.pk, **facts, expires_at=expires_at)


def decision_received(thread: Thread, ticket: Ticket, *, dispatch: Dispatch | None, path: str) -> None:
    """A question has its answer, or none in time. `dispatch`: by which its run goes on, or which gets the answer live.

    A payload that says whether it is approved is told a second time, for those who wait for nothing else.
    """
    answer = ticket.answer or {}
    facts = {
        "name": ticket.name,
        "decision_id": ticket.decision_id,
        "action": answer["action"],
        "result": answer["payload"],
        "expired": answer["expired"],
        "answered_by": ticket.answered_by,
        "delivery_path": path,
    }
    dispatch_id = None if dispatch is None else dispatch.pk
    _of_ticket(thread, Kind.DECISION_RECEIVED, ticket, dispatch_id, **facts)
    approved = answer["payload"].get("approved") if isinstance(answer["payload"], dict) else None
    if isinstance(approved, bool):
        _of_ticket(thread, Kind.TOOL_PERMISSION_RESOLVED, ticket, dispatch_id, **facts, approved=approved)


def message_committed(thread: Thread, message: Message, run: Run) -> Event:
    """A message entered the log."""
    return thread.record(
        Event(
            run_id=run.pk,
            kind=Kind.MESSAGE_COMMITTED,
            visibility=message.visibility,
            payload={
                "thread_id": str(thread.pk),
                "run_id": str(run.pk),
                "message_id": str(message.pk),
                "message_seq": message.seq,
                "producer_run_id": None if message.producer_run_id is None else str(message.producer_run_id),
                "role": message.role,
                "content": message.content,
            },
            correlation_id=str(run.pk),
        )
    )


def message_requeued(thread: Thread, message: Message, *, ended: Run, run: Run) -> Event:
    """A message that the run which has ended did not read will be read by another run."""
    return thread.record(
        Event(
            run_id=ended.pk,
            kind=Kind.MESSAGE_REQUEUED,
            visibility=message.visibility,
            payload={"thread_id": str(thread.pk), "message_id": str(message.pk), "run_id": str(run.pk)},
            correlation_id=str(ended.pk),
        )
    )


def message_edited(thread: Thread, message: Message, *, changed: list[str]) -> Event:
    """Somebody has changed a pending message. What it says is not told: what is edited away is to be gone."""
    return thread.record(
        Event(
            run_id=message.run_id,
            kind=Kind.MESSAGE_EDITED,
            visibility=message.visibility,
            payload={
                "thread_id": str(thread.pk),
                "message_id": str(message.pk),
                "revision": message.revision,
                "changed": changed,
            },
            correlation_id=str(message.run_id or message.pk),
        )
    )


def message_retracted(thread: Thread, message: Message, run: Run | None) -> Event:
    """A message will never be read; `run`: who would have."""
    return thread.record(
        Event(
            run_id=None if run is None else run.pk,
            kind=Kind.MESSAGE_RETRACTED,
            visibility=message.visibility,
            payload={
                "thread_id": str(thread.pk),
                "message_id": str(message.pk),
                "reason": message.retract_reason,
            },
            correlation_id=str(message.pk if run is None else run.pk),
        )
    )


def child_spawned(thread: Thread, dispatch: Dispatch, *, run_id: str, thread_id: str, **facts: Any) -> Event:
    """A run has spawned a child."""
    told = {"child_run_id": run_id, "child_thread_id": thread_id, **facts}
    return of_dispatch(thread, Kind.CHILD_SPAWNED, dispatch, **told)


def child_ended(thread: Thread, parent: Run | None, child_run_id: str, child: Run | None) -> Event:
    """A run that was spawned from this thread has ended; None: its row is gone.

    An event of the parent, or of the thread alone once the parent is done, which then says nothing more.
    """
    payload = {
        "thread_id": str(thread.pk),
        "run_id": None if parent is None else str(parent.pk),
        "child_run_id": child_run_id,
        "child_thread_id": None if child is None else str(child.thread_id),
        "agent": None if child is None else child.agent,
        "termination": None if child is None else child.termination,
        "error": None if child is None else child.error,
    }
    of = None if parent is None or parent.status == RunStatus.DONE else parent.pk
    return thread.record(Event(run_id=of, kind=Kind.CHILD_ENDED, payload=payload, correlation_id=child_run_id))


def delivery_failed(thread: Thread, row: Outbox, *, code: str, message: str) -> Event:
    """What was sent from this thread to another one will not arrive."""
    return thread.record(
        Event(
            run_id=row.payload.get("source_run_id"),
            kind=Kind.DELIVERY_FAILED,
            payload={
                "thread_id": str(thread.pk),
                "outbox_id": str(row.pk),
                "target_thread_id": str(row.target_thread_id),
                "message_id": row.payload.get("message_id"),
                "attempt_count": row.attempt_count,
                "error": {"code": code, "message": message},
            },
            correlation_id=str(row.pk),
        )
    )


def of_agent(
    thread: Thread, run: Run, kind: str, payload: Any, *, dispatch: Dispatch, key: str | None, visibility: str
) -> Event:
    """An event of the team's own, from `ctx.emit`."""
    return thread.record(
        Event(
            run_id=run.pk,
            dispatch_id=dispatch.pk,
            kind=kind,
            payload=payload,
            key=key,
            visibility=visibility,
            correlation_id=str(dispatch.pk),
        )
    )


def _of_ticket(thread: Thread, kind: str, ticket: Ticket, dispatch_id: uuid.UUID | None, **facts: Any) -> Event:
    payload = {
        "thread_id": str(thread.pk),
        "run_id": str(ticket.run_id),
        "dispatch_id": None if dispatch_id is None else str(dispatch_id),
        "ticket_id": ticket.ticket_id,
        **facts,
    }
    correlation_id = ticket.decision_id or ticket.ticket_id
    named = {"run_id": ticket.run_id, "dispatch_id": dispatch_id, "correlation_id": correlation_id}
    return thread.record(Event(kind=kind, payload=payload, **named))


def _tell(thread: Thread, kind: str, dispatch: Dispatch, facts: dict[str, Any]) -> None:
    """Let whoever counts, shows or traces know of the move once it is committed: ids, codes and seconds only.

    Seconds are differences of the database's clock: `waited` from when the dispatch could start until its claim, `ran`
    from its claim until the activation's end.
    """
    told: dict[str, Any] = {"attempt": facts.get("attempt", dispatch.attempt_count + dispatch.lost_count)}
    if kind in _CLAIMED:
        told["waited"] = max(0.0, (thread.locked_at - dispatch.available_at).total_seconds())
    elif dispatch.claimed_at is not None and dispatch.executor:
        told |= {"ran": max(0.0, (thread.locked_at - dispatch.claimed_at).total_seconds()), "by": dispatch.executor}
    observe_on_commit(
        "dispatch.moved",
        level=logging.DEBUG,
        kind=str(kind),
        thread_id=thread.pk,
        run_id=dispatch.run_id,
        dispatch_id=dispatch.pk,
        agent=dispatch.agent,
        queue=dispatch.queue,
        outcome=_OUTCOMES.get(facts.get("reason", ""), _OUTCOMES.get(kind, "")),
        code=(facts.get("error") or {}).get("code"),
        **told,
    )
