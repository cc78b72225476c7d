"""End an activation: complete it, let it wait, hand it back for another attempt, or bury it. Each is one transaction.

Every function takes the worker's claim and raises LeaseLost, having written nothing, when its token no longer owns the
dispatch. A settle whose COMMIT was answered by a broken connection may be called again: the dispatch's `instance_id`
tells it that it had won.
"""

import random
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from mailbox_app.conf import conf
from mailbox_app.models import UNCLAIMED, Boundary, Dispatch, Kind, Message, ReadAt, Run, TerminationType, Thread
from mailbox_app.operations import append, emit, ending, enqueue, feed, freeze, lineage, permits, tickets, waits
from mailbox_app.operations.emitted import Emitted
from mailbox_app.operations.ownership import Claim, Ending, find, find_endings, has_ended, lost
from mailbox_app.outcomes import Suspended
from mailbox_app.states import (
    ACK,
    HAND_BACK,
    NACK,
    SUSPEND,
    DispatchStatus,
    RunStatus,
)

# After the 8th failure the backoff grows no more: 2^7 of the first delay.
_MOST_DOUBLINGS = 7


@dataclass(frozen=True, kw_only=True)
class Finishing:
    """A claim whose agent returned, with what it returned and the state it left.

    `looks_next`: whoever ends it looks for more work of the same queue and agent, so that nobody is woken for that.
    """

    claim: Claim
    output: Any = None
    state: dict[str, Any] | None = None
    looks_next: bool = False


def complete(
    claim: Claim, *, output: Any = None, state: dict[str, Any] | None = None, looks_next: bool = False
) -> Claim | None:
    """The agent returned: record its output and end the run, or begin its next turn with what it may read now.

    1. prove the claim; 2. a text becomes an assistant message; 3. look for input; 4. there is some: save the state,
    count the turn up and freeze the input: dispatch, run and claim stay, attempts begin anew; returns the claim of that
    turn. Else 5. ack the dispatch, end the run, free the thread, record how it ended; returns None.

    A cancellation that came while the agent was finishing came too late: the completion stands, but no turn follows.
    None does after `max_turns`, either. What the run has not read then gets a run of its own. `looks_next`: see
    `Finishing`.
    """
    one = Finishing(claim=claim, output=output, state=state, looks_next=looks_next)
    with Thread.objects.fence(claim.thread_id) as thread:
        found = find_endings([claim]).get(claim.token)
        if found is not None and found.dispatch.run.turn == claim.turn + 1:
            # Its COMMIT won and the answer was lost.
            return _claim_of_turn(claim, found.dispatch, list(Message.objects.read_in(claim.run_id, claim.turn + 1)))
        if found is None or found.dispatch.run.turn != claim.turn:
            # Nothing, if this very claim has ended so; else it is lost.
            _held(thread, claim, None, DispatchStatus.ACKED, run_status=RunStatus.DONE)
            return None
        following = _complete(thread, one, found)
    _tell(thread, one)
    return following


def complete_some(finished: Sequence[Finishing]) -> dict[uuid.UUID, Claim | None]:
    """`complete` for several claims in one transaction; returns what it would, by claim token.

    Left out is what is better done alone: a claim that owns nothing any more, and one whose thread somebody else holds
    just now. Any error rolls back all of them.
    """
    following: dict[uuid.UUID, Claim | None] = {}
    by_thread = {one.claim.thread_id: one for one in finished}
    with Thread.objects.fence_some(list(by_thread)) as threads:
        found = find_endings([by_thread[thread.pk].claim for thread in threads])
        for thread in threads:
            one = by_thread[thread.pk]
            held = found.get(one.claim.token)
            if held is not None and held.dispatch.run.turn == one.claim.turn:
                following[one.claim.token] = _complete(thread, one, held)
    for thread in threads:
        _tell(thread, by_thread[thread.pk])
    return following


def suspend(claim: Claim, wait: Suspended) -> None:
    """The agent waits for somebody or something: ack its dispatch and free its worker; the run keeps its thread.

    1. prove the claim and ack its dispatch; 2. the run waits, and says for what; 3. what it waits for is there already
    (a resume of that name, a message, every answer, the end of every child), or comes by itself (a rate limit ends):
    record it, and queue the dispatch that goes on.
    A run that somebody asked to cancel does not wait.
    """
    with Thread.objects.fence(claim.thread_id) as thread:
        if has_ended(claim, DispatchStatus.ACKED, run_status=RunStatus.WAITING):
            return
        dispatch = _held(thread, claim, find(claim), DispatchStatus.CANCELLED)
        if dispatch is None:
            return
        if dispatch.cancel_requested_at is not None:
            ending.cancel(thread, dispatch)
        else:
            _wait(thread, dispatch, wait)
    permits.tell(thread)


def nack(claim: Claim, *, code: str, message: str, detail: str = "", retry_after: float | None = None) -> None:
    """The activation failed and may succeed later: queue it again after its backoff, or bury it at `max_attempts`.

    `message` is told to everyone who may see the run, `detail` to operators alone. `retry_after` (seconds) replaces the
    backoff. A run that somebody asked to cancel is not tried again.
    """
    with Thread.objects.fence(claim.thread_id) as thread:
        dispatch = _held(
            thread, claim, find(claim), DispatchStatus.QUEUED, DispatchStatus.DEAD_LETTER, DispatchStatus.CANCELLED
        )
        if dispatch is None:
            return
        if dispatch.cancel_requested_at is not None:
            ending.cancel(thread, dispatch)
        elif dispatch.attempt_count + 1 >= dispatch.max_attempts:
            dispatch.attempt_count += 1
            ending.bury(thread, dispatch, code=code, message=message, detail=detail)
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
    permits.tell(thread)


def dead_letter(claim: Claim, *, code: str, message: str, detail: str = "") -> None:
    """The activation failed for good: bury it, with the error on dispatch and run."""
    with Thread.objects.fence(claim.thread_id) as thread:
        dispatch = _held(thread, claim, find(claim), DispatchStatus.DEAD_LETTER)
        if dispatch is None:
            return
        # A failure uses an attempt, also the one that ends it.
        dispatch.attempt_count = min(dispatch.attempt_count + 1, dispatch.max_attempts)
        ending.bury(thread, dispatch, code=code, message=message, detail=detail)
    permits.tell(thread)


def stopped(claim: Claim) -> None:
    """The agent noticed that its run was cancelled."""
    with Thread.objects.fence(claim.thread_id) as thread:
        dispatch = _held(thread, claim, find(claim), DispatchStatus.CANCELLED)
        if dispatch is None:
            return
        ending.cancel(thread, dispatch)
    permits.tell(thread)


def hand_back(*, tokens: Collection[uuid.UUID]) -> int:
    """Queue again, at no cost, what these tokens own and nobody has begun to execute; returns how many it settled.

    A run that somebody asked to cancel ends here instead.
    """
    settled = 0
    for found in Dispatch.objects.claimed().filter(claim_token__in=tokens):
        with Thread.objects.fence(found.thread_id) as thread:
            held = Dispatch.objects.claimed().filter(pk=found.pk, claim_token__in=tokens).select_related("run")
            for dispatch in held:
                settled += 1
                if dispatch.cancel_requested_at is not None:
                    ending.cancel(thread, dispatch)
                    continue
                thread.move(dispatch, HAND_BACK, available_at=thread.locked_at, **UNCLAIMED)
                thread.active_run_id = None
                emit.of_dispatch(thread, Kind.RUN_RESCHEDULED, dispatch, reason="handed_back")
        permits.tell(thread)
    return settled


def backoff(failures: int) -> float:
    """Seconds until the next attempt after so many failures, with jitter from 0.8 to 1.2."""
    doubled = conf.retry_delay_seconds * 2 ** min(failures - 1, _MOST_DOUBLINGS)
    return float(min(doubled, conf.max_retry_delay_seconds) * random.uniform(0.8, 1.2))


def _tell(thread: Thread, one: Finishing) -> None:
    """Wake workers for what may start now, but not for what its own looks for next."""
    is_alike = (thread.due_queue, thread.due_agent, thread.due_version) == (one.claim.queue, one.claim.agent, "")
    if thread.given_back or not (one.looks_next and is_alike):
        permits.tell(thread)


def _complete(thread: Thread, one: Finishing, held: Ending) -> Claim | None:
    claim, dispatch, output = one.claim, held.dispatch, one.output
    run = dispatch.run
    claim.emitted.write(thread, dispatch)
    message_ids = list(run.output.get("message_ids", ()))
    if isinstance(output, str) and output.strip():
        message_ids.append(str(append.produced(thread=thread, run=run, content=output).pk))
    state = claim.state if one.state is None else one.state
    saved = {"state": state, "output": {"message_ids": message_ids}}
    if saved["state"] or thread.state_run_id is not None:
        thread.state_run_id = run.pk
    if held.has_tickets:
        ending.close_tickets(run)
    unread = freeze.unread(thread=thread, run=run) if held.has_unread else []
    if run.turn < conf.max_turns and dispatch.cancel_requested_at is None:
        taken = freeze.select(unread, boundary=Boundary.ON_NATURAL_END, run=run)
        if taken:
            return _next_turn(thread, claim, dispatch, taken, saved)
    termination = {"type": TerminationType.NATURAL_END}
    thread.move(
        dispatch,
        ACK,
        completed_at=thread.locked_at,
        run_status=RunStatus.DONE,
        termination=termination,
        response=output,
        **UNCLAIMED,
    )
    ending.finish(thread, dispatch, Kind.RUN_FINISHED, unread, termination=termination, final_output=output, **saved)
    if not unread:
        # What is queued on the thread is as it was: one look fewer.
        thread.judge(held.heads)
    return None


def _next_turn(
    thread: Thread, claim: Claim, dispatch: Dispatch, taken: Sequence[Message], saved: dict[str, Any]
) -> Claim:
    """Begin the run's next turn with this input, under the claim that ended the last one."""
    run = dispatch.run
    run.turn += 1
    messages = freeze.number(thread=thread, run=run, messages=taken, read_at=ReadAt.START)
    thread.change(run, turn=run.turn, input=freeze.input_of(run, messages), **saved)
    # The agent begins anew, and so does everything that is counted of its turn.
    lease_until = thread.locked_at + timedelta(seconds=conf.lease_seconds)
    thread.change(dispatch, attempt_count=0, lost_count=0, last_error="", lease_until=lease_until)
    emit.of_dispatch(
        thread,
        Kind.TURN_STARTED,
        dispatch,
        turn=run.turn,
        input=freeze.input_of(Run(), messages),
    )
    return _claim_of_turn(claim, dispatch, messages)


def _claim_of_turn(claim: Claim, dispatch: Dispatch, messages: Sequence[Message]) -> Claim:
    assert dispatch.lease_until is not None, "it is claimed"
    return replace(
        claim,
        turn=dispatch.run.turn,
        attempt=1,
        replays=False,
        messages=list(messages),
        first_seq=messages[0].seq or 1,
        state=dict(dispatch.run.state),
        lease_until=dispatch.lease_until,
        emitted=Emitted(),
    )


def _wait(thread: Thread, dispatch: Dispatch, wait: Suspended) -> None:
    run, now = dispatch.run, thread.locked_at
    ends_at = wait.until if wait.seconds is None else now + timedelta(seconds=wait.seconds)
    goes_on_at = ends_at if wait.reason == waits.RATE_LIMIT else None
    patience = timedelta(seconds=conf.wait_ttl_seconds)
    wait_until = (goes_on_at or now) + patience if goes_on_at or ends_at is None else ends_at
    came, ended_children, is_answered = None, None, False
    has_input = wait.reason == waits.USER_INPUT and feed.gather(thread, run)
    if wait.reason == waits.TOOL_PERMISSION:
        unanswered = tickets.unanswered(run.pk, wait.ticket_ids)
        is_answered = not unanswered
        # The run outlives its questions: one that expires is answered by that.
        wait_until = max([now, *(ticket.expires_at for ticket in unanswered if ticket.expires_at)]) + patience
    elif wait.reason == waits.BACKGROUND_TASKS:
        ended_children = lineage.outcomes(wait.child_run_ids)
        is_answered = ended_children is not None
    elif wait.reason in waits.REASONS:
        came = waits.stored(run, wait.name)
    termination = {"type": TerminationType.SUSPENDED, "detail": wait.reason}
    ended = {"completed_at": now, "run_status": RunStatus.WAITING, "termination": termination}
    thread.move(dispatch, ACK, **ended, **UNCLAIMED)
    thread.move(
        run,
        SUSPEND,
        waiting=waits.described(wait, since=now),
        wait_until=wait_until,
        resume_at=goes_on_at if came is None else None,
        termination=termination,
        resumes=run.resumes if came is None else waits.with_taken(run, came),
    )
    thread.active_run_id = None
    emit.of_dispatch(
        thread,
        Kind.RUN_SUSPENDED,
        dispatch,
        turn=run.turn,
        termination=termination,
        name=wait.name,
        message=wait.message,
        wait_until=wait_until.isoformat(),
        resume_at=None if goes_on_at is None else goes_on_at.isoformat(),
    )
    if came is not None or goes_on_at is not None or has_input:
        waits.record(thread, run, wait.entry, None if came is None else came["payload"])
    if ended_children is not None:
        lineage.record(thread, run, wait.entry, ended_children)
    if came is not None or goes_on_at is not None or has_input or is_answered:
        # The run's dispatch must have ended before the next one is queued.
        thread.flush()
        enqueue.resume(thread=thread, run=run, after=dispatch, at=now if came or goes_on_at is None else goes_on_at)


def _held(
    thread: Thread, claim: Claim, dispatch: Dispatch | None, *ends: DispatchStatus, run_status: RunStatus | None = None
) -> Dispatch | None:
    """What was found, if the claim owns it, in this turn; None when this very claim has ended in one of these ways.

    What its agent has emitted is recorded first.
    """
    if dispatch is None and has_ended(claim, *ends, run_status=run_status):
        return None
    if dispatch is None or dispatch.run.turn != claim.turn:
        raise lost(claim)
    claim.emitted.write(thread, dispatch)
    return dispatch
