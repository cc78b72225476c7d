"""Who is calling a verb: the agent itself, or something it started beside itself; and whether a step runs there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# The task of an async agent in whose name a thread of the pool calls.
task: ContextVar[object | None] = ContextVar("mailbox_task", default=None)
# The step whose function is running, in this thread or task: others of the agent may be in steps of their own.
step: ContextVar[str | None] = ContextVar("mailbox_step", default=None)


@contextmanager
def named(caller: object) -> Iterator[None]:
    """Call verbs in this task's name, in the block, where nothing is awaited."""
    token = task.set(caller)
    try:
        yield
    finally:
        task.reset(token)


def identity() -> object:
    """Who calls: the task of an async agent, else the thread."""
    return task.get() or threading.get_ident()
