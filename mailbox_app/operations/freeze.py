"""Select, number and commit pending messages, in the transaction of the boundary that reads them."""

from collections.abc import Sequence

from django.db.models import BigIntegerField, Case, Value, When

from mailbox_app.models import Boundary, Message, ReadAt, Run, Thread
from mailbox_app.states import COMMIT, MessageState

# Until messages can carry another boundary (steering, natural ends), all of them are read when a run starts.
_READ_AT = {Boundary.NEW_RUN: ReadAt.START, Boundary.NEXT_STEP: ReadAt.CHECKPOINT}


def at(*, thread: Thread, boundary: Boundary, run: Run) -> list[Message]:
    """Commit what the run may read at this boundary, in position order, and return it.

    A run takes its own and ownerless messages, never another queued run's; held ones stay. A message whose boundary is
    another one stops the scan: what stands behind it keeps its place.
    """
    eligible = []
    for message in Message.objects.filter(thread=thread).readable_by(run.pk):
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
        message.seq = thread.last_seq
        message.run, message.read_turn, message.read_at = run, run.turn, read_at
        message.state = MessageState.COMMITTED
    numbers = Case(*(When(pk=m.pk, then=Value(m.seq)) for m in messages), output_field=BigIntegerField())
    moved = Message.objects.filter(pk__in=[m.pk for m in messages]).move(
        COMMIT, seq=numbers, run=run, read_turn=run.turn, read_at=read_at
    )
    if moved != len(messages):
        raise RuntimeError(f"{len(messages) - moved} of {len(messages)} pending messages moved under the fence")
    thread.pending_revision += 1
    return list(messages)
