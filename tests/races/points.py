"""Where a verb can be stopped: before any of its statements and commits, on a connection of its own."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from django.db import connection, connections

from tests.races.actors import backend

# Nothing here takes longer, however busy the machine is.
PATIENCE_SECONDS = 30.0
# How often a verb that has neither ended nor come to its stop is asked whether it waits for a lock.
_LOOK_SECONDS = 0.002
# SQLSTATE of deadlock_detected and serialization_failure: some verbs start over, and nobody would know.
_TROUBLE = ("40P01", "40001")


def kind_of(sql: str) -> str:
    """What a statement does to other connections: it locks, it writes, or it only looks."""
    text = sql.lstrip()
    if "FOR NO KEY UPDATE" in text or "FOR UPDATE" in text or "pg_advisory_xact_lock(" in text:
        return "lock"
    return "write" if text.startswith(("INSERT", "UPDATE", "DELETE", "WITH step_")) else "look"


class Actor:
    """A thread with its own connection that performs one verb after the other, each up to a stop if it is given one.

    `steps`: what the last one has done so far, one word a statement or commit. A stop is a place among them (0: before
    the first), or a word: before the first such step.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._moved, self._go = threading.Event(), threading.Event()
        self._stop_at: int | str | None = None
        self._ended: Future[Any] = Future()
        self.is_stopped = False
        self.steps: list[str] = []
        self.trouble: list[str] = []
        self.pid: int = self._pool.submit(backend).result(PATIENCE_SECONDS)

    def begin(self, verb: Callable[[], Any], *, stop_at: int | str | None = None) -> "Actor":
        """Start it; returns at once."""
        self._moved.clear()
        self._go.clear()
        self._stop_at, self.is_stopped, self.steps, self.trouble = stop_at, False, [], []
        self._ended = self._pool.submit(self._perform, verb)
        self._ended.add_done_callback(lambda _: self._moved.set())
        return self

    def rest(self) -> str:
        """Wait until it has `ended`, is `stopped`, or `waits` for a lock somebody holds; nothing else is a rest."""
        for _ in range(int(PATIENCE_SECONDS / _LOOK_SECONDS)):
            if self._moved.wait(_LOOK_SECONDS):
                return "stopped" if self.is_stopped else "ended"
            if blockers(self.pid):
                return "waits"
        raise AssertionError(f"it neither ends nor stops nor waits for a lock: {self.steps}")

    def go_on(self) -> None:
        """Past its stop, or past the one it will still come to."""
        self._stop_at = None
        if self.is_stopped:
            self.is_stopped = False
            self._moved.clear()
        self._go.set()

    def result(self) -> Any:
        """What the verb returned, once it has; raises what it raised."""
        return self._ended.result(PATIENCE_SECONDS)

    def close(self) -> None:
        """End its thread and its connection, wherever it stands."""
        self.go_on()
        self._pool.submit(connections.close_all)
        self._pool.shutdown()

    def _perform(self, verb: Callable[[], Any]) -> Any:
        commit = connection.commit

        def committing() -> None:
            self._step("commit")
            commit()

        connection.commit = committing  # type: ignore[method-assign]
        try:
            with connection.execute_wrapper(self._execute):
                return verb()
        finally:
            del connection.commit

    def _execute(self, call: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if "SAVEPOINT" not in sql:
            self._step(kind_of(sql))
        try:
            return call(sql, params, many, context)
        except Exception as error:
            if (state := getattr(error.__cause__, "sqlstate", None)) in _TROUBLE:
                self.trouble.append(str(state))
            raise

    def _step(self, word: str) -> None:
        if self._stop_at in (len(self.steps), word):
            self._stop_at, self.is_stopped = None, True
            self._moved.set()
            assert self._go.wait(PATIENCE_SECONDS), "nobody said to go on"
        self.steps.append(word)


@contextmanager
def actors(count: int) -> Iterator[Sequence[Actor]]:
    """So many, each with a connection that it keeps until the end."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(Actor())
            stack.callback(made[-1].close)
        yield made


def blockers(pid: int) -> list[int]:
    """The backends whose locks this one waits for."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_blocking_pids(%s)", [pid])
        found: list[int] = cursor.fetchone()[0]
        return found


def stops(steps: Sequence[str]) -> list[int]:
    """Where a verb of these steps is worth stopping: around its locks, before it writes, around its commits."""
    last = max((place for place, word in enumerate(steps) if word != "look"), default=0)
    found, has_written = [], False
    for place in range(1, last + 1):
        before, word = steps[place - 1], steps[place]
        has_written = has_written and before != "commit"
        # What one transaction writes, it writes holding the same locks.
        if before in ("lock", "commit") or word in ("lock", "commit") or (word == "write" and not has_written):
            found.append(place)
        has_written |= word == "write"
    return found


def told(steps: Sequence[str], place: int) -> str:
    """A stop in words: `before its 2nd commit`."""
    word = steps[place]
    return f"before its {word} number {list(steps[: place + 1]).count(word)} (of {' '.join(steps)})"
