"""pauses: nothing of an agent, a queue or a thread starts until it is resumed; what has started goes on."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app import hints
from mailbox_app.errors import Gone, InvalidInput, NotPaused, ThreadNotFound
from mailbox_app.models import Dispatch, Event, Pause
from mailbox_app.operations import candidates, claim, missing, pauses, recover, settle, threads, tick
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db

PAUSED = (False, None, None, None, False, "paused")


def target(of: Any, kind: str) -> dict[str, str]:
    """What to pause so that this run does not start."""
    return {"kind": kind, "name": {"agent": "echo", "queue": scene.QUEUE, "thread": str(of.thread_id)}[kind]}


@pytest.fixture
def _others() -> None:
    """A live worker that has two agents more."""
    for agent in ("other", "zebra"):
        given.registration(worker="worker@here", agent=agent, slots=8)


OTHERS = pytest.mark.usefixtures("_others")
KINDS = pytest.mark.parametrize("kind", ["agent", "queue", "thread"])


@KINDS
def test_paused_work_does_not_start_until_it_is_resumed(kind: str) -> None:
    posted = scene.post()
    pauses.pause(**target(posted, kind))
    assert scene.take() is None
    pauses.resume(**target(posted, kind))
    assert scene.taken().run_id == posted.run_id


@KINDS
def test_what_is_posted_while_it_is_paused_does_not_start_either(kind: str) -> None:
    thread = given.thread(scope=scene.SCOPE)
    pauses.pause(kind=kind, name={"agent": "echo", "queue": scene.QUEUE, "thread": str(thread.pk)}[kind])
    posted = scene.post(thread_id=thread.pk)
    scene.post(thread_id=thread.pk)
    assert scene.take() is None
    pauses.resume(**target(posted, kind))
    assert scene.taken().run_id == posted.run_id


@KINDS
def test_a_claimed_run_goes_on_to_its_end_and_the_next_one_does_not_start(kind: str) -> None:
    running = scene.posted_and_taken()
    behind = scene.post(thread_id=running.thread_id)
    pauses.pause(**target(running, kind))
    assert claim.renew(tokens=[running.token]).lost == set()
    settle.complete(running, output="done")
    assert scene.run(running).final_output == "done"
    assert scene.take() is None
    pauses.resume(**target(running, kind))
    assert scene.taken().run_id == behind.run_id


@KINDS
def test_a_failed_run_is_not_tried_again_while_it_is_paused(kind: str) -> None:
    running = scene.posted_and_taken()
    pauses.pause(**target(running, kind))
    settle.nack(running, code="transient", message="again", retry_after=0.0)
    scene.make_available(running)
    tick.promote()
    assert scene.take() is None
    pauses.resume(**target(running, kind))
    tick.promote()
    assert scene.taken().attempt == 2


@KINDS
def test_a_lost_lease_is_taken_back_but_not_started_again(kind: str) -> None:
    running = scene.posted_and_taken()
    pauses.pause(**target(running, kind))
    scene.expire_lease(running)
    assert recover.reclaim() == 1
    assert scene.take() is None
    pauses.resume(**target(running, kind))
    assert scene.taken().run_id == running.run_id


@OTHERS
def test_an_agent_s_pause_leaves_other_agents_and_a_queue_s_other_queues() -> None:
    scene.post()
    other = scene.post(agent="other")
    pauses.pause(kind="agent", name="echo")
    pauses.pause(kind="queue", name="mailbox.elsewhere")
    assert scene.taken(agents=("echo", "other")).run_id == other.run_id
    assert scene.take(agents=("echo", "other")) is None


def test_a_thread_s_pause_is_on_its_row_and_leaves_other_threads() -> None:
    posted, other = scene.post(), scene.post()
    pauses.pause(kind="thread", name=str(posted.thread_id))
    assert scene.flag(posted) == PAUSED
    assert scene.taken().run_id == other.run_id
    pauses.resume(kind="thread", name=str(posted.thread_id))
    assert scene.flag(posted) == scene.DUE


def test_a_paused_thread_neither_wakes_nor_is_it_repaired() -> None:
    posted = scene.post(available_at=scene.database_now() + timedelta(hours=1))
    assert scene.flag(posted) == scene.WAKING
    pauses.pause(kind="thread", name=str(posted.thread_id))
    assert scene.flag(posted) == PAUSED
    Dispatch.objects.update(available_at=Now() - timedelta(seconds=1))
    assert (tick.promote(), recover.repair()) == (0, 0)
    pauses.resume(kind="thread", name=str(posted.thread_id))
    assert scene.flag(posted) == scene.DUE


def test_a_thread_whose_agent_is_paused_stays_in_the_line_it_had() -> None:
    posted = scene.post()
    with_pause = scene.flag(posted)
    pauses.pause(kind="agent", name="echo")
    assert scene.flag(posted) == with_pause == scene.DUE


@OTHERS
def test_a_head_that_came_to_the_front_is_not_started_when_its_agent_is_paused() -> None:
    plain = scene.post()
    urgent = scene.post(
        thread_id=plain.thread_id, agent="other", priority=0, available_at=scene.database_now() + timedelta(hours=1)
    )
    scene.make_available(urgent)
    assert scene.thread(plain).due_agent == "echo", "the flag does not know the new head"
    pauses.pause(kind="agent", name="other")
    assert scene.take(agents=("echo", "other")) is None
    assert scene.thread(plain).due_agent == "other", "the look has rewritten it"
    pauses.resume(kind="agent", name="other")
    assert scene.taken(agents=("echo", "other")).run_id == urgent.run_id


@KINDS
def test_pausing_twice_changes_nothing_and_answers_with_the_first_pause(kind: str) -> None:
    posted = scene.post()
    first = pauses.pause(**target(posted, kind), note="provider is down", by="user ann")
    with scene.nothing_changes():
        second = pauses.pause(**target(posted, kind), note="me too", by="user bob")
    assert (first.changed, second.changed) == (True, False)
    assert (second.pause.pk, second.pause.note, second.pause.paused_by) == (
        first.pause.pk,
        "provider is down",
        "user ann",
    )


@KINDS
def test_resuming_what_is_not_paused_is_refused_and_changes_nothing(kind: str) -> None:
    posted = scene.post()
    pauses.pause(**target(posted, kind))
    pauses.resume(**target(posted, kind))
    with scene.nothing_changes(), pytest.raises(NotPaused):
        pauses.resume(**target(posted, kind))
    assert scene.flag(posted) == scene.DUE


def test_a_thread_s_pause_and_resume_are_told_once_each_with_who_and_why() -> None:
    posted = scene.post()
    name = str(posted.thread_id)
    pauses.pause(kind="thread", name=name, by="user ann", note="wait for legal")
    pauses.pause(kind="thread", name=name, by="user bob")
    pauses.resume(kind="thread", name=name, by="user bob")
    told = Event.objects.filter(thread_id=name, kind__in=["ThreadPaused", "ThreadResumed"]).order_by("cursor")
    assert [(one.kind, one.payload) for one in told] == [
        ("ThreadPaused", {"thread_id": name, "by": "user ann", "note": "wait for legal"}),
        ("ThreadResumed", {"thread_id": name, "by": "user bob"}),
    ]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"kind": "run", "name": "x"}, InvalidInput),
        ({"kind": "agent", "name": " "}, InvalidInput),
        ({"kind": "agent", "name": "x" * 201}, InvalidInput),
        ({"kind": "thread", "name": "x"}, InvalidInput),
        ({"kind": "thread", "name": str(uuid.uuid4())}, ThreadNotFound),
    ],
)
def test_a_wrong_target_is_refused(wrong: dict[str, str], error: type[Exception]) -> None:
    for verb in (pauses.pause, pauses.resume):
        with scene.nothing_changes(), pytest.raises(error):
            verb(**wrong)
    with scene.nothing_changes(), pytest.raises(InvalidInput):
        pauses.pause(kind="agent", name="echo", note="x" * 501)


def test_another_scope_s_thread_is_not_found_and_a_deleted_one_is_gone() -> None:
    thread = given.thread(scope=scene.SCOPE)
    for verb in (pauses.pause, pauses.resume):
        with scene.nothing_changes(), pytest.raises(ThreadNotFound):
            verb(kind="thread", name=str(thread.pk), scope="other")
    pauses.pause(kind="thread", name=str(thread.pk))
    threads.delete(scope=scene.SCOPE, thread_id=thread.pk)
    assert not Pause.objects.exists(), "a pause goes with its thread"
    with scene.nothing_changes(), pytest.raises(Gone):
        pauses.pause(kind="thread", name=str(thread.pk))


@KINDS
def test_paused_work_is_no_due_work_for_signals(kind: str) -> None:
    """Who asks whether to wake a worker is told no: an idle slot must not be sent in circles."""
    posted = scene.post()
    pauses.pause(**target(posted, kind))
    assert candidates.due_queues(most=10) == {}
    assert candidates.due_lanes() == []
    assert not candidates.has_due(scene.QUEUE)
    assert not candidates.are_due(queue=scene.QUEUE, agents=["echo"])
    nothing = claim.due(queue=scene.QUEUE, agents=["echo"], worker="w", tokens=[uuid.uuid4()])
    assert nothing == claim.Claimed(claims=[], has_more=False)


@OTHERS
def test_due_work_beside_paused_work_is_found_and_counted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    filled: dict[str, int] = {}
    monkeypatch.setattr(hints, "fill", lambda queue, signals: filled.setdefault(queue, signals))
    for _ in range(3):
        scene.post()
    scene.post(agent="other")
    scene.post(agent="zebra")
    pauses.pause(kind="agent", name="echo")
    assert candidates.due_queues(most=10) == {scene.QUEUE: 2}
    assert candidates.due_queues(most=1) == {scene.QUEUE: 1}
    assert candidates.has_due(scene.QUEUE)
    assert recover.signal() == 2
    assert filled == {scene.QUEUE: 2}


@OTHERS
def test_resuming_wakes_a_worker_for_each_queue_that_has_work_of_it(
    monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any
) -> None:
    posted = scene.post()
    scene.post(agent="other")
    pauses.pause(kind="agent", name="echo")
    pauses.pause(kind="agent", name="idle")
    pauses.pause(kind="thread", name=str(posted.thread_id))
    woken: list[str] = []
    monkeypatch.setattr(hints, "wake", woken.append)

    def resumed(**what: str) -> list[str]:
        woken.clear()
        with django_capture_on_commit_callbacks(execute=True):
            pauses.resume(**what)
        return list(woken)

    assert resumed(kind="agent", name="idle") == []
    assert resumed(kind="agent", name="echo") == [], "its thread is still paused"
    assert resumed(kind="thread", name=str(posted.thread_id)) == [scene.QUEUE]
    pauses.pause(kind="queue", name=scene.QUEUE)
    pauses.pause(kind="agent", name="other")
    assert resumed(kind="agent", name="other") == [], "its queue is still paused"
    assert resumed(kind="queue", name=scene.QUEUE) == [scene.QUEUE]


@KINDS
def test_paused_work_is_not_given_up_for_want_of_a_worker(kind: str, settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "missing_agent_ttl_seconds": 60}
    posted = scene.post()
    assert missing.note() == 1
    Dispatch.objects.update(unrunnable_since=Now() - timedelta(hours=1))
    pauses.pause(**target(posted, kind))
    assert missing.expire() == 0
    assert scene.dispatch(posted).unrunnable_since is None
    assert missing.note() == 0
    pauses.resume(**target(posted, kind))
    assert (missing.note(), missing.expire()) == (1, 0), "its time begins anew"


def test_a_thread_stamped_while_it_was_being_paused_is_cleared_and_not_ended(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "missing_agent_ttl_seconds": 60}
    posted = scene.post()
    pauses.pause(kind="thread", name=str(posted.thread_id))
    Dispatch.objects.update(unrunnable_since=Now() - timedelta(hours=1))
    assert missing.expire() == 0
    assert (scene.dispatch(posted).status, scene.dispatch(posted).unrunnable_since) == ("queued", None)


def test_the_pauses_that_keep_a_run_from_starting_are_all_named() -> None:
    posted = scene.post()
    dispatch, made = scene.dispatch(posted), []
    assert pauses.of_dispatch(dispatch) == []
    for kind in ("queue", "thread", "agent"):
        pauses.pause(kind="agent", name=f"not it, {kind}")
        made.append(pauses.pause(**target(posted, kind)).pause)
    assert pauses.of_dispatch(dispatch) == made
    for kind in ("agent", "queue", "thread"):
        pauses.resume(**target(posted, kind))
    taken = scene.taken()
    pauses.pause(kind="agent", name="echo")
    assert pauses.of_dispatch(scene.dispatch(taken)) == [], "it has started"
