"""Who meets in a race: threads and processes with database connections of their own, and a way to see who waits."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from django.db import connection, connections

ROOT = Path(__file__).resolve().parents[2]


def start(function: Callable[..., Any], *args: Any) -> "Future[Any]":
    """Call it in a thread with its own connection, which is closed at the end."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)
        finally:
            connections.close_all()

    threading.Thread(target=call, daemon=True).start()
    return future


Together = Callable[..., list[Any]]


@contextmanager
def crew(size: int) -> Iterator[Together]:
    """`together(f, g, …)` calls `size` functions at the same moment and returns their results, or their first error.

    Each has a thread of its own that keeps its connection from one call to the next.
    """
    barrier = threading.Barrier(size)

    def after_barrier(function: Callable[[], Any]) -> Any:
        connection.ensure_connection()
        barrier.wait(timeout=30)
        return function()

    with ThreadPoolExecutor(size) as pool:

        def together(*functions: Callable[[], Any]) -> list[Any]:
            return [future.result(timeout=60) for future in [pool.submit(after_barrier, one) for one in functions]]

        try:
            yield together
        finally:
            together(*[connections.close_all] * size)


def until(condition: Callable[[], Any], what: str, *, seconds: float = 20.0) -> Any:
    """Await a condition and return what it found."""
    stop_at = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < stop_at, f"{what}: not within {seconds} s"
        time.sleep(0.005)
    return found


def backends_waiting() -> list[int]:
    """Process ids of this database's backends that wait for a lock."""
    with connection.cursor() as cursor:
        # A transaction sees one snapshot of the activity, unless it asks for another.
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return [row[0] for row in cursor.fetchall()]


def backend() -> int:
    """The process id of this thread's connection, at the server."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def terminate(pid: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def lose_connection() -> None:
    """Have the server end this thread's connection, which does not know it yet; as a failover or a proxy would."""
    start(terminate, backend()).result(20)


def await_waiting(count: int = 1) -> None:
    until(lambda: len(backends_waiting()) >= count, f"{count} connection(s) wait for a lock")


def database_url() -> str:
    """The test's database, for another process."""
    settings = connection.settings_dict
    account = f"{quote(settings['USER'])}:{quote(settings['PASSWORD'])}"
    return f"postgresql://{account}@{settings['HOST']}:{settings['PORT']}/{settings['NAME']}"


class Process:
    """A Python process of its own on the test's database, running one function of `tests.races.processes`."""

    def __init__(self, function: str, **arguments: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.races.processes", function, json.dumps(arguments)],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": "mailbox_project.settings"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self) -> Any:
        """The next line it prints, from JSON."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        assert text, f"the process ended with {self._process.wait()}"
        return json.loads(text)

    def tell(self, word: str = "go") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def lines(self) -> list[Any]:
        """All that it still prints, once it has ended well."""
        out, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0
        return [json.loads(text) for text in out.splitlines()]

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@contextmanager
def processes(*wanted: Process) -> Iterator[tuple[Process, ...]]:
    """Wait until all are ready, and leave none behind."""
    try:
        for process in wanted:
            assert process.line() == "ready"
        yield wanted
    finally:
        for process in wanted:
            process.end()
