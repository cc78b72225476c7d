"""claim.due and claim.renew: who gets what, and what a claim writes."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app import catalogue
from mailbox_app.models import Dispatch, Message, Thread
from mailbox_app.operations import cancel, claim, prune, recover, settle
from tests.operations import scene

pytestmark = pytest.mark.django_db


def test_a_claim_writes_its_fields_and_starts_the_run() -> None:
    posted = scene.post("hello", options={"a": 1}, metadata={"b": 2})
    token, before = uuid.uuid4(), scene.database_now()
    result = claim.due(queue="mailbox.default", agents=["other", "echo"], worker="w@here:1", tokens=[token])
    after = scene.database_now()
    (one,) = result.claims
    assert not result.has_more

    dispatch, run, thread = scene.dispatch(posted), scene.run(posted), scene.thread(posted)
    assert (dispatch.status, dispatch.claim_token, dispatch.instance_id) == ("claimed", token, token)
    assert (dispatch.claimed_by, dispatch.fence) == ("w@here:1", 1)
    assert (dispatch.attempt_count, dispatch.lost_count) == (0, 0)
    assert dispatch.claimed_at is not None
    assert before <= dispatch.claimed_at <= after
    assert dispatch.lease_until == dispatch.claimed_at + timedelta(seconds=30)
    assert (run.status, run.turn) == ("running", 1)
    assert run.started_at is not None
    assert run.input == {"from_seq": 1, "to_seq": 1, "message_ids": [str(posted.message_ids[0])]}
    assert (thread.active_run_id, thread.open_run_id, thread.latest_run_id) == (run.pk, run.pk, run.pk)
    assert (thread.claim_count, thread.last_seq) == (1, 1)
    assert scene.flag(posted) == scene.IDLE
    assert (one.token, one.run_id, one.dispatch_id, one.thread_id) == (token, run.pk, dispatch.pk, thread.pk)
    assert (one.scope, one.agent, one.queue) == ("acme", "echo", "mailbox.default")
    assert (one.turn, one.attempt, one.fence) == (1, 1, 1)
    assert ([m.content for m in one.messages], one.first_seq) == (["hello"], 1)
    assert (one.state, one.options, one.metadata) == ({}, {"a": 1}, {"b": 2})
    event = scene.last_event(posted)
    assert (event.kind, event.payload["attempt"], event.payload["turn"]) == ("RunStarted", 1, 1)
    assert event.payload["input"] == run.input


@pytest.mark.parametrize(
    ("agents", "queue"),
    [((), "mailbox.default"), (("other",), "mailbox.default"), (("echo",), "elsewhere"), (("ech",), "mailbox.default")],
)
def test_what_a_worker_cannot_run_it_does_not_touch(agents: tuple[str, ...], queue: str) -> None:
    scene.post()
    with scene.nothing_changes():
        assert scene.take(agents=agents, queue=queue) is None


def test_no_tokens_no_claim() -> None:
    scene.post()
    with scene.nothing_changes():
        assert claim.due(queue=scene.QUEUE, agents=["echo"], worker="w", tokens=[]).claims == []


def test_the_highest_priority_goes_first_across_threads_then_the_oldest() -> None:
    posted = [scene.post(priority=priority) for priority in (200, 128, 0, 128, 255)]
    order = [one.run_id for one in iter(scene.take, None)]
    assert order == [posted[n].run_id for n in (2, 1, 3, 0, 4)]


def test_the_highest_priority_goes_first_within_a_thread_then_the_oldest() -> None:
    first = scene.post("0", priority=200)
    more = [scene.post(str(n), priority=p, thread_id=first.thread_id) for n, p in ((1, 128), (2, 0), (3, 128))]
    order = []
    while one := scene.take():
        order.append(one.run_id)
        settle.complete(one)
    assert order == [run.run_id for run in (more[1], more[0], more[2], first)]


def test_a_batch_takes_at_most_one_run_a_thread_and_says_what_is_left() -> None:
    first = scene.post("one")
    scene.post("two", thread_id=first.thread_id)
    other, third = scene.post("other"), scene.post("third")
    tokens = [uuid.uuid4(), uuid.uuid4()]
    result = claim.due(queue=scene.QUEUE, agents=["echo"], worker="w", tokens=tokens)
    assert [one.run_id for one in result.claims] == [first.run_id, other.run_id]
    assert [one.token for one in result.claims] == tokens
    assert result.has_more
    last = claim.due(queue=scene.QUEUE, agents=["echo"], worker="w", tokens=[uuid.uuid4(), uuid.uuid4()])
    assert ([one.run_id for one in last.claims], last.has_more) == ([third.run_id], False)


def test_a_claimed_thread_gives_nothing_more() -> None:
    first = scene.posted_and_taken()
    for _ in range(3):
        scene.post(thread_id=first.thread_id, priority=0)
    with scene.nothing_changes():
        assert scene.take() is None
    scene.expire_lease(first)
    assert scene.take() is None, "not even after its lease, until the sweep has taken it back"


def test_a_retried_run_keeps_its_input_and_its_number() -> None:
    first = scene.posted_and_taken("one")
    scene.post("two", thread_id=first.thread_id)
    settle.nack(first, code="transient", message="no", retry_after=0)
    again = scene.taken()
    assert (again.run_id, again.attempt, again.fence, again.turn) == (first.run_id, 2, 2, 1)
    assert [(m.pk, m.seq) for m in again.messages] == [(m.pk, m.seq) for m in first.messages]
    assert (again.first_seq, scene.thread(first).last_seq) == (1, 1)
    assert scene.kinds(first)[-1] == "RunResumed"
    started = scene.run(first).started_at
    assert started is not None


def test_the_fence_rises_with_every_claim_of_the_thread() -> None:
    fences = []
    posted = scene.post()
    for _ in range(3):
        one = scene.taken()
        fences.append(one.fence)
        scene.expire_lease(one)
        recover.reclaim()
    assert fences == [1, 2, 3]
    assert scene.thread(posted).claim_count == 3


def test_a_run_with_nothing_to_read_never_starts_and_the_next_one_stays_due() -> None:
    empty = scene.post("withdrawn")
    Message.objects.filter(pk__in=empty.message_ids).update(state="retracted", retract_reason="withdrawn")
    behind = scene.post("behind", thread_id=empty.thread_id)
    result = claim.due(queue=scene.QUEUE, agents=["echo"], worker="w", tokens=[uuid.uuid4()])
    assert (result.claims, result.has_more) == ([], True), "so that the worker looks again"
    run, dispatch = scene.run(empty), scene.dispatch(empty)
    termination = {"type": "cancelled", "detail": "nothing_to_read"}
    assert (run.status, run.termination, run.started_at) == ("done", termination, None)
    assert (dispatch.status, dispatch.run_status, dispatch.termination) == ("cancelled", "done", termination)
    assert (dispatch.attempt_count, dispatch.instance_id) == (0, None)
    assert scene.thread(empty).claim_count == 0
    assert scene.last_event(empty).kind == "RunCancelled"
    assert scene.flag(empty) == scene.DUE
    assert scene.taken().run_id == behind.run_id


def test_a_claim_that_takes_nothing_rewrites_the_flag() -> None:
    """A flag that promises what is not there is mended by whoever believed it, not left to be believed again."""
    posted = scene.post()
    Dispatch.objects.filter(pk=posted.dispatch_id).update(available_at=Now() + timedelta(hours=1))
    assert scene.flag(posted) == scene.DUE
    assert scene.take() is None
    assert scene.flag(posted) == scene.WAKING


def test_a_head_of_another_queue_moves_the_flag_there() -> None:
    posted = scene.post()
    urgent = scene.post(thread_id=posted.thread_id, priority=0, available_at=scene.database_now() + timedelta(hours=1))
    Dispatch.objects.filter(pk=urgent.dispatch_id).update(available_at=Now() - timedelta(seconds=1), queue="slow")
    assert scene.take() is None
    assert scene.flag(posted) == (True, 0, "slow", "echo", False, "")
    assert scene.taken(queue="slow").run_id == urgent.run_id


def test_a_deleted_thread_is_not_claimed() -> None:
    posted = scene.post()
    Thread.objects.update(deleted_at=Now())
    with scene.nothing_changes():
        assert scene.take() is None
    assert scene.dispatch(posted).status == "queued"


def test_a_renewal_is_a_full_lease_from_now_and_touches_nothing_else() -> None:
    one = scene.posted_and_taken()
    scene.expire_lease(one, by=timedelta(seconds=-3))
    before = scene.tables()
    started = scene.database_now()
    assert claim.renew(tokens=[one.token]).lost == set()
    ended = scene.database_now()
    lease_until = scene.dispatch(one).lease_until
    assert lease_until is not None
    assert started <= lease_until - timedelta(seconds=30) <= ended
    after = scene.tables()
    before["Dispatch"][0]["lease_until"] = lease_until
    assert after == before


def test_an_expired_lease_that_nobody_took_back_can_be_renewed() -> None:
    one = scene.posted_and_taken()
    scene.expire_lease(one)
    assert claim.renew(tokens=[one.token]).lost == set()
    assert recover.reclaim() == 0


@pytest.mark.parametrize(
    ("older", "newer"), [("1.9", "1.10"), ("2026-10-31", "2026-11-01"), ("3", "03.1"), ("v9", "v10"), ("", "0")]
)
def test_versions_are_ordered_by_their_numbers(older: str, newer: str) -> None:
    assert catalogue.version_key(older) < catalogue.version_key(newer)


@pytest.mark.parametrize("version", ["1." * 50, "9" * 100, "1a" * 50])
def test_the_longest_version_an_agent_may_have_can_start_and_go_on(version: str) -> None:
    catalogue.add(catalogue.AgentSpec(name="long", function=lambda ctx: None, version=version))
    try:
        scene.post(agent="long")
        begun = scene.taken(agents=("long",))
        settle.nack(begun, code="x", message="no", retry_after=0)
        assert scene.taken(agents=("long",)).run_id == begun.run_id
        assert scene.run(begun).code_version == version
    finally:
        catalogue.remove("long")


def test_a_run_begins_with_the_state_the_last_one_that_ended_a_turn_left_whenever_it_was_queued() -> None:
    first = scene.posted_and_taken("first")
    queued = scene.post("queued while the first was at work", thread_id=first.thread_id)
    never = scene.post("never starts", thread_id=first.thread_id)
    settle.complete(first, state={"n": 1})
    cancel.run(scope=scene.SCOPE, run_id=never.run_id)
    second = scene.taken()
    assert (second.run_id, second.state) == (queued.run_id, {"n": 1})
    settle.dead_letter(second, code="permanent", message="no")
    scene.post("third", thread_id=first.thread_id)
    third = scene.taken()
    assert third.state == {"n": 1}, "what failed has saved nothing"
    settle.complete(third, state={"n": 2})
    scene.post("fourth", thread_id=first.thread_id)
    assert scene.taken().state == {"n": 2}


def test_a_thread_points_at_its_run_for_as_long_as_that_is_open() -> None:
    def points(of: Any) -> tuple[Any, Any, Any]:
        thread = scene.thread(of)
        return thread.active_run_id, thread.open_run_id, thread.latest_run_id

    posted = scene.post()
    assert points(posted) == (None, None, posted.run_id), "not open yet"
    one = scene.taken()
    assert points(posted) == (posted.run_id, posted.run_id, posted.run_id)
    settle.nack(one, code="transient", message="no", retry_after=0)
    assert points(posted) == (None, posted.run_id, posted.run_id), "open between two attempts"
    behind = scene.post("behind", thread_id=posted.thread_id)
    settle.suspend(scene.taken(), scene.wait())
    assert points(posted) == (None, posted.run_id, behind.run_id), "open while it waits"
    cancel.run(scope=scene.SCOPE, run_id=behind.run_id)
    assert points(posted) == (None, posted.run_id, behind.run_id), "another run's end leaves it open"
    cancel.run(scope=scene.SCOPE, run_id=posted.run_id)
    assert points(posted) == (None, None, behind.run_id)


def test_each_activation_has_an_instance_of_its_own() -> None:
    instances = []
    for _ in range(3):
        one = scene.posted_and_taken() if not instances else scene.taken()
        instances.append(scene.dispatch(one).instance_id)
        settle.nack(one, code="transient", message="no", retry_after=0)
    assert len({*instances, None}) == 4


def test_one_claim_and_one_pass_serve_all_scopes_and_none_swallows_another_s() -> None:
    posted = [scene.post(scope=scope) for scope in ("acme", "globex", "acme", "globex")]
    claims = claim.due(queue=scene.QUEUE, agents=["echo"], worker="w", tokens=[uuid.uuid4() for _ in posted]).claims
    assert [(one.run_id, one.scope) for one in claims] == [
        (one.run_id, scope) for one, scope in zip(posted, ("acme", "globex", "acme", "globex"), strict=True)
    ]
    for one in claims:
        scene.expire_lease(one)
    assert recover.reclaim() == 4
    assert {scene.dispatch(one).status for one in posted} == {"queued"}
    ended = claim.due(queue=scene.QUEUE, agents=["echo"], worker="w", tokens=[uuid.uuid4() for _ in posted]).claims
    for one in ended:
        settle.complete(one)
    Dispatch.objects.update(completed_at=Now() - timedelta(days=2))
    assert prune.batch() == 4
    assert Dispatch.objects.count() == 0
