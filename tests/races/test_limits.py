"""Limits meet claim, settle and each other: never more than allowed, never less for long, and nobody waits."""

import threading
import time
import uuid
from typing import Any

import pytest
from django.db import connection

from mailbox_app.errors import NotLimited
from mailbox_app.models import Dispatch, Limit, Permit, Run, Thread
from mailbox_app.operations import claim, limits, permits, recover, settle
from tests.operations import scene
from tests.races.actors import await_waiting, crew, start

pytestmark = pytest.mark.django_db(transaction=True)

KINDS = pytest.mark.parametrize("kind", ["agent", "scope"])
NAMES = {"agent": "echo", "scope": scene.SCOPE}


def put(kind: str, most: int) -> Limit:
    return limits.put(kind=kind, name=NAMES[kind], most=most).limit


class Stop:
    """Holds a transaction after the first statement that contains this text, in whichever thread comes there first."""

    def __init__(self, text: str, *, fails: bool = False) -> None:
        self._text, self._fails = text, fails
        self.is_there, self._go_on = threading.Event(), threading.Event()

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        found = execute(sql, params, many, context)
        if self._text in sql and not self.is_there.is_set():
            self.is_there.set()
            assert self._go_on.wait(30)
            if self._fails:
                raise RuntimeError("what it wrote is rolled back")
        return found

    def let_go(self) -> None:
        self._go_on.set()


def taking(stop: Stop) -> Any:
    def take() -> Any:
        with connection.execute_wrapper(stop):
            return scene.take()

    found = start(take)
    assert stop.is_there.wait(20)
    return found


def agreed() -> bool:
    """Whether the permits that are held are those the claimed dispatches name."""
    named = {name for ids in Dispatch.objects.claimed().values_list("permit_ids", flat=True) for name in ids or ()}
    return named == {str(pk) for pk in Permit.objects.held().values_list("pk", flat=True)}


@KINDS
def test_hammered_no_more_run_than_are_allowed_and_each_starts_without_a_tick(kind: str) -> None:
    put(kind, 2)
    left, lock, stop_at = {scene.post().run_id for _ in range(30)}, threading.Lock(), time.monotonic() + 60
    most = []

    def work() -> None:
        while left:
            assert time.monotonic() < stop_at, f"{len(left)} runs were never found"
            if one := scene.take():
                most.append(Dispatch.objects.claimed().count())
                settle.complete(one)
                with lock:
                    left.discard(one.run_id)

    with crew(4) as together:
        together(*[work] * 4)
    assert max(most) == 2
    assert Run.objects.not_done().count() == 0
    assert (Permit.objects.held().count(), Permit.objects.free().count()) == (0, 2)


@KINDS
def test_hammered_while_it_is_set_anew_and_removed_the_permits_agree_at_the_end(kind: str) -> None:
    left, lock, stop_at = {scene.post().run_id for _ in range(30)}, threading.Lock(), time.monotonic() + 60
    toggled = []

    def work() -> None:
        while left:
            assert time.monotonic() < stop_at, f"{len(left)} runs were never found"
            if one := scene.take():
                settle.complete(one)
                with lock:
                    left.discard(one.run_id)

    def toggle() -> None:
        while left:
            for most in (1, 3, 0, 2, 0):
                if most:
                    put(kind, most)
                else:
                    limits.remove(kind=kind, name=NAMES[kind])
                limits.settle()
                permits.release_some()
                permits.unblock_some()
                toggled.append(most)

    with crew(4) as together:
        together(work, work, work, toggle)
    assert len(toggled) > 5, "they have hardly met"
    assert Run.objects.not_done().count() == 0
    assert recover.repair() == 0
    put(kind, 3)
    limits.settle()
    assert (Permit.objects.held().count(), Permit.objects.free().count()) == (0, 3)
    assert not Limit.objects.get().is_settling


def test_a_permit_that_comes_back_while_a_thread_is_being_blocked_is_not_missed() -> None:
    put("scope", 1)
    running = scene.posted_and_taken()
    waiting = scene.post()
    stop = Stop("blocked_reason = 'scope_limit', blocked_priority")
    blocking = taking(stop)
    settle.complete(running)
    # It looked, and there was nobody to make due: the one that blocks has not committed.
    assert Thread.objects.filter(blocked_reason="scope_limit").count() == 0
    stop.let_go()
    assert blocking.result(20) is None
    assert scene.flag(waiting) == scene.DUE
    assert scene.taken().run_id == waiting.run_id


def test_what_was_claimed_reaches_its_worker_whatever_the_look_afterwards_meets(monkeypatch: Any) -> None:
    put("scope", 1)
    scene.post()
    scene.post()

    def fails(scopes: Any) -> int:
        raise RuntimeError(f"no look at {scopes}")

    monkeypatch.setattr(permits, "unblock", fails)
    tokens = [uuid.uuid4(), uuid.uuid4()]
    taken = claim.due(queue=scene.QUEUE, agents=["echo"], worker=scene.WORKER, tokens=tokens)
    assert len(taken.claims) == 1
    assert Thread.objects.filter(blocked_reason="scope_limit").count() == 1


@KINDS
def test_a_permit_that_another_claim_takes_is_passed_over_and_not_waited_for(kind: str) -> None:
    put(kind, 1)
    for _ in range(2):
        scene.post()
    stop = Stop("wanted.limit_id AND")
    first = taking(stop)
    assert scene.take() is None
    stop.let_go()
    assert first.result(20) is not None
    assert agreed()


@KINDS
def test_a_permit_whose_taker_fails_is_free_and_what_was_kept_by_it_starts(kind: str) -> None:
    put(kind, 1)
    for _ in range(2):
        scene.post()
    stop = Stop("wanted.limit_id AND", fails=True)
    first = taking(stop)
    assert scene.take() is None
    stop.let_go()
    # The thread with which it failed is left out, and the next one takes the permit.
    started = first.result(20)
    assert started is not None
    assert (agreed(), Permit.objects.held().count()) == (True, 1)
    settle.complete(started)
    scene.taken()


@KINDS
def test_a_limit_waits_for_a_claim_that_is_under_way_and_counts_it(kind: str) -> None:
    scene.post()
    scene.post()
    stop = Stop("SKIP LOCKED")
    first = taking(stop)
    limiting = start(lambda: put(kind, 1))
    await_waiting()
    assert not limiting.done()
    stop.let_go()
    claimed = first.result(20)
    assert limiting.result(20).is_settling
    assert scene.take() is None
    settle.complete(claimed)
    limits.settle()
    permits.unblock_some()
    scene.taken()


@KINDS
def test_of_many_who_set_a_limit_one_makes_it_and_of_many_who_remove_it_one_does(kind: str) -> None:
    def remove() -> bool:
        try:
            limits.remove(kind=kind, name=NAMES[kind])
        except NotLimited:
            return False
        return True

    with crew(4) as together:
        for _ in range(3):
            made = together(*[lambda: limits.put(kind=kind, name=NAMES[kind], most=2)] * 4)
            assert sum(one.created for one in made) == 1
            assert Permit.objects.count() == 2
            assert sum(together(*[remove] * 4)) == 1


def test_many_claims_of_one_bucket_start_no_more_than_it_holds() -> None:
    limits.put(kind="agent", name="echo", starts=5, seconds=3_600)
    for _ in range(16):
        scene.post()
    with crew(8) as together:
        found = together(*[scene.take] * 8) + together(*[scene.take] * 8)
    assert len([one for one in found if one]) == 5
