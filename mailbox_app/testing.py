"""What a team's own tests use: execute what is due in this process, then say what must have come of it.

    from django.test import TestCase
    from mailbox_app import testing
    from mailbox_app.operations import submit

    class SupportTests(TestCase):
        def test_an_order_is_found(self):
            run = submit.run(scope="acme", agent="support", messages=["Where is my order?"])
            testing.run_until_idle()
            testing.assert_run_finished(run, output="It is on its way.")

Neither Celery nor a broker, Redis or a worker is needed. It works in a transaction that is rolled back (TestCase,
pytest-django's `db`) and without one (TransactionTestCase, `transactional_db`).

With pytest, name it in the root conftest.py: `pytest_plugins = ["mailbox_app.testing"]` gives the fixtures `mailbox`
and `registered_agent`. It is no entry point on purpose: nothing is imported into a test run that did not ask for it.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from unittest.mock import ANY

from django.db import connection
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app import catalogue, channel
from mailbox_app.errors import LeaseLost
from mailbox_app.execution import registry, runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import Dispatch, Event, Kind, Message, Role, Run, Thread
from mailbox_app.operations import children, claim, deliver, inputs, limits, permits, submit, tick
from mailbox_app.operations.ownership import Claim
from mailbox_app.operations.submit import Receipt
from mailbox_app.states import DispatchStatus, RunStatus

OfRun = Run | Receipt | uuid.UUID | str
OfThread = Thread | Run | Receipt | uuid.UUID | str

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
    if _due(None if agents is None else names):
        raise StillBusy(_told("due work is left that cannot be run here", names))
    return ran


@contextlib.contextmanager
def isolated() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Send no signal and no live text while the block runs, or the function it decorates.

    Yields what would have been published, as (topic, message): live text under the topic "run:<id>".
    """
    with channel.silenced() as heard:
        yield heard


@contextlib.contextmanager
def registered(function: registry.AgentFunction, *, name: str = "probe", **options: Any) -> Iterator[str]:
    """Register the function as an agent while the block runs, in place of one that has the name; yields the name.

    `options` are those of `@agent`.
    """
    before = catalogue.find(name)
    catalogue.remove(name)
    try:
        registry.agent(name, **options)(function)
        yield name
    finally:
        catalogue.remove(name)
        if before is not None:
            catalogue.add(before)


def assert_run_finished(run: OfRun, output: Any = ANY) -> Run:
    """The run came to its natural end, with this output (any, if none is given); returns its row as it is now."""
    row = _run(run)
    if row.status != RunStatus.DONE or (row.termination or {}).get("type") != "natural_end":
        raise AssertionError(f"the run has not finished: {_described(row)}")
    if not (row.final_output == output):  # ANY knows == alone
        raise AssertionError(f"the run's output is {row.final_output!r}, not {output!r}")
    return row


def assert_dead_letter(run: OfRun, code: str | None = None) -> Dispatch:
    """The run failed for good, with this error code (any, if none is given); returns its dispatch."""
    row = _run(run)
    dispatch = row.dispatches.latest("created_at", "id")
    if dispatch.status != DispatchStatus.DEAD_LETTER:
        raise AssertionError(f"the run is no dead letter: {_described(row)}")
    found = (row.error or {}).get("code")
    if code is not None and found != code:
        raise AssertionError(f"the dead letter's code is {found!r}, not {code!r}: {_described(row)}")
    return dispatch


def assert_waiting(run: OfRun, reason: str | None = None) -> Run:
    """The run was suspended and waits for this reason (any, if none is given); returns its row as it is now."""
    row = _run(run)
    if row.status != RunStatus.WAITING:
        raise AssertionError(f"the run does not wait: {_described(row)}")
    found = (row.waiting or {}).get("reason")
    if reason is not None and found != reason:
        raise AssertionError(f"the run waits for {found!r}, not {reason!r}")
    return row


def assert_events(thread: OfThread, kinds: Sequence[str], *, own_only: bool = False) -> list[Event]:
    """The thread's events are of these kinds, in this order; returns them. `own_only`: those of `ctx.emit` alone."""
    rows = Event.objects.filter(thread_id=_thread_id(thread)).order_by("cursor")
    events = [event for event in rows if not (own_only and event.kind in Kind.values)]
    found = [event.kind for event in events]
    if found != list(kinds):
        raise AssertionError(f"the thread's events are {found}, not {list(kinds)}")
    return events


def assert_said(thread: OfThread, texts: Sequence[str]) -> list[Message]:
    """The thread's assistant messages have these texts, in this order; returns them."""
    said = list(Message.objects.filter(thread_id=_thread_id(thread), role=Role.ASSISTANT).committed().in_order())
    found = [message.text for message in said]
    if found != list(texts):
        raise AssertionError(f"the assistant said {found}, not {list(texts)}")
    return said


@dataclass(frozen=True)
class Mailbox:
    """What the fixture `mailbox` gives: a caller in one scope, and the worker."""

    scope: str
    heard: list[tuple[str, dict[str, Any]]]

    def submit(self, *messages: inputs.NewMessage | Mapping[str, Any] | str, agent: str = "", **given: Any) -> Run:
        """Queue a run that answers the messages; `given` and errors are those of `operations.submit.run`."""
        receipt = submit.run(**{"scope": self.scope, "agent": agent, "messages": list(messages), **given})
        return Run.objects.get(pk=receipt.run_id)

    def run_until_idle(self, **options: Any) -> int:
        """`testing.run_until_idle`."""
        return run_until_idle(**options)

    def streamed(self, run: OfRun) -> list[str]:
        """The live text of the run so far, one entry for each `ctx.delta`, of all its attempts."""
        topic = f"run:{_run_id(run)}"
        return [str(message["text"]) for about, message in self.heard if about == topic and message.get("text")]


try:
    import pytest
except ModuleNotFoundError:  # Django's own test runner needs none
    pass
else:

    @pytest.fixture
    def mailbox(db: None) -> Iterator[Mailbox]:
        """Submit and run_until_idle in one object, in a scope of its own; no signal leaves the test.

        It asks for the database; a test that needs real transactions asks for `transactional_db` beside it.
        """
        with isolated() as heard:
            yield Mailbox(scope="test", heard=heard)

    @pytest.fixture
    def registered_agent() -> Iterator[Callable[..., str]]:
        """`registered_agent(function, name="probe", **options)`: an agent until the test ends; returns its name."""
        with contextlib.ExitStack() as stack:
            yield lambda function, **options: stack.enter_context(registered(function, **options))


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


def _described(run: Run) -> str:
    """A run for the message of a failed assertion."""
    facts: dict[str, Any] = {"status": run.status, "agent": run.agent}
    facts |= {"termination": run.termination, "error": run.error, "waiting": run.waiting, "output": run.final_output}
    dispatch = run.dispatches.order_by("-created_at", "-id").first()
    if dispatch is not None:
        facts |= {"dispatch": dispatch.status, "attempts": dispatch.attempt_count, "last_error": dispatch.last_error}
    events = Event.objects.filter(run_id=run.pk).order_by("cursor").values_list("kind", flat=True)
    told = ", ".join(f"{name} {value!r}" for name, value in facts.items() if value not in (None, ""))
    return f"run {run.pk}: {told}; events {', '.join(events)}"


def _run(of: OfRun) -> Run:
    return Run.objects.get(pk=_run_id(of))


def _run_id(of: OfRun) -> uuid.UUID | str:
    match of:
        case Run():
            return of.pk
        case Receipt():
            return of.run_id
        case _:
            return of


def _thread_id(of: OfThread) -> uuid.UUID | str:
    match of:
        case Thread():
            return of.pk
        case Run() | Receipt():
            return of.thread_id
        case _:
            return of
