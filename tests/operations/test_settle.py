"""complete, nack, dead_letter, stopped: each ends an activation in one transaction."""

from datetime import timedelta

import pytest

from mailbox_app.models import Dispatch, Message, Run
from mailbox_app.operations import settle, tick
from tests.operations import scene

pytestmark = pytest.mark.django_db

CLAIMED = {"claim_token", "lease_until"}


def assert_unclaimed(dispatch: Dispatch) -> None:
    assert (dispatch.claim_token, dispatch.claimed_by, dispatch.lease_until) == (None, "", None)


def test_completion_ends_dispatch_run_and_thread_together() -> None:
    claim = scene.posted_and_taken("hello there")
    settle.complete(claim, output="hello there", state={"turns": 1})

    dispatch, run, thread = scene.dispatch(claim), scene.run(claim), scene.thread(claim)
    assert_unclaimed(dispatch)
    assert (dispatch.status, dispatch.run_status, dispatch.termination) == ("acked", "done", {"type": "natural_end"})
    assert (dispatch.response, dispatch.error, dispatch.last_error) == ("hello there", None, "")
    assert (dispatch.attempt_count, dispatch.lost_count, dispatch.instance_id) == (0, 0, claim.token)
    assert dispatch.completed_at is not None
    assert (run.status, run.termination, run.final_output) == ("done", {"type": "natural_end"}, "hello there")
    assert (run.error, run.state) == (None, {"turns": 1})
    assert run.finished_at is not None
    answer = Message.objects.get(producer_run_id=run.pk)
    assert run.output == {"message_ids": [str(answer.pk)]}
    assert (answer.sender, answer.state, answer.run_id) == ("echo", "committed", None)
    assert scene.log(claim) == [(1, "user", "hello there"), (2, "assistant", "hello there")]
    assert (thread.last_seq, thread.last_cursor, thread.claim_count) == (2, 5, 1)
    assert (thread.active_run_id, thread.open_run_id, thread.latest_run_id) == (None, None, run.pk)
    assert scene.flag(claim) == scene.IDLE


def test_a_plain_run_records_four_events_of_its_own() -> None:
    claim = scene.posted_and_taken()
    settle.complete(claim, output="hello there")
    assert scene.kinds(claim) == ["ThreadCreated", "RunQueued", "RunStarted", "MessageCommitted", "RunFinished"]
    settle.complete(scene.posted_and_taken(thread_id=claim.thread_id), output="again")
    assert scene.kinds(claim)[5:] == ["RunQueued", "RunStarted", "MessageCommitted", "RunFinished"]


def test_the_last_event_of_a_completed_run_says_how_it_ended() -> None:
    claim = scene.posted_and_taken()
    settle.complete(claim, output={"answer": 42})
    event = scene.last_event(claim)
    assert (event.kind, event.run_id, event.dispatch_id) == ("RunFinished", claim.run_id, claim.dispatch_id)
    assert event.payload == {
        "thread_id": str(claim.thread_id),
        "run_id": str(claim.run_id),
        "dispatch_id": str(claim.dispatch_id),
        "agent": "echo",
        "dispatch_epoch": 0,
        "attempt_count": 0,
        "lost_count": 0,
        "termination": {"type": "natural_end"},
        "final_output": {"answer": 42},
    }


@pytest.mark.parametrize("output", [{"answer": 42}, [1, 2], 7, None, "", "  \n"], ids=repr)
def test_an_output_that_is_no_text_becomes_no_message(output: object) -> None:
    claim = scene.posted_and_taken("hello")
    settle.complete(claim, output=output)
    assert scene.log(claim) == [(1, "user", "hello")]
    assert (scene.run(claim).final_output, scene.dispatch(claim).response) == (output, output)
    assert scene.run(claim).output == {"message_ids": []}
    assert scene.kinds(claim) == ["ThreadCreated", "RunQueued", "RunStarted", "RunFinished"]


def test_completion_frees_the_thread_for_the_next_run() -> None:
    claim = scene.posted_and_taken("one")
    later = scene.post("two", thread_id=claim.thread_id)
    assert scene.flag(claim) == scene.IDLE
    settle.complete(claim)
    assert scene.flag(claim) == scene.DUE
    assert scene.taken().run_id == later.run_id


def test_a_completion_stands_although_a_cancellation_came_first() -> None:
    claim = scene.posted_and_taken()
    scene.ask_to_cancel(claim)
    settle.complete(claim, output="done")
    assert (scene.dispatch(claim).status, scene.run(claim).termination) == ("acked", {"type": "natural_end"})


def test_a_failed_attempt_is_queued_again_after_its_backoff() -> None:
    claim = scene.posted_and_taken()
    before = scene.database_now()
    settle.nack(claim, code="transient", message="the model is overloaded")
    after = scene.database_now()

    dispatch, run, thread = scene.dispatch(claim), scene.run(claim), scene.thread(claim)
    assert_unclaimed(dispatch)
    assert (dispatch.status, dispatch.attempt_count, dispatch.lost_count) == ("queued", 1, 0)
    assert (dispatch.last_error, dispatch.completed_at) == ("transient: the model is overloaded", None)
    assert (dispatch.run_status, dispatch.termination, dispatch.response, dispatch.error) == (None, None, None, None)
    assert before + timedelta(seconds=0.2) <= dispatch.available_at <= after + timedelta(seconds=0.3)
    assert (run.status, run.error, run.finished_at) == ("running", None, None)
    assert (thread.active_run_id, thread.open_run_id) == (None, run.pk)
    assert thread.wakes_at == dispatch.available_at
    assert scene.flag(claim) == scene.WAKING
    assert scene.last_event(claim).kind == "RunRescheduled"
    payload = scene.last_event(claim).payload
    assert (payload["reason"], payload["attempt_count"]) == ("retry_backoff", 1)
    assert payload["error"] == {"code": "transient", "message": "the model is overloaded"}
    assert 0.2 <= payload["retry_in_seconds"] <= 0.3


def test_a_run_in_its_backoff_keeps_its_thread() -> None:
    claim = scene.posted_and_taken("one")
    scene.post("two", thread_id=claim.thread_id, priority=0)
    settle.nack(claim, code="transient", message="later")
    assert scene.take() is None
    scene.make_available(claim)
    assert tick.promote() == 1
    assert scene.taken().run_id == claim.run_id


@pytest.mark.parametrize(
    ("failures", "least", "most"),
    [(1, 0.2, 0.3), (2, 0.4, 0.6), (3, 0.8, 1.2), (7, 12.8, 19.2), (8, 24.0, 36.0), (9, 24.0, 36.0), (99, 24.0, 36.0)],
)
def test_the_backoff_doubles_up_to_its_limit(failures: int, least: float, most: float) -> None:
    drawn = [settle.backoff(failures) for _ in range(200)]
    assert least <= min(drawn) <= max(drawn) <= most
    assert max(drawn) - min(drawn) > (most - least) / 2, "the jitter spreads retries"


def test_retry_after_replaces_the_backoff() -> None:
    claim = scene.posted_and_taken()
    before = scene.database_now()
    settle.nack(claim, code="transient", message="later", retry_after=90.0)
    delay = scene.dispatch(claim).available_at - before
    assert timedelta(seconds=90) <= delay < timedelta(seconds=91)
    assert scene.last_event(claim).payload["retry_in_seconds"] == 90.0


def test_a_retry_after_of_zero_is_due_at_once() -> None:
    claim = scene.posted_and_taken()
    settle.nack(claim, code="transient", message="now", retry_after=0)
    assert scene.flag(claim) == scene.DUE
    assert scene.taken().attempt == 2


def test_the_last_attempt_buries_the_dispatch_and_ends_the_run() -> None:
    claim = scene.posted_and_taken(max_attempts=2)
    settle.nack(claim, code="transient", message="first", retry_after=0)
    again = scene.taken()
    settle.nack(again, code="transient", message="second")

    dispatch, run, thread = scene.dispatch(claim), scene.run(claim), scene.thread(claim)
    error = {"code": "transient", "message": "second"}
    assert_unclaimed(dispatch)
    assert (dispatch.status, dispatch.attempt_count, dispatch.max_attempts) == ("dead_letter", 2, 2)
    assert (dispatch.last_error, dispatch.error) == ("transient: second", error)
    assert (dispatch.run_status, dispatch.response) == ("done", None)
    assert dispatch.completed_at is not None
    assert (run.status, run.error, run.final_output) == ("done", error, None)
    assert run.termination == dispatch.termination == {"type": "error", "detail": "transient"}
    assert (thread.active_run_id, thread.open_run_id) == (None, None)
    assert scene.last_event(claim).kind == "RunErrored"
    assert scene.last_event(claim).payload["error"] == error


def test_an_only_attempt_buries_at_the_first_failure() -> None:
    claim = scene.posted_and_taken(max_attempts=1)
    settle.nack(claim, code="transient", message="only")
    assert (scene.dispatch(claim).status, scene.dispatch(claim).attempt_count) == ("dead_letter", 1)


def test_a_run_that_was_asked_to_stop_is_not_tried_again() -> None:
    claim = scene.posted_and_taken()
    scene.ask_to_cancel(claim)
    settle.nack(claim, code="transient", message="later")
    dispatch, run = scene.dispatch(claim), scene.run(claim)
    assert_unclaimed(dispatch)
    assert (dispatch.status, dispatch.attempt_count, dispatch.run_status) == ("cancelled", 0, "done")
    assert (run.status, run.error) == ("done", None)
    assert run.termination == dispatch.termination == {"type": "cancelled"}
    assert scene.last_event(claim).kind == "RunCancelled"


def test_a_permanent_failure_is_buried_whatever_attempts_are_left() -> None:
    claim = scene.posted_and_taken(max_attempts=5)
    settle.dead_letter(claim, code="permanent", message="no such model")
    dispatch, run = scene.dispatch(claim), scene.run(claim)
    error = {"code": "permanent", "message": "no such model"}
    assert_unclaimed(dispatch)
    assert (dispatch.status, dispatch.attempt_count, dispatch.error) == ("dead_letter", 1, error)
    assert (run.status, run.error, run.termination) == ("done", error, {"type": "error", "detail": "permanent"})
    assert scene.kinds(claim) == ["ThreadCreated", "RunQueued", "RunStarted", "RunErrored"]


def test_a_burial_freezes_what_the_run_had_not_read() -> None:
    claim = scene.posted_and_taken("one")
    unread = Message.objects.create(
        scope="acme", thread_id=claim.thread_id, run_id=claim.run_id, role="user", content="two", position=90
    )
    settle.dead_letter(claim, code="permanent", message="no")
    unread.refresh_from_db()
    assert (unread.state, unread.seq, unread.read_turn) == ("committed", 2, 1)


def test_a_burial_leaves_the_messages_of_queued_runs_alone() -> None:
    claim = scene.posted_and_taken("one")
    other = scene.post("two", thread_id=claim.thread_id)
    settle.dead_letter(claim, code="permanent", message="no")
    assert Message.objects.get(pk=other.message_ids[0]).state == "pending"
    assert scene.taken().run_id == other.run_id


def test_a_run_that_noticed_its_cancellation_ends_cancelled() -> None:
    claim = scene.posted_and_taken()
    scene.ask_to_cancel(claim)
    settle.stopped(claim)
    dispatch, run = scene.dispatch(claim), scene.run(claim)
    assert_unclaimed(dispatch)
    assert (dispatch.status, dispatch.attempt_count, dispatch.run_status) == ("cancelled", 0, "done")
    assert (run.status, run.termination) == ("done", {"type": "cancelled"})
    assert scene.thread(claim).open_run_id is None
    assert scene.kinds(claim) == ["ThreadCreated", "RunQueued", "RunStarted", "RunCancelled"]


def test_a_dead_letter_is_never_claimed_again() -> None:
    claim = scene.posted_and_taken()
    settle.dead_letter(claim, code="permanent", message="no")
    assert scene.flag(claim) == scene.IDLE
    assert scene.take() is None
    assert Run.objects.not_done().count() == 0


def test_an_end_is_told_once_and_an_attempt_that_is_followed_by_another_is_none() -> None:
    claim = scene.posted_and_taken(max_attempts=3)
    for _ in range(2):
        settle.nack(claim, code="transient", message="no", retry_after=0)
        claim = scene.taken()
    settle.nack(claim, code="transient", message="no")
    assert scene.kinds(claim) == [
        *("ThreadCreated", "RunQueued", "RunStarted", "RunRescheduled", "RunResumed", "RunRescheduled"),
        *("RunResumed", "RunErrored"),
    ]
