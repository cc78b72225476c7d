"""Pause meets claim, settle, submit and resume: nothing starts after a pause's commit, nothing is forgotten."""

import contextlib
import threading
import time
import uuid
from typing import Any

import pytest
from django.db import connection, transaction

from mailbox_app import hints
from mailbox_app.errors import NotPaused, Retryable
from mailbox_app.models import Event, Pause, Run, Thread
from mailbox_app.operations import candidates, claim, pauses, recover, settle
from tests.operations import scene
from tests.races.actors import await_waiting, crew, start, until

pytestmark = pytest.mark.django_db(transaction=True)

KINDS = pytest.mark.parametrize("kind", ["agent", "queue", "thread"])
SITE_WIDE = pytest.mark.parametrize("kind", ["agent", "queue"])


def target(of: Any, kind: str) -> dict[str, str]:
    return {"kind": kind, "name": {"agent": "echo", "queue": scene.QUEUE, "thread": str(of.thread_id)}[kind]}


class Stop:
    """Holds a claim between its first statement and the next, in whichever thread comes there first."""

    def __init__(self) -> None:
        self.is_there, self._go_on = threading.Event(), threading.Event()

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        found = execute(sql, params, many, context)
        if "SKIP LOCKED" in sql:
            self.is_there.set()
            assert self._go_on.wait(30)
        return found

    def let_go(self) -> None:
        self._go_on.set()


@KINDS
def test_a_pause_waits_for_a_claim_that_is_under_way_and_that_claim_goes_on(kind: str) -> None:
    posted, stop = scene.post(), Stop()
    behind = scene.post(thread_id=posted.thread_id)

    def take() -> Any:
        with connection.execute_wrapper(stop):
            return scene.take()

    taking = start(take)
    assert stop.is_there.wait(20)
    pausing = start(lambda: pauses.pause(**target(posted, kind)))
    await_waiting()
    assert not pausing.done()
    stop.let_go()
    claimed = taking.result(20)
    assert claimed.run_id == posted.run_id
    assert pausing.result(20).changed
    settle.complete(claimed)
    assert scene.run(claimed).status == "done"
    assert scene.take() is None
    assert scene.run(behind).status == "created"


@SITE_WIDE
def test_a_claim_that_looked_before_the_pause_s_commit_and_locks_after_it_starts_nothing(kind: str) -> None:
    """The one statement that finds candidates is older than the gate it takes: the second look decides."""
    posted = scene.post()
    with transaction.atomic():
        pauses.pause(**target(posted, kind))
        taking = start(lambda: claim.due(queue=scene.QUEUE, agents=["echo"], worker="w", tokens=[uuid.uuid4()]))
        await_waiting()
        assert not taking.done()
    assert taking.result(20).claims == []
    assert scene.dispatch(posted).status == "queued"
    assert scene.flag(posted) == scene.DUE
    pauses.resume(**target(posted, kind))
    assert scene.taken().run_id == posted.run_id


@KINDS
def test_hammered_nothing_starts_after_a_pause_s_commit_and_nothing_is_forgotten(kind: str) -> None:
    posted = [scene.post() for _ in range(20)]
    behind = [scene.post(thread_id=posted[0].thread_id) for _ in range(10)]
    left, stop_at, lock = {one.run_id for one in posted + behind}, time.monotonic() + 60, threading.Lock()
    concerned = Thread.objects.filter(pk=posted[0].thread_id) if kind == "thread" else Thread.objects.all()
    broken = []

    def work() -> None:
        while left:
            assert time.monotonic() < stop_at, f"{len(left)} runs were never found"
            if one := scene.take():
                settle.complete(one)
                with lock:
                    left.discard(one.run_id)

    def toggle() -> None:
        while left:
            pauses.pause(**target(posted[0], kind))
            before = claims()
            time.sleep(0.01)  # a claim that was under way would be committed by now
            broken.append(claims() - before)
            pauses.resume(**target(posted[0], kind))

    def claims() -> int:
        return sum(concerned.values_list("claim_count", flat=True))

    with crew(4) as together:
        together(work, work, work, toggle)
    assert len(broken) > 3, "they have hardly met"
    assert sum(broken) == 0
    assert Run.objects.not_done().count() == 0
    assert recover.repair() == 0
    assert not Pause.objects.exists()


@KINDS
def test_of_many_who_pause_one_does_and_of_many_who_resume_one_does(kind: str) -> None:
    posted = scene.post()
    what = target(posted, kind)

    def resume() -> bool:
        try:
            pauses.resume(**what)
        except NotPaused:
            return False
        return True

    with crew(4) as together:
        for _ in range(4):
            made = together(*[lambda: pauses.pause(**what)] * 4)
            assert sum(one.changed for one in made) == 1
            assert len({one.pause.pk for one in made}) == 1
            assert scene.take() is None
            assert sum(together(*[resume] * 4)) == 1
    told = Event.objects.filter(kind__in=["ThreadPaused", "ThreadResumed"]).count()
    assert told == (8 if kind == "thread" else 0)
    assert scene.taken().run_id == posted.run_id


def test_a_pause_and_a_resume_at_the_same_time_leave_flag_and_row_in_agreement() -> None:
    posted = scene.post()
    what = target(posted, "thread")

    def resume() -> None:
        with contextlib.suppress(NotPaused):
            pauses.resume(**what)

    with crew(2) as together:
        for _ in range(10):
            together(lambda: pauses.pause(**what), resume)
            is_paused = Pause.objects.exists()
            assert scene.thread(posted).is_paused is is_paused
            assert (scene.flag(posted) == scene.DUE) is not is_paused


def test_a_claim_that_never_ends_keeps_a_pause_waiting_for_its_patience_alone() -> None:
    posted = scene.post()
    with transaction.atomic():
        runnable = candidates.Runnable.of(["echo"])
        [locked], _ = candidates.lock(queue=scene.QUEUE, runnable=runnable, limit=1, width=1)
        assert locked.pk == posted.thread_id
        pausing = start(lambda: pauses.pause(kind="agent", name="echo"))
        with pytest.raises(Retryable):
            pausing.result(20)
    assert not Pause.objects.exists()
    assert scene.taken().run_id == posted.run_id


def test_a_signal_spent_in_vain_while_an_agent_is_being_resumed_is_made_up_for(monkeypatch: Any) -> None:
    """What became due before the pause's end was committed is looked for after it."""
    woken: list[str] = []
    monkeypatch.setattr(hints, "wake", woken.append)
    pauses.pause(kind="agent", name="echo")
    with transaction.atomic():
        pauses.resume(kind="agent", name="echo")
        posted = start(scene.post).result(20)
        assert start(scene.take).result(20) is None, "its signal finds nothing: the pause still stands"
        woken.clear()
    until(lambda: woken, "a worker is woken", seconds=5)
    assert woken == [scene.QUEUE]
    assert scene.taken().run_id == posted.run_id
