"""A maintenance worker that is told to end in the midst of a pass ends the pass first."""

import signal
from collections.abc import Callable

import psycopg
import pytest
import redis

from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import SLACK_SECONDS, Live
from tests.chaos.workers import Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_TICK = (
    "SELECT last_finished_at, worker FROM mailbox_maintenance WHERE name = 'due_tick' AND last_started_at IS NOT NULL"
)
_WAITING = (
    "SELECT count(*) AS number FROM pg_locks"
    " WHERE relation = 'mailbox_outbox'::regclass AND mode = 'AccessShareLock' AND NOT granted"
)


def test_a_pass_that_has_begun_ends_before_its_worker_does(own_live: Callable[..., Live]) -> None:
    live = own_live(*(word for name in ("web", "worker", "maintenance", "flower") for word in ("--without", name)))

    def are_waiting() -> bool:
        return bool(live.rows(_WAITING)[0]["number"] == 2)

    def signals() -> int:
        return int(redis.Redis.from_url(live.stack.environment["REDIS_URL"]).llen("mailbox.maintenance"))

    with psycopg.connect(live.stack.environment["DATABASE_URL"]) as holder:
        # Half-way through, a due tick looks at what threads have to tell each other: here it has to wait.
        holder.execute("LOCK TABLE mailbox_outbox IN ACCESS EXCLUSIVE MODE")
        with Worker(live, "ticker", queue="mailbox.maintenance", slots=1) as worker:
            # The one its only slot has begun for beat, and that of its standby: beat seems late meanwhile.
            assert wait_until(are_waiting, 2 * SLACK_SECONDS), worker.output[-3000:]
            worker.send(signal.SIGTERM)
            worker.wait_output("Warm shutdown")
            # While beat sends ten more it neither ends nor takes any of them.
            sent = signals()
            assert wait_until(lambda: signals() >= sent + 10, SLACK_SECONDS)
            assert worker.process.poll() is None
            assert live.rows(_TICK) == [{"last_finished_at": None, "worker": ""}]
            holder.rollback()
            assert worker.wait() == 0, worker.output[-3000:]
            [tick] = live.rows(_TICK)
    assert tick["last_finished_at"] is not None
    assert tick["worker"].endswith(f":{worker.pid}")
