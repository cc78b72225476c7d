"""Renewal, settle and sweep meet over one lease; a worker that slept past it meets its successor."""

import os
import signal
import uuid

import pytest
from django.db import connection, transaction

from mailbox_app.errors import LeaseLost
from mailbox_app.models import Dispatch, Thread
from mailbox_app.operations import claim, recover, settle
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.races.actors import Process, await_waiting, crew, processes, start

pytestmark = pytest.mark.django_db(transaction=True)


def test_settle_against_reclaim_has_one_winner() -> None:
    with crew(2) as together:
        for _ in range(10):
            one = scene.posted_and_taken()
            scene.expire_lease(one)

            def finish(one: Claim = one) -> str:
                try:
                    settle.complete(one, output="done")
                except LeaseLost:
                    return "swept"
                return "done"

            verdict, reclaimed = together(finish, recover.reclaim)
            dispatch = scene.dispatch(one)
            if verdict == "done":
                assert (dispatch.status, dispatch.lost_count, reclaimed) == ("acked", 0, 0)
                assert scene.kinds(one)[-1] == "RunFinished"
            else:
                assert (dispatch.status, dispatch.lost_count, reclaimed) == ("queued", 1, 1)
                assert scene.kinds(one)[-1] == "RunRescheduled"
                settle.complete(scene.taken())


def test_concurrent_sweeps_take_a_lease_back_once() -> None:
    with crew(3) as together:
        for _ in range(5):
            one = scene.posted_and_taken()
            scene.expire_lease(one)
            assert sum(together(*[recover.reclaim] * 3)) == 1
            assert (scene.dispatch(one).lost_count, scene.kinds(one).count("RunRescheduled")) == (1, 1)
            settle.complete(scene.taken())


def test_a_renewal_that_came_first_saves_its_claim_from_the_sweep() -> None:
    one = scene.posted_and_taken()
    scene.expire_lease(one)
    with transaction.atomic():
        assert claim.renew(tokens=[one.token]).lost == set()
        sweeping = start(recover.reclaim)
        await_waiting()
    assert sweeping.result(20) == 0
    assert (scene.dispatch(one).status, scene.dispatch(one).lost_count) == ("claimed", 0)
    settle.complete(one)


def test_a_row_somebody_holds_is_neither_renewed_nor_lost() -> None:
    held, free = scene.posted_and_taken(), scene.posted_and_taken()
    before = {row.pk: row.lease_until for row in Dispatch.objects.all()}
    with transaction.atomic():
        Dispatch.objects.select_for_update().get(pk=held.dispatch_id)
        unknown = uuid.uuid4()
        lost = start(lambda: claim.renew(tokens=[held.token, free.token, unknown])).result(20)
        assert lost.lost == {unknown}
    assert scene.dispatch(held).lease_until == before[held.dispatch_id]
    assert scene.dispatch(free).lease_until > before[free.dispatch_id]


def test_renewals_and_settles_of_the_same_rows_never_deadlock() -> None:
    claims = [scene.posted_and_taken() for _ in range(16)]
    tokens = [one.token for one in claims]

    def renew() -> None:
        for _ in range(25):
            claim.renew(tokens=list(reversed(tokens)))

    def finish() -> None:
        # Several in one transaction, as a group settle holds them, in the other order.
        for four in (claims[n : n + 4] for n in range(0, len(claims), 4)):
            with transaction.atomic():
                for one in four:
                    settle.complete(one)

    with crew(3) as together:
        together(renew, renew, finish)
    assert set(Dispatch.objects.values_list("status", flat=True)) == {"acked"}


def test_a_worker_stopped_past_its_lease_and_continued_changes_nothing() -> None:
    scene.post()
    with processes(Process("sleep_past_the_lease", worker="sleeper@here:1")) as (sleeper,):
        sleeper.tell()
        token = uuid.UUID(sleeper.line())
        os.kill(sleeper.pid, signal.SIGSTOP)
        stale = Dispatch.objects.get(claim_token=token)
        Dispatch.objects.filter(pk=stale.pk).update(lease_until=scene.database_now())
        assert recover.reclaim() == 1
        successor = scene.taken(worker="other@there:2")
        os.kill(sleeper.pid, signal.SIGCONT)
        with scene.nothing_changes():
            sleeper.tell()
            assert sleeper.line() == "lease lost"
    assert successor.fence == 2
    settle.complete(successor, output="hello there")
    assert scene.log(successor) == [(1, "user", "hello there"), (2, "assistant", "hello there")]


def test_a_sweep_waits_for_nobody() -> None:
    one = scene.posted_and_taken()
    scene.expire_lease(one)
    with transaction.atomic():
        Thread.objects.select_for_update(no_key=True).get(pk=one.thread_id)
        assert start(recover.reclaim).result(20) == 0
    assert recover.reclaim() == 1


def test_the_clock_of_leases_is_the_database_s() -> None:
    one = scene.posted_and_taken()
    with connection.cursor() as cursor:
        cursor.execute("SELECT lease_until - claimed_at FROM mailbox_dispatch WHERE id = %s", [one.dispatch_id])
        assert cursor.fetchone()[0].total_seconds() == 30.0
