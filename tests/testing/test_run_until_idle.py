"""`run_until_idle`: what it executes, what it leaves, and what it says when it cannot finish."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase, override_settings

from mailbox_app import catalogue, testing
from mailbox_app.conf import conf
from mailbox_app.errors import Permanent, Transient
from mailbox_app.execution import Context
from mailbox_app.models import Event, Run
from mailbox_app.operations import limits, resume, submit
from mailbox_app.testing import Mailbox, executing
from tests import given
from tests.operations import scene
from tests.races.actors import until

Registered = Callable[..., str]

pytestmark = pytest.mark.django_db


def fails_until(attempt: int, error: Exception) -> Callable[[Context], str]:
    def agent(ctx: Context) -> str:
        if ctx.attempt < attempt:
            raise error
        return f"done at attempt {ctx.attempt}"

    return agent


def test_everything_that_is_due_is_executed_in_order(mailbox: Mailbox, registered_agent: Registered) -> None:
    said: list[str] = []
    registered_agent(lambda ctx: said.append(ctx.messages[-1].text))
    for number in range(3):
        mailbox.submit(f"message {number}", agent="probe", thread_key="one")
    assert mailbox.run_until_idle() == 3
    assert said == ["message 0", "message 1", "message 2"]
    assert mailbox.run_until_idle() == 0


def test_work_that_a_run_submits_is_executed_too(mailbox: Mailbox, registered_agent: Registered) -> None:
    def agent(ctx: Context) -> None:
        left = int(ctx.messages[-1].text)
        if left:
            ctx.step("submit", lambda: str(mailbox.submit(str(left - 1), agent="probe").pk))

    registered_agent(agent)
    mailbox.submit("4", agent="probe")
    assert mailbox.run_until_idle() == 5


def test_what_a_run_sends_arrives_and_is_answered(mailbox: Mailbox, registered_agent: Registered) -> None:
    said: list[str] = []
    registered_agent(lambda ctx: said.append(ctx.messages[-1].text), name="there")
    registered_agent(lambda ctx: ctx.send("psst", thread_key="there", agent="there") and None)
    mailbox.submit("hello", agent="probe")
    assert mailbox.run_until_idle() == 2
    assert said == ["psst"]


def test_a_run_that_waits_goes_on_when_it_is_resumed(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: ctx.suspend("external_event", name="payment"))
    run = mailbox.submit("hello", agent="probe")
    assert mailbox.run_until_idle() == 1
    resume.run(scope=run.scope, run_id=run.pk, name="payment", payload="paid")
    assert mailbox.run_until_idle() == 1
    run.refresh_from_db()
    assert run.final_output == "paid"


def test_agents_of_other_queues_are_served(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: "slow", name="slow", queue="slow.queue")
    run = mailbox.submit("go", agent="slow")
    mailbox.run_until_idle()
    testing.assert_run_finished(run, "slow")


def test_a_backoff_is_not_waited_for(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(fails_until(3, Transient("later", retry_after=3_600)))
    run = mailbox.submit("go", agent="probe")
    assert mailbox.run_until_idle() == 3
    testing.assert_run_finished(run, output="done at attempt 3")


def test_without_retries_the_next_attempt_stays_queued(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(fails_until(2, Transient("later", retry_after=3_600)))
    run = mailbox.submit("go", agent="probe")
    assert mailbox.run_until_idle(retries=False) == 1
    with pytest.raises(AssertionError, match=r"status 'running'.*attempts 1, last_error 'transient: Transient: later'"):
        testing.assert_run_finished(run)
    assert mailbox.run_until_idle() == 1


def test_a_backoff_that_runs_out_between_two_looks_is_not_left(
    mailbox: Mailbox, registered_agent: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered_agent(fails_until(2, Transient("later", retry_after=3_600)))
    posted = submit.run(scope="test", agent="probe", messages=["go"])
    looked = executing._go_on

    def slowly() -> int:
        found = looked()
        if scene.dispatch(posted).attempt_count == 1:
            scene.make_available(posted)
        return found

    monkeypatch.setattr(executing, "_go_on", slowly)
    assert mailbox.run_until_idle() == 2
    testing.assert_run_finished(posted)


def test_work_whose_time_has_come_needs_no_beat(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: "done")
    at = scene.database_now() + timedelta(hours=1)
    receipt = submit.run(scope="test", agent="probe", messages=["go"], available_at=at)
    assert mailbox.run_until_idle() == 0
    scene.make_available(receipt)
    assert mailbox.run_until_idle() == 1
    testing.assert_run_finished(receipt)


def test_scheduled_work_waits_unless_it_lies_within_ahead(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: "done")
    at = scene.database_now() + timedelta(hours=2)
    run = mailbox.submit("go", agent="probe", available_at=at)
    assert mailbox.run_until_idle() == 0
    assert mailbox.run_until_idle(ahead=timedelta(hours=1)) == 0
    assert mailbox.run_until_idle(ahead=timedelta(hours=3)) == 1
    testing.assert_run_finished(run, "done")


def test_what_scheduled_work_schedules_in_its_turn_waits(mailbox: Mailbox, registered_agent: Registered) -> None:
    def agent(ctx: Context) -> None:
        at = scene.database_now() + timedelta(minutes=1)
        ctx.step("again", lambda: str(mailbox.submit("go", agent="probe", available_at=at).pk))

    registered_agent(agent)
    mailbox.submit("go", agent="probe")
    assert mailbox.run_until_idle(ahead=timedelta(hours=1)) == 1
    assert mailbox.run_until_idle(ahead=timedelta(hours=1)) == 1


def test_a_loop_without_end_is_stopped_and_told(mailbox: Mailbox, registered_agent: Registered) -> None:
    def agent(ctx: Context) -> None:
        ctx.step("again", lambda: str(mailbox.submit("go", agent="probe").pk))

    registered_agent(agent)
    mailbox.submit("go", agent="probe")
    with pytest.raises(testing.StillBusy) as caught:
        mailbox.run_until_idle(most=7)
    last = Run.objects.latest("created_at", "id")
    assert str(caught.value) == (f"still busy after 7 activations:\n  run {last.pk} of agent 'probe': due")
    assert Run.objects.done().count() == 7


def test_a_loop_of_failures_says_how_often_and_why(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(fails_until(99, Transient("still closed", retry_after=0)), max_attempts=50)
    run = mailbox.submit("go", agent="probe")
    with pytest.raises(testing.StillBusy) as caught:
        mailbox.run_until_idle(most=3)
    why = "due; it failed 3 times, at last with transient: Transient: still closed"
    assert str(caught.value).endswith(f"run {run.pk} of agent 'probe': {why}")


def test_as_many_activations_as_the_bound_are_no_error(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: None)
    for _ in range(3):
        mailbox.submit("go", agent="probe")
    assert mailbox.run_until_idle(most=3) == 3


def test_due_work_that_no_agent_here_can_run_is_told(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: None)
    run = mailbox.submit("go", agent="probe")
    spec = catalogue.find("probe")
    assert spec is not None
    catalogue.remove("probe")
    known = ", ".join(catalogue.names())
    with pytest.raises(testing.StillBusy, match="due work is left that cannot be run here") as caught:
        mailbox.run_until_idle()
    assert f"run {run.pk} of agent 'probe'" in str(caught.value)
    assert str(caught.value).endswith(f"no such agent here; this process has {known}")


def test_due_work_that_a_limit_keeps_is_told(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: None)
    limits.put(kind="agent", name="probe", most=3, starts=1, seconds=60)
    mailbox.submit("go", agent="probe")
    kept = mailbox.submit("go", agent="probe")
    with pytest.raises(testing.StillBusy) as caught:
        mailbox.run_until_idle()
    why = "kept by the limit of agent probe: 3 at once, 1 starts in 60 s"
    assert str(caught.value).endswith(f"run {kept.pk} of agent 'probe': {why}")


def test_limits_of_runs_at_once_keep_nothing_from_being_idle(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: "done")
    limits.put(kind="agent", name="probe", most=1)
    limits.put(kind="scope", name=mailbox.scope, most=1)
    runs = [mailbox.submit("go", agent="probe") for _ in range(3)]
    assert mailbox.run_until_idle() == 3
    for run in runs:
        testing.assert_run_finished(run, output="done")


def test_with_agents_named_the_work_of_others_is_left_alone(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: "mine", name="mine")
    registered_agent(lambda ctx: "yours", name="yours")
    mine, yours = mailbox.submit("go", agent="mine"), mailbox.submit("go", agent="yours")
    assert mailbox.run_until_idle(agents=["mine"]) == 1
    testing.assert_run_finished(mine)
    yours.refresh_from_db()
    assert yours.status == "created"


def test_what_stands_behind_a_waiting_run_is_idle(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: None)
    waiting = given.run(status="waiting", agent="probe")
    waiting.thread.open_run_id = waiting.pk
    waiting.thread.save()
    behind = mailbox.submit("go", agent="probe", scope="acme", thread_id=waiting.thread_id)
    assert mailbox.run_until_idle() == 0
    with pytest.raises(AssertionError, match="status 'created'"):
        testing.assert_run_finished(behind)


def test_an_agent_s_exception_ends_its_run_and_not_the_test(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: {}["missing"], max_attempts=3)
    run = mailbox.submit("go", agent="probe")
    assert mailbox.run_until_idle() == 3
    assert testing.assert_dead_letter(run, code="KeyError").last_error == "KeyError: KeyError: 'missing'"


def test_a_stand_in_takes_the_place_of_an_agent_and_gives_it_back() -> None:
    before = catalogue.find("echo")
    with testing.registered(lambda ctx: "stand-in", name="echo") as name:
        run = submit.run(scope="test", agent=name, messages=["go"])
        testing.run_until_idle()
    testing.assert_run_finished(run, output="stand-in")
    assert before is not None
    assert catalogue.find("echo") is before


def test_a_stand_in_that_cannot_be_registered_takes_no_place() -> None:
    before = catalogue.find("echo")
    with pytest.raises(ValueError, match="priority"), testing.registered(lambda ctx: None, name="echo", priority=999):
        pass
    assert before is not None
    assert catalogue.find("echo") is before


@pytest.mark.django_db(transaction=True)
def test_a_thread_held_by_another_connection_is_waited_for(mailbox: Mailbox, registered_agent: Registered) -> None:
    registered_agent(lambda ctx: "done")
    run = mailbox.submit("go", agent="probe")
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM mailbox_thread WHERE id = %s FOR UPDATE", [run.thread_id])
                is_held.set()
                may_end.wait(30)
        finally:
            connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    assert is_held.wait(30)
    started = time.monotonic()
    threading.Timer(0.3, may_end.set).start()
    assert mailbox.run_until_idle() == 1
    assert time.monotonic() - started >= 0.25
    holder.join()
    testing.assert_run_finished(run)


@pytest.mark.django_db(transaction=True)
def test_a_time_limit_ends_a_run_where_transactions_are_real(mailbox: Mailbox, registered_agent: Registered) -> None:
    def agent(ctx: Context) -> None:
        while True:
            ctx.checkpoint()

    registered_agent(agent, timeout_seconds=0.2, max_attempts=1)
    run = mailbox.submit("go", agent="probe")
    mailbox.run_until_idle()
    testing.assert_dead_letter(run, code="timed_out")


def _sessions() -> set[int]:
    """The server processes that serve this database."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
        )
        return {pid for (pid,) in cursor.fetchall()}


@pytest.mark.django_db(transaction=True)
def test_what_recorded_a_running_agent_s_events_lets_go_of_the_database(
    mailbox: Mailbox, registered_agent: Registered
) -> None:
    """A test runner drops it next, or empties its tables."""

    def silent(ctx: Context) -> int:
        ctx.emit("Seen")
        until(Event.objects.filter(run_id=ctx.run_id, kind="Seen").exists, "the event")
        return len(_sessions() - before)

    registered_agent(silent, max_attempts=1)
    run = mailbox.submit("go", agent="probe")
    before = _sessions()
    mailbox.run_until_idle()
    testing.assert_run_finished(run, output=1)
    until(lambda: _sessions() <= before, "the recorder's end", seconds=4.0)


class InsideATestCase(TestCase):
    """Rows that are never committed."""

    def test_a_run_is_finished(self) -> None:
        run = submit.run(scope="test", agent="echo", messages=["say this back"])
        assert connection.in_atomic_block
        assert testing.run_until_idle() == 1
        testing.assert_run_finished(run, output="say this back")
        testing.assert_said(run, ["say this back"])

    def test_every_verb_of_an_agent_works(self) -> None:
        def agent(ctx: Context) -> str:
            found = ctx.step("look-up", lambda: 7)
            ctx.emit("Found", {"number": found})
            ctx.say("one moment")
            assert ctx.checkpoint() == []
            assert ctx.history() == []
            return f"it is {found}"

        with testing.registered(agent):
            run = submit.run(scope="test", agent="probe", messages=["go"])
            testing.run_until_idle()
        testing.assert_events(run, ["Found"], own_only=True)
        testing.assert_said(run, ["one moment", "it is 7"])

    def test_a_run_that_outlasts_its_lease_is_not_lost(self) -> None:
        """Another connection, as a renewal's would be, does not see the claim."""

        def agent(ctx: Context) -> str:
            until = time.monotonic() + 3 * conf.lease_seconds
            while time.monotonic() < until:
                ctx.checkpoint()
            return "done"

        short = {**settings.MAILBOX, "lease_seconds": 0.5}
        with override_settings(MAILBOX=short), testing.registered(agent):
            run = submit.run(scope="test", agent="probe", messages=["go"])
            testing.run_until_idle()
        testing.assert_run_finished(run)

    def test_a_run_past_its_time_limit_is_stopped_and_told(self) -> None:
        def agent(ctx: Context) -> None:
            while True:
                ctx.checkpoint()

        with testing.registered(agent, timeout_seconds=0.2):
            run = submit.run(scope="test", agent="probe", messages=["go"])
            with pytest.raises(testing.StillBusy, match=f"run {run.run_id} of agent 'probe' ran past its time limit"):
                testing.run_until_idle()


class OutsideATransaction(TransactionTestCase):
    """Rows that are committed."""

    @testing.isolated()
    def test_a_dead_letter_is_found(self) -> None:
        def agent(ctx: Context) -> Any:
            raise Permanent("no such order")

        with testing.registered(agent):
            run = submit.run(scope="test", agent="probe", messages=["go"])
            assert not connection.in_atomic_block
            testing.run_until_idle()
        testing.assert_dead_letter(run, code="permanent")
