"""Change what a thread is called, or delete it."""

import uuid
from collections.abc import Mapping
from typing import Any

from django.db.models.functions import Now

from mailbox_app import hints
from mailbox_app.errors import ThreadBusy
from mailbox_app.models import Dispatch, Pause, PauseKind, Resolution, Run, Thread
from mailbox_app.operations import emit, inputs


def change(
    *, scope: str, thread_id: uuid.UUID, title: str | None = None, metadata: Mapping[str, Any] | None = None
) -> Thread:
    """Give a thread another title, other metadata (the whole of it), or both; None leaves what is.

    Raises InvalidInput, ThreadNotFound, Gone.
    """
    given: dict[str, Any] = {}
    if title is not None:
        given["title"] = inputs.text("title", title, most=500, may_be_blank=True)
    if metadata is not None:
        given["metadata"] = inputs.mapping("metadata", metadata)
    with Thread.objects.fence(thread_id, scope=scope) as thread:
        changed = {name: value for name, value in given.items() if getattr(thread, name) != value}
        for name, value in changed.items():
            setattr(thread, name, value)
        if changed:
            emit.of_thread(thread, emit.THREAD_UPDATED, title=thread.title, changed=sorted(changed))
    hints.tell(thread)
    return thread


def delete(*, scope: str, thread_id: uuid.UUID) -> None:
    """Delete a thread: it is gone for every caller at once and its key is free again; gc removes its rows later.

    1. take the fence; 2. refuse while a run is open or queued; 3. discard its dead letters, which nobody could replay
    any more, and its pause; 4. the event, and the mark. Raises ThreadBusy, ThreadNotFound, Gone.
    """
    with Thread.objects.fence(thread_id, scope=scope) as thread:
        busy = Run.objects.filter(thread=thread).not_done().order_by("order").values_list("pk", flat=True).first()
        if busy is not None:
            raise ThreadBusy(f"run {busy} of thread {thread_id} is not done", thread_id=thread_id, run_id=busy)
        Dispatch.objects.filter(thread=thread).dead_letters().update(
            resolution=Resolution.DISCARDED, resolved_at=Now(), updated_at=Now()
        )
        if thread.is_paused:
            Pause.objects.of(PauseKind.THREAD, str(thread.pk)).delete()
        emit.of_thread(thread, emit.THREAD_DELETED, key=thread.key)
        thread.deleted_at = thread.locked_at
    hints.tell(thread)
