"""Select, number and commit pending messages, in the transaction of the boundary that reads them."""

import uuid
from collections.abc import Sequence
from typing import Any

from mailbox_app.models import Boundary, Granularity, Message, ReadAt, Run, Thread, columns, read
from mailbox_app.operations import emit
from mailbox_app.states import COMMIT

# A message asked for at one of these is eligible there and at every later one.
_CASCADE = (Boundary.INTERRUPT, Boundary.NEXT_STEP, Boundary.ON_NATURAL_END, Boundary.NEW_RUN)

_READ_AT = {
    Boundary.NEXT_STEP: ReadAt.CHECKPOINT,
    Boundary.ON_NATURAL_END: ReadAt.START,
    Boundary.NEW_RUN: ReadAt.START,
}

# Every claim asks this, and every end (`ownership._ENDING` whether there is any). The messages of other runs are
# skipped, and so not even read, however many they are; their barriers are, for nothing goes past them. Three ranges of
# two indexes: an OR would read all that is pending on the thread.
_READABLE = """
    SELECT {columns}
    FROM unnest(%(threads)s::uuid[], %(runs)s::uuid[]) AS reader (thread_id, run_id)
    CROSS JOIN LATERAL (
        SELECT * FROM mailbox_message
        WHERE thread_id = reader.thread_id AND state = 'pending' AND run_id = reader.run_id
        UNION ALL
        SELECT * FROM mailbox_message
        WHERE thread_id = reader.thread_id AND state = 'pending' AND run_id IS NULL
        UNION ALL
        SELECT * FROM mailbox_message
        WHERE thread_id = reader.thread_id AND state = 'pending' AND barrier AND run_id <> reader.run_id
    ) AS message
    WHERE NOT held
    ORDER BY position, id
"""


def at(*, thread: Thread, boundary: Boundary, run: Run) -> list[Message]:
    """Commit what the run may read at this boundary, in position order, and return it."""
    return take(unread(thread=thread, run=run), thread=thread, boundary=boundary, run=run)


def take(messages: Sequence[Message], *, thread: Thread, boundary: Boundary, run: Run) -> list[Message]:
    """`at`, where these are the run's `unread` messages."""
    selected = select(messages, boundary=boundary, run=run)
    return number(thread=thread, run=run, messages=selected, read_at=_READ_AT[boundary])


def unread(*, thread: Thread, run: Run) -> list[Message]:
    """What lies before the run: its own and ownerless pending messages, and the barriers of others; none held."""
    return unread_by([run]).get(thread.pk, [])


def unread_by(runs: Sequence[Run]) -> dict[uuid.UUID, list[Message]]:
    """`unread` of several runs, each of another thread; by thread."""
    sql = _READABLE.replace("{columns}", columns(Message, "message"))
    found: dict[uuid.UUID, list[Message]] = {}
    for (message,) in read(
        Message, sql, {"threads": [run.thread_id for run in runs], "runs": [run.pk for run in runs]}
    ):
        found.setdefault(message.thread_id, []).append(message)
    return found


def select(messages: Sequence[Message], *, boundary: Boundary, run: Run) -> list[Message]:
    """Those of the `unread` messages that the run reads at this boundary.

    A run takes its own and ownerless messages, never another run's. What is not eligible here is skipped if it keeps
    its place by that (what waits for a new run, while one is open), and ends the scan otherwise. A message of
    granularity `one` is taken alone. A barrier ends the batch, is never skipped over, and is taken only if nothing in
    front of it was skipped.
    """
    taken: list[Message] = []
    has_skipped = False
    for message in messages:
        if not is_eligible(message, boundary=boundary, run=run):
            if message.barrier or not _may_be_skipped(message, boundary, run):
                break
            has_skipped = True
            continue
        if message.barrier and (has_skipped or _is_behind_another(message, run)):
            break
        is_alone = message.granularity == Granularity.ONE
        if is_alone and taken:
            break
        taken.append(message)
        if is_alone or message.barrier:
            break
    return taken


def is_eligible(message: Message, *, boundary: Boundary, run: Run) -> bool:
    """Whether the run may read the message at this boundary, whatever stands in front of it."""
    if message.run_id not in (None, run.pk):
        return False
    if boundary == Boundary.RESUME_INPUT:
        return message.boundary == boundary and message.target_run_id == run.pk
    if message.boundary == Boundary.RESUME_INPUT:
        return boundary == Boundary.NEW_RUN and bool(message.fallback)
    if _CASCADE.index(Boundary(message.boundary)) > _CASCADE.index(boundary):
        return False
    if boundary == Boundary.NEW_RUN:
        return message.target_run_id is None or bool(message.fallback)
    return message.target_run_id in (None, run.pk)


def number(*, thread: Thread, run: Run, messages: Sequence[Message], read_at: ReadAt) -> list[Message]:
    """Give these pending messages the thread's next numbers and commit them as input of the run's present turn.

    What a turn begins with is told by the event that begins it; what is read in its midst by one of its own.
    """
    if not messages:
        return []
    for message in messages:
        thread.last_seq += 1
        thread.move(message, COMMIT, seq=thread.last_seq, run_id=run.pk, read_turn=run.turn, read_at=read_at)
        if read_at != ReadAt.START:
            emit.message_committed(thread, message, run)
    thread.pending_revision += 1
    return list(messages)


def input_of(run: Run, messages: Sequence[Message]) -> dict[str, Any]:
    """The run's input with these messages added: {"from_seq", "to_seq", "message_ids"}."""
    if not messages:
        return dict(run.input)
    return {
        "from_seq": run.input.get("from_seq", messages[0].seq),
        "to_seq": messages[-1].seq,
        "message_ids": [*run.input.get("message_ids", ()), *(str(message.pk) for message in messages)],
    }


def _may_be_skipped(message: Message, boundary: Boundary, run: Run) -> bool:
    if message.run_id not in (None, run.pk):
        return True
    if boundary == Boundary.NEW_RUN:
        return message.boundary != Boundary.NEW_RUN and not message.fallback
    return message.boundary == Boundary.NEW_RUN


def _is_behind_another(message: Message, run: Run) -> bool:
    """Whether another run has still to read something in front of the message: that was skipped, unseen."""
    in_front = Message.objects.pending().filter(thread_id=message.thread_id, position__lt=message.position, held=False)
    return in_front.filter(run_id__isnull=False).exclude(run_id=run.pk).exists()
