"""tick: scheduled and backed-off work becomes due when its time has come, not before, unless it is made to."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.errors import NotScheduled, RunNotFound
from mailbox_app.models import Dispatch, Thread
from mailbox_app.operations import settle, tick
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db


def hours(number: float) -> Any:
    return scene.database_now() + timedelta(hours=number)


def test_work_for_later_is_left_alone() -> None:
    scene.post(available_at=hours(1))
    with scene.nothing_changes():
        assert tick.promote() == 0


def test_work_whose_time_has_come_becomes_due_once() -> None:
    posted = scene.post(available_at=hours(1))
    Dispatch.objects.update(available_at=Now() - timedelta(seconds=1))
    Thread.objects.update(wakes_at=Now() - timedelta(seconds=1))
    assert tick.promote() == 1
    assert scene.flag(posted) == scene.DUE
    with scene.nothing_changes():
        assert tick.promote() == 0


def test_a_thread_that_wakes_too_early_is_put_back_to_sleep() -> None:
    posted = scene.post(available_at=hours(1))
    Thread.objects.update(wakes_at=Now() - timedelta(seconds=1))
    assert tick.promote() == 1
    assert scene.flag(posted) == scene.WAKING
    assert scene.thread(posted).wakes_at == scene.dispatch(posted).available_at


def test_the_soonest_of_a_thread_s_scheduled_runs_wakes_it() -> None:
    later = scene.post(available_at=hours(3), priority=0)
    sooner = scene.post(available_at=hours(2), thread_id=later.thread_id)
    assert scene.thread(later).wakes_at == scene.dispatch(sooner).available_at


def test_a_pass_is_bounded_and_takes_the_soonest_first(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "batch_size": 2}
    posted = [scene.post(available_at=hours(1)) for _ in range(3)]
    Dispatch.objects.update(available_at=Now() - timedelta(minutes=9))
    for age, one in zip((1, 3, 2), posted, strict=True):
        Thread.objects.filter(pk=one.thread_id).update(wakes_at=Now() - timedelta(minutes=age))
    assert tick.promote() == 2
    assert [scene.flag(one) == scene.DUE for one in posted] == [False, True, True]
    assert (tick.promote(), tick.promote()) == (1, 0)


def test_a_backoff_that_is_over_is_promoted() -> None:
    claim = scene.posted_and_taken()
    settle.nack(claim, code="transient", message="later", retry_after=60)
    assert tick.promote() == 0
    scene.make_available(claim)
    assert tick.promote() == 1
    assert scene.taken().attempt == 2


def run_now(of: Any, **given: Any) -> tick.MadeDue:
    return tick.run_now(**{"run_id": of.run_id, "by": "ann", **given})


def test_a_scheduled_run_can_be_made_to_start_now() -> None:
    posted = scene.post(available_at=scene.database_now() + timedelta(hours=1))
    assert scene.flag(posted) == scene.WAKING
    made = run_now(posted)
    assert (made.dispatch_id, made.changed) == (posted.dispatch_id, True)
    assert scene.flag(posted) == scene.DUE
    assert scene.kinds(posted)[-2:] == ["RunRescheduled", "RunMadeDue"]
    assert (scene.last_event(posted).visibility, scene.last_event(posted).payload["by"]) == ("internal", "ann")
    assert scene.taken().run_id == posted.run_id


def test_a_run_that_backs_off_can_be_made_to_start_now_and_keeps_its_attempts() -> None:
    claim = scene.posted_and_taken()
    settle.nack(claim, code="transient", message="no", retry_after=3600)
    assert run_now(claim, scope=scene.SCOPE).changed
    assert scene.taken().attempt == 2


def test_a_run_that_could_start_already_is_left_alone() -> None:
    posted = scene.post()
    with scene.nothing_changes():
        assert run_now(posted).changed is False


def test_a_run_with_nothing_queued_cannot_be_made_due() -> None:
    claim = scene.posted_and_taken()
    with scene.nothing_changes(), pytest.raises(NotScheduled) as refused:
        run_now(claim)
    assert refused.value.facts["run_status"] == "running"
    settle.complete(claim)
    with scene.nothing_changes():
        with pytest.raises(NotScheduled):
            run_now(claim)
        with pytest.raises(RunNotFound):
            run_now(claim, scope="other")
        with pytest.raises(RunNotFound):
            run_now(claim, run_id=uuid.uuid4())


def test_what_comes_due_in_front_of_work_nobody_can_run_is_found() -> None:
    first = scene.post(available_at=scene.database_now() + timedelta(hours=1), priority=1)
    given.registration(agent="gone")
    scene.post(thread_id=first.thread_id, agent="gone")
    assert (scene.take(), tick.promote()) == (None, 0)
    scene.make_available(first)
    assert tick.promote() == 1
    assert scene.taken().run_id == first.run_id


def test_more_urgent_work_of_a_due_thread_is_ranked_by_its_own_priority_once_its_time_has_come() -> None:
    urgent = scene.post(available_at=scene.database_now() + timedelta(hours=1), priority=1)
    scene.post(thread_id=urgent.thread_id, priority=200)
    other = scene.post(priority=100)
    scene.make_available(urgent)
    assert tick.promote() == 1
    assert [scene.taken().run_id, scene.taken().run_id] == [urgent.run_id, other.run_id]


def test_a_thread_wakes_for_the_first_of_what_is_scheduled_though_it_is_due() -> None:
    now = scene.database_now()
    due = scene.post()
    for hours in (2, 1, 3):
        scene.post(thread_id=due.thread_id, available_at=now + timedelta(hours=hours))
        assert scene.flag(due) == scene.DUE_AND_WAKING
    assert scene.thread(due).wakes_at == now + timedelta(hours=1)
    settle.complete(scene.taken())
    assert scene.flag(due) == scene.WAKING
    assert scene.thread(due).wakes_at == now + timedelta(hours=1)
