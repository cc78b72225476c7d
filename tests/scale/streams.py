"""What streams cost one web process, and how soon an event arrives. By hand: it opens a thousand connections.

    python -m tests.scale.streams [--idle 1000] [--active 50] [--seconds 20] [--rate 100]

Starts a web process of its own with PostgreSQL and Redis, opens so many streams of a thread nothing happens on, and so
many of threads on which events are recorded, `rate` a second in all. Prints one JSON object: how long an event takes
from commit to client, memory of the web process for each idle stream, transactions a second while nothing happens.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from mailbox_app.devtools.probes import StackProcess

WITHOUT = ("worker", "maintenance", "beat", "flower")
SETTLE_SECONDS = 3.0
# An idle connection of PostgreSQL tells its statistics so late.
_FLUSH_SECONDS = 12.0
# Connections that are opened at a time.
_TOGETHER = 20


def main(arguments: list[str]) -> int:
    """Print the figures; 1 if an event was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale.streams")
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--active", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=float, default=100)
    given = parser.parse_args(arguments)
    options = [word for name in WITHOUT for word in ("--without", name)]
    with StackProcess(*options) as stack:
        os.environ |= {**stack.environment, "DJANGO_SETTINGS_MODULE": "mailbox_project.settings"}
        import django

        django.setup()
        figures = asyncio.run(measure(stack, **vars(given)))
    sys.stdout.write(json.dumps(figures) + "\n")
    return int(figures["lost"] > 0)


async def measure(stack: StackProcess, *, idle: int, active: int, seconds: float, rate: float) -> dict[str, Any]:
    """Open the streams, be idle for a while, record events, and see when they arrive."""
    claims = await asyncio.to_thread(claimed, active)
    quiet = await asyncio.to_thread(claimed, 1)
    pid = stack.pid("web")
    assert pid is not None
    arrived: dict[str, list[float]] = {}
    readers = [await opened(stack, one.thread_id, arrived) for one in claims]
    await asyncio.sleep(SETTLE_SECONDS)
    before = resident_bytes(pid)
    limit = asyncio.Semaphore(_TOGETHER)

    async def one_more() -> asyncio.Task[None]:
        async with limit:
            return await opened(stack, quiet[0].thread_id, arrived)

    readers += await asyncio.gather(*(one_more() for _ in range(idle)))
    await asyncio.sleep(SETTLE_SECONDS)
    grown = resident_bytes(pid) - before
    await asyncio.sleep(_FLUSH_SECONDS)
    idle_statements = await asyncio.to_thread(statements_a_second)
    committed = await asyncio.to_thread(record, claims, seconds=seconds, rate=rate)
    await asyncio.sleep(SETTLE_SECONDS)
    for reader in readers:
        reader.cancel()
    taken = sorted(arrived[key][0] - at for key, at in committed.items() if key in arrived)
    return {
        "idle_streams": idle,
        "active_streams": active,
        "events": len(committed),
        "events_a_second": round(len(committed) / seconds, 1),
        "p50_ms": round(1000 * statistics.median(taken), 1),
        "p95_ms": round(1000 * taken[int(0.95 * len(taken))], 1),
        "max_ms": round(1000 * taken[-1], 1),
        "lost": len(committed) - len(taken),
        "repeated": sum(len(times) - 1 for times in arrived.values()),
        "kib_for_an_idle_stream": round(grown / 1024 / max(idle, 1), 1),
        "transactions_a_second_while_idle": round(idle_statements, 2),
    }


def claimed(count: int) -> list[Any]:
    """So many runs in the hands of a worker that this process plays."""
    from mailbox_app.operations import claim, submit

    for _ in range(count):
        submit.run(scope="default", agent="echo", messages=["hello"])
    found: list[Any] = []
    while len(found) < count:
        tokens = [uuid.uuid4() for _ in range(count - len(found))]
        found += claim.due(queue="mailbox.default", agents=["echo"], worker="w@here:1", tokens=tokens).claims
    return found


def record(claims: list[Any], *, seconds: float, rate: float) -> dict[str, float]:
    """Record events, one thread after the other; returns when each was committed, by its number."""
    from tests.operations import scene

    committed: dict[str, float] = {}
    began, number = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        scene.emit(claims[number % len(claims)], "Told", {"number": number}, n=number)
        committed[str(number)] = time.time()
        number += 1
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
    return committed


def statements_a_second() -> float:
    """Transactions of this database in a second, but for this look."""
    from django.db import connection

    def count() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_clear_snapshot()")
            cursor.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
            return int(cursor.fetchone()[0])

    before, seconds = count(), 10.0
    time.sleep(seconds)
    # The two looks are two statements each, in transactions of their own.
    return max(0, count() - before - 3) / seconds


async def opened(stack: StackProcess, thread_id: uuid.UUID, arrived: dict[str, list[float]]) -> "asyncio.Task[None]":
    """Open a thread's stream and read it from then on, in a task; it is live when this returns."""
    host, _, port = stack.facts["urls"]["web"].removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET /v1/threads/{thread_id}/events/stream HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {stack.token}\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    await reader.readuntil(b"event: RunStarted")

    async def read() -> None:
        try:
            async for line in reader:
                if line.startswith(b"data: ") and b'"kind":"Told"' in line:
                    told = json.loads(line[6:])
                    arrived.setdefault(str(told["payload"]["number"]), []).append(time.time())
        finally:
            writer.close()

    return asyncio.create_task(read())


def resident_bytes(pid: int) -> int:
    """The process's own memory (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
