"""Hundreds of clients of one web process that is killed under them: all come back at once, and none misses anything.

By hand, with other numbers, and with what it took:

    MAILBOX_STORM_CLIENTS=1000 python3 manage.py test tests/streams/test_storm.py -s
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mailbox_app.operations import settle
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.streams import table
from tests.streams.conftest import emit, going
from tests.streams.crowd import Crowd, Reader, crowd
from tests.streams.web import Web, web_process

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow, pytest.mark.timeout(400)]

CLIENTS = int(os.environ.get("MAILBOX_STORM_CLIENTS") or 500)
THREADS = 20
EVENTS_A_SECOND = 50.0


@pytest.fixture
def web(transactional_db: None, tmp_path: Path) -> Iterator[Web]:
    """It asks nobody's credentials again while statements are counted."""
    with web_process(tmp_path, settings='{"stream_rights_seconds": 3600}') as web:
        yield web


def test_clients_that_are_all_dropped_at_once_and_come_back_at_once_have_each_event_once(
    web: Web, headers: dict[str, str]
) -> None:
    claims = [scene.posted_and_taken() for _ in range(THREADS)]
    token = headers["Authorization"].removeprefix("Bearer ")
    readers = [Reader(web.port, path(claims[number % THREADS], number), token) for number in range(CLIENTS)]
    with crowd(readers) as clients:
        clients.until_all(lambda one: len(one.ids) > 1, "all are live")
        with going(*claims, a_second=EVENTS_A_SECOND):
            clients.until_all(lambda one: len(one.ids) > 5, "all are told")
            web.kill()
            killed_at = time.monotonic()
            web.start()
            up_at, starting = time.monotonic(), cpu_seconds(web)
            heads = {str(claim.thread_id): table.of_thread(claim.thread_id)[-1] for claim in claims}
            heads |= {str(claim.run_id): heads[str(claim.thread_id)] for claim in claims}
            clients.until_all(lambda one: one.last >= heads[of(one)], "all have caught up")
            caught_up_at = time.monotonic()
            busy_ms = 1000 * (cpu_seconds(web) - starting)
        clients.until_all(lambda one: one.connections >= 2, "all have come back")
        returned = sum(one.connections for one in readers) - CLIENTS
        opened, read = of_kind(web.counted())
        told = while_told(web, clients, claims[0])
        for claim in claims:
            settle.complete(claim, output="done")
        clients.until_all(lambda one: one.has_ended, "all have ended")
    expected = {str(claim.thread_id): table.of_thread(claim.thread_id) for claim in claims}
    expected |= {str(claim.run_id): table.of_run(claim.run_id) for claim in claims}
    for one in readers:
        assert one.ids == expected[of(one)]
    figures = {
        "clients": CLIENTS,
        "threads": THREADS,
        "events": sum(len(expected[str(claim.thread_id)]) for claim in claims),
        "seconds_without_a_server": round(up_at - killed_at, 2),
        "seconds_from_then_until_all_had_caught_up": round(caught_up_at - up_at, 2),
        "cpu_ms_for_a_client_that_comes_back_and_its_events": round(busy_ms / returned, 1),
        "statements_for_a_client_that_comes_back": round(opened / returned, 2),
        "readings_of_events_while_they_came_back": read,
        "readings_of_ten_events_for_all": told[1],
    }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    assert opened <= 3 * returned, "who it is, what it streams, and which attempt that is"
    assert told[0] == 0, "who streams asks for nothing again"
    assert told[1] <= 2 * 10, "an event is read once for all"


def path(claim: Claim, number: int) -> str:
    """Every other client's is the thread's stream, the others' the run's."""
    of = f"runs/{claim.run_id}" if number // THREADS % 2 else f"threads/{claim.thread_id}"
    return f"/v1/{of}/events/stream"


def cpu_seconds(web: Web) -> float:
    """What the web process has used of a core since it was started."""
    used = psutil.Process(web.pid).cpu_times()
    return float(used.user + used.system)


def of_kind(counted: dict[str, int]) -> tuple[int, int]:
    """How many statements opened streams, and how many read events; looks at all last cursors are of neither kind."""
    read = sum(count for sql, count in counted.items() if sql.startswith("SELECT thread.id, thread.last_cursor"))
    looks = sum(count for sql, count in counted.items() if sql.startswith("SELECT id, last_cursor"))
    return sum(counted.values()) - read - looks, read


def while_told(web: Web, clients: Crowd, claim: Claim) -> tuple[int, int]:
    """The statements of the web process while each client of a thread is told of ten events, one after the other."""
    mine = {str(claim.thread_id), str(claim.run_id)}
    before = of_kind(web.counted())
    for _ in range(10):
        emit(claim, "Told")
        head = table.of_thread(claim.thread_id)[-1]
        clients.until_all(lambda one, head=head: one.last >= head or of(one) not in mine, "it is told")  # type: ignore[misc]
    after = of_kind(web.counted())
    return after[0] - before[0], after[1] - before[1]


def of(one: Reader) -> str:
    """The thread or run it streams."""
    return one.path.split("/")[3]
