"""Threads for what blocks: a bounded number, each with database connections of its own, gone when nothing is to do."""

import contextvars
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from django.db import connections

Result = TypeVar("Result")

# A thread that had nothing to do for so long ends, and its connections with it.
_IDLE_SECONDS = 5.0

_Job = tuple["Future[Any]", Callable[[], Any]]


class Pool:
    """Calls functions in daemon threads, at most so many at a time; the others wait for one, first come first served.

    A function sees the context variables of whoever handed it in. A forked child has none of its parent's threads, and
    starts its own.
    """

    def __init__(self, name: str, most: Callable[[], int]) -> None:
        self._name, self._most = name, most
        self._reset()

    def submit(self, function: Callable[[], Result]) -> "Future[Result]":
        """Have the function called; RuntimeError, and it will not be, when no thread can be started for it."""
        if self._pid != os.getpid():
            self._reset()
        future: Future[Result] = Future()
        context = contextvars.copy_context()
        job: _Job = (future, lambda: context.run(function))
        with self._changed:
            self._jobs.append(job)
            if len(self._jobs) > self._idle and self._count < self._most():
                try:
                    threading.Thread(target=self._work, name=self._name, daemon=True).start()
                    self._count += 1
                except RuntimeError:
                    if not self._count:
                        self._jobs.remove(job)
                        raise
            self._changed.notify()
        return future

    def _reset(self) -> None:
        self._pid, self._count, self._idle = os.getpid(), 0, 0
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                _call(*job)
                del job  # an idle thread keeps nothing of its last one alive
        finally:
            connections.close_all()

    def _next(self) -> _Job | None:
        """What is to do next; None, and the thread is counted out, when nothing was for a while."""
        give_up_at = time.monotonic() + _IDLE_SECONDS
        with self._changed:
            self._idle += 1
            try:
                while not self._jobs:
                    if not self._changed.wait(give_up_at - time.monotonic()) and time.monotonic() >= give_up_at:
                        self._count -= 1
                        return None
                return self._jobs.popleft()
            finally:
                self._idle -= 1


def _call(future: "Future[Any]", function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
