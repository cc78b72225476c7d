"""The lease keeper in trouble: renewals that hang or fail as nobody foresaw, time limits that cannot settle."""

import threading
import time
import uuid
from collections.abc import Collection
from typing import Any

import pytest
from django.db import connection

from mailbox_app.errors import LeaseLost, Stop
from mailbox_app.execution import Context, runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.hints import Aim
from mailbox_app.operations import claim, recover, settle
from tests.execution.conftest import Register
from tests.operations import scene
from tests.races.actors import start, until

pytestmark = pytest.mark.django_db(transaction=True)

LEASE = 1.0


@pytest.fixture(autouse=True)
def _short_lease(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "lease_seconds": LEASE, "renewal_seconds": 0.1, "redis_url": ""}


def nothing() -> None:
    """No time limit is expected to pass."""


def test_a_renewal_that_hangs_keeps_neither_time_limits_nor_the_end_of_the_lease_from_being_seen() -> None:
    one, limited = scene.posted_and_taken(), scene.posted_and_taken()
    hanging, release, stops = threading.Event(), threading.Event(), []
    timed_out: list[bool] = []

    def renew(tokens: Collection[uuid.UUID]) -> claim.Renewed:
        hanging.set()
        release.wait(20)
        return claim.Renewed()

    keeper = LeaseKeeper(renew)
    since = time.monotonic()
    with (
        keeper.holding(one, stop_with=stops.append, on_timeout=nothing, timeout=3600),
        keeper.holding(limited, stop_with=list[Stop]().append, on_timeout=lambda: timed_out.append(True), timeout=0.2),
    ):
        assert hanging.wait(20)
        until(lambda: timed_out, "the time limit is seen")
        assert stops == [], "the lease is not over"
        until(lambda: stops, "the end of the lease is seen")
        assert time.monotonic() - since >= LEASE
        assert not release.is_set()
        release.set()
    assert [type(stop) for stop in stops] == [LeaseLost]


def test_an_error_nobody_expects_of_a_renewal_does_not_end_renewals() -> None:
    one, stops = scene.posted_and_taken(), []
    before = scene.dispatch(one).lease_until
    calls: list[int] = []

    def renew(tokens: Collection[uuid.UUID]) -> claim.Renewed:
        calls.append(len(tokens))
        if len(calls) <= 2:
            raise RuntimeError("can't start new thread")
        return claim.renew(tokens=tokens)

    with LeaseKeeper(renew).holding(one, stop_with=stops.append, on_timeout=nothing, timeout=3600):
        until(lambda: scene.dispatch(one).lease_until != before, "a renewal that works")
    assert stops == []
    settle.complete(one)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_renewal_whose_kept_connection_has_died_is_made_again_at_once(settings: Any) -> None:
    settings.MAILBOX = {"lease_seconds": 3_600}
    one, pids = scene.posted_and_taken(), []

    def renew(tokens: Collection[uuid.UUID]) -> claim.Renewed:
        renewed = claim.renew(tokens=tokens)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pids.append(cursor.fetchone()[0])
        return renewed

    keeper = LeaseKeeper(renew)
    aim = Aim(one.thread_id, one.run_id, one.dispatch_id)
    with keeper.holding(one, stop_with=list[Stop]().append, on_timeout=nothing, timeout=3_600):
        for number in (1, 2):
            keeper.nudge(aim)
            until(lambda number=number: len(pids) == number, "a nudge is followed")
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pids[0]])
        keeper.nudge(aim)
        until(lambda: len(pids) == 3, "the renewal is made again, and not with the next one")
    assert pids[0] == pids[1] != pids[2]
    until(lambda: not is_connected(pids[2]), "nothing is held, and no connection kept")
    settle.complete(one)


def is_connected(pid: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid])
        return bool(cursor.fetchone()[0])


def test_a_run_whose_time_limit_cannot_be_settled_is_left_to_the_sweep(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def unable(*args: Any, **given: Any) -> None:
        raise ValueError("a bad row")

    def agent(ctx: Context) -> str:
        go_on.wait(20)
        return "too late"

    monkeypatch.setattr(settle, "nack", unable)
    register(agent, timeout_seconds=0.2)
    scene.post(agent="probe")
    one = scene.taken(agents=("probe",))
    keeper = LeaseKeeper(lambda tokens: claim.renew(tokens=tokens))
    running = start(lambda: runner.run(one, keeper=keeper, own_process=False))
    until(recover.reclaim, "the sweep takes it back")
    assert not running.done(), "its agent is still at it"
    assert (scene.dispatch(one).status, scene.dispatch(one).lost_count) == ("queued", 1)
    with scene.nothing_changes():
        go_on.set()
        running.result(20)
