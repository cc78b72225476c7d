"""The end of a child meets the wait for it, other ends, a cancel of the parent, and several who carry the news."""

from typing import Any

import pytest
from django.db import transaction

from mailbox_app.errors import Cancelled, LeaseLost
from mailbox_app.models import Dispatch, JournalEntry, Outbox, Run, Thread
from mailbox_app.operations import cancel, children, settle
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.operations.family import spawn, wait, with_child
from tests.races.actors import await_waiting, crew, start

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 15


def resumes(of: Claim) -> int:
    return Dispatch.objects.queued().filter(run_id=of.run_id).count()


def carry() -> None:
    """What the ticks do until nothing is left."""
    while children.batch():
        pass


def attempted(act: Any, *args: Any) -> str:
    """What came of it, in one word."""
    try:
        act(*args)
    except (LeaseLost, Cancelled) as stop:
        return stop.code
    return "done"


def test_an_end_that_comes_while_the_wait_is_being_written_is_not_lost() -> None:
    """The wait has looked and not committed: whoever carries the news finds the thread held, and a tick brings it."""
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    working = scene.taken()
    assert working.run_id == child.pk
    with transaction.atomic():
        wait(parent, child)
        start(settle.complete, working).result(20)
        assert Outbox.objects.get(kind="wake").status == "pending"
    assert resumes(parent) == 0
    assert children.batch() == 1
    assert resumes(parent) == 1


def test_a_wait_that_was_behind_the_news_goes_on_at_once() -> None:
    parent = scene.posted_and_taken("parent")
    child = spawn(parent)
    settle.complete(scene.taken())
    with transaction.atomic():
        Thread.objects.lock([parent.thread_id])
        waiting = start(wait, parent, child)
        await_waiting()
    waiting.result(20)
    assert resumes(parent) == 1
    carry()
    assert resumes(parent) == 1


def test_whoever_comes_first_a_wait_and_its_children_make_one_dispatch() -> None:
    with crew(4) as together:
        for _ in range(ROUNDS):
            parent = scene.posted_and_taken("parent")
            spawned = [spawn(parent, n=n) for n in (1, 2, 3)]
            working = [scene.taken() for _ in spawned]
            together(
                lambda parent=parent, spawned=spawned: wait(parent, *spawned),
                *(lambda one=one: settle.complete(one, output="mine") for one in working),
            )
            carry()
            assert resumes(parent) == 1
            assert not Outbox.objects.filter(status="pending").exists()
            (record,) = JournalEntry.objects.filter(run_id=parent.run_id, verb="wait_for_children")
            assert [one["output"] for one in record.result] == ["mine"] * 3
            assert scene.kinds(parent).count("ChildRunEnded") == 3
            settle.complete(scene.taken())


def test_several_who_carry_the_same_news_wake_once() -> None:
    with crew(4) as together:
        for _ in range(ROUNDS):
            parent, child = with_child()
            with transaction.atomic():
                # Held, so that nobody who hears of the end can run the errand at once.
                Thread.objects.lock([parent.thread_id])
                start(cancel_run, child).result(20)
            together(*[children.batch] * 4)
            assert resumes(parent) == 1
            assert scene.kinds(parent).count("ChildRunEnded") == 1
            settle.complete(scene.taken())


def cancel_run(child: Run) -> None:
    cancel.run(scope=scene.SCOPE, run_id=child.pk)


def test_a_child_is_spawned_before_its_parent_is_asked_to_stop_or_not_at_all() -> None:
    parent = scene.posted_and_taken("parent")
    with transaction.atomic():
        cancel.run(scope=scene.SCOPE, run_id=parent.run_id)
        spawning = start(attempted, spawn, parent)
        await_waiting()
    assert spawning.result(20) == "cancelled"
    assert not Run.objects.filter(parent_run_id=parent.run_id).exists()


def test_a_child_that_was_spawned_while_its_parent_was_asked_to_stop_ends_with_it() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            parent = scene.posted_and_taken("parent")
            together(
                lambda parent=parent: attempted(spawn, parent),
                lambda parent=parent: cancel.run(scope=scene.SCOPE, run_id=parent.run_id),
            )
            settle.stopped(parent)
            carry()
            for child in Run.objects.filter(parent_run_id=parent.run_id):
                assert (child.status, child.termination) == (
                    *("done", {"type": "cancelled", "detail": "parent_cancelled"}),
                )


def test_a_cancelled_parent_is_not_woken_and_its_child_ends_once() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            parent, child = with_child()
            working = scene.taken()
            together(
                lambda parent=parent: cancel.run(scope=scene.SCOPE, run_id=parent.run_id),
                lambda working=working: settle.complete(working, output="mine"),
            )
            carry()
            child.refresh_from_db()
            assert child.termination == {"type": "natural_end"}
            # Either the child came first and the parent was cancelled with its resume queued, or after.
            assert (scene.run(parent).status, resumes(parent)) == ("done", 0)
            assert not Outbox.objects.filter(status="pending").exists()


def test_parents_and_children_that_end_crosswise_never_wait_for_each_other() -> None:
    """A cancel goes down while an end comes up: each holds its own thread alone."""
    with crew(8) as together:
        for _ in range(5):
            families = [with_child() for _ in range(4)]
            working = [scene.taken() for _ in families]
            acts: list[Any] = []
            for (parent, _), claim in zip(families, working, strict=True):
                acts.append(lambda parent=parent: cancel.run(scope=scene.SCOPE, run_id=parent.run_id))
                acts.append(lambda claim=claim: settle.complete(claim))
            together(*acts)
            carry()
            assert not Run.objects.not_done().exists()
