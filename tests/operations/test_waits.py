"""suspend, resume, expiry: a run waits without a worker and goes on once, or its wait ends."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.errors import Conflict, Gone, InvalidInput, RunNotFound
from mailbox_app.models import Dispatch, Event, JournalEntry, Message, Run, Thread
from mailbox_app.operations import cancel, checkpoint, deliver, prune, recover, resume, settle, submit, tick
from mailbox_app.operations.ownership import Claim
from tests.operations import asking, scene

pytestmark = pytest.mark.django_db


def suspended(reason: str = "external_event", *, name: str = "", **given: Any) -> Claim:
    claim = scene.posted_and_taken()
    settle.suspend(claim, scene.wait(reason, name=name, **given))
    return claim


def go_on(claim: Any, **given: Any) -> resume.Resumed:
    return resume.run(**{"scope": scene.SCOPE, "run_id": claim.run_id, **given})


def overdue(claim: Claim) -> None:
    """Age the row: its wait was over a second ago."""
    assert Run.objects.filter(pk=claim.run_id).update(wait_until=Now() - timedelta(seconds=1)) == 1


def test_a_waiting_run_has_no_worker_and_keeps_its_thread() -> None:
    before = scene.database_now()
    claim = suspended(name="payment", message="until it is paid")
    dispatch, run, thread = scene.dispatch(claim), scene.run(claim), scene.thread(claim)
    assert (dispatch.status, dispatch.claim_token, dispatch.run_status) == ("acked", None, "waiting")
    assert dispatch.termination == run.termination == {"type": "suspended", "detail": "external_event"}
    assert run.status == "waiting"
    assert run.waiting is not None
    assert {name: run.waiting[name] for name in ("reason", "name", "message")} == {
        "reason": "external_event", "name": "payment", "message": "until it is paid",
    }  # fmt: skip
    assert run.wait_until is not None
    assert timedelta(days=7) <= run.wait_until - before < timedelta(days=7, seconds=20)
    assert run.resume_at is None
    assert (thread.active_run_id, thread.open_run_id) == (None, run.pk)
    event = scene.last_event(claim)
    assert (event.kind, event.payload["name"], event.payload["termination"]["detail"]) == (
        *("RunSuspended", "payment", "external_event"),
    )
    assert scene.flag(claim) == scene.IDLE
    scene.post("behind", thread_id=claim.thread_id, priority=0)
    assert scene.thread(claim).blocked_reason == "open_run"
    assert scene.take() is None


def test_work_that_was_queued_before_the_wait_is_shown_as_blocked() -> None:
    claim = scene.posted_and_taken()
    scene.post("behind", thread_id=claim.thread_id)
    settle.suspend(claim, scene.wait())
    assert scene.thread(claim).blocked_reason == "open_run"


def test_a_resume_journals_its_payload_and_queues_one_dispatch_like_the_last() -> None:
    posted = scene.post(priority=9, max_attempts=3)
    claim = scene.taken()
    settle.nack(claim, code="transient", message="no", retry_after=0)
    claim = scene.taken()
    settle.suspend(claim, scene.wait(name="payment"))
    answer = go_on(claim, name="payment", payload={"paid": True})
    assert (answer.status, answer.run_id, answer.thread_id) == ("resumed", posted.run_id, posted.thread_id)
    entry = JournalEntry.objects.get()
    assert (entry.verb, entry.name, entry.n, entry.turn, entry.result) == ("suspend", "payment", 1, 1, {"paid": True})
    before, dispatch = scene.dispatch(claim), Dispatch.objects.get(pk=answer.dispatch_id)
    for name in ("agent", "queue", "priority", "order", "max_attempts", "version_key"):
        assert getattr(dispatch, name) == getattr(before, name), name
    assert before.version_key != ""
    assert (dispatch.attempt_count, dispatch.lost_count, dispatch.status) == (0, 0, "queued")
    assert scene.thread(claim).due_priority == 9
    assert scene.kinds(claim)[-1] == "RunSuspended", "it has not gone on yet"
    following = scene.taken()
    assert (following.run_id, following.turn, following.attempt, following.replays) == (claim.run_id, 1, 1, True)
    assert [message.pk for message in following.messages] == [message.pk for message in claim.messages]
    run = scene.run(claim)
    assert (run.status, run.waiting, run.wait_until, run.termination) == ("running", None, None, None)
    assert scene.kinds(claim)[-1] == "RunResumed"


@pytest.mark.parametrize("reason", ["external_event", "manual_pause"])
def test_a_resume_that_came_first_is_found_by_the_wait(reason: str) -> None:
    claim = scene.posted_and_taken()
    answer = go_on(claim, name="payment", payload=7, resume_id="r-1")
    assert (answer.status, answer.dispatch_id) == ("stored", None)
    settle.suspend(claim, scene.wait(reason, name="payment"))
    assert JournalEntry.objects.get().result == 7
    assert scene.taken().run_id == claim.run_id
    assert go_on(claim, name="payment", payload=7, resume_id="r-1") == answer


def test_a_resume_may_come_before_the_run_has_started() -> None:
    posted = scene.post()
    assert go_on(posted, payload="early").status == "stored"
    claim = scene.taken()
    settle.suspend(claim, scene.wait())
    assert JournalEntry.objects.get().result == "early"
    assert scene.run(claim).resumes == []


def test_each_wait_takes_one_resume_of_its_name_the_oldest_first() -> None:
    claim = scene.posted_and_taken()
    for payload, name in ((1, "a"), (2, "b"), (3, "a")):
        go_on(claim, name=name, payload=payload)
    settle.suspend(claim, scene.wait(name="a"))
    assert JournalEntry.objects.get().result == 1
    assert [one["payload"] for one in scene.run(claim).resumes] == [2, 3]


def test_a_resume_of_another_name_is_kept_and_the_run_waits_on() -> None:
    claim = suspended(name="payment")
    assert go_on(claim, name="delivery").status == "stored"
    assert (scene.run(claim).status, scene.take()) == ("waiting", None)


def test_what_comes_after_the_wait_is_over_is_kept_for_the_next() -> None:
    claim = suspended()
    assert go_on(claim, payload=1).status == "resumed"
    assert go_on(claim, payload=2).status == "stored"
    assert Dispatch.objects.filter(run_id=claim.run_id).queued().count() == 1
    again = scene.taken()
    entry = scene.wait().entry
    settle.suspend(again, scene.wait(entry={**entry, "n": 2}))
    assert list(JournalEntry.objects.order_by("n").values_list("n", "result")) == [(1, 1), (2, 2)]


def test_the_same_resume_id_gets_the_same_answer_and_changes_nothing() -> None:
    claim = suspended()
    answer = go_on(claim, payload={"a": 1}, resume_id="r-1")
    with scene.nothing_changes():
        assert go_on(claim, payload={"a": 1}, resume_id="r-1") == answer
    settle.complete(scene.taken(), output="done")
    with scene.nothing_changes():
        assert go_on(claim, payload={"a": 1}, resume_id="r-1") == answer


@pytest.mark.parametrize("other", [{"payload": 2}, {"payload": 1, "name": "b"}])
def test_the_same_resume_id_with_something_else_is_a_conflict(other: dict[str, Any]) -> None:
    claim = suspended()
    go_on(claim, payload=1, resume_id="r-1")
    with scene.nothing_changes(), pytest.raises(Conflict, match="r-1"):
        go_on(claim, resume_id="r-1", **other)


def test_a_run_that_is_done_is_not_resumed() -> None:
    claim = scene.posted_and_taken()
    settle.complete(claim)
    with scene.nothing_changes(), pytest.raises(Conflict, match="is done"):
        go_on(claim)


def test_only_so_many_resumes_are_stored() -> None:
    claim = scene.posted_and_taken()
    for number in range(100):
        go_on(claim, payload=number, resume_id=str(number))
    with scene.nothing_changes(), pytest.raises(Conflict, match="has 100 resumes"):
        go_on(claim, payload=100)


REFUSALS: dict[str, tuple[Callable[[Claim], dict[str, Any]], type[Exception]]] = {
    "unknown run": (lambda claim: {"run_id": uuid.uuid4()}, RunNotFound),
    "another scope": (lambda claim: {"scope": "other"}, RunNotFound),
    "no id": (lambda claim: {"run_id": "x"}, InvalidInput),
    "nul": (lambda claim: {"payload": "a\x00b"}, InvalidInput),
    "too large": (lambda claim: {"payload": "x" * 65_536}, InvalidInput),
    "long name": (lambda claim: {"name": "x" * 201}, InvalidInput),
    "blank id": (lambda claim: {"resume_id": " "}, InvalidInput),
}


@pytest.mark.parametrize(("given", "error"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_resume_that_is_refused_changes_nothing(given: Callable[[Claim], Any], error: type[Exception]) -> None:
    claim = suspended()
    with scene.nothing_changes(), pytest.raises(error):
        go_on(claim, **given(claim))


def test_a_run_of_a_deleted_thread_is_gone() -> None:
    claim = suspended()
    Thread.objects.filter(pk=claim.thread_id).update(deleted_at=Now())
    with scene.nothing_changes(), pytest.raises(Gone):
        go_on(claim)


def test_a_rate_limit_ends_by_itself() -> None:
    before = scene.database_now()
    claim = suspended("rate_limit", seconds=90.0)
    run = scene.run(claim)
    assert run.resume_at is not None
    assert timedelta(seconds=90) <= run.resume_at - before < timedelta(seconds=110)
    dispatch = Dispatch.objects.filter(run_id=claim.run_id).queued().get()
    assert dispatch.available_at == run.resume_at
    assert scene.flag(claim) == scene.WAKING
    Dispatch.objects.filter(pk=dispatch.pk).update(available_at=Now() - timedelta(seconds=1))
    Thread.objects.update(wakes_at=Now())
    assert tick.promote() == 1
    following = scene.taken()
    assert (following.run_id, following.replays) == (claim.run_id, True)
    assert JournalEntry.objects.get().result is None


def test_a_rate_limit_may_be_ended_early_with_a_payload() -> None:
    claim = suspended("rate_limit", seconds=90.0, name="quota")
    assert go_on(claim, name="quota", payload="more").status == "resumed"
    assert JournalEntry.objects.get().result == "more"
    assert scene.taken().run_id == claim.run_id


def test_a_run_that_was_asked_to_stop_does_not_wait() -> None:
    claim = scene.posted_and_taken()
    scene.ask_to_cancel(claim)
    settle.suspend(claim, scene.wait())
    assert (scene.dispatch(claim).status, scene.run(claim).termination) == ("cancelled", {"type": "cancelled"})


def test_a_wait_that_nobody_ends_ends_the_run() -> None:
    claim = suspended(name="payment", seconds=3600.0)
    submit.messages(
        scope=scene.SCOPE, thread_id=claim.thread_id, messages=["are you there?"], boundary="on_natural_end"
    )
    scene.post("behind", thread_id=claim.thread_id)
    with scene.nothing_changes():
        assert tick.expire_waits() == 0
    overdue(claim)
    assert tick.expire_waits() == 1
    run, thread = scene.run(claim), scene.thread(claim)
    assert (run.status, run.waiting, run.wait_until) == ("done", None, None)
    assert run.termination == {"type": "stopped", "detail": "wait_expired"}
    assert run.finished_at is not None
    assert (thread.open_run_id, thread.blocked_reason) == (None, "")
    event = Event.objects.get(kind="RunTerminated")
    assert event.payload["termination"] == run.termination
    assert Event.objects.filter(kind="MessageRequeued").count() == 1
    assert [message.content for message in scene.taken().messages] == ["are you there?"]
    with pytest.raises(Conflict):
        go_on(claim, name="payment")
    assert tick.expire_waits() == 0


def test_a_wait_that_is_over_by_a_resume_does_not_expire() -> None:
    claim = suspended()
    go_on(claim)
    overdue(claim)
    with scene.nothing_changes():
        assert tick.expire_waits() == 0
    assert scene.taken().run_id == claim.run_id


def test_a_wait_may_end_at_an_instant() -> None:
    until = scene.database_now() + timedelta(days=1)
    claim = suspended(until=until)
    assert scene.run(claim).wait_until == until


def test_messages_of_a_waiting_run_are_read_when_it_goes_on() -> None:
    claim = suspended()
    submit.messages(scope=scene.SCOPE, thread_id=claim.thread_id, messages=["psst"], boundary="next_step")
    assert Message.objects.pending().count() == 1
    go_on(claim)
    assert [message.content for message in checkpoint.reach(scene.taken())] == ["psst"]


def test_what_was_said_to_a_waiting_run_that_is_cancelled_gets_a_run_of_its_own() -> None:
    claim = suspended()
    submit.messages(scope=scene.SCOPE, thread_id=claim.thread_id, messages=["psst"], boundary="next_step")
    assert cancel.run(scope=scene.SCOPE, run_id=claim.run_id).outcome == "cancelled"
    assert Event.objects.filter(kind="MessageRequeued").count() == 1
    assert [message.content for message in scene.taken().messages] == ["psst"]


@pytest.mark.parametrize("reason", ["external_event", "manual_pause", "user_input", "tool_permission"])
def test_no_pass_wakes_or_ends_a_run_that_waits_for_somebody(reason: str) -> None:
    if reason == "tool_permission":
        asking.waiting()
    else:
        suspended(reason)
    Dispatch.objects.update(completed_at=Now() - timedelta(days=6))
    with scene.nothing_changes():
        passes = (tick.promote, tick.expire_tickets, tick.expire_waits, recover.reclaim, recover.repair)
        assert [act() for act in (*passes, recover.finish_cancelled, deliver.batch, prune.batch)] == [0] * 8
