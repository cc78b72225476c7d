"""Change what a thread is called, or delete it."""

import uuid
from collections.abc import Mapping
from typing import Any

from django.db import connection, transaction
from django.db.models.functions import Now

from mailbox_app import hints
from mailbox_app.errors import ThreadBusy, ThreadHasChildren
from mailbox_app.models import Dispatch, Kind, Pause, PauseKind, Resolution, Run, Thread
from mailbox_app.operations import emit, inputs

DETACH, REJECT, CASCADE = CHILD_STRATEGIES = ("detach", "reject", "cascade")

# Each is a lock of one statement.
_MOST_BELOW = 1_000
# The ORM has no recursion. UNION, not UNION ALL: a circle, whoever made it, has an end too.
BELOW = """
    WITH RECURSIVE below AS (
        SELECT id, deleted_at FROM mailbox_thread WHERE parent_id = %(thread)s
        UNION
        SELECT thread.id, thread.deleted_at FROM mailbox_thread AS thread JOIN below ON thread.parent_id = below.id
    )
    SELECT id FROM below WHERE deleted_at IS NULL LIMIT %(most)s
"""


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
            emit.of_thread(thread, Kind.THREAD_UPDATED, title=thread.title, changed=sorted(changed))
    hints.tell(thread)
    return thread


def delete(*, scope: str, thread_id: uuid.UUID, child_strategy: str = "detach") -> None:
    """Delete a thread: it is gone for every caller at once and its key is free again; gc removes its rows later.

    1. take the fence; 2. refuse while a run is open or queued; 3. discard its dead letters, which nobody could replay
    any more, and its pause; 4. the event, and the mark. `child_strategy` says what becomes of the threads of its child
    runs: "detach" leaves them as they are, "reject" refuses while there is one, "cascade" deletes them too, and those
    below them, all or none (at most 1,000). Raises ThreadBusy, ThreadHasChildren, ThreadNotFound, Gone, InvalidInput.
    """
    inputs.choice("child_strategy", child_strategy, CHILD_STRATEGIES)
    with transaction.atomic():
        below = _below(thread_id) if child_strategy == CASCADE else []
        locked = Thread.objects.lock(sorted([thread_id, *below]), scope=scope)
        with Thread.objects.hold(locked) as threads:
            if child_strategy != DETACH and sorted(_below(thread_id)) != sorted(below):
                raise _has_children(thread_id, child_strategy)
            for thread in threads:
                _delete(thread, child_strategy)
    hints.tell(*threads)


def _delete(thread: Thread, child_strategy: str) -> None:
    busy = Run.objects.filter(thread=thread).not_done().order_by("order").values_list("pk", flat=True).first()
    if busy is not None:
        raise ThreadBusy(f"run {busy} of thread {thread.pk} is not done", thread_id=thread.pk, run_id=busy)
    Dispatch.objects.filter(thread=thread).dead_letters().update(
        resolution=Resolution.DISCARDED, resolved_at=Now(), updated_at=Now()
    )
    if thread.is_paused:
        Pause.objects.of(PauseKind.THREAD, str(thread.pk)).delete()
    emit.of_thread(thread, Kind.THREAD_DELETED, key=thread.key, child_strategy=child_strategy)
    thread.deleted_at = thread.locked_at


def _below(thread_id: uuid.UUID) -> list[uuid.UUID]:
    """The threads below this one that are not deleted, whatever the depth."""
    with connection.cursor() as cursor:
        cursor.execute(BELOW, {"thread": thread_id, "most": _MOST_BELOW + 1})
        found = [row[0] for row in cursor.fetchall()]
    if len(found) > _MOST_BELOW:
        facts = {"thread_id": thread_id}
        raise ThreadHasChildren(f"more than {_MOST_BELOW} threads are below thread {thread_id}", **facts)
    return found


def _has_children(thread_id: uuid.UUID, child_strategy: str) -> Exception:
    if child_strategy == REJECT:
        return ThreadHasChildren(f"threads of child runs are below thread {thread_id}", thread_id=thread_id)
    return ThreadBusy(f"a run of thread {thread_id}, or of one below, was spawning just now", thread_id=thread_id)
