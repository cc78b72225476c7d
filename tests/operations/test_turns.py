"""Turns: a natural end that has more to read goes on; any other end leaves it to a run of its own."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.errors import InvalidInput, LeaseLost
from mailbox_app.models import Dispatch, Event, Message, Run
from mailbox_app.operations import cancel, checkpoint, interrupt, pending, recover, replay, settle, submit, tick
from mailbox_app.operations.ownership import Claim
from tests.operations import scene

pytestmark = pytest.mark.django_db


def say(claim: Any, *texts: str, boundary: str = "on_natural_end") -> submit.Receipt:
    return submit.messages(scope=scene.SCOPE, thread_id=claim.thread_id, messages=list(texts), boundary=boundary)


def went_on(claim: Claim, **given: Any) -> Claim:
    following = settle.complete(claim, **given)
    assert following is not None
    return following


def texts(claim: Claim) -> list[str]:
    return [message.content for message in claim.messages]


def assert_all_will_be_read(of: Any) -> None:
    """Pending, not held, eligible at a new run: then a run is there that will read it."""
    thread = scene.thread(of)
    if thread.open_run_id is None:
        for message in Message.objects.filter(thread=thread, held=False).pending():
            assert message.run_id is not None
            assert Run.objects.filter(pk=message.run_id, status="created").exists()
            assert Dispatch.objects.filter(run_id=message.run_id).queued().exists()


def test_a_message_to_an_open_run_is_pending_and_has_no_run_of_its_own() -> None:
    claim = scene.posted_and_taken()
    posted = say(claim, "and this", "and that")
    rows = Message.objects.filter(pk__in=posted.message_ids).order_by("position")
    assert [(row.content, row.state, row.run_id, row.boundary) for row in rows] == [
        ("and this", "pending", None, "on_natural_end"),
        ("and that", "pending", None, "on_natural_end"),
    ]
    assert (posted.run_id, Run.objects.count(), Dispatch.objects.count()) == (claim.run_id, 1, 1)


@pytest.mark.parametrize("boundary", ["next_step", "on_natural_end"])
def test_without_an_open_run_a_message_starts_one(boundary: str) -> None:
    claim = scene.posted_and_taken()
    settle.complete(claim)
    posted = say(claim, "hello again", boundary=boundary)
    message = Message.objects.get(pk=posted.message_ids[0])
    assert (message.boundary, message.run_id) == ("new_run", posted.run_id)
    following = scene.taken()
    assert (following.run_id, texts(following)) == (posted.run_id, ["hello again"])


def test_a_natural_end_reads_on_in_a_turn_of_the_same_run_and_claim() -> None:
    claim = scene.posted_and_taken("one")
    say(claim, "two", "three")
    following = went_on(claim, output="first", state={"turns": 1})
    assert (following.turn, following.token, following.attempt, following.replays) == (2, claim.token, 1, False)
    assert (texts(following), following.first_seq, following.state) == (["two", "three"], 3, {"turns": 1})
    dispatch, run = scene.dispatch(claim), scene.run(claim)
    assert (dispatch.status, dispatch.claim_token, dispatch.lease_until) == (
        *("claimed", claim.token, following.lease_until),
    )
    assert following.lease_until > claim.lease_until
    assert (run.status, run.turn, run.state, run.final_output) == ("running", 2, {"turns": 1}, None)
    assert run.input["to_seq"] == 4
    assert len(run.input["message_ids"]) == 3
    assert scene.log(claim) == [(1, "user", "one"), (2, "assistant", "first"), (3, "user", "two"), (4, "user", "three")]
    rows = Message.objects.filter(seq__gte=3).values_list("run_id", "read_turn", "read_at")
    assert set(rows) == {(claim.run_id, 2, "start")}
    event = scene.last_event(claim)
    assert (event.kind, event.payload["turn"], event.payload["input"]["from_seq"]) == ("TurnStarted", 2, 3)

    assert settle.complete(following, output="second", state={"turns": 2}) is None
    run, thread = scene.run(claim), scene.thread(claim)
    assert (run.status, run.turn, run.final_output, run.state) == ("done", 2, "second", {"turns": 2})
    assert len(run.output["message_ids"]) == 2
    assert thread.state_run_id == run.pk
    assert scene.kinds(claim)[-3:] == ["TurnStarted", "MessageCommitted", "RunFinished"]


def test_a_next_step_no_checkpoint_has_read_is_the_next_turn() -> None:
    claim = scene.posted_and_taken()
    say(claim, "late", boundary="next_step")
    assert texts(went_on(claim)) == ["late"]


def test_attempts_begin_anew_with_each_turn() -> None:
    claim = scene.posted_and_taken(max_attempts=2)
    settle.nack(claim, code="transient", message="no", retry_after=0)
    second = scene.taken()
    say(second, "more")
    following = went_on(second)
    dispatch = scene.dispatch(claim)
    assert (dispatch.attempt_count, dispatch.lost_count, dispatch.last_error) == (0, 0, "")
    settle.nack(following, code="transient", message="again", retry_after=0)
    assert scene.dispatch(claim).status == "queued", "two attempts are left for this turn"
    third = scene.taken()
    assert (third.turn, third.attempt, texts(third), third.replays) == (2, 2, ["more"], True)


def test_a_turn_that_is_run_again_begins_with_the_state_the_last_one_left() -> None:
    claim = scene.posted_and_taken()
    say(claim, "more")
    following = went_on(claim, state={"n": 1})
    scene.expire_lease(following)
    recover.reclaim()
    again = scene.taken()
    assert (again.turn, again.state, texts(again)) == (2, {"n": 1}, ["more"])
    settle.dead_letter(again, code="permanent", message="no")
    scene.post("next", thread_id=claim.thread_id)
    assert scene.taken().state == {"n": 1}, "the last turn that ended has saved it"


def test_a_completion_whose_answer_was_lost_finds_the_turn_it_has_begun() -> None:
    claim = scene.posted_and_taken()
    say(claim, "more")
    following = went_on(claim, state={"n": 1})
    with scene.nothing_changes():
        assert went_on(claim, state={"n": 1}) == following


@pytest.mark.parametrize("end", ["nack", "dead_letter", "stopped", "suspend"])
def test_what_a_turn_left_running_has_no_say_in_the_next(end: str) -> None:
    claim = scene.posted_and_taken()
    say(claim, "more")
    went_on(claim)
    acts = {
        "nack": lambda: settle.nack(claim, code="transient", message="late"),
        "dead_letter": lambda: settle.dead_letter(claim, code="permanent", message="late"),
        "stopped": lambda: settle.stopped(claim),
        "suspend": lambda: settle.suspend(claim, scene.wait()),
    }
    with scene.nothing_changes(), pytest.raises(LeaseLost):
        acts[end]()
    with scene.nothing_changes(), pytest.raises(LeaseLost):
        checkpoint.say(claim, scene.entry("message", verb="say"), "late")


def ends(claim: Claim, how: str) -> None:
    match how:
        case "dead_letter":
            settle.dead_letter(claim, code="permanent", message="no")
        case "stopped":
            scene.ask_to_cancel(claim)
            settle.stopped(claim)
        case "lost":
            Dispatch.objects.filter(pk=claim.dispatch_id).update(lost_count=4)
            scene.expire_lease(claim)
            assert recover.reclaim() == 1
        case "cancelled at its end":
            scene.ask_to_cancel(claim)
            assert settle.complete(claim) is None


@pytest.mark.parametrize("how", ["dead_letter", "stopped", "lost", "cancelled at its end"])
def test_what_a_run_has_not_read_when_it_ends_gets_a_run_of_its_own(how: str) -> None:
    claim = scene.posted_and_taken("one", priority=7, max_attempts=5, options={"a": 1}, metadata={"b": 2})
    posted = say(claim, "steer", boundary="next_step")
    posted.message_ids.extend(say(claim, "more").message_ids)
    later = scene.post("later", thread_id=claim.thread_id, priority=7)
    ends(claim, how)
    assert_all_will_be_read(claim)
    run = Run.objects.exclude(pk__in=[claim.run_id, later.run_id]).get()
    assert (run.agent, run.status, run.options, run.metadata) == ("echo", "created", {"a": 1}, {"b": 2})
    assert Dispatch.objects.get(run=run).priority == 7
    events = Event.objects.filter(kind="MessageRequeued").order_by("cursor")
    assert [(event.run_id, event.payload["message_id"], event.payload["run_id"]) for event in events] == [
        (claim.run_id, str(pk), str(run.pk)) for pk in posted.message_ids
    ]
    first = scene.taken()
    assert (first.run_id, texts(first)) == (run.pk, ["steer", "more"]), "it was said before what came later"


def test_a_held_message_is_left_where_it_is() -> None:
    claim = scene.posted_and_taken()
    posted = say(claim, "not yet")
    Message.objects.update(held=True)
    assert settle.complete(claim) is None
    held = Message.objects.get(pk=posted.message_ids[0])
    assert (held.state, held.run_id, Run.objects.count()) == ("pending", None, 1)


def test_a_message_for_this_run_alone_is_retracted_when_it_ends() -> None:
    claim = scene.posted_and_taken()
    pk = say(claim, "only you").message_ids[0]
    Message.objects.filter(pk=pk).update(target_run_id=claim.run_id)
    settle.dead_letter(claim, code="permanent", message="no")
    row = Message.objects.get(pk=pk)
    assert (row.state, row.retract_reason, Run.objects.count()) == ("retracted", "target_ended", 1)
    event = Event.objects.get(kind="MessageRetracted")
    assert event.payload == {
        "thread_id": str(claim.thread_id), "message_id": str(pk), "reason": "target_ended",
    }  # fmt: skip


def test_after_the_most_turns_the_rest_gets_a_run_of_its_own(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "max_turns": 2}
    claim = scene.posted_and_taken()
    say(claim, "two")
    following = went_on(claim)
    say(following, "three")
    assert settle.complete(following) is None
    assert (scene.run(claim).status, scene.run(claim).turn) == ("done", 2)
    assert_all_will_be_read(claim)
    assert texts(scene.taken()) == ["three"]


def test_a_message_taken_alone_leaves_the_others_to_the_next_turn_and_to_a_run_of_their_own() -> None:
    claim = scene.posted_and_taken()
    say(claim, "one", "two")
    Message.objects.filter(run=None).update(granularity="one")
    following = went_on(claim)
    assert texts(following) == ["one"]
    settle.dead_letter(following, code="permanent", message="no")
    assert_all_will_be_read(claim)
    assert texts(scene.taken()) == ["two"]


def test_messages_of_a_run_that_could_read_but_one_are_read_by_another_when_it_ends() -> None:
    posted = scene.post(messages=["one", "two"])
    Message.objects.update(granularity="one")
    claim = scene.taken()
    assert texts(claim) == ["one"]
    assert settle.complete(claim) is None
    assert_all_will_be_read(posted)
    assert texts(scene.taken()) == ["two"]


def test_a_checkpoint_hands_over_what_arrived_and_never_makes_it_the_turn_s_own_input() -> None:
    claim = scene.posted_and_taken("one")
    say(claim, "steer", boundary="next_step")
    assert [message.content for message in checkpoint.reach(claim)] == ["steer"]
    assert scene.run(claim).input["to_seq"] == 2
    scene.expire_lease(claim)
    recover.reclaim()
    again = scene.taken()
    assert texts(again) == ["one"]
    say(again, "and more", boundary="next_step")
    assert [message.content for message in checkpoint.reach(again, after_seq=0)] == ["steer", "and more"]
    assert checkpoint.reach(again) == []
    assert [message.content for message in checkpoint.reach(again, after_seq=2)] == ["and more"]


def test_a_checkpoint_leaves_what_is_for_the_natural_end() -> None:
    claim = scene.posted_and_taken()
    say(claim, "later")
    say(claim, "now", boundary="next_step")
    with scene.nothing_changes():
        assert checkpoint.reach(claim) == [], "nothing overtakes what was said before it"
    assert texts(went_on(claim)) == ["later", "now"]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [("boundary", "new_run", "not_a_choice"), ("messages", [], "empty"), ("thread_id", "x", "not_an_id")],
)
def test_bad_input_is_refused_and_changes_nothing(field: str, value: Any, code: str) -> None:
    claim = scene.posted_and_taken()
    arguments = {"scope": scene.SCOPE, "thread_id": claim.thread_id, "messages": ["x"], "boundary": "next_step"}
    with scene.nothing_changes(), pytest.raises(InvalidInput) as refusal:
        submit.messages(**{**arguments, field: value})
    assert refusal.value.errors[0]["code"] == code


def test_a_replay_begins_with_the_turn_s_input_and_is_handed_what_checkpoints_had_read() -> None:
    claim = scene.posted_and_taken("one")
    say(claim, "steer", boundary="next_step")
    say(claim, "two")
    checkpoint.reach(claim)
    following = went_on(claim)
    say(following, "again", boundary="next_step")
    checkpoint.reach(following)
    settle.dead_letter(following, code="permanent", message="no")
    replay.one(dispatch_id=claim.dispatch_id, by="ops")
    again = scene.taken()
    assert (again.turn, texts(again), again.replays) == (2, ["two"], True)
    assert [message.content for message in checkpoint.reach(again, after_seq=0)] == ["again"]
    say(again, "three")
    third = went_on(again)
    assert (third.turn, texts(third)) == (3, ["three"])
    scene.expire_lease(third)
    recover.reclaim()
    assert texts(scene.taken()) == ["three"], "what its original had read belongs to the turn it began with"


def fails(claim: Claim) -> None:
    settle.dead_letter(claim, code="permanent", message="no")


def is_cancelled(claim: Claim) -> None:
    cancel.run(scope=scene.SCOPE, run_id=claim.run_id)
    if scene.dispatch(claim).status == "claimed":
        settle.stopped(claim)


def is_interrupted_and_released(claim: Claim) -> None:
    interrupt.thread(scope=scene.SCOPE, thread_id=claim.thread_id)
    settle.stopped(claim)
    pending.release(scope=scene.SCOPE, thread_id=claim.thread_id)


def waits_until_its_wait_expires(claim: Claim) -> None:
    settle.suspend(claim, scene.wait())
    Run.objects.filter(pk=claim.run_id).update(wait_until=Now() - timedelta(seconds=1))
    assert tick.expire_waits() == 1


OPEN_ENDS = (fails, is_cancelled, is_interrupted_and_released, waits_until_its_wait_expires)
TARGETED = [(boundary, end) for boundary in ("next_step", "on_natural_end") for end in OPEN_ENDS]


@pytest.mark.parametrize("fallback", ["new_run", None])
@pytest.mark.parametrize(("boundary", "end"), [*TARGETED, ("resume_input", is_cancelled)])
def test_what_was_for_a_run_that_has_ended_never_holds_up_what_is_said_later(
    boundary: str, end: Callable[[Claim], None], fallback: str | None
) -> None:
    claim = scene.posted_and_taken()
    if boundary == "resume_input":
        settle.suspend(claim, scene.wait("user_input"))
    how = {"boundary": boundary, "target_run_id": claim.run_id, "fallback": fallback, "barrier": True}
    target = scene.post("for you", thread_id=claim.thread_id, delivery=how)
    end(claim)
    row = Message.objects.get(pk=target.message_ids[0])
    assert (row.state, row.retract_reason) == (("pending", "") if fallback else ("retracted", "target_ended"))
    later = scene.post("later", thread_id=claim.thread_id, if_active="interrupt")
    read = []
    while (following := scene.take()) is not None:
        read += texts(following)
        settle.complete(following)
    assert read == [*(["for you"] if fallback else []), "later"]
    assert scene.run(later).status == "done"
