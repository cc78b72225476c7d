"""prune: what is past its retention goes, in small batches; everything else stays."""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F
from django.db.models.functions import Now

from mailbox_app.models import AgentRegistration, Dispatch, Event, IdempotencyKey, Outbox, Run, Thread
from mailbox_app.operations import interrupt, prune, settle, threads
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def age(rows: Any, column: str, by: timedelta) -> None:
    rows.update(**{column: Now() - by})


def finished() -> Any:
    claim = scene.posted_and_taken()
    settle.complete(claim, output="done")
    return claim


def test_fresh_rows_stay() -> None:
    finished()
    scene.posted_and_taken()
    given.registration()
    given.idempotency_key()
    with scene.nothing_changes():
        assert prune.batch() == 0


@pytest.mark.parametrize(("by", "left"), [(DAY - MINUTE, 1), (DAY + MINUTE, 0)], ids=["kept", "pruned"])
def test_a_finished_dispatch_is_kept_for_a_day_and_its_run_stays(by: timedelta, left: int) -> None:
    finished()
    age(Dispatch.objects, "completed_at", by)
    assert prune.batch() == 1 - left
    assert (Dispatch.objects.count(), Run.objects.done().count(), Event.objects.count()) == (left, 1, 5)


def test_a_thread_keeps_its_epoch_when_all_its_dispatches_are_gone() -> None:
    posted = scene.post()
    interrupt.thread(scope=scene.SCOPE, thread_id=posted.thread_id)
    age(Dispatch.objects, "completed_at", DAY + MINUTE)
    assert (prune.batch(), Dispatch.objects.count()) == (1, 0)
    assert scene.thread(posted).epoch == 1
    assert scene.dispatch(scene.post(thread_id=posted.thread_id)).epoch == 1


def test_work_that_is_not_done_is_never_pruned() -> None:
    scene.posted_and_taken()
    scene.post()
    Dispatch.objects.update(created_at=Now() - 900 * DAY, updated_at=Now() - 900 * DAY)
    with scene.nothing_changes():
        assert prune.batch() == 0


def test_a_finished_dispatch_of_an_open_run_is_kept() -> None:
    run = given.run(status="waiting")
    given.dispatch(status="acked", run=run, completed_at=Now() - 3 * DAY)
    assert prune.batch() == 0


def bury() -> Any:
    claim = scene.posted_and_taken()
    settle.dead_letter(claim, code="permanent", message="no")
    return claim


@pytest.mark.parametrize(("by", "left"), [(30 * DAY - MINUTE, 1), (30 * DAY + MINUTE, 0)], ids=["kept", "pruned"])
def test_a_dead_letter_nobody_dealt_with_is_kept_for_thirty_days(by: timedelta, left: int) -> None:
    bury()
    age(Dispatch.objects, "completed_at", by)
    prune.batch()
    assert Dispatch.objects.count() == left


def test_a_dead_letter_somebody_dealt_with_is_kept_like_any_other() -> None:
    bury()
    Dispatch.objects.update(completed_at=Now() - DAY - MINUTE, resolution="discarded", resolved_at=Now())
    assert prune.batch() == 1
    assert Dispatch.objects.count() == 0


def test_old_events_go_and_the_thread_knows_how_far() -> None:
    claim = finished()
    settle.complete(scene.posted_and_taken(thread_id=claim.thread_id), output="again")
    age(Event.objects.filter(cursor__lte=5), "created_at", 30 * DAY + MINUTE)
    assert prune.batch() == 5
    assert list(Event.objects.order_by("cursor").values_list("cursor", flat=True)) == [6, 7, 8, 9]
    assert (scene.thread(claim).pruned_cursor, scene.thread(claim).last_cursor) == (5, 9)
    with scene.nothing_changes():
        assert prune.batch() == 0


def test_what_is_left_of_the_events_has_no_gap() -> None:
    """Also where an older event stands behind a younger one: everything up to the last that goes, goes."""
    claim = finished()
    age(Event.objects.filter(cursor__in=[1, 3]), "created_at", 31 * DAY)
    assert prune.batch() == 3
    assert list(Event.objects.order_by("cursor").values_list("cursor", flat=True)) == [4, 5]
    assert scene.thread(claim).pruned_cursor == 3


def test_the_events_of_an_unresolved_dead_letter_stay_with_it() -> None:
    claim = bury()
    age(Event.objects, "created_at", 60 * DAY)
    assert prune.batch() == 0
    Dispatch.objects.update(resolution="discarded", resolved_at=Now())
    assert prune.batch() == 4
    assert scene.thread(claim).pruned_cursor == 4


def test_events_are_pruned_in_small_batches_without_a_gap(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "batch_size": 2}
    claim = finished()
    Event.objects.update(created_at=Now() - 40 * DAY + F("cursor") * timedelta(seconds=1))
    left = []
    while prune.batch():
        left.append((Event.objects.count(), scene.thread(claim).pruned_cursor))
    assert left == [(3, 2), (1, 4), (0, 5)]


def test_events_of_a_deleted_thread_do_not_keep_the_others_from_going(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "batch_size": 2}
    deleted, alive = finished(), finished()
    age(Event.objects.filter(thread_id=deleted.thread_id), "created_at", 50 * DAY)
    age(Event.objects.filter(thread_id=alive.thread_id), "created_at", 40 * DAY)
    thread = scene.thread(deleted)
    type(thread).objects.filter(pk=thread.pk).update(deleted_at=Now())
    for _ in range(10):
        prune.batch()
    assert Event.objects.filter(thread_id=alive.thread_id).count() == 0


def test_idempotency_keys_are_kept_for_a_day_and_registrations_for_thirty() -> None:
    for by in (DAY - MINUTE, DAY + MINUTE):
        given.idempotency_key(created_at=Now() - by)
    for by in (30 * DAY - MINUTE, 30 * DAY + MINUTE):
        given.registration(seen_at=Now() - by)
    assert prune.batch() == 2
    assert (IdempotencyKey.objects.count(), AgentRegistration.objects.count()) == (1, 1)


def test_what_was_delivered_is_kept_for_a_day_and_what_was_given_up_for_thirty() -> None:
    for status, limit in (("delivered", DAY), ("dead_letter", 30 * DAY)):
        for by in (limit - MINUTE, limit + MINUTE):
            given.outbox(status=status, completed_at=Now() - by)
    given.outbox(available_at=Now() - 60 * DAY)
    assert prune.batch() == 2
    assert sorted(Outbox.objects.values_list("status", flat=True)) == ["dead_letter", "delivered", "pending"]


def test_a_batch_is_bounded_for_each_kind(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "batch_size": 2}
    for _ in range(5):
        given.idempotency_key(created_at=Now() - 2 * DAY)
    assert [prune.batch() for _ in range(4)] == [2, 2, 1, 0]


def deleted(by: timedelta) -> Any:
    """A thread with a row of every kind, deleted that long ago."""
    claim = finished()
    run = scene.run(claim)
    given.journal_entry(run=run)
    given.ticket(run=run, status="answered")
    given.outbox(source_thread=run.thread, status="delivered")
    given.thread(parent=run.thread)
    threads.delete(scope=scene.SCOPE, thread_id=claim.thread_id)
    age(Thread.objects.filter(pk=claim.thread_id), "deleted_at", by)
    return claim


@pytest.mark.parametrize(("by", "left"), [(7 * DAY - MINUTE, 1), (7 * DAY + MINUTE, 0)], ids=["kept", "pruned"])
def test_a_deleted_thread_goes_with_all_that_is_its_own_after_seven_days(by: timedelta, left: int) -> None:
    alive = finished()
    claim = deleted(by)
    while prune.batch():
        pass
    assert Thread.objects.filter(pk=claim.thread_id).count() == left
    rows = scene.tables()
    for name in ("Run", "Dispatch", "Message", "Event", "JournalEntry", "Ticket", "Outbox"):
        assert any(str(claim.thread_id) in str(row) or str(claim.run_id) in str(row) for row in rows[name]) == bool(
            left
        )
    assert (scene.run(alive).status, len(scene.log(alive))) == ("done", 2)
    assert Thread.objects.count() == 2 + left, "the child stays"


def test_a_deleted_thread_goes_in_small_batches_the_thread_last(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "batch_size": 2}
    claim = deleted(8 * DAY)
    sizes = []
    while went := prune.batch():
        sizes.append(went)
        assert went <= 4
        if Event.objects.exists() or Run.objects.exists():
            assert Thread.objects.filter(pk=claim.thread_id).exists()
    assert len(sizes) > 4
    assert not Thread.objects.filter(pk=claim.thread_id).exists()


def test_a_deleted_thread_with_a_dead_letter_nobody_dealt_with_stays_as_long_as_that() -> None:
    claim = bury()
    age(Thread.objects, "deleted_at", 8 * DAY)
    assert prune.batch() == 0
    age(Dispatch.objects, "completed_at", 31 * DAY)
    while prune.batch():
        pass
    assert not Thread.objects.filter(pk=claim.thread_id).exists()
