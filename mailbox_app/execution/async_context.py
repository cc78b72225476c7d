"""`AsyncContext`: what an `async def` agent may do; the verbs of `Context`, each with an `a` in front."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from mailbox_app.execution import caller, loop
from mailbox_app.execution.asking import LOOK_SECONDS, Answer, LiveWait
from mailbox_app.execution.context import Context
from mailbox_app.execution.listening import Pause
from mailbox_app.models import Visibility

# Of the runner, not of agents.
_NOT_FOR_AGENTS = frozenset({"stop_with", "belongs_to", "stir", "told"})


class _NotYet(BaseException):
    """The step has no record: its function is to be awaited first."""


class AsyncContext:
    """One activation of one run, as its `async def` agent sees it: `await ctx.asay(…)`, `await ctx.acheckpoint()`.

    Every verb of `Context` is here under its name with an `a` in front, to be awaited; what is no verb (`messages`,
    `state`, `options`, …) has its own name, and so has `delta`, which waits for nothing. A verb called from another
    task than the agent's own (`asyncio.gather`, `asyncio.create_task`; before Python 3.12 also `asyncio.wait_for`) must
    name its `key=`, for which use of it came first would be chance. A cancellation reaches the agent as
    `asyncio.CancelledError` where it waits, and as the reason itself from every verb after that.
    """

    def __init__(self, context: Context) -> None:
        """In the agent's own task."""
        self._context = context
        context.belongs_to(asyncio.current_task())

    @property
    def state(self) -> dict[str, Any]:
        return self._context.state

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self._context.state = state

    async def astep(
        self, name: str, function: Callable[..., Any], *args: Any, key: str | None = None, **kwargs: Any
    ) -> Any:
        """`Context.step`, for a function or a coroutine function; a function is called in a thread."""
        step = partial(self._context.step, name, key=key)
        try:
            # With its record in the journal, that is all; without one, nothing was done and nothing is counted.
            return await loop.on(loop.verbs, partial(step, _not_yet, *args, **kwargs))
        except _NotYet:
            pass
        inside = caller.step.set(name)
        try:
            result = await _called(function, *args, **kwargs)
        finally:
            caller.step.reset(inside)
        return await loop.on(loop.verbs, partial(step, lambda *_, **__: result, *args, **kwargs))

    async def aemit(
        self, kind: str, payload: Any = None, *, key: str | None = None, visibility: str = Visibility.PUBLIC
    ) -> None:
        """`Context.emit`: on the loop, without a thread, but where there is something to read or to record."""
        emit = partial(self._context._emit, kind, payload, key=key, visibility=visibility)
        if self._context._journal.is_unread:
            is_full = await loop.on(loop.verbs, emit)
        else:
            with caller.named(asyncio.current_task()):
                is_full = emit()
        if is_full:
            await loop.on(loop.verbs, self._context._flush)

    def delta(self, text: str) -> None:
        """`Context.delta`: it waits for nothing."""
        self._context.delta(text)

    async def adelta(self, text: str) -> None:
        """`delta`."""
        self._context.delta(text)

    async def await_for_decision(self, name: str, *, seconds: float | None = None, **question: Any) -> Answer:
        """`Context.wait_for_decision`: other agents of the process go on meanwhile."""
        waiting = await loop.on(loop.verbs, partial(LiveWait, self._context, name, seconds=seconds, **question))
        with self._context._attention.waiting_on_loop() as wait:
            while waiting.left() > 0 and not await loop.on(loop.verbs, waiting.is_over):
                await wait(min(LOOK_SECONDS, waiting.left()))
        return await loop.on(loop.verbs, waiting.answer)

    async def asleep(self, seconds: float) -> bool:
        """`Context.sleep`: other agents of the process go on meanwhile."""
        pause = Pause(self._context._journal, self._context._attention, seconds)
        with self._context._attention.waiting_on_loop() as wait:
            while (left := pause.left()) > 0:
                await wait(left)
        return pause.end()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in _NOT_FOR_AGENTS:
            raise AttributeError(name)
        if inspect.isfunction(getattr(type(self._context), name, None)):
            raise AttributeError(f"this agent is async: await ctx.a{name}(…)")
        if name.startswith("a") and name[1:] not in _NOT_FOR_AGENTS:
            verb = getattr(type(self._context), name[1:], None)
            if inspect.isfunction(verb) and not name[1:].startswith("_"):
                return partial(_awaited, partial(verb, self._context))
        return getattr(self._context, name)


def _awaited(verb: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
    return loop.on(loop.verbs, partial(verb, *args, **kwargs))


def _not_yet(*_: Any, **__: Any) -> None:
    raise _NotYet


async def _called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of a function, called in a thread, or of a coroutine function, awaited here."""
    if inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    result = await loop.on(loop.steps, partial(function, *args, **kwargs))
    return await result if inspect.isawaitable(result) else result
