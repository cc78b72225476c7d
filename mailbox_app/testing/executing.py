"""Execute what is due, in this process and thread, as a worker would."""

import contextlib
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from typing import Any

from django.db import connection
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app import catalogue, channel
from mailbox_app.errors import LeaseLost
from mailbox_app.execution import emitting, runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import Dispatch, Thread
from mailbox_app.operations import children, claim, deliver, limits, permits, tick
from mailbox_app.operations.ownership import Claim
from mailbox_app.states import DispatchStatus

_WORKER = "run_until_idle@test"
# How long to wait for a thread whose row another connection holds.
_HELD_SECONDS = 5.0
_LOOK_SECONDS = 0.005
# Lines of a failed bound's message.
_MOST_TOLD = 20


class StillBusy(AssertionError):
    """`run_until_idle` could not finish; the message says what still waits, and why."""


def run_until_idle(
    *,
    agents: Collection[str] | None = None,
    retries: bool = True,
    ahead: timedelta = timedelta(0),
    most: int = 1_000,
) -> int:
    """Execute due work in this process and thread until none is left; returns how many activations ran.

    An agent is called, and its run settled, as by a worker. `agents`: these alone, and the work of others is left as it
    is; by default all that this process has, and due work of any other is an error. `retries`: a failed attempt's
    backoff is not waited for; with False its next one stays queued. `ahead`: work that is scheduled so far from now
    is taken as due; what it schedules in its turn is not.

    An agent's exception is not raised: its run is retried, and a dead letter in the end (`assert_dead_letter`; the
    traceback is in the log). Leases do not run out. A time limit ends its run only where transactions are real.

    Raises StillBusy after `most` activations, for due work that no agent here can run, for a thread that another
    connection has held for five seconds, and for a run past its time limit inside a TestCase.
    """
    names = catalogue.names() if agents is None else sorted(agents)
    ran = 0
    with channel.silenced():
        _bring_forward(_scheduled(names).filter(available_at__lte=Now() + ahead))
        while True:
            if ran >= most and _due(names):
                raise StillBusy(_told(f"still busy after {most} activations", names))
            # A worker's process runs errands as they are committed: a cancel is at the child before that is claimed.
            children.batch()
            taken = _take(names)
            if taken is not None:
                _execute(taken)
                ran += 1
            elif not (
                _go_on()
                or (retries and _bring_forward(_scheduled(names).filter(_FAILED)[:1]))
                # A backoff that has run out between these two looks was seen by neither.
                or tick.promote()
            ):
                break
    emitting.rest()
    if _due(None if agents is None else names):
        raise StillBusy(_told("due work is left that cannot be run here", names))
    return ran


# An attempt has failed or was lost: what it waits for is a backoff, not a schedule.
_FAILED = Q(attempt_count__gt=0) | Q(lost_count__gt=0)


class _NoLease(LeaseKeeper):
    """Renews nothing: another connection might not see the claim, and nobody here takes it back. Knows time limits."""

    @contextlib.contextmanager
    def holding(self, claim: Claim, *, stop_with: Any, on_timeout: Any, timeout: float, **_: Any) -> Iterator[None]:
        def stop() -> None:
            stop_with(LeaseLost(f"dispatch {claim.dispatch_id} ran past its limit of {timeout:g} s"))

        # Whoever ends it for real settles its run on another connection.
        limit = threading.Timer(timeout, stop if connection.in_atomic_block else on_timeout)
        limit.daemon = True
        limit.start()
        try:
            yield
        finally:
            limit.cancel()


_keeper = _NoLease(lambda tokens: claim.Renewed())


def _take(names: Sequence[str]) -> Claim | None:
    """Claim one head of any queue; None when nothing is due. Waits for threads that another connection holds."""
    give_up_at = time.monotonic() + _HELD_SECONDS
    while True:
        has_more = False
        for queue in Dispatch.objects.queued().order_by("queue").values_list("queue", flat=True).distinct():
            taken = claim.due(queue=queue, agents=names, worker=_WORKER, tokens=[uuid.uuid4()])
            if taken.claims:
                return taken.claims[0]
            has_more = has_more or taken.has_more
        if not has_more or time.monotonic() >= give_up_at:
            return None
        time.sleep(_LOOK_SECONDS)


def _execute(taken: Claim) -> None:
    runner.run(taken, keeper=_keeper, own_process=False)
    if Dispatch.objects.held_by(taken.token).exists():
        raise StillBusy(
            f"run {taken.run_id} of agent {taken.agent!r} ran past its time limit, which cannot settle it in a "
            "transaction of the test's own: use TransactionTestCase"
        )


def _go_on() -> int:
    """What beside the runs themselves makes work due; returns how much did."""
    return tick.promote() + deliver.batch() + children.batch() + permits.release_some() + permits.unblock_some()


def _scheduled(names: Sequence[str]) -> Any:
    return Dispatch.objects.queued().filter(agent__in=names, available_at__gt=Now()).order_by("available_at", "id")


def _bring_forward(dispatches: Any) -> int:
    """Age these rows: they are due now. Returns how many."""
    moved = 0
    for dispatch in dispatches:
        with Thread.objects.fence(dispatch.thread_id):
            moved += Dispatch.objects.queued().filter(pk=dispatch.pk).update(available_at=Now())
    return moved


def _due(names: Collection[str] | None) -> bool:
    due = Thread.objects.filter(due_at__isnull=False)
    return (due if names is None else due.filter(due_agent__in=names)).exists()


def _told(headline: str, names: Sequence[str]) -> str:
    left = Dispatch.objects.filter(completed_at=None).select_related("run", "thread").order_by("available_at", "id")
    lines = [f"run {one.run_id} of agent {one.agent!r}: {_why(one, names)}" for one in left]
    more = [f"… and {len(lines) - _MOST_TOLD} more"] if len(lines) > _MOST_TOLD else []
    return "\n  ".join([f"{headline}:", *lines[:_MOST_TOLD], *more])


def _why(dispatch: Dispatch, names: Sequence[str]) -> str:
    """What the dispatch waits for, in words."""
    thread, error = dispatch.thread, dispatch.last_error
    failed = f"; it failed {dispatch.attempt_count} times, at last with {error}" if error else ""
    if dispatch.status == DispatchStatus.CLAIMED:
        return f"claimed by {dispatch.claimed_by} until {dispatch.lease_until}"
    if thread.open_run_id not in (None, dispatch.run_id):
        return f"behind the open run {thread.open_run_id} of its thread"
    if dispatch.agent not in names:
        return f"no such agent here; this process has {', '.join(names) or 'none'}"
    for limit in limits.of_dispatch(dispatch):
        return f"kept by the limit of {limit}: {limit.bounds}{failed}"
    if thread.wakes_at is not None:
        return f"scheduled for {dispatch.available_at}{failed}"
    return f"due{failed}" if thread.due_at is not None else f"blocked: {thread.blocked_reason or 'another is first'}"
