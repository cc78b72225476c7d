"""Do what the clock asks for: promote work, end waits. Every `due_tick_seconds`; several at once do no harm."""

import uuid

from django.db.models import Exists, OuterRef

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.models import Dispatch, Run, Thread
from mailbox_app.operations import settle
from mailbox_app.states import LIVE_DISPATCH


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


def expire_waits() -> int:
    """End up to one batch of runs whose wait nobody has ended in time, one transaction a thread; returns how many."""
    overdue = Run.objects.overdue().exclude(_goes_on()).order_by("wait_until", "id")
    found = list(overdue.values_list("thread_id", flat=True)[: conf.batch_size])
    return sum(_expire_on(thread_id) for thread_id in found)


def _expire_on(thread_id: uuid.UUID) -> int:
    with Thread.objects.filter(pk=thread_id).order_by("id").fence_free(limit=1) as threads:
        for thread in threads:
            # Under the fence: a resume that came first has saved it.
            run = Run.objects.overdue().exclude(_goes_on()).filter(thread=thread).first()
            if run is None:
                return 0
            settle.expire_wait(thread, run)
    for thread in threads:
        hints.tell(thread)
    return len(threads)


def _goes_on() -> Exists:
    return Exists(Dispatch.objects.filter(run_id=OuterRef("pk"), status__in=LIVE_DISPATCH))
