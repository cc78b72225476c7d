"""interrupt: what is due is superseded, what is open stops, what was said is held, or read by whoever interrupts."""

import uuid
from typing import Any

import pytest

from mailbox_app.errors import (
    ActiveRunConflict,
    AlreadyExists,
    DuplicateKey,
    InvalidInput,
    LeaseLost,
    MessageNotFound,
    ThreadNotFound,
    UnknownAgent,
)
from mailbox_app.models import Message, Run
from mailbox_app.operations import cancel, interrupt, pending, recover, resume, settle, submit
from mailbox_app.operations.submit import Receipt
from tests.operations import scene

pytestmark = pytest.mark.django_db

INTERRUPTED = {"type": "cancelled", "detail": "interrupted"}


def stop(of: Any, **given: Any) -> interrupt.Interruption:
    return interrupt.thread(**{"scope": scene.SCOPE, "thread_id": of.thread_id, "reason": "enough", **given})


def cut_in(of: Any, text: str = "rather this", **given: Any) -> Receipt:
    return scene.post(text, thread_id=of.thread_id, if_active="interrupt", **given)


def release(of: Any, **given: Any) -> pending.Released:
    return pending.release(scope=scene.SCOPE, thread_id=of.thread_id, **given)


def held(of: Any) -> list[str]:
    rows = Message.objects.filter(thread_id=of.thread_id, held=True).pending().order_by("position")
    return list(rows.values_list("content", flat=True))


def suspended(reason: str = "external_event", **wait: Any) -> Any:
    claim = scene.posted_and_taken()
    settle.suspend(claim, scene.wait(reason, **wait))
    assert scene.run(claim).status == "waiting"
    return claim


def test_the_executing_run_is_asked_to_stop_and_what_is_queued_never_starts() -> None:
    claim = scene.posted_and_taken("first")
    second = scene.post("second", thread_id=claim.thread_id)
    third = scene.post("third", thread_id=claim.thread_id, priority=1)
    epoch = scene.thread(claim).epoch
    met = stop(claim)
    assert (met.epoch, met.run_id, met.outcome, met.waits_for) == (epoch + 1, claim.run_id, "requested", None)
    assert set(met.superseded_run_ids) == {second.run_id, third.run_id}
    assert (scene.dispatch(claim).status, scene.run(claim).status) == ("claimed", "running")
    assert scene.dispatch(claim).cancel_requested_at is not None
    for one in (second, third):
        run, dispatch = scene.run(one), scene.dispatch(one)
        assert (run.status, run.termination, run.started_at) == ("done", INTERRUPTED, None)
        assert (dispatch.status, dispatch.epoch, dispatch.termination) == ("superseded", epoch, INTERRUPTED)
        assert dispatch.run_status == "done"
    assert held(claim) == ["second", "third"]
    assert scene.kinds(claim)[-4:] == ["RunCancelled", "RunCancelled", "RunInterrupted", "ThreadInterrupted"]
    assert scene.last_event(claim).payload["reason"] == "enough"
    settle.stopped(claim)
    assert (scene.run(claim).status, scene.flag(claim)) == ("done", scene.IDLE), "nothing reads what is held"


def test_what_was_superseded_carries_neither_a_result_nor_a_claim() -> None:
    failed = scene.posted_and_taken()
    settle.nack(failed, code="transient", message="no", retry_after=60)
    for one, attempts in ((scene.post(), 0), (failed, 1)):
        stop(one)
        dispatch, run = scene.dispatch(one), scene.run(one)
        assert (dispatch.status, dispatch.run_status, dispatch.attempt_count) == ("superseded", "done", attempts)
        assert (dispatch.response, dispatch.error) == (None, None)
        assert (run.final_output, run.error, run.output) == (None, None, {})
        assert (dispatch.claim_token, dispatch.lease_until) == (None, None)
        assert dispatch.completed_at is not None


def test_a_new_thread_is_at_epoch_0_and_an_interrupt_takes_it_to_1_and_2() -> None:
    posted = scene.post()
    assert (scene.thread(posted).epoch, scene.dispatch(posted).epoch) == (0, 0)
    for epoch in (1, 2):
        assert stop(posted).epoch == scene.thread(posted).epoch == epoch
        posted = scene.post(thread_id=posted.thread_id)
        assert scene.dispatch(posted).epoch == epoch


def test_the_key_of_the_run_that_still_executes_is_taken_until_it_ends() -> None:
    open_run = scene.post(dedupe_key="held")
    claim = scene.taken()
    queued = scene.post(thread_id=claim.thread_id, dedupe_key="given back")
    assert stop(claim).superseded_run_ids == [queued.run_id]
    with scene.nothing_changes(), pytest.raises(DuplicateKey) as refused:
        scene.post(dedupe_key="held")
    assert refused.value.facts["run_id"] == open_run.run_id
    scene.post(dedupe_key="given back")
    settle.stopped(claim)
    scene.post(dedupe_key="held")


def test_an_interrupted_run_whose_worker_is_lost_ends_and_is_not_queued_again() -> None:
    claim = scene.posted_and_taken()
    met = stop(claim)
    scene.expire_lease(claim)
    assert recover.reclaim() == 1
    dispatch, run = scene.dispatch(claim), scene.run(claim)
    assert (dispatch.status, dispatch.run_status, dispatch.epoch) == ("cancelled", "done", met.epoch - 1)
    assert (run.status, run.termination) == ("done", {"type": "cancelled"})
    assert scene.take() is None
    with pytest.raises(LeaseLost):
        settle.complete(claim, output="too late")


def test_interrupting_again_changes_nothing_and_says_the_same_of_the_open_run() -> None:
    claim = scene.posted_and_taken()
    scene.post("second", thread_id=claim.thread_id)
    first = stop(claim)
    with scene.nothing_changes():
        again = stop(claim)
    assert (again.epoch, again.run_id, again.outcome) == (first.epoch, claim.run_id, "requested")
    assert (again.superseded_run_ids, again.held_message_ids) == ([], [])


def test_an_idle_thread_is_left_as_it_is() -> None:
    claim = scene.posted_and_taken()
    settle.complete(claim)
    with scene.nothing_changes():
        met = stop(claim)
    assert met == interrupt.Interruption(thread_id=claim.thread_id, epoch=0)


def test_a_waiting_run_and_one_between_attempts_end_at_once() -> None:
    waiting, failed = suspended(), scene.posted_and_taken()
    settle.nack(failed, code="transient", message="no", retry_after=60)
    for one in (waiting, failed):
        met = stop(one)
        assert (met.run_id, met.outcome, met.superseded_run_ids) == (one.run_id, "cancelled", [])
        run = scene.run(one)
        assert (run.status, run.termination, run.waiting, run.wait_until) == ("done", INTERRUPTED, None, None)
        assert (scene.thread(one).open_run_id, scene.flag(one)) == (None, scene.IDLE)
    assert scene.dispatch(failed).status == "superseded"


def test_a_wait_that_ends_by_itself_is_no_answer_and_ends() -> None:
    claim = suspended("rate_limit", seconds=60)
    met = stop(claim)
    assert (met.outcome, met.waits_for, scene.run(claim).status) == ("cancelled", None, "done")
    assert scene.take() is None


def test_a_run_for_which_an_answer_is_on_its_way_is_left_alone_and_named() -> None:
    claim = suspended(name="approval")
    resume.run(scope=scene.SCOPE, run_id=claim.run_id, name="approval", payload={"yes": True})
    behind = scene.post("behind", thread_id=claim.thread_id)
    met = stop(claim)
    assert (met.waits_for, met.run_id, met.outcome) == (claim.run_id, None, None)
    assert met.superseded_run_ids == [behind.run_id]
    queued = Run.objects.get(pk=claim.run_id).dispatches.get(status="queued")  # type: ignore[attr-defined]
    assert queued.epoch == met.epoch == 1
    assert scene.taken().run_id == claim.run_id


def test_the_run_of_a_foreground_submit_starts_after_the_answered_one() -> None:
    claim = suspended(name="approval")
    resume.run(scope=scene.SCOPE, run_id=claim.run_id, name="approval")
    posted = cut_in(claim)
    assert posted.interrupted is not None
    assert posted.interrupted.waits_for == claim.run_id
    first = scene.taken()
    assert first.run_id == claim.run_id
    settle.complete(first)
    assert scene.taken().run_id == posted.run_id


def test_a_run_for_later_is_kept_and_gets_the_new_epoch() -> None:
    claim = scene.posted_and_taken()
    later = scene.post("later", thread_id=claim.thread_id, available_at=scene.database_now() + scene.timedelta(hours=1))
    assert stop(claim).superseded_run_ids == []
    assert (scene.dispatch(later).status, scene.dispatch(later).epoch) == ("queued", 1)
    assert held(later) == []
    settle.stopped(claim)
    assert scene.flag(later) == scene.WAKING
    with scene.nothing_changes():
        assert stop(later).superseded_run_ids == [], "alone, it is nothing to interrupt"


def test_a_foreground_submit_reads_what_the_superseded_runs_had_not_before_its_own() -> None:
    claim = scene.posted_and_taken("first")
    second = scene.post("second", thread_id=claim.thread_id)
    steering = submit.messages(
        scope=scene.SCOPE, thread_id=claim.thread_id, messages=["mind this"], boundary="next_step"
    )
    posted = cut_in(claim)
    met = posted.interrupted
    assert met is not None
    assert (met.run_id, met.outcome, met.superseded_run_ids) == (claim.run_id, "requested", [second.run_id])
    assert (met.held_message_ids, held(claim)) == ([], [])
    assert scene.dispatch(posted).epoch == met.epoch == 1
    assert (scene.dispatch(claim).status, scene.run(claim).status) == ("claimed", "running"), "it was asked"
    assert scene.take() is None, "it starts when the old one has been settled"
    settle.stopped(claim)
    taken = scene.taken()
    assert taken.run_id == posted.run_id
    assert [message.content for message in taken.messages] == ["second", "mind this", "rather this"]
    assert [message.pk for message in taken.messages] == [
        *second.message_ids,
        *steering.message_ids,
        *posted.message_ids,
    ]
    settle.complete(taken)
    assert scene.flag(taken) == scene.IDLE


def test_a_completion_that_came_first_stands_and_what_interrupts_comes_next() -> None:
    claim = scene.posted_and_taken()
    posted = cut_in(claim)
    settle.complete(claim, output="done")
    assert scene.run(claim).termination == {"type": "natural_end"}
    assert scene.taken().run_id == posted.run_id


def test_a_foreground_submit_on_an_idle_or_new_thread_is_a_plain_one() -> None:
    posted = scene.post(if_active="interrupt")
    assert posted.interrupted is None, "a thread that is made by it"
    settle.complete(scene.taken())
    again = cut_in(posted)
    assert again.interrupted == interrupt.Interruption(thread_id=posted.thread_id, epoch=0)
    assert scene.flag(again) == scene.DUE
    assert "ThreadInterrupted" not in scene.kinds(again)


def test_the_thread_is_due_for_what_interrupts_and_no_longer_for_what_it_superseded() -> None:
    first = scene.post("first", priority=1)
    assert scene.flag(cut_in(first)) == scene.DUE


def test_the_dedupe_key_of_a_superseded_run_is_free_for_the_one_that_interrupts() -> None:
    first = scene.post(dedupe_key="once")
    posted = cut_in(first, dedupe_key="once")
    assert (scene.run(first).status, scene.run(posted).dedupe_key) == ("done", "once")


def test_in_a_batch_each_interrupts_what_stands_before_it() -> None:
    first = scene.post("one")
    wanted = [{"messages": [text], "thread_id": first.thread_id, "if_active": "interrupt"} for text in ("two", "three")]
    two, three = submit.many(scope=scene.SCOPE, submissions=wanted)
    assert three.interrupted is not None
    assert three.interrupted.superseded_run_ids == [two.run_id]
    taken = scene.taken()
    assert [message.content for message in taken.messages] == ["one", "two", "three"]
    assert taken.run_id == three.run_id


def test_refusals_have_no_side_effects() -> None:
    claim = scene.posted_and_taken()
    scene.post("second", thread_id=claim.thread_id)
    later = scene.database_now() + scene.timedelta(hours=1)
    with scene.nothing_changes():
        with pytest.raises(UnknownAgent):
            cut_in(claim, agent="nobody knows")
        with pytest.raises(InvalidInput):
            cut_in(claim, available_at=later)
        with pytest.raises(ThreadNotFound):
            stop(claim, scope="other")
        with pytest.raises(ThreadNotFound):
            stop(claim, thread_id=uuid.uuid4())
        with pytest.raises(InvalidInput):
            stop(claim, reason="x" * 201)
        with pytest.raises(ActiveRunConflict):
            scene.post(thread_id=claim.thread_id, if_active="reject")


REFUSED: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "a key in use": ({"dedupe_key": "elsewhere"}, DuplicateKey),
    "the key of the run that executes": ({"dedupe_key": "at work"}, DuplicateKey),
    "a message's id in use": ({"messages": [{"content": "x", "client_id": "m-1"}]}, AlreadyExists),
    "an unknown configuration": ({"config_version": "v0"}, InvalidInput),
    "another run expected": ({"expected_run_id": uuid.UUID(int=1)}, ActiveRunConflict),
}


@pytest.mark.parametrize("name", REFUSED)
def test_whoever_is_refused_interrupts_nobody_alone_or_in_a_batch(name: str) -> None:
    wrong, error = REFUSED[name]
    scene.post(dedupe_key="elsewhere", messages=[{"content": "x", "client_id": "m-1"}])
    settle.nack(scene.taken(), code="transient", message="no", retry_after=60)
    claim = scene.posted_and_taken(dedupe_key="at work")
    scene.post("second", thread_id=claim.thread_id)
    submit.messages(scope=scene.SCOPE, thread_id=claim.thread_id, messages=["mind this"], boundary="next_step")
    with scene.nothing_changes(), pytest.raises(error):
        cut_in(claim, **wrong)
    body = {"messages": ["rather this"], "thread_id": claim.thread_id, "agent": "echo", "if_active": "interrupt"}
    with scene.nothing_changes(), pytest.raises(error):
        submit.many(scope=scene.SCOPE, submissions=[body, {**body, **wrong}])
    assert scene.dispatch(claim).cancel_requested_at is None


def test_what_stopped_runs_would_have_read_alone_is_read_alone_and_the_rest_behind_it_in_order() -> None:
    claim = scene.posted_and_taken("at work")
    for text, how in (("A", {"granularity": "one"}), ("B", None), ("C", None)):
        scene.post(text, thread_id=claim.thread_id, delivery=how)
    cut_in(claim, "D")
    settle.stopped(claim)
    read = []
    while (taken := scene.take()) is not None:
        read.append([message.content for message in taken.messages])
        settle.complete(taken)
    assert read == [["A"], ["B", "C", "D"]]
    assert not Message.objects.pending().exists()


def test_released_messages_are_read_by_runs_like_those_that_lost_them() -> None:
    claim = scene.posted_and_taken("first")
    second = scene.post("second", thread_id=claim.thread_id, priority=7, options={"depth": 2})
    third = scene.post("third", thread_id=claim.thread_id)
    stop(claim)
    newer = scene.post("newer", thread_id=claim.thread_id)
    settle.stopped(claim)
    released = release(claim)
    assert released.message_ids == [*second.message_ids, *third.message_ids]
    assert held(claim) == []
    taken = scene.taken()
    assert (taken.run_id, taken.options) == (released.run_ids[0], {"depth": 2})
    assert scene.dispatch(taken).priority == 7
    assert [message.content for message in taken.messages] == ["second"]
    settle.complete(taken)
    following = []
    for _ in range(2):
        following.append(scene.taken())
        settle.complete(following[-1])
    assert [one.run_id for one in following] == [released.run_ids[1], newer.run_id]
    with scene.nothing_changes():
        assert release(claim).message_ids == []


def test_one_of_the_held_messages_may_be_released_alone() -> None:
    first = scene.post("first")
    second = scene.post("second", thread_id=first.thread_id)
    stop(first)
    released = release(first, message_ids=second.message_ids)
    assert (released.message_ids, held(first)) == (second.message_ids, ["first"])
    assert [message.content for message in scene.taken().messages] == ["second"]
    with scene.nothing_changes():
        assert release(first, message_ids=second.message_ids).message_ids == [], "it is not held any more"
        for wrong in ([], ["no id"], "no list", [None]):
            with pytest.raises(InvalidInput):
                release(first, message_ids=wrong)
        with pytest.raises(MessageNotFound):
            release(first, message_ids=[uuid.uuid4()])


def test_cancelling_a_thread_ends_all_its_runs_and_retracts_what_they_have_not_read() -> None:
    claim = scene.posted_and_taken("first")
    second = scene.post("second", thread_id=claim.thread_id)
    later = scene.post("later", thread_id=claim.thread_id, available_at=scene.database_now() + scene.timedelta(hours=1))
    submit.messages(scope=scene.SCOPE, thread_id=claim.thread_id, messages=["mind this"], boundary="next_step")
    cleared = cancel.thread(scope=scene.SCOPE, thread_id=claim.thread_id, reason="enough")
    assert (cleared.cancelled_run_ids, cleared.requested_run_id) == ([second.run_id, later.run_id], claim.run_id)
    settle.stopped(claim)
    assert set(Run.objects.filter(thread_id=claim.thread_id).values_list("status", flat=True)) == {"done"}
    assert list(Message.objects.values_list("state", flat=True).order_by("position")) == [
        "committed",
        *["retracted"] * 3,
    ]
    assert scene.flag(claim) == scene.IDLE
    with scene.nothing_changes():
        again = cancel.thread(scope=scene.SCOPE, thread_id=claim.thread_id)
    assert (again.cancelled_run_ids, again.requested_run_id) == ([], None)


def test_what_is_held_stays_held_when_its_thread_is_cancelled() -> None:
    first = scene.post("first")
    stop(first)
    scene.post("second", thread_id=first.thread_id)
    cancel.thread(scope=scene.SCOPE, thread_id=first.thread_id)
    assert held(first) == ["first"]
