"""How much a thread may hold: a full mailbox refuses what would be queued, and says so."""

import uuid

from mailbox_app.conf import conf
from mailbox_app.errors import MailboxFull
from mailbox_app.models import Thread, ask

# Runs that have not started; the open run's own next activation is none of them. Counted up to the bound.
QUEUED = """
    SELECT count(*)
    FROM (
        SELECT FROM mailbox_dispatch
        WHERE thread_id = %(thread)s AND status = 'queued' AND run_id IS DISTINCT FROM %(open)s::uuid
        LIMIT %(most)s
    ) AS queued
"""


class Room:
    """What room there is on the threads of one transaction, each of them fenced: nobody else queues there."""

    def __init__(self) -> None:
        self._left: dict[uuid.UUID, int] = {}

    def take(self, thread: Thread) -> None:
        """Take the place of one more queued run. Raises MailboxFull; without a bound, nothing is looked at."""
        most = int(conf.max_queued_per_thread)
        if not most:
            return
        left = self._left.get(thread.pk)
        if left is None:
            left = most - (0 if thread.is_new else _queued(thread, most))
        if left <= 0:
            facts = {"thread_id": thread.pk, "max_queued": most}
            raise MailboxFull(f"thread {thread.pk} has {most} queued runs, as many as are allowed", **facts)
        self._left[thread.pk] = left - 1


def _queued(thread: Thread, most: int) -> int:
    [(number,)] = ask(QUEUED, {"thread": thread.pk, "open": thread.open_run_id, "most": most})
    return int(number)
