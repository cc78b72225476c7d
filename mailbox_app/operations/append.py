"""Add messages to a fenced thread: pending ones that some run will read, or what a run itself said."""

import uuid
from collections.abc import Sequence
from typing import Any

from mailbox_app.models import Boundary, Message, Role, Run, Thread, uuid7
from mailbox_app.operations import emit
from mailbox_app.operations.delivery import Delivery
from mailbox_app.operations.inputs import NewMessage
from mailbox_app.states import MessageState


def pending(
    *,
    thread: Thread,
    run: Run | None,
    messages: Sequence[NewMessage],
    boundary: Boundary = Boundary.NEW_RUN,
    delivery: Delivery | None = None,
    ids: Sequence[uuid.UUID] = (),
) -> list[Message]:
    """Add pending messages at the thread's end, owned by the run (None: read by whoever comes).

    `delivery`: how else they are delivered; its barrier stands behind the last of them. `ids`: those the messages get,
    in their order; left out: new ones.
    """
    how = delivery or Delivery()
    appended = [
        Message(
            id=pk,
            scope=thread.scope,
            thread=thread,
            run=run,
            client_id=given.client_id,
            role=given.role,
            content=given.content,
            metadata=dict(given.metadata),
            sender=given.sender,
            visibility=given.visibility,
            position=thread.take_order(),
            boundary=boundary,
            granularity=how.granularity,
            # Only the open run can be a target: what has an owner has none.
            target_run_id=how.target_run_id if run is None else None,
            fallback=how.fallback if run is None else "",
        )
        for given, pk in zip(messages, ids or [uuid7() for _ in messages], strict=True)
    ]
    appended[-1].barrier = how.barrier
    for message in appended:
        thread.insert(message)
    thread.pending_revision += 1
    return appended


def produced(*, thread: Thread, run: Run, content: Any, role: str = Role.ASSISTANT) -> Message:
    """Add a message the run produced: committed and numbered at once, nobody's input."""
    thread.last_seq += 1
    message = Message(
        scope=thread.scope,
        thread=thread,
        role=role,
        content=content,
        state=MessageState.COMMITTED,
        seq=thread.last_seq,
        position=thread.take_order(),
        producer_run_id=run.pk,
        sender=run.agent,
    )
    thread.insert(message)
    emit.message_committed(thread, message, run)
    return message
