"""Whatever is killed in mid-stream, each client is told what the table has: once, in order, without a gap."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos import storms
from tests.chaos.audience import Viewer, faults, table, till
from tests.chaos.live import RECOVERED_SECONDS, SETTINGS, SLACK_SECONDS, Live
from tests.chaos.load import assert_healthy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EVENTS, RATE = 60, 10
# Clients of each thread and of each run; as many post runs of their own.
THREADS, CLIENTS = 2, 2
# So much of each stream is told before anything is killed.
MIDST = 8
# Of a client's counts: deltas it had heard when the blow was over.
BEFORE = "deltas before the blow"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, module_monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    module_monkeypatch.setenv("MAILBOX_EXTRA_APPS", "tests.chaos.streamers")
    settings = {**SETTINGS, "wait_poll_seconds": 0.1, "stream_poll_seconds": 1.0, "stream_buffer_entries": 20}
    given = ("--pool", "threads", "--concurrency", "8", "--without", "flower")
    with StackProcess(*given, settings=settings) as stack:
        yield Live(stack, tmp_path_factory.mktemp("streams"))


def test_clients_come_back_to_a_web_process_that_was_killed(live: Live) -> None:
    viewers = asyncio.run(told_through(live, lambda: killed(live, "web")))
    assert all(viewer.counts["200 answers"] >= 2 for viewer in viewers)


def test_a_worker_that_is_killed_leaves_neither_its_live_text_nor_a_gap(live: Live) -> None:
    viewers = asyncio.run(told_through(live, lambda: killed(live, "worker")))
    kinds = Counter(kind for viewer in viewers for _, kind in viewer.told)
    assert kinds["RunRescheduled"] >= THREADS * CLIENTS
    lost = live.rows("SELECT sum(lost_count) AS lost FROM mailbox_dispatch")[0]["lost"]
    assert lost >= THREADS + CLIENTS
    assert all(viewer.attempt == 2 for viewer in viewers), "the second attempt was not heard"


def test_redis_that_is_killed_delays_what_is_told_and_live_text_is_heard_again(live: Live) -> None:
    viewers = asyncio.run(told_through(live, lambda: killed(live, "redis"), events=100))
    assert all(viewer.counts["deltas"] > viewer.counts[BEFORE] + MIDST for viewer in viewers)


def test_postgresql_that_crashes_delays_what_is_told(live: Live) -> None:
    asyncio.run(told_through(live, lambda: storms.crash_postgres(live)))


def killed(live: Live, name: str) -> None:
    """End it without a word; the stack starts it again."""
    old = live.stack.kill(name, signal.SIGKILL)
    wait_until(lambda: live.stack.pid(name) not in (None, old), 2 * SLACK_SECONDS)
    assert live.stack.pid(name) not in (None, old)


async def told_through(live: Live, strike: Callable[[], Any], *, events: int = EVENTS) -> list[Viewer]:
    """Open all kinds of streams, strike in their midst, and judge what their clients were told in the end."""
    body = {"agent": "streamer", "messages": [{"content": "go"}], "options": {"count": events, "rate": RATE}}
    viewers: list[Viewer] = []
    for _ in range(THREADS):
        answer = await asyncio.to_thread(live.stack.request, "POST", "/v1/runs", body=body)
        assert answer.status == 202, answer.text
        viewers += [Viewer(live, thread_id=answer.json["thread_id"]) for _ in range(CLIENTS)]
        viewers += [Viewer(live, run_id=answer.json["run_id"]) for _ in range(CLIENTS)]
    viewers += [Viewer(live, body=body) for _ in range(CLIENTS)]
    is_over = asyncio.Event()
    watching = [asyncio.create_task(one.watch(lambda: not is_over.is_set(), lambda _: None)) for one in viewers]
    assert await till(lambda: all(len(one.told) >= MIDST for one in viewers), 2 * SLACK_SECONDS), viewers
    await asyncio.to_thread(strike)
    struck_at = time.monotonic()
    for one in viewers:
        one.counts[BEFORE] = one.counts["deltas"]
    assert await till(lambda: are_done(live), RECOVERED_SECONDS + events / RATE + SLACK_SECONDS)
    rows = await asyncio.to_thread(table, live)
    of_threads = [one for one in viewers if one.thread_id]
    assert await till(lambda: all(has_all(one, rows) for one in of_threads), SLACK_SECONDS), faults(viewers, rows)
    assert await till(lambda: all(one.ended for one in viewers if not one.thread_id), SLACK_SECONDS), viewers
    is_over.set()
    await asyncio.gather(*watching)
    for one in of_threads:  # a thread's stream has no end
        one.has_left = False
    assert faults(viewers, rows) == []
    assert {one.ended for one in viewers if not one.thread_id} <= {"done", "204"}
    assert all(one.heard_at > struck_at for one in viewers), "nothing was told after the blow"
    await asyncio.to_thread(assert_each_told_once, live, {one.run_id for one in viewers if one.run_id}, events)
    await asyncio.to_thread(assert_healthy, live)
    return viewers


async def are_done(live: Live) -> bool:
    def look() -> bool:
        return bool(live.rows("SELECT count(*) = 0 AS done FROM mailbox_run WHERE status <> 'done'")[0]["done"])

    try:
        return await asyncio.to_thread(look)
    except Exception:  # PostgreSQL itself may be what was killed
        return False


def has_all(one: Viewer, rows: dict[str, list[tuple[int, str, str]]]) -> bool:
    return one.last == rows[one.thread_id][-1][0]


def assert_each_told_once(live: Live, runs: set[str], events: int) -> None:
    """Each event of each run exactly once, whatever was replayed; and the messages that close its live text."""
    for run in runs:
        numbers = live.rows(
            "SELECT (payload->>'number')::int AS number FROM mailbox_event "
            "WHERE run_id = %s AND kind = 'Told' ORDER BY cursor",
            run,
        )
        assert [row["number"] for row in numbers] == list(range(events))
        said = live.rows("SELECT content FROM mailbox_message WHERE producer_run_id = %s ORDER BY seq", run)
        assert [row["content"] for row in said] == [f"{count} events" for count in (*range(10, events + 1, 10), events)]
