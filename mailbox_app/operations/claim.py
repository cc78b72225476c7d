"""Take the right to execute: claim the heads of due threads and start their runs; keep that right by renewing it."""

import logging
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import InterfaceError, OperationalError, connection
from django.db.models.functions import Now

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.models import UNCLAIMED, Boundary, Dispatch, Kind, Message, Run, Thread
from mailbox_app.operations import emit, freeze
from mailbox_app.operations.ownership import Claim
from mailbox_app.states import CLAIM, DROP, HAND_BACK, RESUME, START, WITHDRAW, Move, RunStatus
from mailbox_app.telemetry import observe

# How many candidates a claim looks at for each one it may take: others are locking them at the same time. The wider
# looks are for the day on which somebody's long transaction holds all that stand in front.
_WIDTHS = (8, 64, 512)

# The ORM has no LATERAL. One index range per agent and no sort over the backlog: the cost is independent of both the
# backlog and the work of agents this worker cannot run.
_CANDIDATES = """
    SELECT candidate.id
    FROM unnest(%(agents)s::text[]) AS runnable (agent)
    CROSS JOIN LATERAL (
        SELECT id, due_priority, due_at
        FROM mailbox_thread
        WHERE due_queue = %(queue)s AND due_agent = runnable.agent AND due_at IS NOT NULL
        ORDER BY due_priority, due_at, id
        LIMIT %(limit)s
    ) AS candidate
    ORDER BY candidate.due_priority, candidate.due_at, candidate.id
    LIMIT %(limit)s
"""

# One statement for all claims of a process. SKIP LOCKED: whoever holds a row is settling or cancelling it, and waiting
# for it here in another order than a group settle takes its rows would deadlock.
_RENEW = """
    UPDATE mailbox_dispatch AS dispatch
    SET lease_until = statement_timestamp() + make_interval(secs => %(seconds)s)
    FROM (
        SELECT id FROM mailbox_dispatch
        WHERE status = 'claimed' AND claim_token = ANY(%(tokens)s::uuid[])
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS held
    WHERE dispatch.id = held.id
    RETURNING dispatch.claim_token
"""


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """What one call took. `has_more`: there was due work it did not take, for want of tokens or held by others."""

    claims: list[Claim]
    has_more: bool


def due(*, queue: str, agents: Collection[str], worker: str, tokens: Sequence[uuid.UUID]) -> Claimed:
    """Claim up to `len(tokens)` heads of the queue that the agents named can run, one a thread, and start their runs.

    1. look for candidates; 2. lock those that nobody holds; 3. look again, under the lock; 4. freeze the input of runs
    that start; 5. move dispatch and run, record the event. The tokens are the caller's, so that after a lost COMMIT it
    can find out what it owns.
    """
    if not tokens or not agents:
        return Claimed(claims=[], has_more=False)
    failed: set[uuid.UUID] = set()
    candidates: list[uuid.UUID] = []
    for width in _WIDTHS:
        limit = width * len(tokens)
        found = _candidates(queue, agents, limit)
        candidates = [thread_id for thread_id in found if thread_id not in failed]
        while candidates:
            try:
                threads, claims = _claim_among(candidates, queue, agents, worker, tokens)
            except _Unclaimable as error:
                # What is wrong with one thread is no reason for the others to wait.
                failed.add(error.thread_id)
                candidates.remove(error.thread_id)
                continue
            if threads:
                # A thread may still be due when its first run was dropped, or another head has come to the front.
                still_due = any(thread.due_queue == queue and thread.due_agent in agents for thread in threads)
                return Claimed(claims=claims, has_more=still_due or len(candidates) > len(threads))
            break
        if len(found) < limit:
            break  # these were all
    return Claimed(claims=[], has_more=bool(candidates))


def renew(*, tokens: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Prolong the leases of these claims by a full lease from now and return the tokens that were lost.

    A token whose row somebody holds just now is not prolonged this time, and not lost.
    """
    if not tokens:
        return set()
    with connection.cursor() as cursor:
        cursor.execute(_RENEW, {"tokens": list(tokens), "seconds": conf.lease_seconds})
        missing = set(tokens) - {row[0] for row in cursor.fetchall()}
    if missing:
        still = Dispatch.objects.claimed().filter(claim_token__in=missing)
        missing -= {token for token in still.values_list("claim_token", flat=True) if token is not None}
    return missing


class _Unclaimable(Exception):
    """Claiming this thread's head failed; its transaction was rolled back."""

    def __init__(self, thread_id: uuid.UUID) -> None:
        super().__init__(str(thread_id))
        self.thread_id = thread_id


def _claim_among(
    candidates: Sequence[uuid.UUID], queue: str, agents: Collection[str], worker: str, tokens: Sequence[uuid.UUID]
) -> tuple[list[Thread], list[Claim]]:
    """Lock what nobody holds of the candidates and claim it, in one transaction."""
    claims = []
    due = Thread.objects.filter(pk__in=candidates, due_queue=queue).still_due()
    with due.fence_free(limit=len(tokens)) as threads:
        for thread, token in zip(threads, tokens, strict=False):
            try:
                claim = _claim_head(thread, queue, agents, worker, token)
            except (OperationalError, InterfaceError):
                raise
            except Exception as error:
                facts = {"thread_id": thread.pk, "error": type(error).__name__}
                observe("claim.failed", level=logging.ERROR, **facts)
                raise _Unclaimable(thread.pk) from error
            if claim is not None:
                claims.append(claim)
    for thread in threads:
        hints.tell(thread)
    return threads, claims


def hand_back(*, tokens: Collection[uuid.UUID]) -> int:
    """Queue again, at no cost, what these tokens own and nobody has begun to execute; returns how many."""
    handed = 0
    for dispatch in Dispatch.objects.claimed().filter(claim_token__in=tokens):
        token = dispatch.claim_token
        with Thread.objects.fence(dispatch.thread_id) as thread:
            if token is not None and Dispatch.objects.filter(pk=dispatch.pk).held_by(token).move(
                HAND_BACK, available_at=Now(), **UNCLAIMED
            ):
                thread.active_run_id = None
                emit.of_dispatch(thread, Kind.RUN_RESCHEDULED, dispatch, reason="handed_back")
                handed += 1
        hints.tell(thread)
    return handed


def _candidates(queue: str, agents: Collection[str], limit: int) -> list[uuid.UUID]:
    with connection.cursor() as cursor:
        cursor.execute(_CANDIDATES, {"queue": queue, "agents": list(agents), "limit": limit})
        return [row[0] for row in cursor.fetchall()]


def _claim_head(thread: Thread, queue: str, agents: Collection[str], worker: str, token: uuid.UUID) -> Claim | None:
    """Claim what is the thread's head now, which need not be what its flag said; None if that is not for us."""
    heads = Dispatch.objects.filter(thread=thread).queued()
    if thread.open_run_id is not None:
        heads = heads.of_run(thread.open_run_id)
    dispatch = heads.head().select_related("run").first()
    if dispatch is None or dispatch.queue != queue or dispatch.agent not in agents:
        return None
    run = dispatch.run
    if run.status == RunStatus.CREATED:
        messages = freeze.at(thread=thread, boundary=Boundary.NEW_RUN, run=run)
        if not messages:
            _drop(thread, dispatch)
            return None
        move: Move | None
        move, kind, started = START, Kind.RUN_STARTED, {"started_at": Now(), "input": _input(messages)}
    else:
        messages = list(Message.objects.read_in(run.pk, run.turn))
        move, kind, started = (RESUME if run.status == RunStatus.WAITING else None), Kind.RUN_RESUMED, {}
    thread.claim_count += 1
    thread.active_run_id = thread.open_run_id = thread.latest_run_id = run.pk
    dispatch.rows.must_move(
        CLAIM,
        claim_token=token,
        instance_id=token,
        claimed_by=worker,
        claimed_at=Now(),
        lease_until=Now() + timedelta(seconds=conf.lease_seconds),
        fence=thread.claim_count,
    )
    if move is not None:
        run.rows.must_move(move, **({"waiting": None} if move is RESUME else started))
    attempt = 1 + dispatch.attempt_count + dispatch.lost_count
    emit.of_dispatch(
        thread, kind, dispatch, attempt=attempt, turn=run.turn, **({"input": started["input"]} if started else {})
    )
    return Claim(
        token=token,
        scope=thread.scope,
        thread_id=thread.pk,
        run_id=run.pk,
        dispatch_id=dispatch.pk,
        agent=run.agent,
        queue=dispatch.queue,
        turn=run.turn,
        attempt=attempt,
        fence=thread.claim_count,
        replays=move is not START,
        messages=messages,
        first_seq=messages[0].seq or 1 if messages else thread.last_seq + 1,
        state=dict(run.state),
        options=run.options,
        metadata=run.metadata,
        trace=run.activation.get("trace") or {},
        lease_until=thread.locked_at + timedelta(seconds=conf.lease_seconds),
    )


def _input(messages: Sequence[Message]) -> dict[str, Any]:
    return {
        "from_seq": messages[0].seq,
        "to_seq": messages[-1].seq,
        "message_ids": [str(message.pk) for message in messages],
    }


def _drop(thread: Thread, dispatch: Dispatch) -> None:
    """End a run that has nothing to read: it never starts."""
    termination = {"type": "cancelled", "detail": "nothing_to_read"}
    dispatch.rows.must_move(WITHDRAW, completed_at=Now(), run_status=RunStatus.DONE, termination=termination)
    Run.objects.filter(pk=dispatch.run_id).must_move(DROP, finished_at=Now(), termination=termination)
    emit.of_dispatch(thread, Kind.RUN_CANCELLED, dispatch, reason="nothing_to_read")
