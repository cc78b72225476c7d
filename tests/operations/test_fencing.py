"""A worker whose token owns nothing any more: every verb refuses it and changes nothing. Generated for all verbs."""

import inspect
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection

from mailbox_app.errors import LeaseLost
from mailbox_app.models import Message, Run, Thread, Ticket
from mailbox_app.operations import (
    cancel,
    checkpoint,
    decide,
    deliver,
    interrupt,
    pending,
    post,
    recover,
    resume,
    settle,
    tick,
)
from mailbox_app.operations import claim as claiming
from mailbox_app.operations.ownership import Claim
from tests.operations import asking, scene

pytestmark = pytest.mark.django_db


def a_new_thread() -> uuid.UUID:
    return Thread.objects.create(scope=scene.SCOPE).pk


def a_child(thread: Thread, run: Run) -> dict[str, str]:
    raise AssertionError("nothing is spawned for a claim that is lost")


def a_question() -> checkpoint.Question:
    asked = scene.entry("may I?", verb="ask")
    facts: dict[str, Any] = {
        "question": "stale",
        "arguments": {},
        "schema": None,
        "resume_mode": "",
        "expires_in": None,
    }
    return checkpoint.Question(entry=asked, ticket_id="t-1", **facts)


VERBS: dict[str, Callable[[Claim], Any]] = {
    "complete": lambda claim: settle.complete(claim, output="stale"),
    "nack": lambda claim: settle.nack(claim, code="transient", message="stale", retry_after=60),
    "dead_letter": lambda claim: settle.dead_letter(claim, code="permanent", message="stale"),
    "stopped": settle.stopped,
    "suspend": lambda claim: settle.suspend(claim, scene.wait()),
    "reach": checkpoint.reach,
    "record": lambda claim: checkpoint.record(claim, scene.entry(), [1]),
    "say": lambda claim: checkpoint.say(claim, scene.entry("message", verb="say"), "stale"),
    "usage": lambda claim: checkpoint.usage(
        claim, scene.entry("usage", verb="usage"), input_tokens=1, output_tokens=1, steps=1
    ),
    "send": lambda claim: checkpoint.send(
        claim, scene.entry("message", verb="send"), target=a_new_thread, payload={"message_id": "m-1"}
    ),
    "spawn": lambda claim: checkpoint.spawn(claim, scene.entry("writer", verb="spawn"), child=a_child),
    "ask": lambda claim: checkpoint.ask(claim, [a_question()]),
    "flush": lambda claim: scene.emit(claim, "Seen", {}),
}
SETTLES = ("complete", "nack", "dead_letter", "stopped", "suspend")


def reclaimed(claim: Claim) -> None:
    scene.expire_lease(claim)
    assert recover.reclaim() == 1


def claimed_by_another(claim: Claim) -> None:
    reclaimed(claim)
    assert scene.taken(worker="other@there:2").dispatch_id == claim.dispatch_id


def finished_by_another(claim: Claim) -> None:
    reclaimed(claim)
    settle.complete(scene.taken(worker="other@there:2"), output="theirs")


def buried_by_the_sweep(claim: Claim) -> None:
    type(scene.dispatch(claim)).objects.filter(pk=claim.dispatch_id).update(lost_count=4)
    reclaimed(claim)
    assert scene.dispatch(claim).status == "dead_letter"


def cancelled_by_the_sweep(claim: Claim) -> None:
    scene.ask_to_cancel(claim)
    reclaimed(claim)
    assert scene.dispatch(claim).status == "cancelled"


LOSSES = (reclaimed, claimed_by_another, finished_by_another, buried_by_the_sweep, cancelled_by_the_sweep)


def claimed_functions() -> Iterator[str]:
    for module in (settle, checkpoint):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__ and not name.startswith("_")
            if own and next(iter(inspect.signature(function).parameters)) == "claim":
                yield name


def test_every_verb_that_takes_a_claim_is_tried_here() -> None:
    assert sorted(VERBS) == sorted(claimed_functions())


@pytest.mark.parametrize("lose", LOSSES, ids=lambda function: function.__name__)
@pytest.mark.parametrize("verb", VERBS)
def test_a_stale_worker_changes_nothing(verb: str, lose: Callable[[Claim], None]) -> None:
    claim = scene.posted_and_taken()
    lose(claim)
    with scene.nothing_changes(), pytest.raises(LeaseLost, match=str(claim.dispatch_id)):
        VERBS[verb](claim)


@pytest.mark.parametrize("lose", LOSSES, ids=lambda function: function.__name__)
def test_a_stale_worker_renews_nothing_and_is_told(lose: Callable[[Claim], None]) -> None:
    claim = scene.posted_and_taken()
    lose(claim)
    with scene.nothing_changes():
        assert claiming.renew(tokens=[claim.token]).lost == {claim.token}


@pytest.mark.parametrize("verb", VERBS)
def test_a_token_nobody_gave_changes_nothing(verb: str) -> None:
    claim = scene.posted_and_taken()
    forged = Claim(**{**vars(claim), "token": uuid.uuid4()})
    with scene.nothing_changes(), pytest.raises(LeaseLost):
        VERBS[verb](forged)


@pytest.mark.parametrize("verb", SETTLES)
def test_a_settle_whose_answer_was_lost_may_be_called_again(verb: str) -> None:
    claim = scene.posted_and_taken()
    VERBS[verb](claim)
    with scene.nothing_changes():
        VERBS[verb](claim)


@pytest.mark.parametrize("verb", [name for name in VERBS if name != "complete"])
def test_after_its_completion_a_claim_can_do_nothing_else(verb: str) -> None:
    claim = scene.posted_and_taken()
    settle.complete(claim, output="done")
    with scene.nothing_changes(), pytest.raises(LeaseLost):
        VERBS[verb](claim)


def fail_at(statement: int) -> Callable[..., Any]:
    """A wrapper that lets the database be lost at the n-th statement (from 0), once."""
    seen = iter(range(10_000))

    def wrapper(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if next(seen) == statement:
            raise OperationalError(f"lost at {sql[:60]}")
        return execute(sql, params, many, context)

    return wrapper


# How to bring a fresh claim to the verb, and the verb.
WHOLE: dict[str, tuple[Callable[[Claim], Any], Callable[[Claim], Any]]] = {
    **{
        name: (lambda claim: None, VERBS[name])
        for name in ("complete", "nack", "dead_letter", "suspend", "say", "send", "usage")
    },
    "submit": (lambda claim: None, lambda claim: scene.post("next", thread_id=claim.thread_id)),
    "submit_by_key": (lambda claim: None, lambda claim: scene.post("next", thread_key="unheard-of")),
    "reclaim": (scene.expire_lease, lambda claim: recover.reclaim()),
    "claim": (
        lambda claim: settle.nack(claim, code="transient", message="no", retry_after=0),
        lambda claim: scene.taken(),
    ),
}


def queued_behind(claim: Claim) -> None:
    scene.post("one", thread_id=claim.thread_id)
    say(claim, "two", if_active="steer")


def waits_for_input(claim: Claim) -> None:
    settle.suspend(claim, scene.wait("user_input"))


def waits_for_an_answer(claim: Claim) -> None:
    [ticket] = checkpoint.ask(claim, [asking.question(claim)])
    asking.suspend(claim, [ticket.ticket_id])


def interrupted(claim: Claim) -> None:
    queued_behind(claim)
    interrupt.thread(scope=scene.SCOPE, thread_id=claim.thread_id)


def said_to_nobody_at_work(claim: Claim) -> None:
    settle.complete(claim)
    say(claim, "one")


def say(claim: Claim, text: str, **more: Any) -> Any:
    return post.to_thread(scope=scene.SCOPE, thread_id=claim.thread_id, messages=[text], **more)


def last(claim: Claim) -> uuid.UUID:
    """The message of the thread that was said last and is not read."""
    return Message.objects.filter(thread_id=claim.thread_id).pending().latest("position").pk


def of(claim: Claim, **more: Any) -> dict[str, Any]:
    return {"scope": scene.SCOPE, "thread_id": claim.thread_id, **more}


# What is said to a thread, and what is done about what was said.
TALK: dict[str, tuple[Callable[[Claim], Any], Callable[[Claim], Any]]] = {
    "post": (lambda claim: None, lambda claim: say(claim, "one")),
    "join": (said_to_nobody_at_work, lambda claim: say(claim, "two")),
    "steer": (lambda claim: None, lambda claim: say(claim, "one", if_active="steer")),
    "feed": (waits_for_input, lambda claim: say(claim, "one")),
    "interrupting post": (queued_behind, lambda claim: say(claim, "three", if_active="interrupt")),
    "interrupt": (queued_behind, lambda claim: interrupt.thread(**of(claim))),
    "interrupt a wait": (waits_for_input, lambda claim: interrupt.thread(**of(claim))),
    "cancel": (lambda claim: None, lambda claim: cancel.run(scope=scene.SCOPE, run_id=claim.run_id)),
    "cancel a wait": (waits_for_an_answer, lambda claim: cancel.run(scope=scene.SCOPE, run_id=claim.run_id)),
    "cancel all": (queued_behind, lambda claim: cancel.thread(**of(claim))),
    "edit": (queued_behind, lambda claim: pending.edit(**of(claim, message_id=last(claim), content="better"))),
    "retract": (
        lambda claim: scene.post("one", thread_id=claim.thread_id),
        lambda claim: pending.retract(**of(claim, message_id=last(claim))),
    ),
    "reorder": (queued_behind, lambda claim: pending.reorder(**of(claim, message_ids=[last(claim)]))),
    "release": (interrupted, lambda claim: pending.release(**of(claim))),
    "durable": (
        lambda claim: None,
        lambda claim: deliver.message(**of(claim, message_id="m-1", content="once", agent="echo")),
    ),
    "decide": (
        waits_for_an_answer,
        lambda claim: decide.ticket(
            scope=scene.SCOPE, run_id=claim.run_id, ticket_id=Ticket.objects.get().ticket_id, action="resume"
        ),
    ),
    "resume": (
        lambda claim: settle.suspend(claim, scene.wait()),
        lambda claim: resume.run(scope=scene.SCOPE, run_id=claim.run_id, payload=1),
    ),
    "next turn": (lambda claim: say(claim, "one", if_active="steer"), lambda claim: settle.complete(claim)),
    "checkpoint": (lambda claim: say(claim, "one", if_active="steer"), lambda claim: checkpoint.reach(claim)),
    "wait for what was said": (queued_behind, waits_for_input),
    "expiry of a question": (
        lambda claim: (waits_for_an_answer(claim), asking.overdue(Ticket.objects.get().ticket_id)),
        lambda claim: tick.expire_tickets(),
    ),
}
WHOLE |= TALK


@pytest.mark.parametrize("verb", WHOLE)
def test_a_verb_whose_connection_fails_at_any_statement_changes_nothing(verb: str) -> None:
    claim = scene.posted_and_taken()
    prepare, act = WHOLE[verb]
    prepare(claim)
    failures, before = 0, scene.tables()
    while True:
        try:
            with connection.execute_wrapper(fail_at(failures)):
                act(claim)
        except OperationalError:
            assert scene.tables() == before, f"statement {failures} left something behind"
            failures += 1
        else:
            break
    assert failures >= 3, "the verb was never interrupted"
    assert scene.tables() != before
