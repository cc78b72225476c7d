"""What reaches a running agent from outside, between two of its verbs; and how its code waits for that."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial


class Attention:
    """Whether there is something for one activation's agent to read, and who of its code is to be woken.

    The lease keeper tells it, from a thread of its own; all of it is a hint, and the rows decide.
    """

    def __init__(self, *, has_input: bool) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], object]] = []
        self._has_input = self._is_news = has_input
        self._told = -1

    @property
    def has_input(self) -> bool:
        """Whether the next checkpoint may find something to hand over, as far as is known."""
        return self._has_input

    def stir(self) -> None:
        """Wake whoever waits: he is to look."""
        with self._lock:
            waiting = list(self._waiting)
        for wake in waiting:
            wake()

    def told(self, revision: int) -> None:
        """There is something to be read, at this revision of what is pending: news, unless it was told at that one.

        What is there and cannot be read yet, behind somebody's barrier, must not wake the agent again and again.
        """
        if revision > self._told:
            self._told, self._has_input, self._is_news = revision, True, True
            self.stir()

    def forget(self) -> None:
        """It is about to be read; in front of the look, for what comes after that is told again."""
        self._has_input = self._is_news = False

    def expect_more(self) -> None:
        """What was read need not be all: messages are read one by one where that was asked for."""
        self._has_input = self._is_news = True

    def take_news(self) -> bool:
        """Whether something has come that nobody was woken for."""
        news, self._is_news = self._is_news, False
        return news

    @contextmanager
    def waiting(self) -> Iterator[Callable[[float], None]]:
        """While the block runs: a function that returns when this is stirred, or after so many seconds.

        It may return for nothing. What happens between two calls of it ends the next one at once.
        """
        woken = threading.Event()

        def wait(seconds: float) -> None:
            woken.wait(max(0.0, seconds))
            woken.clear()

        with self._listed(woken.set):
            yield wait

    @contextmanager
    def waiting_on_loop(self) -> Iterator[Callable[[float], Awaitable[None]]]:
        """`waiting`, for a task of the running event loop."""
        woken = asyncio.Event()

        async def wait(seconds: float) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, seconds)):
                    await woken.wait()
            woken.clear()

        with self._listed(partial(asyncio.get_running_loop().call_soon_threadsafe, woken.set)):
            yield wait

    @contextmanager
    def _listed(self, wake: Callable[[], object]) -> Iterator[None]:
        with self._lock:
            self._waiting.append(wake)
        try:
            yield
        finally:
            with self._lock:
                self._waiting.remove(wake)
