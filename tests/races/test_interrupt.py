"""Interrupt meets claim, settle, submit, release, cancel and itself: all that is due stops, and nothing is lost."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction

from mailbox_app.models import Dispatch, Message, Run, Thread
from mailbox_app.operations import cancel, interrupt, pending, settle
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.races.actors import crew, start

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 10


def interrupting(of: Any) -> Callable[[], interrupt.Interruption]:
    return lambda: interrupt.thread(scope=scene.SCOPE, thread_id=of.thread_id)


def cutting_in(of: Any, text: str) -> Callable[[], Any]:
    return lambda: scene.post(text, thread_id=of.thread_id, if_active="interrupt")


def read(of: Any) -> list[str]:
    """What all runs read that can start now."""
    texts = []
    while claim := scene.take():
        assert claim.thread_id == of.thread_id
        texts += [str(message.content) for message in claim.messages]
        settle.complete(claim)
    return texts


def assert_none_of_an_old_epoch(of: Any) -> None:
    thread = Thread.objects.get(pk=of.thread_id)
    assert set(Dispatch.objects.filter(thread=thread).queued().values_list("epoch", flat=True)) <= {thread.epoch}


def test_interrupt_against_submit_either_supersedes_the_new_run_or_comes_before_it() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            first = scene.post("first")
            met, second = together(interrupting(first), lambda of=first: scene.post("second", thread_id=of.thread_id))
            assert first.run_id in met.superseded_run_ids
            assert_none_of_an_old_epoch(first)
            is_superseded = second.run_id in met.superseded_run_ids
            assert read(first) == ([] if is_superseded else ["second"])
            assert Message.objects.get(pk=second.message_ids[0]).held is is_superseded


def test_interrupt_against_claim_either_supersedes_the_run_or_asks_its_worker() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            posted = scene.post()
            met, claim = together(interrupting(posted), scene.take)
            if claim is None:
                assert (met.superseded_run_ids, met.outcome) == ([posted.run_id], None)
                assert scene.take() is None
            else:
                assert (met.run_id, met.outcome) == (posted.run_id, "requested")
                settle.stopped(claim)
            assert scene.run(posted).termination["type"] == "cancelled"  # type: ignore[index]
            assert scene.kinds(posted).count("RunCancelled") == 1


def test_an_interrupt_sees_what_others_have_committed_since_its_caller_looked() -> None:
    first = scene.post("first")
    with transaction.atomic():
        # The caller's own transaction has read the thread as it stood: idle but for one queued run.
        assert list(Dispatch.objects.filter(thread_id=first.thread_id).values_list("status", flat=True)) == ["queued"]
        claim = start(scene.taken).result(20)
        second = start(lambda: scene.post("second", thread_id=first.thread_id)).result(20)
        met = interrupting(first)()
    assert (met.run_id, met.outcome, met.superseded_run_ids) == (claim.run_id, "requested", [second.run_id])
    assert scene.dispatch(claim).cancel_requested_at is not None
    assert_none_of_an_old_epoch(first)


def test_an_interrupting_submit_against_a_settle_is_read_whoever_came_first() -> None:
    ways = (settle.complete, settle.stopped, lambda one: settle.nack(one, code="transient", message="no"))
    with crew(2) as together:
        for number in range(3 * ROUNDS):
            claim, way = scene.posted_and_taken("first"), ways[number % 3]

            def end(claim: Claim = claim, way: Callable[[Claim], Any] = way) -> None:
                way(claim)

            posted, _ = together(cutting_in(claim, "rather this"), end)
            assert scene.run(claim).status == "done"
            assert read(claim) == ["rather this"]
            assert scene.run(posted).termination == {"type": "natural_end"}


def test_two_interrupting_submits_leave_one_run_that_reads_both() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            first = scene.post("first")
            one, two = together(cutting_in(first, "one"), cutting_in(first, "two"))
            assert_none_of_an_old_epoch(first)
            assert Run.objects.filter(thread_id=first.thread_id).not_done().count() == 1
            texts = read(first)
            assert (texts[0], set(texts)) == ("first", {"first", "one", "two"})
            assert one.interrupted.epoch + two.interrupted.epoch == 3


def test_two_interrupts_of_one_thread_supersede_once() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            posted = scene.post()
            met = together(interrupting(posted), interrupting(posted))
            assert sorted(len(one.superseded_run_ids) for one in met) == [0, 1]
            assert {one.epoch for one in met} == {1}
            assert scene.kinds(posted).count("ThreadInterrupted") == 1


def test_release_against_interrupt_loses_no_message_and_doubles_none() -> None:
    with crew(3) as together:
        for _ in range(ROUNDS):
            posted = scene.post("first")
            interrupting(posted)()

            def release(of: Any = posted) -> pending.Released:
                return pending.release(scope=scene.SCOPE, thread_id=of.thread_id)

            together(release, interrupting(posted), release)
            release()
            assert read(posted) == ["first"]


def test_interrupt_against_cancel_ends_each_run_once() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            posted = scene.post()
            together(interrupting(posted), lambda of=posted: cancel.thread(scope=scene.SCOPE, thread_id=of.thread_id))
            assert scene.run(posted).status == "done"
            assert scene.kinds(posted).count("RunCancelled") == 1
            assert scene.take() is None
