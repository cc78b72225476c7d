"""What is said meets what else is said, interrupts, ends, waits and claims: each message is read once, and in order.

First both orders, one verb stopped at the thread's lock while the other commits; then all of them at once.
"""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction

from mailbox_app.errors import ActiveRunConflict
from mailbox_app.models import Dispatch, Message, Run, Thread
from mailbox_app.operations import cancel, post, recover, settle
from mailbox_app.operations.ownership import Claim
from mailbox_app.operations.submit import Receipt
from tests.operations import scene
from tests.races.actors import await_waiting, crew, start

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 10


def say(of: Any, text: str = "late", **more: Any) -> Receipt:
    return post.to_thread(scope=scene.SCOPE, thread_id=of.thread_id, messages=[text], **more)


def saying(of: Any, text: str = "late", **more: Any) -> Callable[[], Receipt]:
    return lambda: say(of, text, **more)


def idle() -> Receipt:
    receipt = scene.post("first")
    settle.complete(scene.taken())
    return receipt


def texts(claim: Claim) -> list[str]:
    return [message.content for message in claim.messages]


def read(of: Any, claim: Claim | None = None) -> list[list[str]]:
    """What each run and turn reads that can start now, or goes on from this claim."""
    found = []
    while (claim := claim or scene.take()) is not None:
        assert claim.thread_id == of.thread_id
        found.append(texts(claim))
        claim = settle.complete(claim)
    return found


def assert_all_is_well(of: Any) -> None:
    """Nothing is left unread, what was read is numbered without gaps, and the sweep finds nothing to mend."""
    assert recover.repair() == 0
    messages = Message.objects.filter(thread_id=of.thread_id)
    assert messages.pending().count() == 0
    numbers = list(messages.committed().in_order().values_list("seq", flat=True))
    assert numbers == list(range(1, len(numbers) + 1))
    assert Run.objects.filter(thread_id=of.thread_id).not_done().count() == 0
    assert Thread.objects.get(pk=of.thread_id).due_at is None


def test_what_two_said_before_an_interrupt_is_read_by_its_run_in_order() -> None:
    """A is queued, B is queued, C interrupts: C's run reads A's and B's messages and then its own."""
    with crew(3) as together:
        for number in range(ROUNDS):
            claim = scene.posted_and_taken("at work")
            a = scene.post("A", thread_id=claim.thread_id)
            b = scene.post("B", thread_id=claim.thread_id) if number % 2 else say(claim, "B")
            _, c, taken = together(
                lambda claim=claim: settle.complete(claim),
                saying(claim, "C", if_active="interrupt"),
                scene.take,
            )
            runs = read(claim, taken)
            assert [text for run in runs for text in run] == ["A", "B", "C"]
            # Whatever had not started is read by C's run alone.
            assert runs[-1][-1] == "C"
            if scene.run(a).started_at is None:
                assert (runs, scene.run(b).started_at) == ([["A", "B", "C"]], None)
                assert set(c.interrupted.superseded_run_ids) == {a.run_id, b.run_id}
            assert_all_is_well(claim)


def test_an_interrupt_that_waited_for_two_to_be_queued_takes_both_over() -> None:
    claim = scene.posted_and_taken("at work")
    with transaction.atomic():
        scene.post("A", thread_id=claim.thread_id)
        scene.post("B", thread_id=claim.thread_id)
        cutting_in = start(saying(claim, "C", if_active="interrupt"))
        await_waiting()
    cutting_in.result(20)
    settle.stopped(claim)
    assert read(claim) == [["A", "B", "C"]]


def test_a_natural_end_that_waited_for_steering_reads_it_in_its_next_turn() -> None:
    claim = scene.posted_and_taken()
    with transaction.atomic():
        receipt = say(claim, if_active="steer", expected_run_id=claim.run_id)
        ending = start(settle.complete, claim)
        await_waiting()
    following = ending.result(20)
    assert (receipt.run_id, following.run_id, texts(following)) == (claim.run_id, claim.run_id, ["late"])


@pytest.mark.parametrize("expected", [True, False])
def test_steering_that_waited_for_a_natural_end_is_a_run_or_refused_if_it_named_the_ended_one(expected: bool) -> None:
    claim = scene.posted_and_taken()
    with transaction.atomic():
        settle.complete(claim)
        steering = start(saying(claim, if_active="steer", **({"expected_run_id": claim.run_id} if expected else {})))
        await_waiting()
    if expected:
        with pytest.raises(ActiveRunConflict, match="no open run"):
            steering.result(20)
        assert (scene.take(), Message.objects.count()) == (None, 1)
    else:
        receipt = steering.result(20)
        assert (receipt.run_id != claim.run_id, read(claim)) == (True, [["late"]])


def test_whoever_comes_first_steering_is_read_once_and_by_the_run_its_receipt_names() -> None:
    with crew(3) as together:
        for _ in range(2 * ROUNDS):
            claim = scene.posted_and_taken()
            following, one, two = together(
                lambda claim=claim: settle.complete(claim),
                saying(claim, "one", if_active="steer"),
                saying(claim, "two", if_active="steer"),
            )
            found = read(claim, following)
            assert sorted(text for run in found for text in run) == ["one", "two"]
            for receipt in (one, two):
                assert Message.objects.get(pk=receipt.message_ids[0]).run_id == receipt.run_id
            assert_all_is_well(claim)


def test_two_that_join_at_once_are_read_by_one_run() -> None:
    with crew(3) as together:
        for _ in range(ROUNDS):
            before = idle()
            receipts = together(*[saying(before, text, by=text) for text in ("one", "two", "three")])
            assert len({receipt.run_id for receipt in receipts}) == 1
            assert Dispatch.objects.queued().count() == 1
            said = scene.run(receipts[0]).activation["posted"]["by"]
            assert {by: len(ids) for by, ids in said.items()} == {"one": 1, "two": 1, "three": 1}
            (found,) = read(before)
            assert sorted(found) == ["one", "three", "two"]
            assert_all_is_well(before)


def test_a_message_that_waited_for_the_claim_of_the_run_it_would_join_gets_one_of_its_own() -> None:
    first = say(idle(), "one")
    with transaction.atomic():
        claim = scene.taken()
        saying_more = start(saying(first, "two"))
        await_waiting()
    second = saying_more.result(20)
    assert second.run_id != first.run_id
    assert read(first, claim) == [["one"], ["two"]]


def test_whoever_comes_first_a_message_and_the_claim_of_the_run_it_joins_lose_nothing() -> None:
    with crew(2) as together:
        for _ in range(2 * ROUNDS):
            first = say(idle(), "one")
            claim, second = together(scene.take, saying(first, "two"))
            has_joined = second.run_id == first.run_id
            assert read(first, claim) == ([["one", "two"]] if has_joined else [["one"], ["two"]])
            assert_all_is_well(first)


def test_whoever_comes_first_a_message_and_the_cancelling_of_the_run_it_joins_lose_nothing() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            first = say(idle(), "mine", by="ann")
            together(
                lambda of=first: cancel.run(scope=scene.SCOPE, run_id=of.run_id, by="ann"),
                saying(first, "theirs", by="bob"),
            )
            assert read(first) == [["theirs"]]
            assert_all_is_well(first)


def handed_over(of: Any) -> list[str]:
    return [message["content"] for message in scene.run(of).journal.get(verb="suspend").result]


def wait_for_input(claim: Claim) -> None:
    settle.suspend(claim, scene.wait("user_input"))


WAYS: dict[str, Callable[[Any], Receipt]] = {
    "said": say,
    "steered": lambda of: say(of, if_active="steer"),
    "told": lambda of: post.to_run(scope=scene.SCOPE, run_id=of.run_id, messages=["late"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_wait_for_input_that_was_behind_the_message_goes_on_with_it(way: str) -> None:
    claim = scene.posted_and_taken()
    with transaction.atomic():
        WAYS[way](claim)
        waiting = start(wait_for_input, claim)
        await_waiting()
    waiting.result(20)
    again = scene.taken()
    assert (again.run_id, handed_over(claim)) == (claim.run_id, ["late"])
    assert settle.complete(again) is None
    assert_all_is_well(claim)


@pytest.mark.parametrize("way", WAYS)
def test_a_message_that_was_behind_the_wait_for_input_ends_it(way: str) -> None:
    claim = scene.posted_and_taken()
    with transaction.atomic():
        wait_for_input(claim)
        saying_it = start(WAYS[way], claim)
        await_waiting()
    assert saying_it.result(20).run_id == claim.run_id
    assert (scene.taken().run_id, handed_over(claim)) == (claim.run_id, ["late"])


def test_whoever_comes_first_a_wait_for_input_and_messages_make_one_resume_that_reads_all() -> None:
    with crew(4) as together:
        for _ in range(2 * ROUNDS):
            claim = scene.posted_and_taken()
            together(
                lambda claim=claim: wait_for_input(claim),
                saying(claim, "one"),
                saying(claim, "two"),
                saying(claim, "three", if_active="steer"),
            )
            assert Dispatch.objects.queued().count() == 1
            again = scene.taken()
            assert again.run_id == claim.run_id
            assert sorted(handed_over(claim)) == ["one", "three", "two"]
            assert settle.complete(again) is None
            assert_all_is_well(claim)


def test_whoever_comes_first_input_and_the_claim_of_the_resume_lose_nothing() -> None:
    with crew(2) as together:
        for _ in range(2 * ROUNDS):
            claim = scene.posted_and_taken()
            wait_for_input(claim)
            say(claim, "one")
            again, second = together(
                scene.take, lambda of=claim: post.to_run(scope=scene.SCOPE, run_id=of.run_id, messages=["two"])
            )
            again = again or scene.taken()
            following = settle.complete(again)
            later = [] if following is None else texts(following)
            assert [*handed_over(claim), *later] == ["one", "two"]
            assert second.run_id == claim.run_id
            if following is not None:
                settle.complete(following)
            assert_all_is_well(claim)
