"""claim: neither somebody's locks nor one bad row keep the rest of a queue from being claimed."""

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from django.db import OperationalError, transaction

from mailbox_app import channel, tasks
from mailbox_app.conf import conf
from mailbox_app.errors import SnapshotTooNew, SnapshotUnreadable
from mailbox_app.models import Dispatch, Message, Run, Thread
from mailbox_app.models.snapshot import VERSION
from mailbox_app.operations import cancel, claim, post, replay, settle, submit, tick, unreadable
from mailbox_app.operations.submit import Receipt
from tests.operations import scene
from tests.races.actors import start

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def queue(settings: Any) -> Iterator[str]:
    name = f"queue-{uuid.uuid4()}"
    settings.MAILBOX = {**settings.MAILBOX, "default_queue": name}
    channel.forget_failures()
    yield name
    channel.forget_failures()


def waiting(queue: str) -> int:
    return int(redis.Redis.from_url(conf.redis_url).llen(queue))


@contextmanager
def held(*of: Receipt) -> Iterator[None]:
    """Another connection holds these threads in a transaction of its own."""
    locked, release = threading.Event(), threading.Event()

    def importer() -> None:
        with transaction.atomic():
            list(Thread.objects.select_for_update(no_key=True).filter(pk__in=[one.thread_id for one in of]))
            locked.set()
            release.wait(30)

    holding = start(importer)
    try:
        assert locked.wait(20)
        yield
    finally:
        release.set()
        holding.result(20)


def bad(of: Receipt) -> Receipt:
    """A run whose head cannot be claimed: a restored table or a raw edit made its input a list."""
    Run.objects.filter(pk=of.run_id).update(input=[1])
    return of


@pytest.mark.parametrize("count", [8, 64])
def test_threads_that_others_hold_do_not_keep_the_next_one_from_being_claimed(count: int) -> None:
    front = [scene.post() for _ in range(count)]
    behind = scene.post()
    with held(*front):
        assert scene.taken().run_id == behind.run_id
        found = claim.due(queue=scene.QUEUE, agents=["echo"], worker=scene.WORKER, tokens=[uuid.uuid4()])
        assert (found.claims, found.has_more) == ([], True), "look again: what is left is held by others"
    assert scene.taken().run_id == front[0].run_id


def test_a_head_that_cannot_be_claimed_keeps_no_other_waiting_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    broken = bad(scene.post("bad"))
    others = [scene.post("good") for _ in range(3)]
    with caplog.at_level(logging.ERROR, "mailbox"):
        assert [scene.taken().run_id for _ in others] == [one.run_id for one in others]
    facts = [record.mailbox for record in caplog.records if record.message.startswith("claim.failed ")]
    assert [(one["thread_id"], one["error"]) for one in facts] == [(broken.thread_id, "AttributeError")] * 3
    assert (scene.dispatch(broken).status, scene.run(broken).status, scene.log(broken)) == ("queued", "created", [])


SPOILED: dict[str, Any] = {
    "a list": [1],
    "a text": "options",
    "a number": 7,
    "options are a number": {"options": 7},
    "options are a list": {"options": ["fast"]},
    "metadata are a text": {"metadata": "none"},
    "its version is a text": {"version": "2"},
    "its trace is no carrier": {"version": 2, "trace": {"traceparent": 7}},
}


@pytest.mark.parametrize("activation", SPOILED.values(), ids=SPOILED.keys())
def test_a_run_whose_snapshot_cannot_be_read_is_not_executed_by_guess_and_goes_on_once_it_is_mended(
    activation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    posted = scene.post(options={"model": "small"})
    behind = scene.post("next", thread_id=posted.thread_id)
    whole = scene.run(posted).activation
    Run.objects.filter(pk=posted.run_id).update(activation=activation)
    with caplog.at_level(logging.ERROR, "mailbox"):
        assert scene.take() is None, "it is nobody's to execute"
    facts = [record.mailbox for record in caplog.records if record.message.startswith("run.unreadable ")]
    assert [one["run_id"] for one in facts] == [posted.run_id]
    run, dispatch = scene.run(posted), scene.dispatch(posted)
    assert (run.status, run.error["code"], dispatch.status) == ("done", "snapshot_unreadable", "dead_letter")
    assert (run.started_at, dispatch.attempt_count) == (None, 0)
    assert scene.last_event(posted).kind == "RunErrored"
    following = scene.taken()
    assert following.run_id == behind.run_id, "its thread goes on without it"
    with scene.nothing_changes(), pytest.raises(SnapshotUnreadable):
        replay.one(dispatch_id=posted.dispatch_id, by="ann")
    Run.objects.filter(pk=posted.run_id).update(activation=whole)
    settle.complete(following)
    replay.one(dispatch_id=posted.dispatch_id, by="ann")
    again = scene.taken()
    assert (again.options, [message.content for message in again.messages]) == ({"model": "small"}, ["hello there"])


def test_an_open_run_whose_snapshot_cannot_be_read_any_more_ends_with_what_it_was_to_read() -> None:
    one = scene.posted_and_taken()
    said = submit.messages(scope=scene.SCOPE, thread_id=one.thread_id, messages=["and?"], boundary="next_step")
    settle.nack(one, code="flaky", message="again")
    scene.make_available(one)
    tick.promote()
    Run.objects.filter(pk=one.run_id).update(activation=[1])
    assert scene.take() is None
    run, thread = scene.run(one), scene.thread(one)
    assert (run.status, run.error["code"], scene.dispatch(one).status) == ("done", "snapshot_unreadable", "dead_letter")
    passed_on = Message.objects.get(pk=said.message_ids[0]).run
    assert passed_on is not None
    assert (passed_on.pk != one.run_id, passed_on.activation, thread.open_run_id) == (True, [1], None)
    assert scene.take() is None
    assert Dispatch.objects.get(run=passed_on).status == "dead_letter", "nor is that one executed by guess"


def newer(of: Receipt) -> Receipt:
    """A run that a web process of the next release has accepted."""
    activation = {**scene.run(of).activation, "version": VERSION + 1, "options": ["in", "another", "shape"]}
    Run.objects.filter(pk=of.run_id).update(activation=activation)
    return of


def test_a_run_of_a_newer_release_is_left_to_its_workers_and_keeps_nobody_waiting(
    queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    left = [newer(scene.post("new")) for _ in range(3)]
    known = scene.post("old")
    before = [(scene.run(one), scene.dispatch(one), scene.log(one)) for one in left]
    with caplog.at_level(logging.WARNING, "mailbox"):
        assert [tasks.execute.apply().get() for _ in range(3)] == [1, 0, 0]
    assert scene.run(known).status == "done"
    facts = [record.mailbox for record in caplog.records if record.message.startswith("run.too_new ")]
    assert sorted(one["run_id"] for one in facts) == sorted(one.run_id for one in left), "it looks once, and not again"
    assert [(scene.run(one), scene.dispatch(one), scene.log(one)) for one in left] == before
    assert {scene.dispatch(one).status for one in left} == {"queued"}


def test_what_was_left_to_newer_workers_is_looked_at_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    posted = scene.post()
    whole = scene.run(posted).activation
    newer(posted)
    assert scene.take() is None
    Run.objects.filter(pk=posted.run_id).update(activation=whole)
    assert scene.take() is None
    monkeypatch.setitem(unreadable._passed_over, posted.thread_id, 0.0)
    assert scene.taken().run_id == posted.run_id


def test_a_run_of_a_newer_release_is_joined_by_nobody_and_cancelled_and_shown_like_any() -> None:
    thread_id = scene.posted_and_taken().thread_id
    said = newer(post.to_thread(scope=scene.SCOPE, thread_id=thread_id, messages=["a"], by="ann"))
    with scene.nothing_changes(), pytest.raises(SnapshotTooNew):
        _ = scene.run(said).snapshot
    other = post.to_thread(scope=scene.SCOPE, thread_id=thread_id, messages=["b"], by="ben")
    assert other.run_id != said.run_id
    assert (scene.run(said).options, scene.run(said).shown.adapter) == ({}, "python")
    cancel.run(scope=scene.SCOPE, run_id=said.run_id)
    assert scene.run(said).status == "done"


def test_a_run_whose_snapshot_cannot_be_read_can_be_cancelled_and_frees_its_thread() -> None:
    broken = scene.post("bad")
    Run.objects.filter(pk=broken.run_id).update(activation=[1])
    behind = scene.post("good", thread_id=broken.thread_id)
    cancel.run(scope=scene.SCOPE, run_id=broken.run_id)
    assert (scene.run(broken).status, scene.taken().run_id) == ("done", behind.run_id)


def test_a_batch_with_one_bad_head_is_claimed_without_it() -> None:
    first = scene.post()
    bad(scene.post())
    last = scene.post()
    found = claim.due(
        queue=scene.QUEUE, agents=["echo"], worker=scene.WORKER, tokens=[uuid.uuid4(), uuid.uuid4(), uuid.uuid4()]
    )
    assert [one.run_id for one in found.claims] == [first.run_id, last.run_id]
    assert found.has_more is False


def test_a_queue_in_which_only_bad_heads_are_due_ends_the_worker_s_round(queue: str) -> None:
    for _ in range(9):
        bad(scene.post())
    with scene.nothing_changes():
        assert tasks.execute.apply().get() == 0


def test_what_is_handed_back_is_queued_again_at_no_cost() -> None:
    one = scene.posted_and_taken()
    assert settle.hand_back(tokens=[uuid.uuid4(), one.token]) == 1
    dispatch, thread = scene.dispatch(one), scene.thread(one)
    assert (dispatch.status, dispatch.claim_token, dispatch.lease_until) == ("queued", None, None)
    assert (dispatch.attempt_count, dispatch.lost_count) == (0, 0)
    assert (thread.active_run_id, thread.open_run_id, scene.flag(one)) == (None, one.run_id, scene.DUE)
    event = scene.last_event(one)
    assert (event.kind, event.payload["reason"]) == ("RunRescheduled", "handed_back")
    next_one = scene.taken()
    assert (next_one.run_id, next_one.attempt, next_one.messages) == (one.run_id, 1, one.messages)


def test_tokens_that_own_nothing_hand_nothing_back() -> None:
    over, kept = scene.posted_and_taken(), scene.posted_and_taken()
    settle.complete(over)
    with scene.nothing_changes():
        assert settle.hand_back(tokens=[over.token, uuid.uuid4()]) == 0
        assert settle.hand_back(tokens=[]) == 0
    settle.complete(kept)


def test_a_claim_whose_commit_was_not_answered_is_handed_back_at_once(
    queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted = scene.post()
    redis.Redis.from_url(conf.redis_url).delete(queue)
    due, lost = claim.due, []

    def committed(**given: Any) -> claim.Claimed:
        found = due(**given)
        if not lost:
            lost.append(Dispatch.objects.get(pk=posted.dispatch_id).status)
            raise OperationalError("server closed the connection unexpectedly")
        return found

    monkeypatch.setattr(claim, "due", committed)
    assert tasks.execute.apply().state == "FAILURE"
    dispatch = scene.dispatch(posted)
    assert (lost, dispatch.status) == (["claimed"], "queued")
    assert (dispatch.attempt_count, dispatch.lost_count) == (0, 0)
    assert waiting(queue) == 1, "another worker is woken"
    assert tasks.execute.apply().get() == 1
    assert scene.run(posted).final_output == "hello there"
