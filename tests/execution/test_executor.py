"""One executing process: async runs leave their slot, a full one passes its signal on, one that ends claims no more."""

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from django.db import OperationalError

from mailbox_app import channel, tasks
from mailbox_app.conf import conf
from mailbox_app.execution import AsyncContext
from mailbox_app.execution import executor as executor_module
from mailbox_app.execution.executor import Executor
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.execution.places import Places
from mailbox_app.execution.pool import Pool
from mailbox_app.models import Dispatch
from mailbox_app.operations import pauses, recover, settle
from tests.execution.conftest import Register
from tests.operations import scene
from tests.races.actors import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def queue(settings: Any) -> Iterator[str]:
    name = f"queue-{uuid.uuid4()}"
    settings.MAILBOX = {**settings.MAILBOX, "default_queue": name, "max_async_runs": 2}
    channel.forget_failures()
    yield name
    channel.forget_failures()


@pytest.fixture
def executor(keeper: LeaseKeeper) -> Executor:
    made = Executor(keeper, stop_consuming=lambda code: None)
    made.prepare()
    return made


@pytest.fixture
def waits(register: Register) -> Iterator[Callable[[], None]]:
    """The agent `waits` waits until this is called."""
    is_open = threading.Event()

    async def agent(ctx: AsyncContext) -> str:
        while not is_open.is_set():
            await asyncio.sleep(0.005)
        return "waited"

    register(agent, name="waits")
    yield is_open.set
    is_open.set()
    until(lambda: not Dispatch.objects.claimed().exists(), "what was begun ends before its tables are emptied")


def waiting(queue: str) -> int:
    return int(redis.Redis.from_url(conf.redis_url).llen(queue))


def take_signal(queue: str) -> None:
    redis.Redis.from_url(conf.redis_url).delete(queue)
    channel.lower_flag(queue)


def work(executor: Executor, queue: str) -> int:
    take_signal(queue)
    return executor.work(queue=queue, worker="worker@here:1", own_process=False)


def test_an_async_run_leaves_its_slot(waits: Callable[[], None], queue: str) -> None:
    posted = scene.post(agent="waits")
    assert tasks.execute.apply().get() == 1
    assert (scene.run(posted).status, scene.dispatch(posted).status) == ("running", "claimed")
    waits()
    until(lambda: scene.run(posted).final_output == "waited", "it ends")


def test_an_async_run_keeps_a_slot_that_is_a_process(executor: Executor, register: Register, queue: str) -> None:
    async def agent(ctx: AsyncContext) -> str:
        return "done"

    register(agent)
    posted = scene.post(agent="probe")
    assert executor.work(queue=queue, worker="worker@here:1", own_process=True) == 1
    assert scene.run(posted).final_output == "done"


@pytest.mark.parametrize("kind", ["agent", "queue", "thread"])
def test_a_slot_neither_loops_over_paused_work_nor_passes_its_signal_on(
    executor: Executor, queue: str, kind: str
) -> None:
    posted = scene.post()
    name = {"agent": "echo", "queue": queue, "thread": str(posted.thread_id)}[kind]
    pauses.pause(kind=kind, name=name)
    began = time.monotonic()
    assert work(executor, queue) == 0
    assert time.monotonic() - began < conf.claim_budget_seconds / 2, "it has not waited for what cannot start"
    assert waiting(queue) == 0
    executor.stop_claiming()
    assert (work(executor, queue), waiting(queue)) == (0, 0), "nor when it leaves"
    assert (recover.signal(), waiting(queue)) == (0, 0)
    pauses.resume(kind=kind, name=name)
    assert waiting(queue) == 1, "resuming wakes a worker"


def test_a_full_process_claims_sync_work_alone_and_passes_the_signal_on(
    executor: Executor, waits: Callable[[], None], queue: str
) -> None:
    inside = [scene.post(agent="waits") for _ in range(2)]
    assert work(executor, queue) == 2
    left, sync = scene.post(agent="waits"), scene.post("not async")
    assert work(executor, queue) == 1
    assert (scene.run(left).status, scene.run(sync).final_output) == ("created", "not async")
    assert waiting(queue) == 1, "for somebody who has a seat"
    take_signal(queue)
    waits()
    until(lambda: {scene.run(one).status for one in inside} == {"done"}, "they end")
    until(lambda: waiting(queue) == 1, "and a seat that is free is told")
    assert work(executor, queue) == 1
    until(lambda: scene.run(left).status == "done", "it ends")


def test_a_full_process_with_nothing_left_over_passes_nothing_on(
    executor: Executor, waits: Callable[[], None], queue: str
) -> None:
    for _ in range(2):
        scene.post(agent="waits")
    assert work(executor, queue) == 2
    take_signal(queue)
    scene.post("not async")
    assert (work(executor, queue), waiting(queue)) == (1, 0)


def test_a_signal_nobody_can_act_on_circles_slowly(executor: Executor, waits: Callable[[], None], queue: str) -> None:
    for _ in range(3):
        scene.post(agent="waits")
    work(executor, queue)
    began = time.monotonic()
    for _ in range(6):
        assert work(executor, queue) == 0
        assert waiting(queue) == 1
    assert 0.5 <= time.monotonic() - began < 3


def test_a_seat_that_was_taken_for_a_claim_is_given_back(executor: Executor, register: Register, queue: str) -> None:
    register(lambda ctx: None)
    for _ in range(5):
        scene.post(agent="probe")
    assert work(executor, queue) == 5
    assert work(executor, queue) == 0
    assert executor._seats.taken == 0


def test_a_process_that_is_to_end_claims_nothing_and_passes_the_signal_on(executor: Executor, queue: str) -> None:
    posted = scene.post()
    executor.stop_claiming()
    with scene.nothing_changes():
        assert work(executor, queue) == 0
    assert (waiting(queue), scene.run(posted).status) == (1, "created")


def test_a_process_that_is_to_end_passes_nothing_on_when_nothing_is_due(executor: Executor, queue: str) -> None:
    executor.stop_claiming()
    assert (work(executor, queue), waiting(queue)) == (0, 0)


def test_children_forked_before_hear_that_the_worker_is_to_end(executor: Executor) -> None:
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.read(reads, 1)
        os._exit(3 if executor.is_leaving else 4)
    executor.stop_claiming()
    os.write(writes, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    os.close(reads)
    os.close(writes)


def test_a_process_that_is_to_end_hands_back_what_has_not_ended_in_time(
    executor: Executor, waits: Callable[[], None], queue: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "stop_seconds": 0, "max_async_runs": 2}
    monkeypatch.setattr(executor_module, "_LAST_CLAIM_SECONDS", 0.2)
    posted = [scene.post(agent="waits") for _ in range(2)]
    assert work(executor, queue) == 2
    assert not executor.leave_in_time(), "nobody told it to end"
    executor.stop_claiming()
    assert not executor.leave_in_time()
    assert {scene.dispatch(one).status for one in posted} == {"claimed"}, "a claim that had begun is let be under way"

    def is_away(**_: Any) -> int:
        raise OperationalError

    time.sleep(0.2)
    with monkeypatch.context() as away:
        away.setattr(settle, "hand_back", is_away)
        with pytest.raises(OperationalError):
            executor.leave_in_time()
    assert {scene.dispatch(one).status for one in posted} == {"claimed"}, "and its leases are kept: it is tried again"
    assert not executor.leave_in_time(), "its code has a moment to notice"
    rows = [scene.dispatch(one) for one in posted]
    assert {(row.status, row.attempt_count, row.lost_count) for row in rows} == {("queued", 0, 0)}
    until(lambda: executor.drain(is_hurried=lambda: True), "its async runs are cancelled")
    assert executor.leave_in_time(), "whatever still runs is nobody's"


def test_what_is_no_worker_is_never_retired(executor: Executor) -> None:
    executor.retire("tests have no supervisor")
    assert not executor.is_leaving


def test_a_process_waits_for_its_async_runs_unless_it_is_told_to_hurry(
    executor: Executor, waits: Callable[[], None], queue: str
) -> None:
    posted = scene.post(agent="waits")
    work(executor, queue)
    assert executor.drain(is_hurried=lambda: True) is False
    threading.Timer(0.2, waits).start()
    assert executor.drain(is_hurried=lambda: False) is True
    assert scene.run(posted).status == "done"


def test_places_are_worn_out_at_half_and_only_by_code_that_does_not_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailbox_app.execution.places._GRACE_SECONDS", 0.3)
    reasons: list[str] = []
    places = Places("slot", lambda: 4, on_worn=reasons.append)
    for _ in range(3):
        scene.post()
    one, two, three = (scene.taken(queue=conf.default_queue) for _ in range(3))
    places.abandon(one)
    places.abandon(two)
    places.regain(two)
    time.sleep(0.6)
    assert reasons == [], "one of four, for good"
    began = time.monotonic()
    places.abandon(three)
    until(lambda: reasons, "half of them are")
    assert time.monotonic() - began >= 0.3, "and not before the grace was over"
    assert reasons == ["2 of 4 slots abandoned"]


def test_a_pool_calls_as_many_at_once_as_it_may_and_the_others_in_order() -> None:
    pool = Pool("test-pool", lambda: 3)
    gate, inside, order = threading.Semaphore(0), [], []

    def job(number: int) -> int:
        inside.append(number)
        gate.acquire()
        order.append(number)
        return number

    futures = [pool.submit(lambda n=n: job(n)) for n in range(9)]  # type: ignore[misc]
    until(lambda: len(inside) == 3, "three are called")
    time.sleep(0.1)
    assert sorted(inside) == [0, 1, 2]
    for _ in range(9):
        gate.release()
    assert [future.result(20) for future in futures] == list(range(9))
    assert sorted(inside[3:]) == list(range(3, 9))


def test_a_pool_starts_a_thread_rather_than_have_a_call_wait_for_a_busy_one() -> None:
    pool = Pool("test-pool", lambda: 50)
    for _ in range(200):
        gate = threading.Event()
        slow = pool.submit(lambda gate=gate: gate.wait(20))  # type: ignore[misc]
        assert pool.submit(lambda: "quick").result(5) == "quick"
        gate.set()
        assert slow.result(5)


def test_what_a_call_raises_is_its_future_s_and_the_thread_goes_on() -> None:
    pool = Pool("test-pool", lambda: 1)
    for error in (KeyError("k"), SystemExit(1), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            pool.submit(lambda error=error: (_ for _ in ()).throw(error)).result(5)  # type: ignore[misc]
    assert pool.submit(threading.get_ident).result(5) == pool.submit(threading.get_ident).result(5)


def test_a_signal_that_is_passed_on_changes_no_row(executor: Executor, waits: Callable[[], None], queue: str) -> None:
    for _ in range(3):
        scene.post(agent="waits")
    work(executor, queue)
    with scene.nothing_changes():
        work(executor, queue)
