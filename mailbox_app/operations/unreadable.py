"""Heads whose snapshot this process cannot read: what nobody can becomes a dead letter, what a newer release wrote is
left to that release's workers.

In a rolling deployment the new web processes write what the old workers meet: it is nobody's error, and a dead letter
would be one for every run until the last worker is replaced. So such a thread is passed over by this process alone, and
looked at again every `sweep_seconds`, should another run have come to its front.
"""

import logging
import threading
import time
import uuid

from mailbox_app.conf import conf
from mailbox_app.errors import SnapshotTooNew, SnapshotUnreadable
from mailbox_app.models import Dispatch, Thread
from mailbox_app.operations import ending
from mailbox_app.telemetry import observe

# Of the threads passed over: more are looked at each time, which costs a row lock each and harms nothing.
_MOST = 1_000

# When (monotonic) this process looks at these threads again.
_passed_over: dict[uuid.UUID, float] = {}
_passing = threading.Lock()


def passed_over() -> set[uuid.UUID]:
    """The threads this process is not to look at now."""
    now = time.monotonic()
    with _passing:
        for thread_id in [thread_id for thread_id, until in _passed_over.items() if until <= now]:
            del _passed_over[thread_id]
        return set(_passed_over)


def may_start(thread: Thread, head: Dispatch) -> bool:
    """Whether this process can read how the head's run came about; if nobody can, the run ends here, under the fence.

    Its dead letter is replayed once the row has been mended.
    """
    try:
        _ = head.run.snapshot
    except SnapshotTooNew as error:
        _pass_over(thread, head, error)
        return False
    except SnapshotUnreadable as error:
        ending.expire(thread, head, code=error.code, message=error.message)
        facts = {"thread_id": thread.pk, "run_id": head.run_id, "dispatch_id": head.pk}
        observe("run.unreadable", level=logging.ERROR, **facts, reason=error.message)
        return False
    return True


def _pass_over(thread: Thread, head: Dispatch, error: SnapshotTooNew) -> None:
    with _passing:
        if len(_passed_over) < _MOST:
            _passed_over[thread.pk] = time.monotonic() + conf.sweep_seconds
    facts = {"thread_id": thread.pk, "run_id": head.run_id, "dispatch_id": head.pk}
    observe("run.too_new", level=logging.WARNING, **facts, reason=error.message)
