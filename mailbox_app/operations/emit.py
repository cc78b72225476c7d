"""Record an event on a fenced thread: the one place that shapes what an event says."""

from typing import Any

from mailbox_app.models import Dispatch, Event, Kind, Message, Outbox, Run, Thread


def thread_created(thread: Thread) -> Event:
    """The first event of a thread."""
    return thread.record(
        Event(
            kind=Kind.THREAD_CREATED,
            payload={"thread_id": str(thread.pk), "key": thread.key, "title": thread.title},
            correlation_id=str(thread.pk),
        )
    )


def of_dispatch(thread: Thread, kind: Kind, dispatch: Dispatch, **facts: Any) -> Event:
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
    return thread.record(
        Event(
            run_id=dispatch.run_id,
            dispatch_id=dispatch.pk,
            kind=kind,
            payload=payload,
            correlation_id=str(dispatch.pk),
        )
    )


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


def message_retracted(thread: Thread, message: Message, run: Run) -> Event:
    """A message will never be read."""
    return thread.record(
        Event(
            run_id=run.pk,
            kind=Kind.MESSAGE_RETRACTED,
            visibility=message.visibility,
            payload={
                "thread_id": str(thread.pk),
                "message_id": str(message.pk),
                "reason": message.retract_reason,
            },
            correlation_id=str(run.pk),
        )
    )


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
