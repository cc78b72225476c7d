"""Calls that several threads make at the same time, done as one."""

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from mailbox_app.execution.pool import Pool

Item = TypeVar("Item")
Result = TypeVar("Result")

# One thread for all functions of a process, and so one connection, on which all their statements are planned already.
# What comes while it is busy is company for what comes next.
_thread = Pool("mailbox-together", lambda: 1)


class Together(Generic[Item, Result]):
    """A function of many items, called with one: what comes while a call is under way waits, and goes with the next.

    Nobody waits for company: who comes first, goes alone. `do` returns a result for each item, in their order, and is
    called in another thread, in nobody's context. It must not wait for what somebody else holds. Should it raise, each
    caller gets the error.
    """

    def __init__(self, do: Callable[[Sequence[Item]], Sequence[Result]], *, most: int) -> None:
        self._do, self._most = do, most
        self._changing = threading.Lock()
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()

    def __call__(self, item: Item) -> Result:
        """The item's result, and whatever `do` raises; RuntimeError when no thread can be had."""
        future: Future[Result] = Future()
        with self._changing:
            is_first = not self._waiting
            self._waiting.append((item, future))
        if is_first:
            self._begin()
        return future.result()

    def _begin(self) -> None:
        try:
            contextvars.Context().run(_thread.submit, self._do_some)
        except RuntimeError as error:
            # Nobody will come for those who wait; who calls next tries again.
            with self._changing:
                calls, self._waiting = self._waiting, deque()
            for _, future in calls:
                future.set_exception(error)

    def _do_some(self) -> None:
        with self._changing:
            calls = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            has_more = bool(self._waiting)
        if has_more:
            self._begin()
        try:
            results = self._do([item for item, _ in calls])
        except BaseException as error:
            for _, future in calls:
                future.set_exception(error)
        else:
            for (_, future), result in zip(calls, results, strict=True):
                future.set_result(result)
