"""ask, decide, expiry: a question gets one answer, and its run goes on once, when none is missing."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.conf import conf
from mailbox_app.errors import (
    AlreadyDecided,
    Cancelled,
    Gone,
    InvalidInput,
    LeaseLost,
    ReplayMismatch,
    RunNotFound,
    TicketExpired,
    TicketNotFound,
)
from mailbox_app.models import Dispatch, Event, JournalEntry, Run, Thread, Ticket
from mailbox_app.operations import cancel, checkpoint, interrupt, recover, replay, resume, settle, submit, tick
from mailbox_app.operations.ownership import Claim
from tests.operations import asking, scene
from tests.operations.asking import answer, asked, overdue, question, suspend, ticket, waiting

pytestmark = pytest.mark.django_db

AMOUNT = {"type": "object", "properties": {"cents": {"type": "integer", "minimum": 1}}, "required": ["cents"]}


def queued(claim: Claim) -> int:
    return Dispatch.objects.of_run(claim.run_id).queued().count()


def test_a_question_is_a_row_and_an_event_while_its_run_still_executes() -> None:
    before = scene.database_now()
    claim, [ticket_id] = asked("refund", arguments={"cents": 5}, schema=AMOUNT, expires_in=60.0)
    row = ticket(ticket_id)
    assert (row.run_id, row.name, row.turn, row.status, row.answer) == (claim.run_id, "refund", 1, "open", None)
    assert (row.question, row.arguments, row.schema) == ("May I?", {"cents": 5}, AMOUNT)
    assert row.expires_at is not None
    assert timedelta(seconds=60) <= row.expires_at - before < timedelta(seconds=80)
    event = scene.last_event(claim)
    assert (event.kind, event.dispatch_id, event.correlation_id) == (
        *("ToolPermissionRequested", claim.dispatch_id, ticket_id),
    )
    assert event.payload == {
        "thread_id": str(claim.thread_id),
        "run_id": str(claim.run_id),
        "dispatch_id": str(claim.dispatch_id),
        "ticket_id": ticket_id,
        "name": "refund",
        "question": "May I?",
        "arguments": {"cents": 5},
        "schema": AMOUNT,
        "resume_mode": "replay_tool_call",
        "expires_at": row.expires_at.isoformat(),
    }
    assert scene.run(claim).status == "running"


def test_a_question_that_is_asked_again_is_the_same_question() -> None:
    claim, [ticket_id] = asked()
    with scene.nothing_changes():
        assert [one.ticket_id for one in checkpoint.ask(claim, [question(claim)])] == [ticket_id]


def test_a_question_that_is_asked_otherwise_is_a_replay_mismatch() -> None:
    claim, _ = asked()
    other = checkpoint.Record(verb="ask", name="approve", n=1, arguments_hash="1" * 64)
    with scene.nothing_changes(), pytest.raises(ReplayMismatch):
        checkpoint.ask(claim, [question(claim, entry=other)])


def test_a_stale_worker_asks_nothing() -> None:
    claim = scene.posted_and_taken()
    scene.expire_lease(claim)
    assert recover.reclaim() == 1
    with scene.nothing_changes(), pytest.raises(LeaseLost):
        checkpoint.ask(claim, [question(claim)])


def test_a_run_that_is_to_stop_asks_nothing() -> None:
    claim = scene.posted_and_taken()
    scene.ask_to_cancel(claim)
    with scene.nothing_changes(), pytest.raises(Cancelled):
        checkpoint.ask(claim, [question(claim)])


def test_a_run_that_waits_for_an_answer_has_no_worker_and_keeps_its_thread() -> None:
    claim, ids = waiting("one", "two")
    dispatch, run, thread = scene.dispatch(claim), scene.run(claim), scene.thread(claim)
    assert (dispatch.status, dispatch.claim_token, dispatch.run_status) == ("acked", None, "waiting")
    assert run.waits_for is not None
    assert (run.waits_for["reason"], run.waits_for["ticket_ids"]) == ("tool_permission", ids)
    assert run.waits_for["since"] == (dispatch.completed_at and dispatch.completed_at.isoformat())
    assert (run.status, run.resume_at, thread.open_run_id) == ("waiting", None, run.pk)
    assert queued(claim) == 0
    assert scene.take() is None


def test_the_last_answer_queues_the_one_dispatch_by_which_the_run_goes_on() -> None:
    claim, [one, two] = waiting("one", "two")
    first = answer(claim, one, payload={"cents": 5}, decision_id="d-1", by="ada")
    assert (first.status, first.dispatch_id, first.decision_id) == ("stored", None, "d-1")
    assert (scene.run(claim).status, queued(claim), scene.take()) == ("waiting", 0, None)
    last = answer(claim, two, action="cancel", by="bob")
    assert (last.status, last.run_id, last.thread_id) == ("resumed", claim.run_id, claim.thread_id)
    assert Dispatch.objects.of_run(claim.run_id).queued().get().pk == last.dispatch_id
    assert scene.flag(claim) == scene.DUE
    following = scene.taken()
    assert (following.run_id, following.turn, following.attempt, following.replays) == (claim.run_id, 1, 1, True)
    assert list(JournalEntry.objects.order_by("id").values_list("verb", "name", "n", "result")) == [
        ("ask", "one", 1, {
            "action": "resume", "payload": {"cents": 5}, "expired": False, "decision_id": "d-1", "answered_by": "ada",
        }),
        ("ask", "two", 1, {
            "action": "cancel", "payload": None, "expired": False, "decision_id": last.decision_id,
            "answered_by": "bob",
        }),
    ]  # fmt: skip
    row = ticket(one)
    assert (row.status, row.answered_by, row.decision_id) == ("answered", "ada", "d-1")
    assert row.answered_at is not None


def test_an_answer_is_told_with_what_was_decided_and_how_it_gets_there() -> None:
    claim, [one, two, three] = waiting("one", "two", "three")
    answer(claim, one, payload={"approved": True}, decision_id="d-1", by="ada")
    answer(claim, two, payload={"approved": "yes"})
    last = answer(claim, three)
    events = Event.objects.filter(thread_id=claim.thread_id, kind="MailboxDecisionReceived").order_by("cursor")
    assert [event.payload["delivery_path"] for event in events] == ["stored", "stored", "durable_dispatch"]
    assert events[0].payload == {
        "thread_id": str(claim.thread_id), "run_id": str(claim.run_id), "dispatch_id": None, "ticket_id": one,
        "name": "one", "decision_id": "d-1", "action": "resume", "result": {"approved": True}, "expired": False,
        "answered_by": "ada", "delivery_path": "stored",
    }  # fmt: skip
    assert events[0].correlation_id == "d-1"
    assert events[2].dispatch_id == last.dispatch_id
    resolved = Event.objects.get(kind="ToolPermissionResolved")
    assert resolved.payload == {**events[0].payload, "approved": True}


def test_an_answer_to_a_run_that_executes_is_kept_and_queues_nothing() -> None:
    claim, [ticket_id] = asked()
    given = answer(claim, ticket_id, payload=1)
    assert (given.status, given.dispatch_id, queued(claim)) == ("stored", None, 0)
    event = Event.objects.get(kind="MailboxDecisionReceived")
    assert (event.payload["delivery_path"], event.dispatch_id) == ("live", claim.dispatch_id)
    suspend(claim, [ticket_id])
    assert queued(claim) == 1, "suspend looks at what came before it"
    assert scene.taken().run_id == claim.run_id
    assert JournalEntry.objects.get().result["payload"] == 1


def test_a_wait_for_two_answers_one_of_which_has_come_waits_for_the_other() -> None:
    claim, [one, two] = asked("one", "two")
    answer(claim, one)
    suspend(claim, [one, two])
    assert (scene.run(claim).status, queued(claim)) == ("waiting", 0)
    assert answer(claim, two).status == "resumed"
    assert queued(claim) == 1


def test_an_answer_between_two_attempts_waits_for_the_next() -> None:
    claim, [ticket_id] = asked()
    settle.nack(claim, code="transient", message="no", retry_after=0)
    assert answer(claim, ticket_id).status == "stored"
    assert queued(claim) == 1
    assert Event.objects.get(kind="MailboxDecisionReceived").payload["delivery_path"] == "stored"


def test_the_first_answer_counts() -> None:
    claim, [ticket_id] = waiting()
    answer(claim, ticket_id, payload=1)
    for given in ({"payload": 1}, {"action": "cancel"}, {"payload": 1, "decision_id": "d-2"}):
        with scene.nothing_changes(), pytest.raises(AlreadyDecided):
            answer(claim, ticket_id, **given)


def test_the_same_decision_gets_the_same_answer_and_changes_nothing() -> None:
    claim, [ticket_id] = waiting()
    first = answer(claim, ticket_id, payload={"a": 1}, decision_id="d-1", by="ada")
    with scene.nothing_changes():
        assert answer(claim, ticket_id, payload={"a": 1}, decision_id="d-1", by="bob") == first
    settle.complete(scene.taken(), output="done")
    with scene.nothing_changes():
        assert answer(claim, ticket_id, payload={"a": 1}, decision_id="d-1") == first


@pytest.mark.parametrize("other", [{"payload": 2}, {"action": "cancel", "payload": 1}])
def test_the_same_decision_with_something_else_is_refused(other: dict[str, Any]) -> None:
    claim, [ticket_id] = waiting()
    answer(claim, ticket_id, payload=1, decision_id="d-1")
    with scene.nothing_changes(), pytest.raises(AlreadyDecided, match="another action or payload"):
        answer(claim, ticket_id, decision_id="d-1", **other)


def test_an_answer_must_keep_to_the_schema_of_its_question() -> None:
    claim, [ticket_id] = waiting(schema=AMOUNT)
    with scene.nothing_changes(), pytest.raises(InvalidInput) as refused:
        answer(claim, ticket_id, payload={"cents": "5"})
    assert [(one["field"], one["code"]) for one in refused.value.errors] == [("payload.cents", "schema_violation")]
    with scene.nothing_changes(), pytest.raises(InvalidInput):
        answer(claim, ticket_id)
    assert answer(claim, ticket_id, payload={"cents": 5}).status == "resumed"


def test_a_cancel_needs_no_payload_whatever_the_schema() -> None:
    claim, [ticket_id] = waiting(schema=AMOUNT)
    assert answer(claim, ticket_id, action="cancel", payload="too much").status == "resumed"


REFUSALS: dict[str, tuple[Callable[[Claim], dict[str, Any]], type[Exception]]] = {
    "unknown ticket": (lambda claim: {"ticket_id": "t"}, TicketNotFound),
    "unknown run": (lambda claim: {"run_id": uuid.uuid4()}, RunNotFound),
    "another scope": (lambda claim: {"scope": "other"}, RunNotFound),
    "no id": (lambda claim: {"run_id": "x"}, InvalidInput),
    "unknown action": (lambda claim: {"action": "approve"}, InvalidInput),
    "nul": (lambda claim: {"payload": "a\x00b"}, InvalidInput),
    "too large": (lambda claim: {"payload": "x" * 65_536}, InvalidInput),
    "blank ticket": (lambda claim: {"ticket_id": " "}, InvalidInput),
    "blank decision": (lambda claim: {"decision_id": " "}, InvalidInput),
}


@pytest.mark.parametrize(("given", "error"), REFUSALS.values(), ids=REFUSALS.keys())
def test_an_answer_that_is_refused_changes_nothing(given: Callable[[Claim], Any], error: type[Exception]) -> None:
    claim, [ticket_id] = waiting()
    with scene.nothing_changes(), pytest.raises(error):
        answer(claim, **{"ticket_id": ticket_id, **given(claim)})


def test_a_question_of_another_run_is_not_found() -> None:
    claim, _ = waiting()
    _, [ticket_id] = waiting()
    with scene.nothing_changes(), pytest.raises(TicketNotFound):
        answer(claim, ticket_id)


def test_a_question_of_a_deleted_thread_is_gone() -> None:
    claim, [ticket_id] = waiting()
    Thread.objects.filter(pk=claim.thread_id).update(deleted_at=Now())
    with scene.nothing_changes(), pytest.raises(Gone):
        answer(claim, ticket_id)


def test_a_resume_by_name_does_not_stand_in_for_an_answer() -> None:
    claim, _ = waiting("approve")
    assert resume.run(scope=scene.SCOPE, run_id=claim.run_id, name="approve").status == "stored"
    assert (scene.run(claim).status, queued(claim)) == ("waiting", 0)


def test_a_question_nobody_answers_in_time_is_answered_by_that() -> None:
    claim, [one, two] = waiting("one", "two", expires_in=60.0)
    with scene.nothing_changes():
        assert tick.expire_tickets() == 0
    overdue(one)
    with scene.nothing_changes(), pytest.raises(TicketExpired):
        answer(claim, one)
    assert tick.expire_tickets() == 1
    row = ticket(one)
    assert (row.status, row.answer) == (
        "expired", {"action": "cancel", "payload": None, "expired": True, "dispatch_id": None},
    )  # fmt: skip
    assert (scene.run(claim).status, queued(claim)) == ("waiting", 0)
    overdue(two)
    assert tick.expire_tickets() == 1
    assert (tick.expire_tickets(), queued(claim)) == (0, 1)
    assert scene.flag(claim) == scene.DUE
    result = {"action": "cancel", "payload": None, "expired": True, "decision_id": "", "answered_by": ""}
    assert list(JournalEntry.objects.values_list("result", flat=True)) == [result, result]
    assert scene.taken().run_id == claim.run_id
    with scene.nothing_changes(), pytest.raises(TicketExpired):
        answer(claim, one)


def test_questions_that_lapse_together_queue_one_dispatch() -> None:
    claim, ids = waiting("one", "two", "three", expires_in=60.0)
    overdue(*ids)
    assert tick.expire_tickets() == 3
    assert queued(claim) == 1
    assert scene.kinds(claim).count("MailboxDecisionReceived") == 3


def test_a_question_may_lapse_while_its_run_executes() -> None:
    claim, [ticket_id] = asked(expires_in=60.0)
    overdue(ticket_id)
    assert tick.expire_tickets() == 1
    assert queued(claim) == 0
    suspend(claim, [ticket_id])
    assert queued(claim) == 1


def test_the_wait_outlives_the_last_of_its_questions() -> None:
    now = scene.database_now()
    claim, _ = waiting(expires_in=30 * 86_400.0)
    wait_until = scene.run(claim).wait_until
    assert wait_until is not None
    assert wait_until - now >= timedelta(seconds=30 * 86_400 + conf.wait_ttl_seconds)


def test_a_wait_for_an_answer_that_expires_ends_the_run_and_closes_its_questions() -> None:
    claim, [one, two] = waiting("one", "two")
    answer(claim, one)
    assert Run.objects.filter(pk=claim.run_id).update(wait_until=Now() - timedelta(seconds=1)) == 1
    assert tick.expire_waits() == 1
    run = scene.run(claim)
    assert (run.status, run.termination) == ("done", {"type": "stopped", "detail": "wait_expired"})
    assert (ticket(one).status, ticket(two).status) == ("answered", "cancelled")
    with scene.nothing_changes(), pytest.raises(TicketNotFound):
        answer(claim, two)


ENDS: dict[str, Callable[[Claim], Any]] = {
    "completed": lambda claim: settle.complete(claim, output="done"),
    "completed with others": lambda claim: settle.complete_some([settle.Finishing(claim=claim)]),
    "failed for good": lambda claim: settle.dead_letter(claim, code="permanent", message="no"),
    "stopped": settle.stopped,
    "cancelled": lambda claim: (suspend(claim, []), cancel.run(scope=scene.SCOPE, run_id=claim.run_id)),
    "cancelled between attempts": lambda claim: (
        settle.nack(claim, code="transient", message="no", retry_after=60),
        cancel.run(scope=scene.SCOPE, run_id=claim.run_id),
    ),
    "interrupted": lambda claim: (
        settle.nack(claim, code="transient", message="no", retry_after=0),
        interrupt.thread(scope=scene.SCOPE, thread_id=claim.thread_id),
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_a_run_that_ends_leaves_no_question_open(end: Callable[[Claim], Any]) -> None:
    claim, [ticket_id] = asked()
    end(claim)
    assert (scene.run(claim).status, ticket(ticket_id).status) == ("done", "cancelled")


def test_a_run_that_waits_for_answers_and_is_cancelled_closes_them() -> None:
    claim, [ticket_id] = waiting()
    assert cancel.run(scope=scene.SCOPE, run_id=claim.run_id).outcome == "cancelled"
    assert ticket(ticket_id).status == "cancelled"
    with scene.nothing_changes(), pytest.raises(TicketNotFound):
        answer(claim, ticket_id)


def test_a_next_turn_begins_without_the_questions_of_the_last() -> None:
    claim, [ticket_id] = asked()
    submit.messages(scope=scene.SCOPE, thread_id=claim.thread_id, messages=["and?"], boundary="on_natural_end")
    following = settle.complete(claim)
    assert following is not None
    assert ticket(ticket_id).status == "cancelled"


def test_an_interrupt_leaves_a_run_whose_answers_have_come() -> None:
    claim, [ticket_id] = waiting()
    answer(claim, ticket_id)
    met = interrupt.thread(scope=scene.SCOPE, thread_id=claim.thread_id)
    assert met.waits_for == claim.run_id
    assert scene.taken().run_id == claim.run_id


def test_a_lost_worker_loses_no_question_and_no_answer() -> None:
    claim, [one, two] = asked("one", "two")
    answer(claim, one, payload=1)
    scene.expire_lease(claim)
    assert recover.reclaim() == 1
    answer(claim, two, payload=2)
    assert queued(claim) == 1
    following = scene.taken()
    assert [one.status for one in checkpoint.ask(following, [question(claim, "one"), question(claim, "two")])] == [
        *("answered", "answered"),
    ]


def test_days_of_waiting_cost_no_attempt() -> None:
    claim, [ticket_id] = waiting()
    Ticket.objects.update(created_at=Now() - timedelta(days=6))
    Dispatch.objects.update(completed_at=Now() - timedelta(days=6), created_at=Now() - timedelta(days=6))
    assert recover.reclaim() == 0
    assert answer(claim, ticket_id).status == "resumed"
    assert (scene.taken().attempt, Dispatch.objects.claimed().get().attempt_count) == (1, 0)


def test_a_replay_of_a_dead_letter_keeps_the_answers() -> None:
    claim, [one, two] = asked("one", "two")
    answer(claim, one, payload="yes")
    settle.dead_letter(claim, code="permanent", message="no")
    again = replay.one(dispatch_id=claim.dispatch_id, by="ada")
    assert JournalEntry.objects.get(run_id=again.run_id).result["payload"] == "yes"
    following = scene.taken()
    opened = checkpoint.ask(following, [question(following, "two")])
    assert (opened[0].run_id, opened[0].status) == (again.run_id, "open")
    assert opened[0].ticket_id != two


def test_a_suspend_whose_commit_won_is_not_repeated() -> None:
    claim, ids = waiting()
    with scene.nothing_changes():
        suspend(claim, ids)
    assert asking.answer(claim, ids[0]).status == "resumed"
