"""Promote work whose time has come. Every `due_tick_seconds`; several at once do no harm."""

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.models import Thread


def promote() -> int:
    """Rewrite the ready flag of threads whose head was scheduled, or backing off, until now; returns how many.

    One batch in one transaction. A thread somebody holds just now is left to its holder, who rewrites the flag too.
    """
    waking = Thread.objects.waking().order_by("wakes_at", "id")
    with waking.fence_free(limit=conf.batch_size) as threads:
        pass  # leaving the fence judges each thread again
    for thread in threads:
        hints.tell(thread)
    return len(threads)
