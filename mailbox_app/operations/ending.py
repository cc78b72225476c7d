"""End a run, under the fence of its thread: what every verb that ends one writes."""

from collections.abc import Iterable, Sequence
from typing import Any

from mailbox_app import hints
from mailbox_app.models import UNCLAIMED, Dispatch, Kind, Message, ReadAt, Run, TerminationType, Thread, Ticket
from mailbox_app.operations import emit, enqueue, freeze, lineage, waits
from mailbox_app.states import (
    CLOSE,
    DEAD_LETTER,
    DROP,
    END_WAIT,
    EXPIRE,
    FINISH,
    RETRACT,
    STOP,
    MessageState,
    Move,
    RunStatus,
)

# How a run that nobody executes ends, by where it stands.
_UNEXECUTED: dict[str, Move] = {RunStatus.CREATED: DROP, RunStatus.RUNNING: FINISH, RunStatus.WAITING: END_WAIT}


def bury(thread: Thread, dispatch: Dispatch, *, code: str, message: str, detail: str = "") -> None:
    """Make a claimed dispatch a dead letter and end its run with the error; under the fence.

    Its own input that it has not read is frozen first, so that a replay reads it.
    """
    run = dispatch.run
    unread = freeze.unread(thread=thread, run=run)
    own = [message for message in unread if message.run_id == run.pk]
    freeze.number(thread=thread, run=run, messages=own, read_at=ReadAt.START)
    close_tickets(run)
    error, termination = {"code": code, "message": message}, {"type": TerminationType.ERROR, "detail": code}
    thread.move(
        dispatch,
        DEAD_LETTER,
        completed_at=thread.locked_at,
        attempt_count=dispatch.attempt_count,
        lost_count=dispatch.lost_count,
        last_error=f"{code}: {detail or message}",
        run_status=RunStatus.DONE,
        termination=termination,
        error=error,
        **UNCLAIMED,
    )
    finish(thread, dispatch, Kind.RUN_ERRORED, unread, termination=termination, error=error)


def expire(thread: Thread, dispatch: Dispatch, *, code: str, message: str) -> None:
    """Make a queued dispatch of a run that never started a dead letter and end the run; under the fence.

    All of its input is frozen first, so that a replay reads it.
    """
    run = dispatch.run
    own = [unread for unread in freeze.unread(thread=thread, run=run) if unread.run_id == run.pk]
    freeze.number(thread=thread, run=run, messages=own, read_at=ReadAt.START)
    error, termination = {"code": code, "message": message}, {"type": TerminationType.ERROR, "detail": code}
    thread.move(
        dispatch,
        EXPIRE,
        completed_at=thread.locked_at,
        last_error=f"{code}: {message}",
        run_status=RunStatus.DONE,
        termination=termination,
        error=error,
    )
    thread.move(run, DROP, finished_at=thread.locked_at, termination=termination, error=error)
    emit.of_dispatch(thread, Kind.RUN_ERRORED, dispatch, termination=termination, error=error)


def cancel(thread: Thread, dispatch: Dispatch) -> None:
    """End a claimed dispatch and its run as cancelled; under the fence."""
    termination = {"type": TerminationType.CANCELLED}
    ended = {"completed_at": thread.locked_at, "run_status": RunStatus.DONE, "termination": termination}
    thread.move(dispatch, STOP, lost_count=dispatch.lost_count, **ended, **UNCLAIMED)
    close_tickets(dispatch.run)
    lineage.cancel(thread, dispatch.run)
    unread = freeze.unread(thread=thread, run=dispatch.run)
    finish(thread, dispatch, Kind.RUN_CANCELLED, unread, termination=termination)


def ask(thread: Thread, dispatch: Dispatch, kind: str, *, reason: str) -> None:
    """Ask the worker of a claimed dispatch to stop, unless that was done; under the fence."""
    if dispatch.cancel_requested_at is None:
        thread.change(dispatch, cancel_requested_at=thread.locked_at)
        emit.of_dispatch(thread, kind, dispatch, reason=reason)
        hints.stop(dispatch.pk)


def drop(
    thread: Thread, run: Run, queued: Dispatch | None, *, by: Move, termination: dict[str, Any], reason: str
) -> None:
    """End a run that nobody executes as cancelled, and by that move what is queued of it; under the fence.

    Its unread messages are the caller's.
    """
    if queued is not None:
        ended = {"completed_at": thread.locked_at, "run_status": RunStatus.DONE, "termination": termination}
        thread.move(queued, by, **ended)
    if run.status != RunStatus.CREATED:
        close_tickets(run)
    lineage.cancel(thread, run)
    move = _UNEXECUTED[run.status]
    thread.move(run, move, finished_at=thread.locked_at, termination=termination, **waits.NOT_WAITING)
    facts: dict[str, Any] = {"termination": termination, "reason": reason}
    if queued is not None:
        emit.of_dispatch(thread, Kind.RUN_CANCELLED, queued, **facts)
    else:
        emit.of_run(thread, Kind.RUN_CANCELLED, run, **facts)
    if thread.open_run_id == run.pk:
        thread.open_run_id = None
        _retract_targeted(thread, run, Message.objects.filter(thread=thread, target_run_id=run.pk).pending())


def expire_wait(thread: Thread, run: Run) -> None:
    """End a run whose wait nobody has ended in time; under the fence, where no resume was found to be queued."""
    run.thread = thread
    dispatch = waits.last_dispatch(run)
    close_tickets(run)
    termination = {"type": TerminationType.STOPPED, "detail": "wait_expired"}
    unread = freeze.unread(thread=thread, run=run)
    thread.move(run, END_WAIT, finished_at=thread.locked_at, termination=termination, **waits.NOT_WAITING)
    _leave(thread, dispatch, Kind.RUN_TERMINATED, unread, termination=termination)


def close_tickets(run: Run) -> None:
    """Withdraw the questions nobody has answered: there is nobody left to hear an answer; under the fence."""
    Ticket.objects.of_run(run.pk).open().move(CLOSE)


def finish(thread: Thread, dispatch: Dispatch, kind: Kind, unread: Sequence[Message], **outcome: Any) -> None:
    """End the run of a dispatch that has ended; under the fence. `unread`: what it has not read, of `freeze.unread`."""
    thread.move(dispatch.run, FINISH, finished_at=thread.locked_at, **outcome)
    _leave(thread, dispatch, kind, unread, **outcome)


def _leave(thread: Thread, dispatch: Dispatch, kind: Kind, unread: Sequence[Message], **outcome: Any) -> None:
    """Free the thread of a run that is done, tell how it ended, and have another run read what it has not."""
    run = dispatch.run
    thread.active_run_id = thread.open_run_id = None
    facts = {name: outcome[name] for name in ("termination", "error", "final_output") if outcome.get(name) is not None}
    emit.of_dispatch(thread, kind, dispatch, **facts)
    _retract_targeted(thread, run, unread)
    enqueue.unread(thread=thread, ended=run, dispatch=dispatch, messages=unread)


def _retract_targeted(thread: Thread, run: Run, unread: Iterable[Message]) -> None:
    """Retract what was for this run and no other, and it has not read."""
    for message in unread:
        if message.target_run_id == run.pk and not message.fallback and message.state == MessageState.PENDING:
            thread.move(message, RETRACT, retract_reason="target_ended")
            thread.pending_revision += 1
            emit.message_retracted(thread, message, run)
