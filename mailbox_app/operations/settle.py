"""End an activation: complete it, hand it back for another attempt, or bury it. Each is one transaction.

Every function takes the worker's claim and raises LeaseLost, having written nothing, when its token no longer owns the
dispatch. A settle whose COMMIT was answered by a broken connection may be called again: the dispatch's `instance_id`
tells it that it had won.
"""

import random
from datetime import timedelta
from typing import Any

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.models import UNCLAIMED, Boundary, Dispatch, Kind, TerminationType, Thread
from mailbox_app.operations import append, emit, freeze
from mailbox_app.operations.ownership import Claim, find, find_with_heads, has_ended, lost
from mailbox_app.states import ACK, DEAD_LETTER, FINISH, NACK, STOP, DispatchStatus, RunStatus

# After the 8th failure the backoff grows no more: 2^7 of the first delay.
_MOST_DOUBLINGS = 7


def complete(claim: Claim, *, output: Any = None, state: dict[str, Any] | None = None) -> None:
    """The agent returned: record its output, end the run, free the thread.

    1. prove the claim and ack its dispatch; 2. a text becomes an assistant message; 3. the run is done; 4. events.
    A cancellation that came while the agent was finishing came too late: the completion stands.
    """
    termination = {"type": TerminationType.NATURAL_END}
    with Thread.objects.fence(claim.thread_id) as thread:
        dispatch, heads = find_with_heads(claim)
        if dispatch is None:
            if has_ended(claim, DispatchStatus.ACKED):
                return
            raise lost(claim)
        run = dispatch.run
        thread.move(
            dispatch,
            ACK,
            completed_at=thread.locked_at,
            run_status=RunStatus.DONE,
            termination=termination,
            response=output,
            **UNCLAIMED,
        )
        produced = []
        if isinstance(output, str) and output.strip():
            produced.append(append.produced(thread=thread, run=run, content=output))
        end_state = claim.state if state is None else state
        if end_state or thread.state_run_id is not None:
            thread.state_run_id = run.pk
        _end_run(
            thread,
            dispatch,
            Kind.RUN_FINISHED,
            termination=termination,
            final_output=output,
            state=end_state,
            output={"message_ids": [str(message.pk) for message in produced]},
        )
        # What is queued on the thread is as it was: one look fewer.
        thread.judge(heads)
    hints.tell(thread)


def nack(claim: Claim, *, code: str, message: str, detail: str = "", retry_after: float | None = None) -> None:
    """The activation failed and may succeed later: queue it again after its backoff, or bury it at `max_attempts`.

    `message` is told to everyone who may see the run, `detail` to operators alone. `retry_after` (seconds) replaces the
    backoff. A run that somebody asked to cancel is not tried again.
    """
    with Thread.objects.fence(claim.thread_id) as thread:
        dispatch = _held(claim, DispatchStatus.QUEUED, DispatchStatus.DEAD_LETTER, DispatchStatus.CANCELLED)
        if dispatch is None:
            return
        if dispatch.cancel_requested_at is not None:
            cancel(thread, dispatch)
        elif dispatch.attempt_count + 1 >= dispatch.max_attempts:
            dispatch.attempt_count += 1
            bury(thread, dispatch, code=code, message=message, detail=detail)
        else:
            dispatch.attempt_count += 1
            delay = backoff(dispatch.attempt_count) if retry_after is None else retry_after
            thread.move(
                dispatch,
                NACK,
                attempt_count=dispatch.attempt_count,
                last_error=f"{code}: {detail or message}",
                available_at=thread.locked_at + timedelta(seconds=delay),
                **UNCLAIMED,
            )
            thread.active_run_id = None
            emit.of_dispatch(
                thread,
                Kind.RUN_RESCHEDULED,
                dispatch,
                reason="retry_backoff",
                error={"code": code, "message": message},
                retry_in_seconds=round(delay, 3),
            )
    hints.tell(thread)


def dead_letter(claim: Claim, *, code: str, message: str, detail: str = "") -> None:
    """The activation failed for good: bury it, with the error on dispatch and run."""
    with Thread.objects.fence(claim.thread_id) as thread:
        dispatch = _held(claim, DispatchStatus.DEAD_LETTER)
        if dispatch is None:
            return
        # A failure uses an attempt, also the one that ends it.
        dispatch.attempt_count = min(dispatch.attempt_count + 1, dispatch.max_attempts)
        bury(thread, dispatch, code=code, message=message, detail=detail)
    hints.tell(thread)


def stopped(claim: Claim) -> None:
    """The agent noticed that its run was cancelled."""
    with Thread.objects.fence(claim.thread_id) as thread:
        dispatch = _held(claim, DispatchStatus.CANCELLED)
        if dispatch is None:
            return
        cancel(thread, dispatch)
    hints.tell(thread)


def bury(thread: Thread, dispatch: Dispatch, *, code: str, message: str, detail: str = "") -> None:
    """Make a claimed dispatch a dead letter and end its run with the error; under the fence.

    Input the run has not read is frozen first, so that a replay reads what this run would have.
    """
    run = dispatch.run
    freeze.at(thread=thread, boundary=Boundary.NEW_RUN, run=run)
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
    _end_run(thread, dispatch, Kind.RUN_ERRORED, termination=termination, error=error)


def cancel(thread: Thread, dispatch: Dispatch) -> None:
    """End a claimed dispatch and its run as cancelled; under the fence."""
    termination = {"type": TerminationType.CANCELLED}
    ended = {"completed_at": thread.locked_at, "run_status": RunStatus.DONE, "termination": termination}
    thread.move(dispatch, STOP, **ended, **UNCLAIMED)
    _end_run(thread, dispatch, Kind.RUN_CANCELLED, termination=termination)


def backoff(failures: int) -> float:
    """Seconds until the next attempt after so many failures, with jitter from 0.8 to 1.2."""
    doubled = conf.retry_delay_seconds * 2 ** min(failures - 1, _MOST_DOUBLINGS)
    return float(min(doubled, conf.max_retry_delay_seconds) * random.uniform(0.8, 1.2))


def _end_run(thread: Thread, dispatch: Dispatch, kind: Kind, **outcome: Any) -> None:
    thread.move(dispatch.run, FINISH, finished_at=thread.locked_at, **outcome)
    thread.active_run_id = thread.open_run_id = None
    facts = {name: outcome[name] for name in ("termination", "error", "final_output") if outcome.get(name) is not None}
    emit.of_dispatch(thread, kind, dispatch, **facts)


def _held(claim: Claim, *ends: DispatchStatus) -> Dispatch | None:
    """The dispatch the claim owns; None when this very claim has already ended in one of these ways."""
    dispatch = find(claim)
    if dispatch is None and not has_ended(claim, *ends):
        raise lost(claim)
    return dispatch
