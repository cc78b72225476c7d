"""What a stream must have sent, as the table has it."""

import uuid

from mailbox_app.models import Event


def of_run(run_id: uuid.UUID) -> list[int]:
    """The cursors of a run's public events."""
    return list(Event.objects.filter(run_id=run_id).public().after(0).values_list("cursor", flat=True))


def of_thread(thread_id: uuid.UUID) -> list[int]:
    """The cursors of a thread's public events."""
    return list(Event.objects.filter(thread_id=thread_id).public().after(0).values_list("cursor", flat=True))
