"""recover: what the sweep takes back, mends and signals."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now

from mailbox_app import channel, hints
from mailbox_app.models import Dispatch, Thread
from mailbox_app.operations import recover, settle
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db


def test_an_expired_lease_is_taken_back_without_costing_an_attempt() -> None:
    claim = scene.posted_and_taken()
    scene.expire_lease(claim)
    before = scene.database_now()
    assert recover.reclaim() == 1

    dispatch, run, thread = scene.dispatch(claim), scene.run(claim), scene.thread(claim)
    assert (dispatch.status, dispatch.claim_token, dispatch.claimed_by) == ("queued", None, "")
    assert dispatch.lease_until is None
    assert (dispatch.attempt_count, dispatch.lost_count, dispatch.instance_id) == (0, 1, None)
    assert dispatch.last_error.startswith("the lease of worker@here:1 ran out at ")
    assert before <= dispatch.available_at <= scene.database_now()
    assert (run.status, run.finished_at, run.error) == ("running", None, None)
    assert (thread.active_run_id, thread.open_run_id) == (None, run.pk)
    assert scene.flag(claim) == scene.DUE
    assert scene.last_event(claim).kind == "RunRescheduled"
    payload = scene.last_event(claim).payload
    assert (payload["reason"], payload["lost_count"]) == ("expired_lease_reclaimed", 1)
    with scene.nothing_changes():
        assert recover.reclaim() == 0


def test_a_lease_is_over_strictly_after_its_end() -> None:
    scene.posted_and_taken()
    # A statement's clock cannot be set to the end of a lease, so the lease takes the clock's place in its condition.
    where = str(Dispatch.objects.expired().values("id").query).split(" WHERE ")[1].replace("= claimed", "= 'claimed'")
    at_its_end = where.replace("STATEMENT_TIMESTAMP()", '"mailbox_dispatch"."lease_until"')
    assert at_its_end != where
    with connection.cursor() as cursor:
        for condition, found in ((at_its_end, 0), (at_its_end[:-1] + " + interval '1 microsecond')", 1)):
            cursor.execute(f"SELECT count(*) FROM mailbox_dispatch WHERE {condition}")
            assert cursor.fetchone() == (found,)
    with scene.nothing_changes():
        assert recover.reclaim() == 0


def test_a_dispatch_that_costs_max_lost_workers_their_lease_is_buried() -> None:
    claim = scene.posted_and_taken()
    for lost in range(1, 5):
        scene.expire_lease(claim)
        recover.reclaim()
        assert (scene.dispatch(claim).status, scene.dispatch(claim).lost_count) == ("queued", lost)
        claim = scene.taken()
        assert claim.attempt == lost + 1
    scene.expire_lease(claim)
    assert recover.reclaim() == 1
    dispatch, run = scene.dispatch(claim), scene.run(claim)
    assert (dispatch.status, dispatch.lost_count, dispatch.attempt_count) == ("dead_letter", 5, 0)
    assert run.error is not None
    assert (run.status, run.error["code"]) == ("done", "lost")
    assert run.error["message"].endswith("; lost 5 times")
    assert run.termination == {"type": "error", "detail": "lost"}
    assert scene.last_event(claim).kind == "RunErrored"


QUARANTINE = "mailbox.quarantine"


def lost_twice() -> Dispatch:
    """A dispatch that has cost two workers their lease, as the sweep left it."""
    claim = scene.posted_and_taken()
    for number in range(2):
        claim = claim if number == 0 else scene.taken()
        scene.expire_lease(claim)
        assert scene.dispatch(claim).queue == "mailbox.default", "one lost lease is bad luck"
        assert recover.reclaim() == 1
    return scene.dispatch(claim)


def test_after_two_lost_leases_a_dispatch_goes_on_in_quarantine() -> None:
    given.registration(worker="apart@here", queues=[QUARANTINE])
    dispatch = lost_twice()
    assert (dispatch.status, dispatch.queue, dispatch.lost_count) == ("queued", QUARANTINE, 2)
    assert scene.thread(dispatch).due_queue == QUARANTINE
    assert scene.take() is None, "nobody else takes it"
    claim = scene.taken(queue=QUARANTINE)
    scene.expire_lease(claim)
    recover.reclaim()
    assert scene.dispatch(claim).queue == QUARANTINE, "there it stays"
    settle.complete(scene.taken(queue=QUARANTINE))
    assert scene.run(claim).status == "done"


NO_QUARANTINE: dict[str, dict[str, Any]] = {
    "serves another queue": {"queues": ["mailbox.default"]},
    "has another agent": {"queues": [QUARANTINE], "agent": "other"},
    "is gone": {"queues": [QUARANTINE], "gone_at": Now()},
}


@pytest.mark.parametrize("fields", NO_QUARANTINE.values(), ids=NO_QUARANTINE.keys())
def test_without_a_worker_for_it_there_nothing_is_put_in_quarantine(fields: dict[str, Any]) -> None:
    given.registration(worker="apart@here", **fields)
    assert lost_twice().queue == "mailbox.default"


def test_an_empty_name_means_no_quarantine(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "quarantine_queue": ""}
    given.registration(worker="apart@here", queues=[QUARANTINE, ""])
    assert lost_twice().queue == "mailbox.default"


def test_a_lost_run_that_was_asked_to_stop_is_cancelled_and_its_lost_lease_is_counted() -> None:
    claim = scene.posted_and_taken()
    scene.ask_to_cancel(claim)
    scene.expire_lease(claim)
    assert recover.reclaim() == 1
    dispatch = scene.dispatch(claim)
    assert (dispatch.status, scene.run(claim).termination) == ("cancelled", {"type": "cancelled"})
    assert (dispatch.lost_count, dispatch.attempt_count) == (1, 0)


def test_a_sweep_is_bounded_and_begins_with_the_oldest(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "batch_size": 2}
    claims = [scene.posted_and_taken() for _ in range(3)]
    for age, claim in zip((1, 3, 2), claims, strict=True):
        scene.expire_lease(claim, by=timedelta(seconds=age))
    assert recover.reclaim() == 2
    assert [scene.dispatch(claim).status for claim in claims] == ["claimed", "queued", "queued"]
    assert (recover.reclaim(), recover.reclaim()) == (1, 0)


def test_the_run_behind_a_buried_one_becomes_due() -> None:
    claim = scene.posted_and_taken()
    behind = scene.post(thread_id=claim.thread_id)
    Dispatch.objects.filter(pk=claim.dispatch_id).update(lost_count=4)
    scene.expire_lease(claim)
    recover.reclaim()
    assert scene.taken().run_id == behind.run_id


def test_nothing_is_repaired_where_nothing_was_forgotten() -> None:
    scene.post("due")
    scene.post("later", available_at=scene.database_now() + timedelta(hours=1))
    claim = scene.posted_and_taken("claimed")
    scene.post("behind", thread_id=claim.thread_id)
    backing_off = scene.post("fails", priority=0)
    settle.nack(scene.taken(), code="transient", message="later")
    scene.post("behind", thread_id=backing_off.thread_id)
    waiting = given.thread()
    asked = given.run(thread=waiting, status="waiting")
    Thread.objects.filter(pk=waiting.pk).update(open_run_id=asked.pk)
    scene.post("behind", thread_id=waiting.pk)
    assert Thread.objects.get(pk=waiting.pk).blocked_reason == "open_run"
    with scene.nothing_changes():
        assert recover.repair() == 0


def test_a_forgotten_thread_is_found_mended_and_told(caplog: pytest.LogCaptureFixture) -> None:
    due = scene.post()
    later = scene.post(available_at=scene.database_now() + timedelta(hours=1))
    flags = scene.flag(due), scene.flag(later)
    Thread.objects.update(
        due_at=None, due_priority=None, due_queue=None, due_agent=None, due_version=None, wakes_at=None
    )
    assert recover.repair() == 2
    assert (scene.flag(due), scene.flag(later)) == flags
    assert [(r.levelname, r.getMessage().split()[0]) for r in caplog.records] == [("ERROR", "thread.flag_repaired")] * 2
    with scene.nothing_changes():
        assert recover.repair() == 0


def test_a_repair_is_bounded_and_goes_on_where_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recover, "_WINDOW", 2)
    for _ in range(5):
        scene.post()
    second = scene.post("another", thread_id=Thread.objects.order_by("id")[0].pk)
    Thread.objects.update(due_at=None, due_priority=None, due_queue=None, due_agent=None, due_version=None)
    assert [recover.repair() for _ in range(4)] == [2, 2, 1, 0]
    assert scene.thread(second).due_at is not None


def test_a_deleted_thread_is_not_repaired() -> None:
    scene.post()
    Thread.objects.update(
        due_at=None, due_priority=None, due_queue=None, due_agent=None, due_version=None, deleted_at=Now()
    )
    with scene.nothing_changes():
        assert recover.repair() == 0


@pytest.mark.parametrize(
    ("due", "workers", "sent"),
    [(0, [2], 0), (1, [4], 1), (5, [2], 2), (5, [2, 1], 3), (3, [], 1)],
)
def test_a_queue_with_due_work_gets_a_signal_for_each_thread_up_to_its_slots(
    due: int, workers: list[int], sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[str] = []
    monkeypatch.setattr(hints, "fill", lambda queue, signals: woken.extend([queue] * signals) or signals)
    for slots in workers:
        worker = given.registration(queues=["mailbox.default", "idle"], slots=slots)
        given.registration(worker=worker.worker, agent="analyst", queues=worker.queues, slots=slots)
    for _ in range(due):
        scene.post()
    assert recover.signal() == sent
    assert woken == ["mailbox.default"] * sent


def test_a_signal_that_nobody_got_is_sent_although_the_flag_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(hints.current_app, "send_task", lambda name, queue, **_: sent.append(queue))
    monkeypatch.setattr(hints, "_waiting", lambda queue, publisher: 0)
    channel.forget_failures()
    scene.post()
    channel.raise_flag("mailbox.default")
    hints.wake("mailbox.default")
    assert sent == []
    assert recover.signal() == 1
    channel.lower_flag("mailbox.default")
    assert sent == ["mailbox.default"]
