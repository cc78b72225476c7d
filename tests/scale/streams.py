"""What streams cost one web process, and how soon an event arrives. By hand: it opens a thousand connections.

    python -m tests.scale.streams [--idle 1000] [--active 50 …] [--clients 1] [--rate 10] [--seconds 20]

Starts a web process of its own with PostgreSQL and Redis, opens so many streams of a thread nothing happens on, and for
each number of `--active` so many runs that emit `rate` events a second each, with so many `--clients` for each of them.
The runs are executed in a second process, the clients are this one. Prints one JSON object for the idle streams and one
for each number of runs: from commit to client in milliseconds, what was lost or repeated, transactions a second, and
how much of a core the web process took.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from typing import Any

import psutil

from mailbox_app.devtools.probes import ROOT, StackProcess

WITHOUT = ("worker", "maintenance", "beat", "flower")
SETTLE_SECONDS = 3.0
# An idle connection of PostgreSQL tells its statistics so late.
_FLUSH_SECONDS = 12.0
# What has not arrived so long after the last commit is lost.
_LATE_SECONDS = 30.0
# Connections that are opened at a time.
_TOGETHER = 20
_FRAME = re.compile(rb"^id: (\d+)\n", re.MULTILINE)


class Listener(asyncio.Protocol):
    """One client: keeps when each cursor came."""

    def __init__(self, thread_id: str, request: bytes) -> None:
        self.thread_id, self._request = thread_id, request
        self.arrived: dict[int, list[float]] = defaultdict(list)
        self.is_live = asyncio.get_running_loop().create_future()
        self._rest = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        self._transport = transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note the cursors of all whole frames."""
        now = time.time()
        whole, end, self._rest = (self._rest + data).rpartition(b"\n\n")
        for cursor in _FRAME.findall(whole + end):
            self.arrived[int(cursor)].append(now)
        if not self.is_live.done() and b"event: RunStarted" in whole:
            self.is_live.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """The stream is over."""
        if not self.is_live.done():
            self.is_live.set_exception(error or ConnectionError(self._rest[:200]))

    def close(self) -> None:
        """Leave."""
        self._transport.close()


def main(arguments: list[str]) -> int:
    """Print the figures; 1 if an event was lost or came twice."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale.streams")
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--active", type=int, nargs="+", default=[50])
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rate", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args(arguments)
    options = [word for name in WITHOUT for word in ("--without", name)]
    with StackProcess(*options) as stack:
        os.environ |= {**stack.environment, "DJANGO_SETTINGS_MODULE": "mailbox_project.settings"}
        import django

        django.setup()
        failed = asyncio.run(measure(stack, **vars(given)))
    return int(failed)


async def measure(
    stack: StackProcess, *, idle: int, active: list[int], clients: int, rate: float, seconds: float
) -> bool:
    """Open the idle streams, then let so many runs speak at a time; whether an event was lost or came twice."""
    pid = stack.pid("web")
    assert pid is not None
    web = psutil.Process(pid)
    quiet = Speakers(stack, runs=1, rate=rate, seconds=seconds)
    (thread_id,) = await asyncio.to_thread(quiet.threads)
    first = await opened(stack, [thread_id] * 10)
    await asyncio.sleep(SETTLE_SECONDS)
    before = web.memory_info().rss
    listeners = first + await opened(stack, [thread_id] * idle)
    await asyncio.sleep(SETTLE_SECONDS)
    grown = web.memory_info().rss - before
    await asyncio.sleep(_FLUSH_SECONDS)
    idle_transactions, idle_seconds = await asyncio.to_thread(transactions), time.monotonic()
    await asyncio.sleep(_FLUSH_SECONDS)
    idle_transactions = await asyncio.to_thread(transactions) - idle_transactions - 1
    tell(
        {
            "idle_streams": idle,
            "kib_for_an_idle_stream": round(grown / 1024 / max(idle, 1), 1),
            "transactions_a_second_while_idle": round(idle_transactions / (time.monotonic() - idle_seconds), 2),
        }
    )
    has_failed = False
    for runs in active:
        figures = await spoken(stack, web, runs=runs, clients=clients, rate=rate, seconds=seconds)
        tell({"idle_streams": idle, **figures})
        has_failed = has_failed or bool(figures["lost"] or figures["repeated"])
    for listener in listeners:
        listener.close()
    quiet.end()
    return has_failed


async def spoken(
    stack: StackProcess, web: psutil.Process, *, runs: int, clients: int, rate: float, seconds: float
) -> dict[str, Any]:
    """Let so many runs emit, and compare what each client was sent with what was committed."""
    speakers = Speakers(stack, runs=runs, rate=rate, seconds=seconds)
    threads = await asyncio.to_thread(speakers.threads)
    listeners = await opened(stack, [thread_id for thread_id in threads for _ in range(clients)])
    await asyncio.sleep(SETTLE_SECONDS)
    busy, began, committed_before = sum(web.cpu_times()[:2]), time.monotonic(), await asyncio.to_thread(transactions)
    told = await asyncio.to_thread(speakers.speak)
    took, busy = time.monotonic() - began, sum(web.cpu_times()[:2]) - busy
    at = committed(told)
    give_up_at = time.monotonic() + _LATE_SECONDS
    while time.monotonic() < give_up_at and any(at[one.thread_id].keys() - one.arrived.keys() for one in listeners):
        await asyncio.sleep(0.1)
    asked = await asyncio.to_thread(transactions) - committed_before
    speakers.end()
    took_in_all = time.monotonic() - began
    late = sorted(
        one.arrived[cursor][0] - at[one.thread_id][cursor]
        for one in listeners
        for cursor in at[one.thread_id]
        if cursor in one.arrived
    )
    wanted = sum(len(at[one.thread_id]) for one in listeners)
    for listener in listeners:
        listener.close()
    return {
        "runs": runs,
        "clients": len(listeners),
        "events_a_second": round(sum(map(len, at.values())) / took),
        "sent_a_second": round(wanted / took),
        "writes_a_second_of_a_run": round(len(told["commits"]) / took / runs, 2),
        "transactions_a_second_of_the_worker": round(told["transactions"] / took, 1),
        "transactions_a_second_in_all": round(asked / took_in_all, 1),
        "p50_ms": round(1000 * statistics.median(late), 1),
        "p95_ms": round(1000 * late[int(0.95 * len(late))], 1),
        "max_ms": round(1000 * late[-1], 1),
        "lost": wanted - len(late),
        "repeated": sum(len(times) - 1 for one in listeners for times in one.arrived.values()),
        "web_cores": round(busy / took, 2),
    }


def committed(told: dict[str, Any]) -> dict[str, dict[int, float]]:
    """When each cursor of each thread was committed. A fence leaves its thread's last cursor, of all that are new."""
    at: dict[str, dict[int, float]] = {thread_id: {} for thread_id in told["before"]}
    last = dict(told["before"])
    for thread_id, cursor, when in sorted(told["commits"], key=lambda commit: (commit[0], commit[1])):
        for one in range(last[thread_id] + 1, cursor + 1):
            at[thread_id][one] = when
        last[thread_id] = cursor
    return at


class Speakers:
    """`tests.scale.speaking` as a child."""

    def __init__(self, stack: StackProcess, *, runs: int, rate: float, seconds: float) -> None:
        command = [sys.executable, "-m", "tests.scale.speaking", "--runs", str(runs)]
        command += ["--rate", str(rate), "--seconds", str(seconds)]
        settings = json.dumps({"max_async_runs": runs + 1})
        environment = {**os.environ, **stack.environment, "MAILBOX_SETTINGS": settings}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **pipes)

    def threads(self) -> list[str]:
        """Wait until all have begun; their threads' ids."""
        return list(self._answer()["threads"])

    def speak(self) -> dict[str, Any]:
        """Let them speak, and wait until they have ended."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))


async def opened(stack: StackProcess, threads: list[str]) -> list[Listener]:
    """Open a stream of each of these threads; all are live when this returns."""
    host, _, port = stack.facts["urls"]["web"].removeprefix("http://").partition(":")
    token = stack.token
    limit = asyncio.Semaphore(_TOGETHER)

    async def one(thread_id: str) -> Listener:
        request = (
            f"GET /v1/threads/{uuid.UUID(thread_id)}/events/stream HTTP/1.1\r\nHost: {host}\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        )
        async with limit:
            loop = asyncio.get_running_loop()
            _, listener = await loop.create_connection(lambda: Listener(thread_id, request.encode()), host, int(port))
            await asyncio.wait_for(listener.is_live, 60)
            return listener

    return await asyncio.gather(*(one(thread_id) for thread_id in threads))


def transactions() -> int:
    """Committed in this database so far; the look is the last of them."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        return int(cursor.fetchone()[0])


def tell(figures: dict[str, Any]) -> None:
    """One line."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
