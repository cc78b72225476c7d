"""The sweep: one bad lease or one bad batch keeps nothing else from being recovered, and passes do not pile up."""

import logging
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from django.db import OperationalError
from django.db.models.functions import Now
from django.utils import timezone

from mailbox_app import channel, tasks
from mailbox_app.conf import conf
from mailbox_app.models import Maintenance, Thread
from mailbox_app.operations import recover
from tests.operations import scene
from tests.races.actors import crew

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def queue(settings: Any) -> Iterator[str]:
    name = f"queue-{uuid.uuid4()}"
    settings.MAILBOX = {**settings.MAILBOX, "default_queue": name}
    channel.forget_failures()
    yield name
    channel.forget_failures()


def waiting(queue: str) -> int:
    return int(redis.Redis.from_url(conf.redis_url).llen(queue))


def test_a_lease_that_cannot_be_taken_back_keeps_no_other_repair_or_signal_waiting(
    queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    for text in ("one", "two"):
        scene.post(text)
    broken, lost = scene.taken(queue=queue), scene.taken(queue=queue)
    scene.expire_lease(broken, by=timedelta(minutes=1))
    scene.expire_lease(lost)
    # A restored table: the next event would have the number of one that exists.
    Thread.objects.filter(pk=broken.thread_id).update(last_cursor=1)
    forgotten = scene.post("three")
    flag = {"due_at": None, "due_priority": None, "due_queue": None, "due_agent": None, "due_version": None}
    Thread.objects.filter(pk=forgotten.thread_id).update(**flag)
    redis.Redis.from_url(conf.redis_url).delete(queue)
    with caplog.at_level(logging.ERROR, "mailbox"):
        tasks.sweep()
    assert (scene.dispatch(broken).status, scene.dispatch(lost).status) == ("claimed", "queued")
    assert scene.flag(forgotten)[0], "repaired"
    assert waiting(queue) == 1, "one worker is woken: nothing is known of more"
    told = [record.mailbox for record in caplog.records if record.message.startswith("reclaim.failed ")]
    assert {(facts["thread_id"], facts["error"]) for facts in told} == {(broken.thread_id, "IntegrityError")}


def test_a_batch_that_fails_keeps_the_rest_of_its_pass_going(
    queue: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def reclaim() -> int:
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(recover, "reclaim", reclaim)
    scene.post()
    redis.Redis.from_url(conf.redis_url).delete(queue)
    with caplog.at_level(logging.ERROR, "mailbox"):
        tasks.sweep()
    assert waiting(queue) == 1
    assert Maintenance.objects.get(name="sweep").last_finished_at is not None
    assert [record.mailbox["batch"] for record in caplog.records if "sweep.failed" in record.message] == ["reclaim"]


def test_a_pass_begins_at_most_once_an_interval_by_the_database_s_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Maintenance.objects.begin
    assert begin("sweep", at_most_every=5)
    tomorrow = timezone.now() + timedelta(days=1)
    monkeypatch.setattr(timezone, "now", lambda: tomorrow)
    started = Maintenance.objects.get(name="sweep").last_started_at
    assert not begin("sweep", at_most_every=5)
    assert Maintenance.objects.get(name="sweep").last_started_at == started
    assert begin("gc", at_most_every=5), "another pass is another matter"
    Maintenance.objects.filter(name="sweep").update(last_started_at=Now() - timedelta(seconds=5))
    assert begin("sweep", at_most_every=5)
    assert started is not None
    assert started <= Maintenance.objects.get(name="sweep").last_started_at <= scene.database_now()


def test_of_several_passes_that_come_at_once_one_begins() -> None:
    with crew(6) as together:
        for _ in range(3):
            assert sorted(together(*[lambda: Maintenance.objects.begin("sweep", at_most_every=5)] * 6)) == [
                False
            ] * 5 + [True]
            Maintenance.objects.update(last_started_at=Now() - timedelta(seconds=6))


def test_the_end_of_a_pass_says_who_ran_it_and_lets_the_next_wait_its_turn() -> None:
    Maintenance.objects.begin("sweep", at_most_every=5)
    Maintenance.objects.finish("sweep", worker="host:1")
    row = Maintenance.objects.get()
    assert (row.name, row.worker) == ("sweep", "host:1")
    assert row.last_started_at is not None
    assert row.last_finished_at is not None
    assert row.last_started_at <= row.last_finished_at
    assert not Maintenance.objects.begin("sweep", at_most_every=5)


def test_a_sweep_that_comes_too_early_does_nothing(queue: str) -> None:
    tasks.sweep()
    scene.post()
    one = scene.taken(queue=queue)
    scene.expire_lease(one)
    with scene.nothing_changes():
        tasks.sweep()
