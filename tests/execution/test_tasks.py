"""The Celery tasks, called in this process: a signal is answered, passed on and coalesced."""

import uuid
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from django.db import OperationalError
from django.db.models.functions import Now

from mailbox_app import catalogue, channel, hints, tasks
from mailbox_app.conf import conf
from mailbox_app.execution import Context, registry
from mailbox_app.models import AgentRegistration, Dispatch, Maintenance, Message, Run, Thread
from mailbox_app.operations import claim, settle
from mailbox_app.signals import gc_done
from tests import given
from tests.execution.conftest import Register
from tests.operations import scene
from tests.races.actors import start, until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def queue(settings: Any) -> Iterator[str]:
    name = f"queue-{uuid.uuid4()}"
    settings.MAILBOX = {**settings.MAILBOX, "default_queue": name}
    channel.forget_failures()
    yield name
    channel.forget_failures()


def waiting(queue: str) -> int:
    return int(redis.Redis.from_url(conf.redis_url).llen(queue))


def answer() -> int:
    """Do what a worker does with one signal; how many runs it executed."""
    return int(tasks.execute.apply().get())


def test_a_signal_runs_all_that_is_due(queue: str) -> None:
    first = scene.post("one")
    scene.post("two", thread_id=first.thread_id)
    scene.post("three")
    assert answer() == 3
    assert set(Run.objects.values_list("status", "final_output")) == {
        ("done", "one"),
        ("done", "two"),
        ("done", "three"),
    }


def test_a_signal_with_nothing_due_does_nothing(queue: str) -> None:
    with scene.nothing_changes():
        assert answer() == 0
    assert waiting(queue) == 0


def test_the_next_signal_is_sent_before_the_run_when_more_is_due(queue: str, register: Register) -> None:
    seen: list[int] = []
    register(lambda ctx: seen.append(waiting(queue)))
    for _ in range(3):
        scene.post(agent="probe")
    assert waiting(queue) == 1, "three threads became due, one signal is on its way"
    redis.Redis.from_url(conf.redis_url).delete(queue)  # it is taken by the worker
    assert answer() == 3
    assert seen == [1, 1, 1], "another slot was woken before the first run, and once"


def test_no_signal_is_passed_on_for_the_last_run(queue: str, register: Register) -> None:
    seen: list[int] = []
    register(lambda ctx: seen.append(waiting(queue)))
    scene.post(agent="probe")
    redis.Redis.from_url(conf.redis_url).delete(queue)
    assert answer() == 1
    assert (seen, waiting(queue)) == ([0], 0)


def test_a_worker_at_the_end_of_its_budget_passes_the_rest_on(queue: str, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "claim_budget_seconds": 0.0}
    thread_id = scene.post("one").thread_id
    scene.post("two", thread_id=thread_id)
    redis.Redis.from_url(conf.redis_url).delete(queue)
    assert answer() == 1
    assert waiting(queue) == 1


def test_a_run_that_has_nothing_to_read_does_not_end_the_worker_s_round(queue: str) -> None:
    empty = scene.post("withdrawn")
    Message.objects.filter(pk__in=empty.message_ids).update(state="retracted", retract_reason="withdrawn")
    scene.post("behind it", thread_id=empty.thread_id)
    assert answer() == 1
    assert set(Run.objects.values_list("status", "final_output")) == {("done", None), ("done", "behind it")}


def test_work_that_arrives_while_a_run_is_executed_is_found_in_the_same_round(queue: str, register: Register) -> None:
    def agent(ctx: Context) -> None:
        if ctx.messages[0].text == "first":
            scene.post("second", agent="probe", thread_id=ctx.thread_id)

    register(agent)
    scene.post("first", agent="probe")
    assert answer() == 2


def test_what_this_worker_cannot_run_is_left_alone(queue: str, register: Register) -> None:
    register(lambda ctx: None)
    posted = scene.post(agent="probe")
    catalogue.remove("probe")
    with scene.nothing_changes():
        assert answer() == 0
    assert scene.flag(posted)[3] == "probe"


def test_a_head_for_another_kind_of_worker_wakes_one(queue: str, register: Register) -> None:
    """The flag changes its agent under a worker that cannot run the new one: its signal must not be lost with that."""
    register(lambda ctx: None)
    posted = scene.post("for echo")
    redis.Redis.from_url(conf.redis_url).delete(queue)
    channel.lower_flag(queue)
    scene.post("for probe", agent="probe", thread_id=posted.thread_id, priority=0)
    assert scene.flag(posted)[3] == "probe"
    assert waiting(queue) == 1


def test_the_sweep_signals_each_thread_that_is_due_up_to_the_slots(queue: str) -> None:
    for _ in range(5):
        scene.post()
    redis.Redis.from_url(conf.redis_url).delete(queue)
    AgentRegistration.objects.create(worker="w@here", agent="echo", version="1", queues=[queue, "other"], slots=3)
    tasks.sweep.apply()
    assert waiting(queue) == 3


def test_each_pass_writes_down_who_ran_it_and_when() -> None:
    for task in (tasks.due_tick, tasks.sweep, tasks.gc):
        task.apply()
    rows = Maintenance.objects.order_by("name")
    assert [row.name for row in rows] == ["due_tick", "gc", "sweep"]
    for row in rows:
        assert row.last_started_at is not None
        assert row.last_finished_at is not None
        assert row.last_started_at <= row.last_finished_at
        assert row.worker


def test_a_pass_goes_on_batch_after_batch_until_nothing_is_left(queue: str, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "batch_size": 2}
    over, lost = [], []
    for claims in (over, lost):
        for _ in range(5):
            scene.post()
            claims.append(scene.taken(queue=queue))
    for one in over:
        settle.complete(one)
        Dispatch.objects.filter(pk=one.dispatch_id).update(completed_at=Now() - timedelta(days=1, minutes=1))
    for one in lost:
        scene.expire_lease(one)
    tasks.gc.apply()
    assert set(Dispatch.objects.values_list("pk", flat=True)) == {one.dispatch_id for one in lost}
    tasks.sweep.apply()
    assert {scene.dispatch(one).status for one in lost} == {"queued"}
    assert [scene.dispatch(one).lost_count for one in lost] == [1] * 5


def test_a_pass_whose_time_is_over_leaves_the_rest_to_the_next(queue: str, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "batch_size": 2, "pass_seconds": 0.05}
    for _ in range(5):
        scene.post()
        scene.expire_lease(scene.taken(queue=queue))
    for left in (3, 1, 0):
        tasks.sweep.apply()
        assert Dispatch.objects.claimed().count() == left
        Maintenance.objects.update(last_started_at=Now() - timedelta(minutes=1))


def test_a_team_cleans_up_after_each_pass_of_gc_and_its_errors_stop_nobody(caplog: pytest.LogCaptureFixture) -> None:
    called = []

    def breaks(**_: Any) -> None:
        raise OSError("a secret path")

    def cleans(**_: Any) -> None:
        called.append(Maintenance.objects.get(name="gc").last_finished_at)

    for receiver in (breaks, cleans):
        gc_done.connect(receiver)
    try:
        tasks.gc.apply()
        tasks.gc.apply()
    finally:
        for receiver in (breaks, cleans):
            gc_done.disconnect(receiver)
    assert len(called) == 1, "a pass so soon after another one does nothing"
    assert called[0] is not None
    [line] = [record.getMessage() for record in caplog.records if "gc.receiver_failed" in record.getMessage()]
    assert "OSError" in line
    assert "secret" not in line


def test_the_tick_promotes_what_is_due_by_now_and_wakes_a_worker(queue: str) -> None:
    scene.post()
    failed = scene.taken(queue=queue)
    settle.nack(failed, code="transient", message="later", retry_after=60)
    redis.Redis.from_url(conf.redis_url).delete(queue)
    channel.lower_flag(queue)
    tasks.due_tick.apply()
    assert scene.flag(failed) == scene.WAKING
    scene.make_available(failed)
    tasks.due_tick.apply()
    assert scene.flag(failed) == scene.WAKING, "a tick so soon after another one does nothing"
    Maintenance.objects.update(last_started_at=Now() - timedelta(seconds=1))
    tasks.due_tick.apply()
    assert (scene.flag(failed)[0], waiting(queue)) == (True, 1)


def test_due_work_that_is_held_is_looked_at_again(queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    posted = scene.post("held")
    looked: list[bool] = []
    due = claim.due

    def watched(**given: Any) -> claim.Claimed:
        found = due(**given)
        looked.append(bool(found.claims))
        return found

    monkeypatch.setattr(claim, "due", watched)
    with Thread.objects.fence(posted.thread_id):
        worker = start(answer)
        until(lambda: looked, "the worker has looked once")
    assert worker.result(20) == 1
    assert (looked[0], True in looked) == (False, True)


def test_signals_carry_nothing(queue: str) -> None:
    hints.wake(queue)
    stored = redis.Redis.from_url(conf.redis_url).lindex(queue, 0)
    assert b'"task": "mailbox.execute"' in stored
    assert b'"argsrepr": "()"' in stored
    assert b'"kwargsrepr": "{}"' in stored


def test_a_worker_that_could_not_write_itself_down_tries_again_with_its_heartbeats(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "registration_seconds": 0.5}
    tries: list[str] = []

    def announce(**given: Any) -> int:
        tries.append(given["worker"])
        if len(tries) == 1:
            raise OperationalError("the database is away")
        return registry.announce(**given)

    monkeypatch.setattr(tasks, "registry", SimpleNamespace(announce=announce))
    monkeypatch.setattr(tasks, "announcement", {"worker": "late@here", "queues": {"fast"}, "slots": 2})
    monkeypatch.setattr(tasks, "_register_at", 0.0)
    tasks._beat()
    assert AgentRegistration.objects.of_worker("late@here").count() == 0
    until(lambda: tasks._beat() or AgentRegistration.objects.of_worker("late@here").live().exists(), "it is written")
    tasks._beat()
    assert tries == ["late@here"] * 2


def test_a_tick_ends_waits_and_a_sweep_delivers(queue: str) -> None:
    scene.post()
    claim = scene.taken(queue=queue)
    settle.suspend(claim, scene.wait())
    Run.objects.update(wait_until=Now() - timedelta(seconds=1))
    there = given.thread()
    row = given.outbox(
        source_thread=scene.thread(claim),
        target_thread_id=there.pk,
        payload={
            "content": "psst",
            "metadata": {},
            "role": "user",
            "sender": "echo",
            "agent": "echo",
            "message_id": "m-1",
            "source_run_id": str(claim.run_id),
        },
    )
    Maintenance.objects.all().delete()
    tasks.due_tick.apply()
    tasks.sweep.apply()
    row.refresh_from_db()
    assert (scene.run(claim).status, row.status) == ("done", "delivered")
