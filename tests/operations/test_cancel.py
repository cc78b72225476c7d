"""cancel: at once when nobody executes the run, by request when a worker does."""

import uuid
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.errors import Gone, InvalidInput, LeaseLost, RunNotFound
from mailbox_app.models import Dispatch, Message, Run, Thread
from mailbox_app.operations import cancel, recover, settle, threads, tick
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db

CANCELLED = {"type": "cancelled", "detail": "not needed"}


def ask(of: Any, **given: Any) -> cancel.Receipt:
    return cancel.run(**{"scope": scene.SCOPE, "run_id": of.run_id, "reason": "not needed", **given})


def test_an_unstarted_run_ends_at_once_and_its_messages_are_retracted() -> None:
    posted = scene.post()
    before = scene.thread(posted).pending_revision
    receipt = ask(posted)
    assert (receipt.outcome, receipt.status, receipt.termination) == ("cancelled", "done", CANCELLED)
    run, dispatch, message = scene.run(posted), scene.dispatch(posted), Message.objects.get()
    assert (run.status, run.termination, run.started_at) == ("done", CANCELLED, None)
    assert run.finished_at is not None
    assert (dispatch.status, dispatch.run_status, dispatch.termination) == ("cancelled", "done", CANCELLED)
    assert (message.state, message.retract_reason) == ("retracted", "run_cancelled")
    assert scene.thread(posted).pending_revision == before + 1
    assert scene.flag(posted) == scene.IDLE
    event = scene.last_event(posted)
    assert (event.kind, event.run_id, event.dispatch_id) == ("RunCancelled", posted.run_id, posted.dispatch_id)
    assert (event.payload["reason"], event.payload["termination"]) == ("not needed", CANCELLED)
    assert scene.take() is None


def test_the_messages_of_other_runs_stay() -> None:
    first = scene.post("one")
    second = scene.post("two", thread_id=first.thread_id)
    ask(first)
    claim = scene.taken()
    assert (claim.run_id, [message.content for message in claim.messages]) == (second.run_id, ["two"])


def test_a_claimed_run_is_asked_once_and_stops_at_its_next_checkpoint() -> None:
    claim = scene.posted_and_taken()
    receipt = ask(claim)
    assert (receipt.outcome, receipt.status, receipt.termination) == ("requested", "running", None)
    requested_at = scene.dispatch(claim).cancel_requested_at
    assert requested_at is not None
    assert (scene.last_event(claim).kind, scene.last_event(claim).payload["reason"]) == (
        "RunCancelRequested",
        "not needed",
    )
    with scene.nothing_changes():
        assert ask(claim, reason="again").outcome == "requested"
    settle.stopped(claim)
    assert scene.run(claim).termination == {"type": "cancelled"}
    assert ask(claim).outcome == "already_done"


def test_a_natural_completion_that_came_first_stands() -> None:
    claim = scene.posted_and_taken()
    ask(claim)
    settle.complete(claim, output="done")
    with scene.nothing_changes():
        receipt = ask(claim)
    assert (receipt.outcome, receipt.termination) == ("already_done", {"type": "natural_end"})


def test_a_failure_after_the_request_ends_the_run_cancelled() -> None:
    claim = scene.posted_and_taken()
    ask(claim)
    settle.nack(claim, code="transient", message="no")
    assert (scene.run(claim).termination, scene.dispatch(claim).attempt_count) == ({"type": "cancelled"}, 0)


def test_a_worker_that_is_gone_after_the_request_is_reclaimed_as_cancelled() -> None:
    claim = scene.posted_and_taken()
    ask(claim)
    scene.expire_lease(claim)
    assert recover.reclaim() == 1
    assert (scene.run(claim).status, scene.dispatch(claim).status) == ("done", "cancelled")


def test_a_request_that_nobody_heeds_is_finished_by_the_sweep_before_a_long_lease_is_over(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "lease_seconds": 600, "cancel_grace_seconds": 30}
    claim = scene.posted_and_taken()
    ask(claim)
    behind = scene.post(thread_id=claim.thread_id)

    def age(seconds: int) -> None:
        asked_at = Now() - scene.timedelta(seconds=seconds)
        assert Dispatch.objects.filter(pk=claim.dispatch_id).update(cancel_requested_at=asked_at)

    age(229)  # the grace, and the renewal by which a worker that lives learns of it
    assert recover.finish_cancelled() == 0
    age(231)
    assert recover.finish_cancelled() == 1
    run, dispatch = scene.run(claim), scene.dispatch(claim)
    assert (run.status, run.termination, dispatch.status) == ("done", {"type": "cancelled"}, "cancelled")
    assert scene.kinds(claim).count("RunCancelled") == 1
    with scene.nothing_changes():
        assert recover.finish_cancelled() == 0
        with pytest.raises(LeaseLost):
            settle.stopped(claim)
    assert scene.taken().run_id == behind.run_id


def test_a_run_between_two_attempts_ends_at_once_and_frees_its_thread() -> None:
    claim = scene.posted_and_taken()
    behind = scene.post("next", thread_id=claim.thread_id)
    settle.nack(claim, code="transient", message="no", retry_after=60)
    assert ask(claim).outcome == "cancelled"
    assert (scene.run(claim).status, scene.dispatch(claim).status) == ("done", "cancelled")
    assert scene.thread(claim).open_run_id is None
    assert scene.flag(claim) == scene.DUE
    assert scene.taken().run_id == behind.run_id


def waiting() -> Run:
    """A run of a thread that waits for somebody; nothing verbs do leads there yet."""
    run = given.run(status="waiting")
    given.dispatch(run=run, status="acked")
    Thread.objects.filter(pk=run.thread_id).update(open_run_id=run.pk, latest_run_id=run.pk)
    return run


def test_a_waiting_run_ends_at_once_with_its_tickets_and_what_is_queued_behind_it_starts() -> None:
    run = waiting()
    ticket = given.ticket(run=run)
    answered = given.ticket(run=run, status="answered")
    behind = scene.post(thread_id=run.thread_id)
    assert scene.flag(behind)[-1] == "open_run"
    receipt = cancel.run(scope=scene.SCOPE, run_id=run.pk)
    assert (receipt.outcome, receipt.termination) == ("cancelled", {"type": "cancelled"})
    run.refresh_from_db()
    ticket.refresh_from_db()
    answered.refresh_from_db()
    assert (run.status, run.waiting, ticket.status, answered.status) == ("done", None, "cancelled", "answered")
    assert scene.taken().run_id == behind.run_id
    assert "RunCancelled" in Run.objects.get(pk=run.pk).thread.events.values_list("kind", flat=True)


def test_a_queued_resume_of_a_waiting_run_is_withdrawn() -> None:
    run = waiting()
    resume = given.dispatch(run=run)
    cancel.run(scope=scene.SCOPE, run_id=run.pk)
    resume.refresh_from_db()
    assert (resume.status, Run.objects.get().status) == ("cancelled", "done")
    assert scene.take() is None


def test_a_scheduled_run_is_cancelled_and_wakes_nobody() -> None:
    posted = scene.post(available_at=scene.database_now() + scene.timedelta(hours=1))
    assert scene.flag(posted) == scene.WAKING
    assert ask(posted).outcome == "cancelled"
    assert scene.flag(posted) == scene.IDLE
    assert tick.promote() == 0


def test_cancelling_frees_the_dedupe_key() -> None:
    posted = scene.post(dedupe_key="once")
    ask(posted)
    assert scene.post(dedupe_key="once").run_id != posted.run_id


def test_refusals_change_nothing() -> None:
    posted = scene.post()
    with scene.nothing_changes():
        with pytest.raises(RunNotFound):
            cancel.run(scope=scene.SCOPE, run_id=uuid.uuid4())
        with pytest.raises(RunNotFound):
            ask(posted, scope="other")
        with pytest.raises(InvalidInput):
            ask(posted, reason="x" * 201)
        with pytest.raises(InvalidInput):
            ask(posted, reason="\x00")


def test_a_run_of_a_deleted_thread_is_gone() -> None:
    claim = scene.posted_and_taken()
    settle.complete(claim)
    threads.delete(scope=scene.SCOPE, thread_id=claim.thread_id)
    with scene.nothing_changes(), pytest.raises(Gone):
        ask(claim)


def test_a_run_that_was_asked_to_stop_and_is_handed_back_is_not_queued_again() -> None:
    claim = scene.posted_and_taken()
    behind = scene.post(thread_id=claim.thread_id)
    ask(claim)
    assert settle.hand_back(tokens=[claim.token]) == 1
    run, dispatch = scene.run(claim), scene.dispatch(claim)
    assert (run.status, run.termination, dispatch.status) == ("done", {"type": "cancelled"}, "cancelled")
    assert scene.last_event(claim).kind == "RunCancelled"
    assert ask(claim).outcome == "already_done"
    assert scene.taken().run_id == behind.run_id, "the thread is free"
