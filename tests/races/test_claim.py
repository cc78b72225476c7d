"""Claim meets claim, submit and a scheduled head: one winner, no lost wake-up."""

import threading
import time
import uuid
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from mailbox_app.models import Dispatch, Run, Thread
from mailbox_app.operations import claim, recover, settle, tick
from tests.operations import scene
from tests.races.actors import crew, start

pytestmark = pytest.mark.django_db(transaction=True)


class Countdown:
    """How many runs are left to be done, for several threads."""

    def __init__(self, number: int) -> None:
        self._lock, self._left = threading.Lock(), number
        self._stop_at = time.monotonic() + 60

    def one_less(self) -> None:
        with self._lock:
            self._left -= 1

    def __bool__(self) -> bool:
        assert time.monotonic() < self._stop_at, f"{self._left} runs were never found: a wake-up was lost"
        return self._left > 0


def test_of_n_claimers_of_one_run_exactly_one_wins() -> None:
    with crew(6) as together:
        for _ in range(6):
            posted = scene.post()
            found = [one for one in together(*[scene.take] * 6) if one is not None]
            assert [one.dispatch_id for one in found] == [posted.dispatch_id]
            assert scene.dispatch(posted).claim_token == found[0].token
            settle.complete(found[0])


def test_claimers_of_many_threads_share_them_without_doubles() -> None:
    posted = {scene.post().run_id for _ in range(16)}

    def drain() -> list[uuid.UUID]:
        mine = []
        while one := scene.take():
            mine.append(one.run_id)
        return mine

    with crew(4) as together:
        runs = [run for mine in together(*[drain] * 4) for run in mine]
    left = [one.run_id for one in iter(scene.take, None)]
    assert sorted(runs + left) == sorted(posted)


def test_a_batch_takes_one_run_a_thread_and_splits_the_threads_with_another_batch() -> None:
    threads = [scene.post("one").thread_id for _ in range(8)]
    for thread_id in threads:
        scene.post("two", thread_id=thread_id)

    def batch() -> list[uuid.UUID]:
        taken = claim.due(
            queue=scene.QUEUE, agents=["echo"], worker="w@here:1", tokens=[uuid.uuid4() for _ in range(8)]
        )
        return [one.thread_id for one in taken.claims]

    with crew(2) as together:
        first, second = together(batch, batch)
    assert len(set(first + second)) == len(first + second)
    assert set(first + second) | set(batch()) == set(threads)
    assert Dispatch.objects.claimed().count() == 8


def test_a_claim_passes_over_a_thread_somebody_holds_and_says_that_there_is_more() -> None:
    held, free = scene.post(), scene.post()
    with transaction.atomic():
        Thread.objects.select_for_update(no_key=True).get(pk=held.thread_id)
        assert start(scene.taken).result(20).run_id == free.run_id
        nothing = start(lambda: claim.due(queue=scene.QUEUE, agents=["echo"], worker="w", tokens=[uuid.uuid4()]))
        assert nothing.result(20) == claim.Claimed(claims=[], has_more=True)
    assert scene.taken().run_id == held.run_id


def test_no_submit_that_meets_a_claim_or_a_completion_is_forgotten() -> None:
    """Hammered: a run posted at any point of another's claim and settle is found without a sweep."""
    thread_id, rounds = scene.post().thread_id, 25
    left = Countdown(2 * rounds + 1)

    def post() -> None:
        for _ in range(rounds):
            scene.post(thread_id=thread_id)

    def work() -> None:
        while left:
            if one := scene.take():
                settle.complete(one)
                left.one_less()

    with crew(4) as together:
        together(post, post, work, work)
    assert Run.objects.not_done().count() == 0
    assert recover.repair() == 0
    assert scene.thread(Dispatch.objects.all()[0]).claim_count == 2 * rounds + 1


def test_no_submit_that_meets_a_failure_or_the_tick_is_forgotten() -> None:
    thread_id, rounds = scene.post().thread_id, 12

    def post() -> None:
        for _ in range(rounds):
            scene.post(thread_id=thread_id)

    left = Countdown(rounds + 1)

    def work() -> None:
        while left:
            if one := scene.take():
                if one.attempt == 1:
                    settle.nack(one, code="transient", message="again", retry_after=0.002)
                else:
                    settle.complete(one)
                    left.one_less()

    def promote() -> None:
        while left:
            tick.promote()

    with crew(4) as together:
        together(post, work, work, promote)
    assert Run.objects.not_done().count() == 0
    assert recover.repair() == 0


def test_a_scheduled_head_that_comes_due_after_the_flag_was_written_goes_first() -> None:
    plain = scene.post()
    urgent = scene.post(thread_id=plain.thread_id, priority=0, available_at=scene.database_now() + timedelta(minutes=5))
    Dispatch.objects.filter(pk=urgent.dispatch_id).update(available_at=Now() - timedelta(seconds=1))
    assert scene.thread(plain).due_priority == 128
    assert scene.taken().run_id == urgent.run_id


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_head_that_comes_due_while_the_flag_is_judged_is_not_forgotten(moment: str) -> None:
    """Both halves of the look agree on one rule: what is no head yet is waking."""
    running = scene.posted_and_taken()
    at = scene.database_now() + timedelta(seconds=0.4)
    posted = scene.post(thread_id=running.thread_id, available_at=at)

    def let_it_come_due(execute, sql, params, many, context):
        def wait() -> None:
            with connection.connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(extract(epoch FROM %s - clock_timestamp()) + 0.01)", [at])

        if "statement_timestamp()" not in sql or "UNION ALL" not in sql:
            return execute(sql, params, many, context)
        if moment == "before":
            wait()
        result = execute(sql, params, many, context)
        if moment == "after":
            wait()
        return result

    with connection.execute_wrapper(let_it_come_due):
        settle.complete(running)
    if moment == "after":
        assert scene.flag(posted) == scene.WAKING
        assert tick.promote() == 1
    assert scene.flag(posted) == scene.DUE


def test_who_ends_with_others_waits_for_nobody_s_thread() -> None:
    held, free = scene.posted_and_taken(), scene.posted_and_taken()
    with transaction.atomic():
        Thread.objects.lock([held.thread_id])
        together = [settle.Finishing(claim=one, output="done") for one in (held, free)]
        assert start(settle.complete_some, together).result(timeout=20) == {free.token: None}
    assert (scene.run(held).status, scene.run(free).final_output) == ("running", "done")
    assert settle.complete_some(together[:1]) == {held.token: None}
