"""Permits: what limits allow is claimed, the rest waits without a slot, and what comes back lets the next one start."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from mailbox_app import hints
from mailbox_app.models import Dispatch, Limit, Permit, Thread
from mailbox_app.operations import candidates, claim, limits, permits, recover, settle, submit
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db

LIMITED = pytest.mark.parametrize("kind", ["agent", "scope"])
NAMES = {"agent": "echo", "scope": scene.SCOPE}

Committing = Any


def limit(kind: str, most: int | None = 1, **bounds: Any) -> Limit:
    return limits.put(kind=kind, name=NAMES[kind], most=most, **bounds).limit


def held() -> int:
    return Permit.objects.held().count()


def claims(number: int) -> list[Any]:
    tokens = [uuid.uuid4() for _ in range(number)]
    return claim.due(queue=scene.QUEUE, agents=["echo"], worker=scene.WORKER, tokens=tokens).claims


@pytest.fixture
def committed(django_capture_on_commit_callbacks: Any) -> Callable[[Callable[[], Any]], Any]:
    """Call it, and then what it leaves to do after its commit."""

    def call(act: Callable[[], Any]) -> Any:
        with django_capture_on_commit_callbacks(execute=True):
            return act()

    return call


@LIMITED
def test_no_more_runs_execute_at_once_than_the_limit_says(kind: str) -> None:
    limit(kind, 2)
    for _ in range(4):
        scene.post()
    assert len(claims(4)) == 2
    assert (held(), claims(4)) == (2, [])


@LIMITED
def test_the_next_one_starts_when_a_permit_comes_back(kind: str, committed: Committing) -> None:
    limit(kind)
    posted = [scene.post() for _ in range(3)]
    for one in posted:
        running = scene.taken()
        assert running.run_id == one.run_id
        assert scene.take() is None
        committed(lambda running=running: settle.complete(running))
    assert held() == 0


@LIMITED
def test_what_counts_against_no_limit_starts_beside_it(kind: str) -> None:
    limit(kind)
    given.registration(worker="worker@here", agent="other")
    scene.post()
    for _ in range(20):
        scene.post()
    scene.taken()
    posted = scene.post(agent="other", scope="other")
    found = [scene.take(agents=("echo", "other")) for _ in range(2)]
    assert [one and one.run_id for one in found if one] == [posted.run_id]


def ended(running: Any, how: str) -> None:
    if how == "completed":
        settle.complete(running)
    elif how == "failed":
        settle.nack(running, code="x", message="x")
    elif how == "buried":
        settle.dead_letter(running, code="x", message="x")
    elif how == "waiting":
        settle.suspend(running, scene.wait())
    elif how == "stopped":
        scene.ask_to_cancel(running)
        settle.stopped(running)
    elif how == "handed back":
        settle.hand_back(tokens=[running.token])
    elif how == "lost":
        scene.expire_lease(running)
        assert recover.reclaim() == 1
    elif how == "ignored":
        Dispatch.objects.filter(pk=running.dispatch_id).update(cancel_requested_at=Now() - timedelta(days=1))
        assert recover.finish_cancelled() == 1


ENDS = ["completed", "failed", "buried", "waiting", "stopped", "handed back", "lost", "ignored"]


@LIMITED
@pytest.mark.parametrize("how", ENDS)
def test_whatever_ends_a_claim_gives_its_permit_back(kind: str, how: str, committed: Committing) -> None:
    limit(kind)
    running = scene.posted_and_taken()
    following = scene.post()
    assert scene.take() is None
    committed(lambda: ended(running, how))
    assert (held(), Dispatch.objects.get(pk=running.dispatch_id).permit_ids) == (0, None)
    found = scene.taken()
    # What is queued again keeps the place it had.
    assert found.run_id in (
        {running.run_id, following.run_id} if how in ("handed back", "lost") else {following.run_id}
    )


@LIMITED
def test_a_run_that_reads_more_goes_on_under_its_permit(kind: str) -> None:
    limit(kind)
    running = scene.posted_and_taken()
    submit.messages(scope=scene.SCOPE, thread_id=running.thread_id, messages=["more"], boundary="on_natural_end")
    following = settle.complete(running)
    assert following is not None
    assert held() == 1
    settle.complete(following)
    assert held() == 0


def test_a_run_needs_a_permit_of_each_limit_that_counts_it() -> None:
    limit("agent", 2)
    limit("scope", 1)
    scene.post()
    scene.post()
    assert len(claims(2)) == 1
    assert Permit.objects.held().values("limit__kind").distinct().count() == 2
    [dispatch] = Dispatch.objects.claimed()
    assert {str(pk) for pk in Permit.objects.held().values_list("pk", flat=True)} == set(dispatch.permit_ids)


def test_what_its_agents_limit_keeps_stays_due_in_a_lane_nobody_looks_at() -> None:
    limit("agent")
    scene.posted_and_taken()
    waiting = scene.post()
    scene.take()
    thread = Thread.objects.get(pk=waiting.thread_id)
    assert (thread.due_agent, thread.blocked_reason) == ("echo", "")
    assert not candidates.has_due(scene.QUEUE)
    assert candidates.due_lanes() == []
    assert candidates.due_queues(most=10) == {}
    assert [one.name for one in limits.of_thread(thread)] == ["echo"]
    assert [one.held for one in limits.of_dispatch(Dispatch.objects.get(run_id=waiting.run_id))] == [1]


def test_what_its_scopes_limit_keeps_is_blocked_and_says_so_and_keeps_its_place() -> None:
    limit("scope")
    scene.posted_and_taken()
    waiting = scene.post(priority=7)
    before = Thread.objects.get(pk=waiting.thread_id)
    assert scene.take() is None
    thread = Thread.objects.get(pk=waiting.thread_id)
    assert (thread.due_at, thread.blocked_reason) == (None, "scope_limit")
    assert (thread.blocked_priority, thread.blocked_since) == (7, before.due_at)
    assert [one.name for one in limits.of_thread(thread)] == [scene.SCOPE]


def test_one_look_blocks_whatever_of_the_scope_stands_in_front() -> None:
    limit("scope")
    scene.posted_and_taken()
    waiting = [scene.post().thread_id for _ in range(30)]
    assert scene.take() is None
    assert Thread.objects.filter(pk__in=waiting, blocked_reason="scope_limit").count() == 30


def test_blocked_threads_start_by_priority_and_then_in_the_order_in_which_they_were_due(committed: Committing) -> None:
    limit("scope")
    running = scene.posted_and_taken()
    order = [scene.post(priority=priority).run_id for priority in (9, 5, 9, 5)]
    assert scene.take() is None
    started = []
    while running:
        committed(lambda running=running: settle.complete(running))
        running = scene.take()
        started += [running.run_id] if running else []
    assert started == [order[1], order[3], order[0], order[2]]


def test_more_urgent_work_on_a_blocked_thread_brings_it_forward() -> None:
    limit("scope")
    scene.posted_and_taken()
    waiting = scene.post(priority=9)
    scene.take()
    scene.post(thread_id=waiting.thread_id, priority=3)
    thread = Thread.objects.get(pk=waiting.thread_id)
    assert (thread.blocked_reason, thread.blocked_priority, thread.due_at) == ("scope_limit", 3, None)


def test_scheduled_work_on_a_blocked_thread_wakes_it() -> None:
    limit("scope")
    scene.posted_and_taken()
    waiting = scene.post()
    scene.take()
    later = Thread.objects.get(pk=waiting.thread_id).blocked_since + timedelta(hours=1)
    scene.post(thread_id=waiting.thread_id, available_at=later)
    thread = Thread.objects.get(pk=waiting.thread_id)
    assert (thread.blocked_reason, thread.wakes_at) == ("scope_limit", later)


def test_the_tick_makes_due_what_nobody_told_that_there_is_room() -> None:
    limit("scope")
    running = scene.posted_and_taken()
    waiting = scene.post()
    scene.take()
    settle.complete(running)  # and dies before it can look
    assert scene.take() is None
    assert permits.unblock_some() == 1
    assert scene.taken().run_id == waiting.run_id
    assert permits.unblock_some() == 0


def test_the_tick_leaves_blocked_what_has_no_room() -> None:
    limit("scope")
    scene.posted_and_taken()
    scene.post()
    scene.take()
    assert (permits.unblock_some(), permits.release_some()) == (0, 0)


def test_a_permit_that_comes_back_wakes_a_worker_for_the_agents_due_work(
    monkeypatch: pytest.MonkeyPatch, committed: Committing
) -> None:
    woken: list[str] = []
    monkeypatch.setattr(hints, "wake", woken.append)
    limit("agent")
    running = scene.posted_and_taken()
    scene.post()
    scene.take()
    committed(lambda: settle.complete(running))
    assert woken == [scene.QUEUE]


def test_as_many_start_as_the_bucket_holds_and_then_none_before_it_is_filled_again() -> None:
    limit("agent", None, starts=2, seconds=60)
    for _ in range(4):
        scene.post()
    assert len(claims(4)) == 2
    assert claims(4) == []
    assert not candidates.has_due(scene.QUEUE)
    Limit.objects.update(full_at=Now() + timedelta(seconds=30))
    assert len(claims(4)) == 1
    assert claims(4) == []
    Limit.objects.update(full_at=Now() - timedelta(seconds=1))
    assert len(claims(4)) == 1


def test_each_start_counts_the_next_attempt_too() -> None:
    limit("agent", None, starts=2, seconds=60)
    running = scene.posted_and_taken()
    settle.hand_back(tokens=[running.token])
    again = scene.taken()
    settle.hand_back(tokens=[again.token])
    assert scene.take() is None


def test_the_tick_wakes_workers_when_there_is_a_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[str] = []
    monkeypatch.setattr(hints, "wake", woken.append)
    limit("agent", None, starts=1, seconds=60)
    scene.posted_and_taken()
    scene.post()
    permits.refill()
    assert woken == []
    Limit.objects.update(full_at=Now())
    permits.refill()
    assert woken == [scene.QUEUE]


def test_a_bucket_of_any_size_gives_exactly_what_it_holds() -> None:
    one = limit("agent", None, starts=7, seconds=1)
    clock = Thread(scope="x").locked_at
    for number in range(7):
        assert one.starts_left(clock) == 7 - number
        one.full_at = one.full_after(1, clock)
    assert one.starts_left(clock) == 0


def test_a_permit_somebody_has_deleted_keeps_no_run_from_its_end() -> None:
    limit("agent")
    running = scene.posted_and_taken()
    Permit.objects.all().delete()
    settle.complete(running)
    assert Dispatch.objects.get(pk=running.dispatch_id).status == "acked"


def test_without_limits_a_claim_sends_no_statement_more() -> None:
    scene.post()
    scene.post(scope="other")
    with CaptureQueriesContext(
        connection,
    ) as without:
        scene.taken()
    limits.put(kind="agent", name="somebody else", most=1)
    with CaptureQueriesContext(connection) as beside:
        scene.taken()
    assert len(without) == len(beside)
