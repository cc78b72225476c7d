"""children: whatever ends a child tells its parent's thread, once; cancels go down; errands stand in nobody's way."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.models import Dispatch, Event, JournalEntry, Message, Outbox, Run, Thread
from mailbox_app.operations import (
    cancel,
    children,
    deliver,
    interrupt,
    journal,
    missing,
    post,
    recover,
    settle,
    submit,
    tick,
)
from mailbox_app.operations import (
    claim as claiming,
)
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.operations.family import spawn, wait, with_child

pytestmark = pytest.mark.django_db


def claimed(child: Run) -> Claim:
    found = scene.taken()
    assert found.run_id == child.pk
    return found


def status(of: Any) -> str:
    run_id = of.pk if isinstance(of, Run) else of.run_id
    return str(Run.objects.values_list("status", flat=True).get(pk=run_id))


def resumes(of: Claim) -> int:
    return Dispatch.objects.queued().filter(run_id=of.run_id).count()


def complete(child: Run) -> None:
    settle.complete(claimed(child), output="mine")


def bury(child: Run) -> None:
    settle.dead_letter(claimed(child), code="permanent", message="no")


def fail_too_often(child: Run) -> None:
    found = claimed(child)
    Dispatch.objects.filter(run=child).update(attempt_count=4)
    settle.nack(found, code="transient", message="no")


def lose_too_often(child: Run) -> None:
    found = claimed(child)
    Dispatch.objects.filter(run=child).update(lost_count=4)
    scene.expire_lease(found)
    recover.reclaim()


def stop_unstarted(child: Run) -> None:
    cancel.run(scope=scene.SCOPE, run_id=child.pk)


def stop_claimed(child: Run) -> None:
    found = claimed(child)
    cancel.run(scope=scene.SCOPE, run_id=child.pk)
    settle.stopped(found)


def stop_waiting(child: Run) -> None:
    settle.suspend(claimed(child), scene.wait())
    cancel.run(scope=scene.SCOPE, run_id=child.pk)


def stop_thread(child: Run) -> None:
    cancel.thread(scope=scene.SCOPE, thread_id=child.thread_id)


def interrupt_it(child: Run) -> None:
    interrupt.thread(scope=scene.SCOPE, thread_id=child.thread_id)


def take_its_place(child: Run) -> None:
    submit.run(scope=scene.SCOPE, thread_id=child.thread_id, messages=["no"], agent="echo", if_active="interrupt")


def expire_its_wait(child: Run) -> None:
    settle.suspend(claimed(child), scene.wait())
    Run.objects.filter(pk=child.pk).update(wait_until=Now() - timedelta(seconds=1))
    tick.expire_waits()


def find_no_worker(child: Run) -> None:
    Dispatch.objects.filter(run=child).update(unrunnable_since=Now() - timedelta(days=3))
    assert missing.expire() == 1


def find_nothing_to_read(child: Run) -> None:
    Message.objects.filter(run=child).delete()
    assert scene.take() is None


ENDS: dict[str, tuple[Callable[[Run], None], str]] = {
    "completed": (complete, "natural_end"),
    "dead letter": (bury, "error"),
    "failed too often": (fail_too_often, "error"),
    "lost too often": (lose_too_often, "error"),
    "cancelled before its start": (stop_unstarted, "cancelled"),
    "cancelled while claimed": (stop_claimed, "cancelled"),
    "cancelled while waiting": (stop_waiting, "cancelled"),
    "cancelled with its thread": (stop_thread, "cancelled"),
    "interrupted": (interrupt_it, "cancelled"),
    "superseded": (take_its_place, "cancelled"),
    "waited too long": (expire_its_wait, "stopped"),
    "no worker": (find_no_worker, "error"),
    "nothing to read": (find_nothing_to_read, "cancelled"),
}


@pytest.mark.parametrize("end", ENDS)
def test_whatever_ends_a_child_wakes_its_parent_once(end: str) -> None:
    parent, child = with_child()
    act, termination = ENDS[end]
    act(child)
    assert status(child) == "done"
    assert Outbox.objects.filter(kind="wake", status="pending").count() == 1
    assert children.batch() == 1
    assert (resumes(parent), children.batch()) == (1, 0)
    (told,) = JournalEntry.objects.get(run_id=parent.run_id, verb="wait_for_children").result
    assert (told["run_id"], told["termination"]["type"]) == (str(child.pk), termination)
    going_on = {following.run_id: following for following in (scene.take(), scene.take()) if following is not None}
    assert going_on[parent.run_id].replays


def test_a_parent_goes_on_when_the_last_of_its_children_has_ended() -> None:
    parent = scene.posted_and_taken("parent")
    spawned = [spawn(parent, n=n) for n in (1, 2, 3)]
    wait(parent, *spawned)
    for left in (2, 1, 0):
        settle.complete(scene.taken(), output=left)
        children.batch()
        assert resumes(parent) == (1 if left == 0 else 0)
    (record,) = JournalEntry.objects.filter(run_id=parent.run_id, verb="wait_for_children")
    assert [one["run_id"] for one in record.result] == [str(one.pk) for one in spawned]


def test_wakes_that_come_together_queue_one_dispatch() -> None:
    parent = scene.posted_and_taken("parent")
    spawned = [spawn(parent, n=n) for n in (1, 2, 3)]
    wait(parent, *spawned)
    for _ in spawned:
        settle.complete(scene.taken())
    assert children.batch() == 3
    assert resumes(parent) == 1
    assert Event.objects.filter(thread_id=parent.thread_id, kind="ChildRunEnded").count() == 3


def test_a_parent_whose_children_were_done_before_it_waits_goes_on_at_once() -> None:
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    settle.complete(claimed(child), output="early")
    wait(parent, child)
    assert resumes(parent) == 1
    children.batch()
    assert resumes(parent) == 1, "the wake that comes after finds nobody who waits"
    assert JournalEntry.objects.get(run_id=parent.run_id, verb="wait_for_children").result[0]["output"] == "early"


def test_a_wait_for_one_child_is_not_ended_by_another() -> None:
    parent = scene.posted_and_taken("parent")
    wanted, other = spawn(parent), spawn(parent, n=2)
    wait(parent, wanted)
    cancel.run(scope=scene.SCOPE, run_id=other.pk)
    children.batch()
    assert resumes(parent) == 0


def test_a_wake_does_not_end_another_wait_of_the_parent() -> None:
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    settle.suspend(parent, scene.wait())
    settle.complete(claimed(child))
    children.batch()
    assert (resumes(parent), status(parent)) == (0, "waiting")


def test_a_wake_for_a_parent_that_was_deleted_is_delivered_to_nobody() -> None:
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    settle.complete(parent)
    Thread.objects.filter(pk=parent.thread_id).update(deleted_at=Now())
    settle.complete(claimed(child))
    assert children.batch() == 1
    assert Outbox.objects.get().status == "delivered"


def test_errands_do_not_queue_behind_messages() -> None:
    parent, child = with_child()
    settled = claimed(child)
    body = {"content": "psst", "metadata": {}, "role": "user", "sender": "", "agent": "nobody", "message_id": "m-1"}
    deliver.send(
        settled, scene.entry("message", verb="send"), thread_id=parent.thread_id, thread_key=None, payload=body
    )
    Outbox.objects.filter(kind="message").update(available_at=Now() + timedelta(hours=1))
    settle.complete(settled)
    assert children.batch() == 1
    assert resumes(parent) == 1


def test_messages_do_not_queue_behind_errands() -> None:
    parent, child = with_child()
    settled = claimed(child)
    body = {"content": "psst", "metadata": {}, "role": "user", "sender": "", "agent": "echo", "message_id": "m-1"}
    settle.complete(settled)
    Outbox.objects.filter(kind="wake").update(available_at=Now() + timedelta(hours=1))
    again = scene.posted_and_taken("more", thread_id=child.thread_id)
    deliver.send(again, scene.entry("message", verb="send"), thread_id=parent.thread_id, thread_key=None, payload=body)
    assert deliver.batch() == 1


@pytest.mark.parametrize(
    "end", ["cancelled while claimed", "cancelled while waiting", "interrupted", "lost to the sweep"]
)
def test_cancelling_a_parent_cancels_its_children(end: str) -> None:
    parent = scene.posted_and_taken("parent")
    child, detached = spawn(parent), spawn(parent, n=2, is_detached=True)
    if end == "cancelled while waiting":
        wait(parent, child)
        cancel.run(scope=scene.SCOPE, run_id=parent.run_id)
    elif end == "cancelled while claimed":
        cancel.run(scope=scene.SCOPE, run_id=parent.run_id)
        assert not Outbox.objects.filter(kind="cancel").exists(), "a completion that comes first stands"
        settle.stopped(parent)
    elif end == "interrupted":
        interrupt.thread(scope=scene.SCOPE, thread_id=parent.thread_id)
        settle.stopped(parent)
    else:
        scene.ask_to_cancel(parent)
        scene.expire_lease(parent)
        recover.reclaim()
    assert children.batch() == 1
    child.refresh_from_db()
    assert child.termination == {"type": "cancelled", "detail": "parent_cancelled"}
    assert status(detached) == "created"


def test_a_claimed_child_is_asked_to_stop_and_tells_nobody_twice() -> None:
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    working = claimed(child)
    cancel.run(scope=scene.SCOPE, run_id=parent.run_id)
    settle.stopped(parent)
    children.batch()
    assert Dispatch.objects.get(run=child).cancel_requested_at is not None
    settle.complete(working, output="too late to stop me")
    children.batch()
    assert status(child) == "done"
    assert not Outbox.objects.filter(status="pending").exists()


def test_children_of_a_parent_that_completes_or_fails_go_on() -> None:
    for end in (settle.complete, lambda claim: settle.dead_letter(claim, code="permanent", message="no")):
        parent = scene.posted_and_taken("parent")
        child = spawn(parent)
        end(parent)
        children.batch()
        assert status(child) == "created"
        settle.complete(claimed(child))


def test_a_cancel_that_comes_after_the_end_of_the_child_changes_nothing() -> None:
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    working = claimed(child)
    cancel.run(scope=scene.SCOPE, run_id=parent.run_id)
    settle.stopped(parent)
    settle.complete(working, output="first")
    children.batch()
    child.refresh_from_db()
    assert (child.final_output, child.termination) == ("first", {"type": "natural_end"})


def test_an_errand_is_run_where_its_target_is_free_and_left_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent, child = with_child()
    complete(child)

    def fails(*_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setitem(children._ACTS, "wake", fails)
    assert children.batch() == 0
    row = Outbox.objects.get(kind="wake")
    assert (row.status, row.attempt_count) == ("pending", 1)
    monkeypatch.undo()
    Outbox.objects.update(available_at=Now() - timedelta(milliseconds=1))
    assert children.batch() == 1
    assert resumes(parent) == 1


def test_a_batch_of_errands_is_bounded(settings: Any) -> None:
    settings.MAILBOX = {"batch_size": 2}
    for _ in range(3):
        _, child = with_child()
        complete(child)
    assert [children.batch() for _ in range(3)] == [2, 1, 0]


@pytest.mark.django_db(transaction=True)
def test_whoever_cancels_a_large_family_does_not_wait_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_MOST_AT_ONCE", 2)
    parent = scene.posted_and_taken("parent")
    spawned = [spawn(parent, n=n) for n in range(5)]
    wait(parent, *spawned)
    cancel.run(scope=scene.SCOPE, run_id=parent.run_id)
    assert [status(child) for child in spawned].count("done") == 2
    assert children.batch() >= 3
    assert [status(child) for child in spawned].count("done") == 5


def test_a_child_joins_nothing_and_is_joined_by_nobody() -> None:
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    said = post.to_thread(scope=scene.SCOPE, thread_id=child.thread_id, messages=["me too"], agent="echo")
    assert said.run_id != child.pk


def test_spawning_is_one_transaction_with_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = scene.posted_and_taken("parent")

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(journal, "write", fails)
    with scene.nothing_changes(), pytest.raises(RuntimeError):
        spawn(parent)


def test_a_renewed_claim_knows_nothing_of_children() -> None:
    """The parent's thread is its own: a child's claim and end take no lock of it."""
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    before = Thread.objects.values().get(pk=parent.thread_id)
    settle.complete(claimed(child))
    assert Thread.objects.values().get(pk=parent.thread_id) == before
    assert claiming.renew(tokens=[parent.token]).lost == set()
