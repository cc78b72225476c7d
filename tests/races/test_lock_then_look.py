"""Each verb is stopped at the thread's lock while another commits new rows: it must see them when it goes on.

One statement that locks and looks would see a snapshot older than its lock: a lost wake-up.
"""

import pytest
from django.db import transaction

from mailbox_app.errors import LeaseLost
from mailbox_app.models import Message, Thread
from mailbox_app.operations import checkpoint, recover, settle
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.operations.test_fencing import VERBS
from tests.races.actors import await_waiting, start

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("verb", ["complete", "dead_letter", "stopped"])
def test_an_end_that_waited_for_a_submit_frees_the_thread_for_its_run(verb: str) -> None:
    claim = scene.posted_and_taken("one")
    with transaction.atomic():
        posted = scene.post("two", thread_id=claim.thread_id)
        ending = start(VERBS[verb], claim)
        await_waiting()
        assert not ending.done()
    ending.result(20)
    assert scene.flag(claim) == scene.DUE
    assert scene.taken().run_id == posted.run_id
    assert recover.repair() == 0


def test_a_submit_that_waited_for_a_completion_makes_its_thread_due() -> None:
    claim = scene.posted_and_taken("one")
    with transaction.atomic():
        settle.complete(claim, output="one")
        posting = start(lambda: scene.post("two", thread_id=claim.thread_id))
        await_waiting()
    posted = posting.result(20)
    assert scene.flag(claim) == scene.DUE
    assert scene.taken().run_id == posted.run_id


def test_a_submit_that_waited_for_another_keeps_its_place_and_numbers() -> None:
    thread_id = scene.post("one").thread_id
    with transaction.atomic():
        second = scene.post("two", thread_id=thread_id)
        posting = start(lambda: scene.post("three", thread_id=thread_id))
        await_waiting()
    third = posting.result(20)
    assert scene.run(second).order < scene.run(third).order
    assert scene.kinds(second) == ["ThreadCreated", "RunQueued", "RunQueued", "RunQueued"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_waited_while_its_claim_was_lost_changes_nothing(verb: str) -> None:
    claim = scene.posted_and_taken()
    with transaction.atomic():
        scene.expire_lease(claim)
        assert recover.reclaim() == 1
        other = scene.taken(worker="other@there:2")
        acting = start(VERBS[verb], claim)
        await_waiting()
    before = scene.tables()
    with pytest.raises(LeaseLost):
        acting.result(20)
    assert scene.tables() == before
    settle.complete(other, output="theirs")


@pytest.mark.parametrize("verb", ["complete", "nack", "dead_letter", "stopped"])
def test_a_settle_sent_twice_at_once_happens_once(verb: str) -> None:
    claim = scene.posted_and_taken()
    with transaction.atomic():
        Thread.objects.select_for_update(no_key=True).get(pk=claim.thread_id)
        twins = [start(VERBS[verb], claim), start(VERBS[verb], claim)]
        await_waiting(2)
    for twin in twins:
        twin.result(20)
    ends = {"complete": "RunFinished", "nack": "RunRescheduled", "dead_letter": "RunErrored", "stopped": "RunCancelled"}
    assert scene.kinds(claim).count(ends[verb]) == 1
    assert scene.dispatch(claim).attempt_count == (1 if verb in ("nack", "dead_letter") else 0)


def test_two_rivals_of_one_journal_slot_write_it_once() -> None:
    claim = scene.posted_and_taken()
    with Thread.objects.fence(claim.thread_id):
        first = start(checkpoint.say, claim, scene.entry("message", verb="say"), "once")
        await_waiting()
        rival = start(checkpoint.say, claim, scene.entry("message", verb="say"), "twice")
        await_waiting(2)
    first.result(20)
    with pytest.raises(Exception, match="journal_entry_once_per_use"):
        rival.result(20)
    assert scene.log(claim) == [(1, "user", "hello there"), (2, "assistant", "once")]


def test_an_insert_that_points_at_a_fenced_thread_does_not_wait() -> None:
    claim = scene.posted_and_taken()

    def insert(of: Claim) -> Message:
        return Message.objects.create(scope="acme", thread_id=of.thread_id, role="user", content="me", position=99)

    with Thread.objects.fence(claim.thread_id):
        assert start(insert, claim).result(20).pk is not None
    assert Message.objects.filter(position=99).count() == 1
