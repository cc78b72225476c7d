"""Take the right to execute: claim the heads of due threads and start their runs; keep that right by renewing it."""

import logging
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import InterfaceError, OperationalError, transaction

from mailbox_app import catalogue, hints
from mailbox_app.conf import conf
from mailbox_app.models import (
    AgentVersion,
    Boundary,
    Dispatch,
    Kind,
    Message,
    Run,
    Thread,
    ask,
)
from mailbox_app.operations import candidates, emit, feed, freeze, heads, permits, reread
from mailbox_app.operations.candidates import Runnable
from mailbox_app.operations.ownership import Claim
from mailbox_app.states import CLAIM, DROP, RESUME, START, WITHDRAW, Move, RunStatus
from mailbox_app.telemetry import after_commit, observe

# How many candidates a claim looks at beside twice those it may take: others are locking them at the same time. The
# wider looks are for the day on which somebody's long transaction holds all that stand in front.
_WIDTHS = (8, 64, 512)

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
    RETURNING dispatch.claim_token,
        extract(epoch FROM statement_timestamp() - dispatch.cancel_requested_at)::float8
"""


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """What one call took. `has_more`: there was due work it did not take, for want of tokens or held by others."""

    claims: list[Claim]
    has_more: bool


@dataclass(frozen=True, kw_only=True)
class Renewed:
    """What a renewal learned of the claims: which are lost, and how many seconds ago somebody asked which to stop."""

    lost: Collection[uuid.UUID] = ()
    cancelled: Mapping[uuid.UUID, float] = field(default_factory=dict)


def due(*, queue: str, agents: Collection[str], worker: str, tokens: Sequence[uuid.UUID]) -> Claimed:
    """Claim up to `len(tokens)` heads of the queue that the agents named can run, one a thread, and start their runs.

    1. look for candidates; 2. lock those that nobody holds; 3. look again, under the lock; 4. freeze the input of runs
    that start; 5. move dispatch and run, record the event. The tokens are the caller's, so that after a lost COMMIT it
    can find out what it owns.
    """
    if not tokens or not agents:
        return Claimed(claims=[], has_more=False)
    runnable = Runnable.of(agents)
    failed: set[uuid.UUID] = set()
    most, waiting = len(tokens), 0
    for width in _WIDTHS:
        limit = width + 2 * len(tokens)
        while True:
            try:
                threads, claims, waiting = _claim_some(queue, runnable, worker, tokens[:most], limit, failed)
                break
            except _Unclaimable as error:
                # What is wrong with one thread is no reason for the others to wait. If it is not known with which, each
                # is claimed by itself.
                if error.thread_id is None:
                    most = 1
                else:
                    failed.add(error.thread_id)
        if threads:
            # A thread may still be due when its first run was dropped, or another head has come to the front.
            still_due = any(
                thread.due_queue == queue and runnable.takes(thread.due_agent, thread.due_version) for thread in threads
            )
            return Claimed(claims=claims, has_more=still_due or waiting > len(threads))
        if waiting < limit:
            break  # these were all
    return Claimed(claims=[], has_more=bool(waiting))


def renew(*, tokens: Collection[uuid.UUID]) -> Renewed:
    """Prolong the leases of these claims by a full lease from now; which were lost, and which are asked to stop.

    A token whose row somebody holds just now is not prolonged this time, and not lost.
    """
    if not tokens:
        return Renewed()
    renewed = ask(_RENEW, {"tokens": list(tokens), "seconds": conf.lease_seconds})
    found: dict[uuid.UUID, float | None] = dict(renewed)
    missing = set(tokens) - set(found)
    if missing:
        still = Dispatch.objects.claimed().filter(claim_token__in=missing)
        missing -= {token for token in still.values_list("claim_token", flat=True) if token is not None}
    asked = {token: seconds for token, seconds in found.items() if seconds is not None}
    return Renewed(lost=missing, cancelled=asked)


class _Unclaimable(Exception):
    """Claiming failed, and its transaction was rolled back; the thread whose head it was, or None: one of several."""

    def __init__(self, thread_id: uuid.UUID | None, error: Exception) -> None:
        super().__init__(str(thread_id))
        self.thread_id = thread_id
        observe("claim.failed", level=logging.ERROR, thread_id=thread_id, error=type(error).__name__)


def _claim_some(
    queue: str,
    runnable: Runnable,
    worker: str,
    tokens: Sequence[uuid.UUID],
    width: int,
    without: Collection[uuid.UUID],
) -> tuple[list[Thread], list[Claim], int]:
    """Lock due threads that nobody holds and claim their heads, in one transaction."""
    threads: list[Thread] = []
    claims: list[Claim] = []
    exhausted: Collection[str] = ()
    try:
        with transaction.atomic():
            threads, waiting = candidates.lock(
                queue=queue, runnable=runnable, limit=len(tokens), width=width, without=without
            )
            with Thread.objects.hold(threads):
                exhausted = _claim_heads(threads, claims, queue, runnable, worker, tokens)
            if exhausted:
                held = [*without, *(thread.pk for thread in threads)]
                permits.block(exhausted, queue=queue, runnable=runnable, without=held)
                # Robust: what has been claimed by then must reach its worker.
                after_commit(permits.unblock, exhausted)
    except (OperationalError, InterfaceError, _Unclaimable):
        raise
    except Exception as error:  # what all of them wrote together was refused
        raise _Unclaimable(threads[0].pk if len(threads) == 1 else None, error) from error
    hints.tell(*threads)
    return threads, claims, waiting


def _claim_heads(
    threads: Sequence[Thread],
    claims: list[Claim],
    queue: str,
    runnable: Runnable,
    worker: str,
    tokens: Sequence[uuid.UUID],
) -> Collection[str]:
    """Claim the heads of locked threads; returns the scopes whose limit has kept any of them from starting."""
    found = heads.of(threads)
    ours = [
        thread
        for thread in threads
        if (head := found.dispatches.get(thread.pk)) is not None
        and head.queue == queue
        and runnable.takes(head.agent, head.version_key)
    ]
    allowance = permits.Allowance(ours, found.limits)
    for thread, token in zip(ours, tokens, strict=False):
        dispatch = found.dispatches[thread.pk]
        allowed = allowance.admit(dispatch)
        if allowed is None:
            if thread.scope in allowance.exhausted:
                thread.block_by_scope()
            continue
        try:
            claim = _claim_head(thread, dispatch, found.unread.get(thread.pk, []), worker, token, allowed)
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:
            raise _Unclaimable(thread.pk, error) from error
        if claim is not None:
            claims.append(claim)
    allowance.write()
    return allowance.exhausted


def _claim_head(
    thread: Thread,
    dispatch: Dispatch,
    unread: Sequence[Message],
    worker: str,
    token: uuid.UUID,
    permit_ids: Sequence[uuid.UUID],
) -> Claim | None:
    """Claim a thread's head; None if its run has nothing to read, and ends."""
    run = dispatch.run
    move: Move | None
    started: dict[str, Any]
    if run.status == RunStatus.CREATED:
        if run.replay_of_id is None:
            messages = freeze.take(unread, thread=thread, boundary=Boundary.NEW_RUN, run=run)
        else:
            messages = reread.turn(run)
        if not messages:
            _drop(thread, dispatch)
            return None
        move, kind, code_version = START, Kind.RUN_STARTED, catalogue.version_of(run.agent)
        version_key = catalogue.version_key(code_version)
        started = {
            "started_at": thread.locked_at,
            "input": run.input if run.replay_of_id else freeze.input_of(run, messages),
            "state": _inherited(thread, run),
            "code_version": code_version,
        }
    else:
        messages = reread.turn(run)
        move, kind = (RESUME if run.status == RunStatus.WAITING else None), Kind.RUN_RESUMED
        version_key, started = dispatch.version_key, feed.read(thread, run)
    thread.claim_count += 1
    thread.active_run_id = thread.open_run_id = run.pk
    lease_until = thread.locked_at + timedelta(seconds=conf.lease_seconds)
    thread.move(
        dispatch,
        CLAIM,
        claim_token=token,
        instance_id=token,
        claimed_by=worker,
        claimed_at=thread.locked_at,
        lease_until=lease_until,
        fence=thread.claim_count,
        unrunnable_since=None,
        version_key=version_key,
        **permits.hold(thread, dispatch, permit_ids),
    )
    if move is START:
        thread.move(run, START, **started)
    elif move is RESUME:
        thread.move(run, RESUME, waiting=None, wait_until=None, resume_at=None, termination=None, **started)
    attempt = 1 + dispatch.attempt_count + dispatch.lost_count
    emit.of_dispatch(
        thread, kind, dispatch, attempt=attempt, turn=run.turn, **({"input": run.input} if move is START else {})
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
        # A replay begins with its original's journal.
        replays=move is not START or run.replay_of_id is not None,
        messages=messages,
        first_seq=messages[0].seq or 1 if messages else thread.last_seq + 1,
        state=dict(run.state),
        options=run.options,
        metadata=run.metadata,
        trace=run.activation.get("trace") or {},
        config=_configuration(run),
        lease_until=lease_until,
    )


def _configuration(run: Run) -> dict[str, Any]:
    """What the run was bound to when it was submitted; a published version never changes."""
    if not run.config_version:
        return {}
    found = AgentVersion.objects.filter(agent=run.agent, version=run.config_version)
    return dict(found.values_list("configuration", flat=True).first() or {})


def _inherited(thread: Thread, run: Run) -> dict[str, Any]:
    """The state in which the thread's last run that saved one left it; a replay begins with its original's."""
    if run.replay_of_id is not None or thread.state_run_id is None:
        return dict(run.state)
    return dict(Run.objects.values_list("state", flat=True).filter(pk=thread.state_run_id).first() or {})


def _drop(thread: Thread, dispatch: Dispatch) -> None:
    """End a run that has nothing to read: it never starts."""
    termination = {"type": "cancelled", "detail": "nothing_to_read"}
    now = thread.locked_at
    thread.move(dispatch, WITHDRAW, completed_at=now, run_status=RunStatus.DONE, termination=termination)
    thread.move(dispatch.run, DROP, finished_at=now, termination=termination)
    emit.of_dispatch(thread, Kind.RUN_CANCELLED, dispatch, reason="nothing_to_read")
