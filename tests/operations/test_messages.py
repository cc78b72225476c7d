"""Saying something: which run answers it, when it is read, and what becomes of it when that run ends before."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.conf import conf
from mailbox_app.errors import ActiveRunConflict, Conflict, InvalidInput, RunNotFound, ThreadNotFound, UnknownAgent
from mailbox_app.models import Dispatch, Event, Message, Run
from mailbox_app.operations import cancel, checkpoint, interrupt, post, settle, submit
from mailbox_app.operations.ownership import Claim
from mailbox_app.operations.submit import Receipt
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db


def say(of: Any, *texts: str, **more: Any) -> Receipt:
    return post.to_thread(
        **{"scope": scene.SCOPE, "thread_id": of.thread_id, "messages": list(texts or ["late"]), **more}
    )


def tell(of: Any, *texts: str) -> Receipt:
    return post.to_run(scope=scene.SCOPE, run_id=of.run_id, messages=list(texts or ["late"]))


def steer(of: Any, *texts: str, **more: Any) -> Receipt:
    return scene.post(**{"thread_id": of.thread_id, "messages": list(texts or ["late"]), "if_active": "steer", **more})


def read(claim: Claim) -> list[str]:
    return [message.content for message in claim.messages]


def ended(of: Any) -> dict[str, Any]:
    return scene.run(of).termination or {}


def on_an_idle_thread() -> Receipt:
    """The receipt of a run that is done."""
    receipt = scene.post("first")
    settle.complete(scene.taken())
    return receipt


# Without an open run


def test_what_is_said_to_an_idle_thread_gets_a_run_of_the_last_ones_agent() -> None:
    before = on_an_idle_thread()
    receipt = say(before, "one", "two")
    run, dispatch = scene.run(receipt), scene.dispatch(receipt)
    assert (run.agent, run.status, receipt.status, dispatch.status) == ("echo", "created", "created", "queued")
    assert receipt.run_id != before.run_id
    assert scene.flag(receipt) == scene.DUE
    claim = scene.taken()
    assert (claim.run_id, read(claim)) == (receipt.run_id, ["one", "two"])
    assert [message.pk for message in claim.messages] == receipt.message_ids


def test_what_is_said_before_the_run_starts_joins_it() -> None:
    first = say(on_an_idle_thread(), "one")
    second = say(first, "two", "three")
    assert (second.run_id, second.dispatch_id, second.status) == (first.run_id, first.dispatch_id, "created")
    assert Dispatch.objects.queued().count() == 1
    event = scene.last_event(second)
    assert (event.kind, event.run_id) == ("MessagesJoined", first.run_id)
    assert event.payload["message_ids"] == [str(pk) for pk in second.message_ids]
    claim = scene.taken()
    assert read(claim) == ["one", "two", "three"]
    assert settle.complete(claim) is None
    assert scene.take() is None


def test_what_is_said_while_a_run_is_at_work_becomes_one_run_that_comes_next() -> None:
    claim = scene.posted_and_taken()
    first, second = say(claim, "one"), say(claim, "two")
    assert first.run_id == second.run_id != claim.run_id
    assert settle.complete(claim) is None
    following = scene.taken()
    assert (following.run_id, read(following)) == (first.run_id, ["one", "two"])


def test_what_is_said_once_the_run_has_started_does_not_join_it() -> None:
    first = say(on_an_idle_thread(), "one")
    claim = scene.taken()
    second = say(first, "two")
    assert second.run_id != claim.run_id
    settle.complete(claim)
    assert read(scene.taken()) == ["two"]


def submitted(of: Receipt) -> None:
    scene.post("asked", thread_id=of.thread_id)


def durable(of: Receipt) -> None:
    post.to_thread(scope=scene.SCOPE, thread_id=of.thread_id, messages=["once"], message_id="m-1")


def of_another_agent(of: Receipt) -> None:
    given.registration(agent="chat")
    say(of, "hello", agent="chat")


def of_another_sender(of: Receipt) -> None:
    say(of, messages=[{"content": "hello", "sender": "bob"}])


def of_two_senders(of: Receipt) -> None:
    say(of, messages=[{"content": "hello"}, {"content": "hello", "sender": "bob"}])


def with_a_delivery_of_its_own(of: Receipt) -> None:
    say(of, delivery={"granularity": "one"})


def for_a_run_of_its_own(of: Receipt) -> None:
    say(of, delivery={"boundary": "new_run"})


def keyed(of: Receipt) -> None:
    Run.objects.filter(pk=say(of).run_id).update(dedupe_key="k")


def a_child(of: Receipt) -> None:
    Run.objects.filter(pk=say(of).run_id).update(parent_run_id=of.run_id)


def a_replay(of: Receipt) -> None:
    Run.objects.filter(pk=say(of).run_id).update(replay_of_id=of.run_id)


def with_options(of: Receipt) -> None:
    run = scene.run(say(of))
    Run.objects.filter(pk=run.pk).update(activation={**run.activation, "options": {"depth": 2}})


def of_another_priority(of: Receipt) -> None:
    Dispatch.objects.filter(pk=say(of).dispatch_id).update(priority=0)


def for_later(of: Receipt) -> None:
    Dispatch.objects.filter(pk=say(of).dispatch_id).update(available_at=Now() + timedelta(hours=1))


def of_another_configuration(of: Receipt) -> None:
    say(of)
    given.agent_version(agent="echo")


def full(of: Receipt) -> None:
    say(of, *["more"] * conf.max_messages)


@pytest.mark.parametrize(
    "stands",
    [
        submitted,
        durable,
        of_another_agent,
        of_another_sender,
        of_two_senders,
        with_a_delivery_of_its_own,
        for_a_run_of_its_own,
        keyed,
        a_child,
        a_replay,
        with_options,
        of_another_priority,
        for_later,
        of_another_configuration,
        full,
    ],
)
def test_nothing_joins_a_run_that_is(stands: Callable[[Receipt], None]) -> None:
    before = on_an_idle_thread()
    stands(before)
    other = Run.objects.latest("order")
    messages = Message.objects.filter(run=other).count()
    receipt = say(before, "mine", agent="echo")
    assert receipt.run_id != other.pk
    assert Message.objects.filter(run=other).count() == messages
    assert Message.objects.get(pk=receipt.message_ids[0]).run_id == receipt.run_id


def test_a_message_joins_no_run_in_front_of_one_that_came_in_between() -> None:
    first = say(on_an_idle_thread(), "one")
    scene.post("two", thread_id=first.thread_id)
    third = say(first, "three")
    assert third.run_id != first.run_id
    order = []
    while (claim := scene.take()) is not None:
        order += read(claim)
        settle.complete(claim)
    assert order == ["one", "two", "three"]


def test_a_message_that_joins_takes_no_place_in_a_full_mailbox(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "max_queued_per_thread": 1}
    first = say(on_an_idle_thread(), "one")
    assert say(first, "two").run_id == first.run_id


# Cancelling a run that several have joined


def test_cancelling_a_joined_run_retracts_the_cancellers_messages_and_the_others_pass_to_a_new_run() -> None:
    first = say(on_an_idle_thread(), "ann 1", by="ann")
    second = say(first, "bob", by="bob")
    say(first, "ann 2", by="ann")
    cancel.run(scope=scene.SCOPE, run_id=first.run_id, by="ann")
    assert ended(first) == {"type": "cancelled"}
    retracted = Message.objects.filter(state="retracted").order_by("position")
    assert list(retracted.values_list("content", "retract_reason")) == [
        ("ann 1", "run_cancelled"),
        ("ann 2", "run_cancelled"),
    ]
    claim = scene.taken()
    assert (claim.run_id != first.run_id, read(claim)) == (True, ["bob"])
    event = Event.objects.get(kind="MessageRequeued")
    assert (event.payload["message_id"], event.payload["run_id"]) == (str(second.message_ids[0]), str(claim.run_id))


@pytest.mark.parametrize("by", [None, "an operator"])
def test_whoever_said_nothing_cancels_all_of_a_joined_run(by: str | None) -> None:
    first = say(on_an_idle_thread(), "ann", by="ann")
    say(first, "bob", by="bob")
    cancel.run(scope=scene.SCOPE, run_id=first.run_id, by=by)
    assert Message.objects.pending().count() == 0
    assert scene.take() is None


# With an open run


def test_steering_is_read_at_the_next_checkpoint_of_the_open_run() -> None:
    claim = scene.posted_and_taken()
    one, two = steer(claim, "this way", expected_run_id=claim.run_id), say(claim, "no, that way", if_active="steer")
    for receipt in (one, two):
        assert (receipt.run_id, receipt.dispatch_id, receipt.status) == (claim.run_id, claim.dispatch_id, "running")
    assert (Run.objects.count(), Dispatch.objects.count()) == (1, 1)
    arrived = checkpoint.reach(claim)
    assert [message.content for message in arrived] == ["this way", "no, that way"]
    assert settle.complete(claim) is None


def test_steering_no_checkpoint_has_read_is_the_next_turn_of_the_same_run() -> None:
    claim = scene.posted_and_taken()
    steer(claim)
    following = settle.complete(claim)
    assert following is not None
    assert (following.run_id, read(following)) == (claim.run_id, ["late"])


def test_steering_an_end_that_is_none_of_its_own_leaves_gets_a_run_and_an_event() -> None:
    claim = scene.posted_and_taken()
    receipt = steer(claim)
    settle.dead_letter(claim, code="permanent", message="no")
    following = scene.taken()
    assert (following.run_id != claim.run_id, read(following)) == (True, ["late"])
    event = Event.objects.get(kind="MessageRequeued")
    assert event.payload["message_id"] == str(receipt.message_ids[0])
    assert event.payload["run_id"] == str(following.run_id)


@pytest.mark.parametrize("way", [steer, lambda of: say(of, if_active="steer")])
def test_steering_an_idle_thread_is_a_run(way: Callable[..., Receipt]) -> None:
    before = on_an_idle_thread()
    receipt = way(before)
    assert (receipt.run_id != before.run_id, receipt.status) == (True, "created")
    message = Message.objects.get(pk=receipt.message_ids[0])
    assert (message.boundary, message.run_id) == ("new_run", receipt.run_id)


def test_steering_for_another_agent_than_the_open_runs_gets_a_run_of_that_agent() -> None:
    given.registration(agent="chat")
    claim = scene.posted_and_taken()
    receipt = steer(claim, agent="chat")
    assert (receipt.run_id != claim.run_id, scene.run(receipt).agent) == (True, "chat")


def test_an_interrupt_by_a_message_is_read_after_what_the_stopped_runs_had_not_read() -> None:
    claim = scene.posted_and_taken()
    queued = say(claim, "one")
    receipt = say(claim, "stop", if_active="interrupt", expected_run_id=claim.run_id)
    assert receipt.interrupted is not None
    assert receipt.interrupted.superseded_run_ids == [queued.run_id]
    settle.stopped(claim)
    assert read(scene.taken()) == ["one", "stop"]


def test_many_can_steer() -> None:
    claim = scene.posted_and_taken()
    wanted = [{"messages": [text], "thread_id": claim.thread_id, "if_active": "steer"} for text in ("one", "two")]
    receipts = submit.many(scope=scene.SCOPE, submissions=wanted)
    assert [receipt.run_id for receipt in receipts] == [claim.run_id] * 2
    assert [message.content for message in checkpoint.reach(claim)] == ["one", "two"]


# Delivery


@pytest.mark.parametrize(
    ("boundary", "word"), [("next_step", "steer"), ("on_natural_end", None), ("new_run", "enqueue")]
)
def test_a_boundary_says_when_the_open_run_reads_it(boundary: str, word: str | None) -> None:
    claim = scene.posted_and_taken()
    receipt = say(claim, delivery={"boundary": boundary}, **({} if word is None else {"if_active": word}))
    assert (receipt.run_id == claim.run_id) is (boundary != "new_run")
    assert bool(checkpoint.reach(claim)) is (boundary == "next_step")
    assert bool(settle.complete(claim)) is (boundary == "on_natural_end")
    assert bool(scene.take()) is (boundary == "new_run")


def test_the_boundary_interrupt_interrupts() -> None:
    claim = scene.posted_and_taken()
    receipt = scene.post(thread_id=claim.thread_id, delivery={"boundary": "interrupt"})
    assert receipt.interrupted is not None
    assert receipt.interrupted.run_id == claim.run_id


def test_one_message_at_a_time() -> None:
    before = on_an_idle_thread()
    say(before, "one", "two", delivery={"granularity": "one"})
    first = scene.taken()
    assert read(first) == ["one"]
    settle.complete(first)
    assert read(scene.taken()) == ["two"]


@pytest.mark.parametrize("fallback", ["new_run", None])
@pytest.mark.parametrize("way", ["dead_letter", "cancelled while it waits"])
def test_what_is_for_one_run_alone_is_retracted_when_that_ends_unless_it_has_a_fallback(
    way: str, fallback: str | None
) -> None:
    claim = scene.posted_and_taken()
    how = {"boundary": "next_step", "target_run_id": str(claim.run_id), "fallback": fallback}
    receipt = say(claim, delivery=how)
    if way == "dead_letter":
        settle.dead_letter(claim, code="permanent", message="no")
    else:
        settle.suspend(claim, scene.wait())
        cancel.run(scope=scene.SCOPE, run_id=claim.run_id)
    message = Message.objects.get(pk=receipt.message_ids[0])
    if fallback is None:
        assert (message.state, message.retract_reason) == ("retracted", "target_ended")
        assert scene.kinds(claim).count("MessageRetracted") == 1
        assert scene.take() is None
    else:
        assert read(scene.taken()) == ["late"]


# Waiting for input


def waiting(**more: Any) -> Claim:
    claim = scene.posted_and_taken()
    settle.suspend(claim, scene.wait("user_input", **more))
    assert scene.flag(claim) == scene.IDLE
    return claim


def handed_over(claim: Claim) -> list[str]:
    """What the wait returns to the replayed agent."""
    entry = scene.run(claim).journal.get(verb="suspend")
    return [message["content"] for message in entry.result]


FEEDS: dict[str, Callable[..., Receipt]] = {
    "messages": say,
    "messages to its agent": lambda of, *texts: say(of, *texts, agent="echo"),
    "messages that steer": lambda of, *texts: say(of, *texts, if_active="steer"),
    "inputs": tell,
    "a run that steers": steer,
    "resume_input": lambda of, *texts: say(
        of, *texts, delivery={"boundary": "resume_input", "target_run_id": str(of.run_id)}
    ),
}


@pytest.mark.parametrize("feed", FEEDS)
def test_a_run_that_waits_for_input_goes_on_with(feed: str) -> None:
    claim = waiting()
    receipt = FEEDS[feed](claim, "yes")
    assert (receipt.run_id, receipt.status) == (claim.run_id, "waiting")
    more = FEEDS[feed](claim, "and no")
    assert more.run_id == claim.run_id, "its resume is queued"
    assert (scene.flag(claim), Dispatch.objects.queued().count()) == (scene.DUE, 1)
    again = scene.taken()
    assert (again.run_id, read(again)) == (claim.run_id, ["hello there"]), "its turn begins as it did"
    assert handed_over(claim) == ["yes", "and no"]
    rows = Message.objects.filter(pk__in=[*receipt.message_ids, *more.message_ids]).order_by("seq")
    assert [(row.state, row.read_at, row.seq, row.run_id) for row in rows] == [
        ("committed", "resume", 2, claim.run_id),
        ("committed", "resume", 3, claim.run_id),
    ]
    assert scene.run(claim).input["to_seq"] == 3
    assert settle.complete(again) is None


def test_what_is_said_to_a_waiting_run_by_any_other_way_queues_behind_it() -> None:
    given.registration(agent="chat")
    claim = waiting()
    others = [
        say(claim, agent="chat"),
        say(claim, delivery={"boundary": "new_run"}),
        scene.post(thread_id=claim.thread_id),
    ]
    assert claim.run_id not in {receipt.run_id for receipt in others}
    assert scene.take() is None
    assert scene.thread(claim).blocked_reason == "open_run"


def test_a_message_does_not_end_a_wait_for_something_else() -> None:
    claim = scene.posted_and_taken()
    settle.suspend(claim, scene.wait("external_event"))
    assert say(claim).run_id != claim.run_id
    assert tell(claim).run_id == claim.run_id
    assert scene.take() is None


def test_a_run_that_begins_to_wait_goes_on_with_what_was_said_before() -> None:
    claim = scene.posted_and_taken()
    steer(claim, "steered")
    joined = say(claim, "queued 1")
    say(claim, "queued 2")
    settle.suspend(claim, scene.wait("user_input"))
    assert ended(joined) == {"type": "cancelled", "detail": "joined"}
    assert scene.kinds(claim).count("MessageRequeued") == 2
    again = scene.taken()
    assert again.run_id == claim.run_id
    assert handed_over(claim) == ["steered", "queued 1", "queued 2"]
    assert settle.complete(again) is None
    assert scene.take() is None


def test_a_run_that_begins_to_wait_leaves_alone_what_was_asked_of_others() -> None:
    claim = scene.posted_and_taken()
    scene.post("asked", thread_id=claim.thread_id)
    settle.suspend(claim, scene.wait("user_input"))
    assert scene.run(claim).status == "waiting"
    assert scene.take() is None


@pytest.mark.parametrize("way", ["cancelled", "cancelled before it goes on"])
def test_input_a_waiting_run_did_not_come_to_read_gets_a_run_of_its_own(way: str) -> None:
    claim = waiting()
    receipt = say(claim, "yes")
    if way == "cancelled":
        cancel.run(scope=scene.SCOPE, run_id=claim.run_id)
    else:
        scene.taken()
        claim = scene.posted_and_taken("other")
        settle.suspend(claim, scene.wait("user_input"))
        receipt = tell(claim, "yes")
        cancel.run(scope=scene.SCOPE, run_id=claim.run_id)
    following = scene.taken()
    assert following.run_id != receipt.run_id
    assert read(following) == ["yes"]


def test_an_answer_on_its_way_is_left_alone_by_an_interrupt() -> None:
    claim = waiting()
    say(claim, "yes")
    met = interrupt.thread(scope=scene.SCOPE, thread_id=claim.thread_id)
    assert met.waits_for == claim.run_id
    assert scene.taken().run_id == claim.run_id
    assert handed_over(claim) == ["yes"]


def test_a_turn_that_is_run_again_gets_the_same_input_from_its_wait() -> None:
    claim = waiting()
    say(claim, "yes")
    settle.nack(scene.taken(), code="transient", message="no", retry_after=0)
    again = scene.taken()
    assert (read(again), handed_over(claim), again.replays) == (["hello there"], ["yes"], True)
    assert checkpoint.reach(again, after_seq=0) == []


# Durable


def test_a_durable_message_is_said_once() -> None:
    before = on_an_idle_thread()
    one = say(before, "once", message_id="m-1")
    with scene.nothing_changes():
        again = say(before, "once", message_id="m-1")
    assert one == again
    assert Message.objects.get(pk=one.message_ids[0]).client_id == "m-1"
    settle.complete(scene.taken())
    with scene.nothing_changes():
        assert say(before, "once", message_id="m-1").status == "done"


# Refusals


def busy() -> Claim:
    claim = scene.posted_and_taken()
    say(claim, "once", message_id="m-1")
    return claim


NOBODY: dict[str, Any] = {"thread_id": None, "dispatch_id": None, "message_ids": [], "status": ""}
REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception]]] = {
    "reject": (lambda of: say(of, if_active="reject"), ActiveRunConflict),
    "reject a run": (lambda of: scene.post(thread_id=of.thread_id, if_active="reject"), ActiveRunConflict),
    "another run expected": (lambda of: steer(of, expected_run_id=of.dispatch_id), ActiveRunConflict),
    "another run expected to interrupt": (
        lambda of: say(of, if_active="interrupt", expected_run_id=of.dispatch_id),
        ActiveRunConflict,
    ),
    "another run expected to queue behind": (lambda of: say(of, expected_run_id=of.dispatch_id), ActiveRunConflict),
    "another target": (
        lambda of: say(of, delivery={"boundary": "next_step", "target_run_id": str(of.dispatch_id)}),
        ActiveRunConflict,
    ),
    "the run expected is of another agent": (
        lambda of: steer(of, expected_run_id=of.run_id, agent="chat"),
        ActiveRunConflict,
    ),
    "unknown agent": (lambda of: steer(of, agent="nobody"), UnknownAgent),
    "unknown configuration": (lambda of: steer(of, config_version="v0"), InvalidInput),
    "no input is waited for": (
        lambda of: say(of, delivery={"boundary": "resume_input", "target_run_id": str(of.run_id)}),
        Conflict,
    ),
    "another body": (lambda of: say(of, "twice", message_id="m-1"), Conflict),
    "a durable message's id": (lambda of: say(of, messages=[{"content": "x", "client_id": "m-1"}]), Conflict),
    "the id of a durable message steered": (
        lambda of: steer(of, messages=[{"content": "x", "client_id": "m-1"}]),
        Conflict,
    ),
    "another scope": (lambda of: say(of, scope="else"), ThreadNotFound),
    "a run of another scope": (
        lambda of: post.to_run(scope="else", run_id=of.run_id, messages=["x"]),
        RunNotFound,
    ),
    "a run that has not started": (
        lambda of: tell(Receipt(**{**NOBODY, "run_id": Run.objects.get(status="created").pk})),
        ActiveRunConflict,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_changes_nothing(name: str) -> None:
    given.registration(agent="chat")
    call, error = REFUSED[name]
    claim = busy()
    with scene.nothing_changes(), pytest.raises(error):
        call(claim)


def test_a_durable_message_for_another_thread_is_refused() -> None:
    busy()
    there = given.thread()
    with scene.nothing_changes(), pytest.raises(Conflict):
        post.to_thread(scope=scene.SCOPE, thread_id=there.pk, messages=["once"], message_id="m-1", agent="echo")


@pytest.mark.parametrize("way", [steer, say])
def test_expecting_a_run_where_none_is_open_is_refused(way: Callable[..., Receipt]) -> None:
    before = on_an_idle_thread()
    with scene.nothing_changes(), pytest.raises(ActiveRunConflict, match="no open run"):
        way(before, expected_run_id=before.run_id)


def test_a_run_that_is_done_takes_no_inputs() -> None:
    before = on_an_idle_thread()
    with scene.nothing_changes(), pytest.raises(ActiveRunConflict, match="is done"):
        tell(before)


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no object": ({"delivery": "steer"}, "delivery", "not_an_object"),
    "unknown": ({"delivery": {"when": 1}}, "delivery.when", "unknown_field"),
    "boundary": ({"delivery": {"boundary": "soon"}}, "delivery.boundary", "not_a_choice"),
    "granularity": ({"delivery": {"granularity": "two"}}, "delivery.granularity", "not_a_choice"),
    "barrier": ({"delivery": {"barrier": "yes"}}, "delivery.barrier", "not_a_boolean"),
    "target": ({"delivery": {"target_run_id": "r"}}, "delivery.target_run_id", "not_an_id"),
    "target of a new run": (
        {"delivery": {"target_run_id": "00000000-0000-0000-0000-000000000000"}},
        "delivery.target_run_id",
        "contradiction",
    ),
    "no target": ({"delivery": {"boundary": "resume_input"}}, "delivery.target_run_id", "required"),
    "fallback": (
        {"delivery": {"boundary": "next_step", "fallback": "interrupt"}},
        "delivery.fallback",
        "not_a_choice",
    ),
    "fallback without a target": (
        {"delivery": {"boundary": "next_step", "fallback": "new_run"}},
        "delivery.fallback",
        "contradiction",
    ),
    "steer and new_run": (
        {"if_active": "steer", "delivery": {"boundary": "new_run"}},
        "delivery.boundary",
        "contradiction",
    ),
    "enqueue and next_step": (
        {"if_active": "enqueue", "delivery": {"boundary": "next_step"}},
        "delivery.boundary",
        "contradiction",
    ),
    "reject and interrupt": (
        {"if_active": "reject", "delivery": {"boundary": "interrupt"}},
        "delivery.boundary",
        "contradiction",
    ),
    "expected": ({"expected_run_id": "r"}, "expected_run_id", "not_an_id"),
    "expected and reject": (
        {"if_active": "reject", "expected_run_id": "00000000-0000-0000-0000-000000000000"},
        "expected_run_id",
        "contradiction",
    ),
}
WRONG_TO_A_THREAD: dict[str, tuple[dict[str, Any], str, str]] = {
    **WRONG,
    "durable steering": ({"message_id": "m", "if_active": "steer"}, "if_active", "contradiction"),
    "durable delivery": ({"message_id": "m", "delivery": {}}, "delivery", "contradiction"),
    "two durable": ({"message_id": "m", "messages": ["one", "two"]}, "messages", "too_many"),
    "two ids": (
        {"message_id": "m", "messages": [{"content": "x", "client_id": "c"}]},
        "messages[0].client_id",
        "contradiction",
    ),
    "blank id": ({"message_id": " "}, "message_id", "blank"),
    "no thread": ({"thread_id": None}, "thread_id", "required"),
}
WRONG_TO_RUN: dict[str, tuple[dict[str, Any], str, str]] = {
    **WRONG,
    "steer later": (
        {"if_active": "steer", "available_at": datetime.now(UTC)},
        "available_at",
        "contradiction",
    ),
    "steer once": ({"if_active": "steer", "dedupe_key": "k"}, "dedupe_key", "contradiction"),
}


@pytest.mark.parametrize("name", WRONG_TO_A_THREAD)
def test_what_is_said_wrongly_to_a_thread_is_refused_by_its_field(name: str) -> None:
    more, field, code = WRONG_TO_A_THREAD[name]
    claim = scene.posted_and_taken()
    with scene.nothing_changes(), pytest.raises(InvalidInput) as refusal:
        say(claim, **more)
    assert [(one["field"], one["code"]) for one in refusal.value.errors] == [(field, code)]


@pytest.mark.parametrize("name", WRONG_TO_RUN)
def test_what_is_submitted_wrongly_is_refused_by_its_field(name: str) -> None:
    more, field, code = WRONG_TO_RUN[name]
    claim = scene.posted_and_taken()
    with scene.nothing_changes(), pytest.raises(InvalidInput) as refusal:
        scene.post(thread_id=claim.thread_id, **more)
    assert [(one["field"], one["code"]) for one in refusal.value.errors] == [(field, code)]
