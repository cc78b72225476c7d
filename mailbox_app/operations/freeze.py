"""Select, number and commit pending messages, in the transaction of the boundary that reads them."""

from collections.abc import Sequence

from mailbox_app.models import Boundary, Message, ReadAt, Run, Thread, columns, read
from mailbox_app.states import COMMIT

# Until messages can carry another boundary (steering, natural ends), all of them are read when a run starts.
_READ_AT = {Boundary.NEW_RUN: ReadAt.START, Boundary.NEXT_STEP: ReadAt.CHECKPOINT}

# As `MessageQuerySet.readable_by` says it, composed once: every claim asks this.
_READABLE = """
    SELECT {columns}
    FROM mailbox_message AS message
    WHERE thread_id = %(thread)s AND state = 'pending' AND (run_id = %(run)s OR run_id IS NULL) AND NOT held
    ORDER BY position, id
"""


def at(*, thread: Thread, boundary: Boundary, run: Run) -> list[Message]:
    """Commit what the run may read at this boundary, in position order, and return it.

    A run takes its own and ownerless messages, never another queued run's; held ones stay. A message whose boundary is
    another one stops the scan: what stands behind it keeps its place.
    """
    eligible = []
    sql = _READABLE.replace("{columns}", columns(Message, "message"))
    for (message,) in read(Message, sql, {"thread": thread.pk, "run": run.pk}):
        if message.boundary != boundary:
            break
        eligible.append(message)
    return number(thread=thread, run=run, messages=eligible, read_at=_READ_AT[boundary])


def number(*, thread: Thread, run: Run, messages: Sequence[Message], read_at: ReadAt) -> list[Message]:
    """Give these pending messages the thread's next numbers and commit them as input of the run's present turn."""
    if not messages:
        return []
    for message in messages:
        thread.last_seq += 1
        thread.move(message, COMMIT, seq=thread.last_seq, run_id=run.pk, read_turn=run.turn, read_at=read_at)
    thread.pending_revision += 1
    return list(messages)
