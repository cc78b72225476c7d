"""Add messages to a fenced thread: pending ones that some run will read, or what a run itself said."""

from collections.abc import Sequence
from typing import Any

from mailbox_app.models import Message, Role, Run, Thread
from mailbox_app.operations import emit
from mailbox_app.operations.inputs import NewMessage
from mailbox_app.states import MessageState


def pending(*, thread: Thread, run: Run | None, messages: Sequence[NewMessage]) -> list[Message]:
    """Add pending messages at the thread's end, owned by the run (None: read by whoever comes)."""
    appended = [
        Message(
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
        )
        for given in messages
    ]
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
