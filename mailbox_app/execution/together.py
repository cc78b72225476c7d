"""Calls that several threads make at the same time, done as one."""

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Call(Generic[Item, Result]):
    def __init__(self, item: Item) -> None:
        self.item = item
        self.is_done = False
        self.results: list[Result] = []
        # Held until the call is done, or its thread is to lead.
        self.turn = threading.Lock()
        self.turn.acquire()


class Together(Generic[Item, Result]):
    """A function of many items, called with one: what comes while a call is under way waits, and goes with the next.

    Nobody waits for company: who comes first, goes alone. `do` returns a result for each item, in their order, and is
    called in the thread of one of the callers, in no caller's context. Should it raise, that one caller gets the error,
    and each of the others calls it again for itself.
    """

    def __init__(self, do: Callable[[Sequence[Item]], Sequence[Result]], *, most: int) -> None:
        self._do, self._most = do, most
        self._changing = threading.Lock()
        self._waiting: deque[_Call[Item, Result]] = deque()
        self._is_led = False

    def __call__(self, item: Item) -> Result:
        """The item's result, and whatever `do` raises."""
        call = _Call[Item, Result](item)
        with self._changing:
            self._waiting.append(call)
            must_wait, self._is_led = self._is_led, True
        if must_wait:
            call.turn.acquire()
        if not call.is_done:
            self._lead(call)
        return call.results[0] if call.results else self._do([item])[0]

    def _lead(self, own: _Call[Item, Result]) -> None:
        """Do what waits, this call first: it has waited longest."""
        with self._changing:
            calls = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        try:
            items = [call.item for call in calls]
            # Alone, it is done under the caller's own name.
            results = self._do(items) if len(calls) == 1 else contextvars.Context().run(self._do, items)
            for call, result in zip(calls, results, strict=True):
                call.results.append(result)
        finally:
            with self._changing:
                self._is_led = bool(self._waiting)
                following = self._waiting[0] if self._waiting else None
            if following is not None:
                following.turn.release()
            for call in calls:
                call.is_done = True
                if call is not own:
                    call.turn.release()
