"""What goes wrong in a storm: each does its damage again and again while the block runs, from a thread of its own."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import redis

from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import SLACK_SECONDS, Live

QUEUE = "mailbox.default"


@contextlib.contextmanager
def again_and_again(act: Callable[[], int], *, every_seconds: float) -> Iterator[list[int]]:
    """Call it so often; yields what each call returned. What a call raises while the peer is away is part of it."""
    did: list[int] = []
    is_over = threading.Event()

    def go_on() -> None:
        while not is_over.wait(every_seconds):
            with contextlib.suppress(psycopg.Error, redis.RedisError, OSError):
                did.append(act())

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield did
    finally:
        is_over.set()
        thread.join(SLACK_SECONDS)


def terminate_backends(live: Live) -> int:
    """End every other connection to the database; returns how many there were."""
    return len(
        live.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    )


def crash_postgres(live: Live) -> None:
    """An immediate shutdown, as `pg_ctl -m immediate` does; the stack starts it again, and it recovers."""
    old = live.stack.kill("postgres", signal.SIGQUIT)
    wait_until(lambda: live.stack.pid("postgres") not in (None, old), 2 * SLACK_SECONDS)
    assert live.stack.pid("postgres") not in (None, old), live.stack.output[-2000:]


def restart_redis(live: Live) -> None:
    """Stop it in order; the stack starts it again."""
    old = live.stack.kill("redis", signal.SIGTERM)
    wait_until(lambda: live.stack.pid("redis") not in (None, old), 2 * SLACK_SECONDS)
    assert live.stack.pid("redis") not in (None, old), live.stack.output[-2000:]


def pause_redis(live: Live, seconds: float) -> None:
    """It accepts connections and answers nothing."""
    pid = live.stack.pid("redis")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


def client(live: Live) -> "redis.Redis":
    return redis.Redis.from_url(live.stack.environment["REDIS_URL"], socket_timeout=5, decode_responses=True)


def flush(live: Live) -> int:
    """Forget everything that Redis holds; returns how many keys that were."""
    with client(live) as one:
        count = int(one.dbsize())
        one.flushall()
    return count


def signals_waiting(live: Live) -> int:
    with client(live) as one:
        return int(one.llen(QUEUE))


@contextlib.contextmanager
def every_signal_twice(live: Live) -> Iterator[set[str]]:
    """Push a copy of each signal as soon as it is sent; yields the ids of those that were doubled."""
    doubled: set[str] = set()
    with client(live) as pushing, contextlib.ExitStack() as stack:
        heard = stack.enter_context(client(live).monitor())
        is_over = threading.Event()

        def follow() -> None:
            with contextlib.suppress(redis.RedisError, OSError, ValueError):
                while not is_over.is_set():
                    _double(heard.next_command(), pushing, doubled)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield doubled
        finally:
            is_over.set()
            thread.join(SLACK_SECONDS)


def _double(said: dict[str, Any], pushing: "redis.Redis", doubled: set[str]) -> None:
    words = str(said["command"]).split(" ", 2)
    if words[:2] != ["LPUSH", QUEUE]:
        return
    signal_sent = words[2].replace('\\\\"', '"').replace('\\"', '"')
    tag = str(json.loads(signal_sent)["properties"]["delivery_tag"])
    if tag not in doubled:
        doubled.add(tag)
        pushing.lpush(QUEUE, signal_sent)
