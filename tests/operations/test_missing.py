"""missing: work no live worker can run is stamped, cleared when one can, and at last ended; in bounded looks."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.models import AgentRegistration, Dispatch
from mailbox_app.operations import missing, settle, submit
from mailbox_app.operations.settle import hand_back
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh_places() -> Iterator[None]:
    missing._places.clear()
    missing._stamped_after.clear()
    yield
    missing._places.clear()
    missing._stamped_after.clear()


def stamped() -> int:
    return Dispatch.objects.filter(unrunnable_since__isnull=False).count()


def age_stamps(**by: float) -> None:
    Dispatch.objects.filter(unrunnable_since__isnull=False).update(unrunnable_since=Now() - timedelta(**by))


def test_work_of_an_agent_without_a_live_worker_is_stamped_once() -> None:
    posted = scene.post()
    before = scene.database_now()
    assert missing.note() == 1
    since = scene.dispatch(posted).unrunnable_since
    assert since is not None
    assert before <= since <= scene.database_now()
    with scene.nothing_changes():
        assert (missing.note(), missing.expire()) == (0, 0)


ALIVE: dict[str, dict[str, Any]] = {"seen now": {}, "seen lately": {"seen_at": Now() - timedelta(seconds=85)}}
GONE: dict[str, dict[str, Any]] = {
    "not seen for long": {"seen_at": Now() - timedelta(seconds=95)},
    "said so": {"gone_at": Now()},
    "another queue": {"queues": ["mailbox.other"]},
    "another agent": {"agent": "analyst"},
}


@pytest.mark.parametrize("fields", ALIVE.values(), ids=ALIVE.keys())
def test_work_of_a_live_worker_is_not(fields: dict[str, Any]) -> None:
    scene.post()
    given.registration(**fields)
    with scene.nothing_changes():
        assert missing.note() == 0


@pytest.mark.parametrize("fields", GONE.values(), ids=GONE.keys())
def test_a_worker_that_is_gone_or_serves_something_else_is_none(fields: dict[str, Any]) -> None:
    scene.post()
    given.registration(**fields)
    assert missing.note() == 1


def test_only_due_unstarted_work_is_stamped() -> None:
    scene.post("later", available_at=scene.database_now() + timedelta(hours=1))
    begun = scene.posted_and_taken("begun")
    behind = scene.post("behind it", thread_id=begun.thread_id)
    claimed = scene.posted_and_taken("claimed")
    hand_back(tokens=[begun.token])
    assert (scene.dispatch(begun).status, scene.dispatch(claimed).status) == ("queued", "claimed")
    with scene.nothing_changes():
        assert missing.note() == 0
    assert scene.dispatch(behind).unrunnable_since is None


def test_a_claim_clears_the_stamp() -> None:
    posted = scene.post()
    missing.note()
    scene.taken()
    assert scene.dispatch(posted).unrunnable_since is None


def test_the_stamp_is_cleared_when_a_worker_comes_back() -> None:
    scene.post()
    scene.post(agent="analyst")
    assert missing.note() == 2
    worker = given.registration()
    assert (missing.note(), stamped()) == (1, 1)
    AgentRegistration.objects.filter(pk=worker.pk).update(gone_at=Now())
    assert (missing.note(), stamped()) == (1, 2)


def test_work_that_nobody_could_run_for_too_long_is_a_dead_letter_that_kept_its_input() -> None:
    posted = scene.post("still here?")
    behind = scene.post("and here?", thread_id=posted.thread_id)
    missing.note()
    age_stamps(hours=23, minutes=59)
    with scene.nothing_changes():
        assert missing.expire() == 0
    age_stamps(hours=24, seconds=1)
    assert missing.expire() == 2

    dispatch, run = scene.dispatch(posted), scene.run(posted)
    assert (dispatch.status, dispatch.run_status, run.status) == ("dead_letter", "done", "done")
    assert dispatch.completed_at is not None
    assert run.started_at is None
    assert run.error == dispatch.error
    assert run.error is not None
    assert run.error["code"] == "agent_missing"
    assert run.error["message"].startswith("no live worker has run agent 'echo' on queue 'mailbox.default' since 20")
    assert run.termination == {"type": "error", "detail": "agent_missing"}
    assert dispatch.attempt_count == 0
    assert scene.log(posted) == [(1, "user", "still here?"), (2, "user", "and here?")]
    assert scene.dispatch(behind).status == "dead_letter"
    assert scene.kinds(posted)[-2:] == ["RunErrored", "RunErrored"]
    assert scene.flag(posted) == scene.IDLE
    assert Dispatch.objects.dead_letters().count() == 2


def test_all_it_was_to_read_is_kept_whatever_would_have_been_read_apart() -> None:
    delivery = {"granularity": "one"}
    posted = submit.run(scope=scene.SCOPE, messages=["one", "two"], agent="echo", delivery=delivery)
    barrier = submit.run(scope=scene.SCOPE, messages=["stop"], agent="echo", delivery={"barrier": True})
    missing.note()
    age_stamps(hours=25)
    assert missing.expire() == 2
    assert [scene.log(one) for one in (posted, barrier)] == [
        [(1, "user", "one"), (2, "user", "two")], [(1, "user", "stop")],
    ]  # fmt: skip


def test_what_is_served_again_when_its_time_is_over_is_not_ended() -> None:
    posted = scene.post()
    missing.note()
    age_stamps(hours=25)
    given.registration()
    assert missing.expire() == 0
    assert (scene.dispatch(posted).status, scene.dispatch(posted).unrunnable_since) == ("queued", None)


def test_an_open_run_waits_for_its_worker_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    begun = scene.posted_and_taken()
    settle.nack(begun, code="transient", message="later", retry_after=0)
    scene.make_available(begun)
    Dispatch.objects.filter(pk=begun.dispatch_id).update(unrunnable_since=Now() - timedelta(days=30))
    assert missing.expire() == 0
    assert (scene.dispatch(begun).status, scene.run(begun).status) == ("queued", "running")
    assert "expire.failed" not in caplog.text


def test_an_ending_is_bounded_and_begins_with_the_oldest(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "batch_size": 2}
    posted = [scene.post() for _ in range(3)]
    missing.note()
    for days, one in zip((2, 4, 3), posted, strict=True):
        Dispatch.objects.filter(pk=one.dispatch_id).update(unrunnable_since=Now() - timedelta(days=days))
    assert missing.expire() == 2
    assert [scene.dispatch(one).status for one in posted] == ["queued", "dead_letter", "dead_letter"]
    assert (missing.expire(), missing.expire()) == (1, 0)


def test_looks_go_on_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing, "_WINDOW", 2)
    for _ in range(5):
        scene.post()
    assert [missing.note() for _ in range(4)] == [2, 2, 1, 0]
    assert stamped() == 5
    late = scene.post()
    for _ in range(4):
        missing.note()
    assert scene.dispatch(late).unrunnable_since is not None
    given.registration()
    assert sum(missing.note() for _ in range(6)) == 6
    assert stamped() == 0
