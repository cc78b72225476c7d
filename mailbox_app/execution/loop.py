"""The event loop of an executing process, where its `async def` agents run; their verbs run in threads beside it."""

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakSet

from mailbox_app.conf import conf
from mailbox_app.execution import caller
from mailbox_app.execution.pool import Pool

Result = TypeVar("Result")

# What an agent left running is cancelled when it ends, and then waited for no longer than this.
_LEFT_BEHIND_SECONDS = 5.0

# The tasks that the agent of this context has started.
_started: contextvars.ContextVar["WeakSet[asyncio.Task[Any]] | None"] = contextvars.ContextVar(
    "mailbox_started", default=None
)


class Loop:
    """One event loop in a thread of its own, started when it is first needed; a forked child starts another."""

    def __init__(self) -> None:
        self._pid = 0
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop

    def spawn(self, coroutine: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Run it on the loop; from any thread but the loop's."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._running())

    def cancel(self, task: "asyncio.Task[Any]") -> None:
        """Cancel a task of the loop, from any thread."""
        self._running().call_soon_threadsafe(task.cancel)

    def answers(self, *, within: float) -> bool:
        """Whether the loop gets to do anything: an agent that blocks it holds up all the others."""
        heard = threading.Event()
        self._running().call_soon_threadsafe(heard.set)
        return heard.wait(within)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._pid != os.getpid():
            with self._starting:
                if self._pid != os.getpid():
                    self._loop = asyncio.new_event_loop()
                    self._loop.set_task_factory(_task)
                    threading.Thread(target=self._run_forever, name="mailbox-loop", daemon=True).start()
                    self._pid = os.getpid()
        return self._loop

    def _run_forever(self) -> None:
        asyncio.set_event_loop(self._loop)
        while True:
            # SystemExit from a task that an agent started: asyncio lets it through, and all the others would stop.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self._loop.run_forever()


async def on(pool: Pool, function: Callable[[], Result]) -> Result:
    """Call it in a thread of the pool, in the name of the present task.

    A cancellation waits until a call that has begun is over: the next one must find what it wrote.
    """

    def call() -> Result:
        caller.task.set(task)
        return function()

    task = asyncio.current_task()
    future = pool.submit(call)
    called = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(called)
    except asyncio.CancelledError:
        if not future.cancel():
            await asyncio.wait([called])
        raise


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """Cancel what was started in the block and still runs at its end."""
    started: WeakSet[asyncio.Task[Any]] = WeakSet()
    before = _started.set(started)
    try:
        yield
    finally:
        _started.reset(before)
        left = [task for task in started if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_LEFT_BEHIND_SECONDS)


def _task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    started = _started.get()
    if started is not None:
        started.add(task)
    return task


# This process's. A slow function in a step must not hold up the verbs of the others, nor the end of their runs.
loop = Loop()
verbs = Pool("mailbox-verb", lambda: int(conf.async_verb_threads))
steps = Pool("mailbox-step", lambda: int(conf.async_step_threads))
