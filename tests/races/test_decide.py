"""Answers meet the wait for them, each other, a cancel, an expiry and the loss of a worker.

Each verb is stopped at the thread's lock while the other commits, in both orders; then all of them at once.
"""

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models.functions import Now

from mailbox_app.errors import AlreadyDecided, LeaseLost, Refused, TicketExpired, TicketNotFound
from mailbox_app.models import Dispatch, JournalEntry, Run
from mailbox_app.operations import cancel, checkpoint, recover, settle, tick
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.operations.asking import answer, asked, overdue, question, suspend, ticket, waiting
from tests.races.actors import await_waiting, crew, start

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 20


def queued(claim: Claim) -> int:
    return Dispatch.objects.of_run(claim.run_id).queued().count()


def attempted(claim: Claim, ticket_id: str, **given: Any) -> str:
    """What comes of an answer, in one word."""
    try:
        return answer(claim, ticket_id, **given).status
    except Refused as error:
        return error.code


def assert_consistent(claim: Claim, ticket_ids: list[str]) -> None:
    """Every settled question is journalled once; a run that waits for none has exactly one way to go on."""
    rows = [ticket(ticket_id) for ticket_id in ticket_ids]
    settled = [row for row in rows if row.status in ("answered", "expired")]
    assert JournalEntry.objects.filter(run_id=claim.run_id, verb="ask").count() == len(settled)
    assert scene.kinds(claim).count("MailboxDecisionReceived") == len(settled)
    if scene.run(claim).status == "waiting":
        assert queued(claim) == all(row.status != "open" for row in rows)
    if scene.run(claim).status == "done":
        assert all(row.status != "open" for row in rows)


def test_a_wait_that_was_behind_its_answer_goes_on_at_once() -> None:
    claim, [ticket_id] = asked()
    with transaction.atomic():
        assert answer(claim, ticket_id, payload=1).status == "stored"
        suspending = start(suspend, claim, [ticket_id])
        await_waiting()
    suspending.result(20)
    assert (scene.run(claim).status, queued(claim)) == ("waiting", 1)
    assert scene.taken().run_id == claim.run_id


def test_an_answer_that_was_behind_the_wait_ends_it() -> None:
    claim, [ticket_id] = asked()
    with transaction.atomic():
        suspend(claim, [ticket_id])
        answering = start(lambda: answer(claim, ticket_id, payload=1))
        await_waiting()
    assert answering.result(20).status == "resumed"
    assert scene.flag(claim) == scene.DUE
    assert scene.taken().run_id == claim.run_id


def test_whoever_comes_first_a_wait_and_its_answers_make_one_dispatch() -> None:
    with crew(3) as together:
        for _ in range(ROUNDS):
            claim, [one, two] = asked("one", "two")
            together(
                lambda claim=claim, ids=(one, two): suspend(claim, list(ids)),
                lambda claim=claim, one=one: answer(claim, one, payload=1),
                lambda claim=claim, two=two: answer(claim, two, payload=2),
            )
            assert queued(claim) == 1
            assert_consistent(claim, [one, two])
            following = scene.taken()
            assert following.run_id == claim.run_id
            settle.complete(following)


def test_an_answer_that_was_behind_another_is_refused() -> None:
    claim, [ticket_id] = waiting()
    with transaction.atomic():
        answer(claim, ticket_id, payload="first")
        second = start(lambda: answer(claim, ticket_id, payload="second"))
        await_waiting()
    with pytest.raises(AlreadyDecided):
        second.result(20)
    assert (ticket(ticket_id).answer or {})["payload"] == "first"
    assert queued(claim) == 1


def test_of_answers_at_once_one_counts_and_queues_one_dispatch() -> None:
    with crew(3) as together:
        for _ in range(ROUNDS):
            claim, [ticket_id] = waiting()
            came = together(
                *[lambda n=n, claim=claim, t=ticket_id: attempted(claim, t, payload=n, by=str(n)) for n in range(3)]
            )
            assert sorted(came) == ["already_decided", "already_decided", "resumed"]
            row = ticket(ticket_id)
            assert ((row.answer or {})["payload"], row.answered_by) == (
                came.index("resumed"),
                str(came.index("resumed")),
            )
            assert queued(claim) == 1
            assert_consistent(claim, [ticket_id])
            settle.complete(scene.taken())


def test_one_decision_sent_several_times_at_once_gets_one_answer() -> None:
    with crew(3) as together:
        for _ in range(ROUNDS):
            claim, [ticket_id] = waiting()
            came = together(*[lambda claim=claim, t=ticket_id: answer(claim, t, payload=1, decision_id="d-1")] * 3)
            assert came[0] == came[1] == came[2]
            assert (came[0].status, queued(claim)) == ("resumed", 1)
            assert_consistent(claim, [ticket_id])
            settle.complete(scene.taken())


def test_the_last_two_answers_at_once_queue_one_dispatch() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            claim, [one, two] = waiting("one", "two")
            came = together(
                lambda claim=claim, one=one: attempted(claim, one), lambda claim=claim, two=two: attempted(claim, two)
            )
            assert sorted(came) == ["resumed", "stored"]
            assert queued(claim) == 1
            assert_consistent(claim, [one, two])
            settle.complete(scene.taken())


def test_an_answer_that_was_behind_a_cancel_finds_nothing_to_answer() -> None:
    claim, [ticket_id] = waiting()
    with transaction.atomic():
        cancel.run(scope=scene.SCOPE, run_id=claim.run_id)
        answering = start(lambda: answer(claim, ticket_id))
        await_waiting()
    with pytest.raises(TicketNotFound, match="has ended"):
        answering.result(20)
    assert (ticket(ticket_id).status, queued(claim)) == ("cancelled", 0)


def test_a_cancel_that_was_behind_an_answer_ends_the_run_with_what_was_queued() -> None:
    claim, [ticket_id] = waiting()
    with transaction.atomic():
        answer(claim, ticket_id)
        cancelling = start(lambda: cancel.run(scope=scene.SCOPE, run_id=claim.run_id))
        await_waiting()
    assert cancelling.result(20).outcome == "cancelled"
    assert (ticket(ticket_id).status, queued(claim), scene.run(claim).status) == ("answered", 0, "done")


def test_whoever_comes_first_a_cancelled_run_has_neither_question_nor_dispatch() -> None:
    with crew(3) as together:
        for _ in range(ROUNDS):
            claim, [one, two] = waiting("one", "two")
            came = together(
                lambda claim=claim, one=one: attempted(claim, one),
                lambda claim=claim, two=two: attempted(claim, two),
                lambda claim=claim: cancel.run(scope=scene.SCOPE, run_id=claim.run_id),
            )
            assert set(came[:2]) <= {"stored", "resumed", "ticket_not_found"}
            assert (scene.run(claim).status, queued(claim)) == ("done", 0)
            assert_consistent(claim, [one, two])


def test_an_answer_that_was_behind_the_expiry_is_refused() -> None:
    claim, [ticket_id] = waiting(expires_in=60.0)
    overdue(ticket_id)
    with transaction.atomic():
        assert tick.expire_tickets() == 1
        answering = start(lambda: answer(claim, ticket_id))
        await_waiting()
    with pytest.raises(TicketExpired):
        answering.result(20)
    assert queued(claim) == 1


def test_a_tick_leaves_a_question_that_is_being_answered() -> None:
    claim, [ticket_id] = waiting(expires_in=60.0)
    with transaction.atomic():
        answer(claim, ticket_id)
        assert start(tick.expire_tickets).result(20) == 0
    with scene.nothing_changes():
        assert tick._lapse_on(claim.thread_id) == 0
    assert queued(claim) == 1


def test_whoever_comes_first_a_question_is_answered_or_expires() -> None:
    with crew(4) as together:
        for _ in range(ROUNDS):
            claim, [one, two] = waiting("one", "two", expires_in=60.0)
            overdue(one)
            came = together(
                tick.expire_tickets,
                tick.expire_tickets,
                lambda claim=claim, one=one: attempted(claim, one),
                lambda claim=claim, two=two: attempted(claim, two),
            )
            tick.expire_tickets()
            assert came[2] == "ticket_expired"
            assert (ticket(one).status, ticket(two).status, queued(claim)) == ("expired", "answered", 1)
            assert_consistent(claim, [one, two])
            settle.complete(scene.taken())


def test_whoever_comes_first_an_expired_wait_ends_or_its_answer_goes_on() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            claim, [ticket_id] = waiting()
            Run.objects.filter(pk=claim.run_id).update(wait_until=Now() - timedelta(seconds=1))
            _, came = together(tick.expire_waits, lambda claim=claim, t=ticket_id: attempted(claim, t))
            tick.expire_waits()
            expected = ("done", 0) if came == "ticket_not_found" else ("waiting", 1)
            assert (scene.run(claim).status, queued(claim)) == expected, came
            assert_consistent(claim, [ticket_id])
            if came == "resumed":
                settle.complete(scene.taken())


def test_an_answer_that_was_behind_a_reclaim_waits_for_the_next_attempt() -> None:
    claim, [ticket_id] = asked()
    scene.expire_lease(claim)
    with transaction.atomic():
        assert recover.reclaim() == 1
        answering = start(lambda: answer(claim, ticket_id, payload=1))
        await_waiting()
    assert answering.result(20).status == "stored"
    assert queued(claim) == 1
    following = scene.taken()
    assert [one.status for one in checkpoint.ask(following, [question(following)])] == ["answered"]


def test_whoever_comes_first_a_lost_worker_loses_no_answer() -> None:
    with crew(4) as together:
        for _ in range(ROUNDS):
            claim, [one, two] = asked("one", "two")
            scene.expire_lease(claim)

            def suspends(claim: Claim = claim, ids: tuple[str, str] = (one, two)) -> str:
                try:
                    suspend(claim, list(ids))
                except LeaseLost:
                    return "lost"
                return "waits"

            together(
                recover.reclaim,
                suspends,
                lambda claim=claim, one=one: answer(claim, one, payload=1),
                lambda claim=claim, two=two: answer(claim, two, payload=2),
            )
            recover.reclaim()
            assert queued(claim) == 1
            assert_consistent(claim, [one, two])
            following = scene.taken()
            found = checkpoint.ask(following, [question(following, "one"), question(following, "two")])
            assert [(row.answer or {})["payload"] for row in found] == [1, 2]
            settle.complete(following)


def test_two_activations_that_ask_the_same_ask_once() -> None:
    claim = scene.posted_and_taken()
    with crew(2) as together:
        both = together(*[lambda: checkpoint.ask(claim, [question(claim)])] * 2)
    assert both[0][0].pk == both[1][0].pk
    assert scene.kinds(claim).count("ToolPermissionRequested") == 1


def test_an_answer_and_the_end_of_its_run_leave_no_question_open() -> None:
    with crew(2) as together:
        for _ in range(ROUNDS):
            claim, [ticket_id] = asked()
            _, came = together(
                lambda claim=claim: settle.complete(claim), lambda claim=claim, t=ticket_id: attempted(claim, t)
            )
            assert came in ("stored", "ticket_not_found")
            assert ticket(ticket_id).status == ("answered" if came == "stored" else "cancelled")
            assert queued(claim) == 0
            assert_consistent(claim, [ticket_id])
