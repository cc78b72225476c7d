"""A conversation: the unit of order. Its row is the one lock, and the ready flag workers look for."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app.errors import Gone, ThreadNotFound
from mailbox_app.models.base import not_blank, uuid7

if TYPE_CHECKING:
    from django.db.models.fields.related_descriptors import RelatedManager

    from mailbox_app.models.dispatch import Dispatch, DispatchQuerySet
    from mailbox_app.models.event import Event
    from mailbox_app.models.message import Message
    from mailbox_app.models.run import Run


class BlockedReason(models.TextChoices):
    """Why due work on a thread does not start."""

    OPEN_RUN = "open_run"
    BARRIER = "barrier"
    SCOPE_LIMIT = "scope_limit"
    PAUSED = "paused"


# Everything a verb may change on a fenced thread; `_leave` writes those that differ.
_FENCED_FIELDS = (
    *("key", "title", "metadata", "deleted_at", "epoch", "pending_revision"),
    *("last_seq", "last_cursor", "pruned_cursor", "next_order", "claim_count"),
    *("active_run_id", "open_run_id", "latest_run_id"),
    *("due_at", "due_priority", "due_queue", "due_agent", "wakes_at", "blocked_reason"),
)


class ThreadQuerySet(models.QuerySet["Thread"]):
    def in_scope(self, scope: str) -> "ThreadQuerySet":
        return self.filter(scope=scope)

    def not_deleted(self) -> "ThreadQuerySet":
        return self.filter(deleted_at=None)

    def due(self, queue: str) -> "ThreadQuerySet":
        """Threads whose head can be claimed now.

        In the order of their index: the first of them without any could be looked for in the whole table.
        """
        return self.filter(due_at__isnull=False, due_queue=queue).order_by(
            "due_queue", "due_agent", "due_priority", "due_at", "id"
        )

    def still_due(self) -> "ThreadQuerySet":
        """Those whose head can be claimed now, in the order in which they should be."""
        return self.filter(due_at__isnull=False).order_by("due_priority", "due_at", "id")

    def waking(self) -> "ThreadQuerySet":
        """Threads whose head was scheduled for a time that has come."""
        return self.filter(wakes_at__lte=Now())

    @contextmanager
    def fence(self, thread_id: uuid.UUID, *, scope: str | None = None) -> Iterator["Thread"]:
        """Hold the thread's row (FOR NO KEY UPDATE: inserts that point here need not wait) for one transaction.

        Take it before any other lock. Leaving writes the events recorded on the thread, its ready flag and its changed
        fields; an exception writes nothing. Raises ThreadNotFound (also for another scope's thread) and Gone.
        """
        with transaction.atomic():
            rows = self._lock().filter(pk=thread_id)
            thread = (rows if scope is None else rows.filter(scope=scope)).first()
            if thread is None:
                raise ThreadNotFound(f"thread not found: {thread_id}", thread_id=thread_id)
            if thread.deleted_at is not None:
                raise Gone(f"thread {thread_id} was deleted at {thread.deleted_at.isoformat()}", thread_id=thread_id)
            thread._enter()
            yield thread
            _leave([thread])

    @contextmanager
    def fence_free(self, *, limit: int) -> Iterator[list["Thread"]]:
        """Hold up to `limit` threads of this queryset that nobody else holds, by one statement; else like `fence`.

        It never waits for a lock, so the order in which the rows are taken cannot deadlock.
        """
        with transaction.atomic():
            threads = list(self._lock(skip_locked=True).not_deleted()[:limit])
            for thread in threads:
                thread._enter()
            yield threads
            _leave(threads)

    def _lock(self, *, skip_locked: bool = False) -> "ThreadQuerySet":
        return self.select_for_update(no_key=True, skip_locked=skip_locked, of=("self",)).annotate(clock=Now())


class Thread(models.Model):
    """One conversation: its lock, its counters and its ready flag."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    scope = models.CharField(max_length=200)
    key = models.CharField(max_length=200, null=True, blank=True)
    title = models.CharField(max_length=500, blank=True, default="")
    metadata = models.JSONField(default=dict, blank=True)
    parent = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="children")
    epoch = models.BigIntegerField(default=0)
    last_seq = models.BigIntegerField(default=0)
    last_cursor = models.BigIntegerField(default=0)
    pruned_cursor = models.BigIntegerField(default=0)
    next_order = models.BigIntegerField(default=1)
    claim_count = models.BigIntegerField(default=0)
    pending_revision = models.BigIntegerField(default=1)
    # Plain ids, not foreign keys: the rows are written under this row's lock, and a key would only add checks.
    active_run_id = models.UUIDField(null=True, blank=True)
    open_run_id = models.UUIDField(null=True, blank=True)
    latest_run_id = models.UUIDField(null=True, blank=True)
    due_at = models.DateTimeField(null=True, blank=True)
    due_priority = models.SmallIntegerField(null=True, blank=True)
    due_queue = models.CharField(max_length=100, null=True, blank=True)
    due_agent = models.CharField(max_length=200, null=True, blank=True)
    wakes_at = models.DateTimeField(null=True, blank=True)
    blocked_reason = models.CharField(max_length=20, blank=True, default="", choices=BlockedReason.choices)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False)
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects = ThreadQuerySet.as_manager()

    if TYPE_CHECKING:
        dispatches: "RelatedManager[Dispatch]"
        messages: "RelatedManager[Message]"
        runs: "RelatedManager[Run]"
        events: "RelatedManager[Event]"

    # Set by the fence.
    locked_at: datetime
    became_due: bool = False
    new_events: "list[Event]"
    _locked: dict[str, Any]

    class Meta:
        constraints = [
            not_blank("thread_scope_not_blank", "scope"),
            models.CheckConstraint(
                condition=Q(key__isnull=True) | Q(key__regex=r"\S"), name="thread_key_null_or_not_blank"
            ),
            # Key first: the admin looks keys up without knowing their scope.
            models.UniqueConstraint(
                fields=["key", "scope"], condition=Q(deleted_at__isnull=True), name="thread_key_unique_in_scope"
            ),
            models.CheckConstraint(
                condition=Q(
                    due_at__isnull=True, due_priority__isnull=True, due_queue__isnull=True, due_agent__isnull=True
                )
                | Q(
                    due_at__isnull=False,
                    due_priority__isnull=False,
                    due_queue__isnull=False,
                    due_agent__isnull=False,
                    wakes_at__isnull=True,
                    active_run_id__isnull=True,
                    blocked_reason="",
                ),
                name="thread_due_flag_whole_or_absent",
            ),
            models.CheckConstraint(
                condition=Q(last_seq__gte=0, last_cursor__gte=0, epoch__gte=0, claim_count__gte=0)
                & Q(pruned_cursor__gte=0, pruned_cursor__lte=models.F("last_cursor")),
                name="thread_counters_in_range",
            ),
            models.CheckConstraint(
                condition=Q(active_run_id__isnull=True)
                | Q(open_run_id__isnull=False, open_run_id=models.F("active_run_id")),
                name="thread_active_run_is_open_run",
            ),
        ]
        indexes = [
            models.Index(
                fields=["due_queue", "due_agent", "due_priority", "due_at", "id"],
                condition=Q(due_at__isnull=False),
                name="thread_due",
            ),
            models.Index(fields=["wakes_at", "id"], condition=Q(wakes_at__isnull=False), name="thread_waking"),
            models.Index(fields=["scope", "-updated_at", "-id"], name="thread_recent_in_scope"),
            models.Index(fields=["deleted_at"], condition=Q(deleted_at__isnull=False), name="thread_deleted"),
        ]

    def __str__(self) -> str:
        return self.key or str(self.pk)

    def take_order(self) -> int:
        """The next place in the thread's order of runs and pending messages; only under the fence."""
        self.next_order += 1
        return self.next_order - 1

    def record(self, event: "Event") -> "Event":
        """Number an event (cursor: gap-free, in commit order) and have the fence write it; only under the fence."""
        self.last_cursor += 1
        event.thread, event.cursor = self, self.last_cursor
        self.new_events.append(event)
        return event

    def _enter(self) -> None:
        self.new_events = []
        self.locked_at = getattr(self, "clock")  # noqa: B009  (an annotation of the locking query)
        self._locked = {name: getattr(self, name) for name in _FENCED_FIELDS}

    def _judge(self) -> None:
        """Rewrite the ready flag from what is queued, in a statement younger than the lock.

        Due: the head can be claimed now. Waking: it can later. Blocked: the open run waits, so nothing else may start.
        None of these while a run is claimed: whoever settles it judges again.
        """
        self.due_at = self.due_priority = self.due_queue = self.due_agent = self.wakes_at = None
        self.blocked_reason = ""
        if self.active_run_id is not None or self.deleted_at is not None:
            return
        dispatches: Any = self.dispatches
        queued: DispatchQuerySet = dispatches.queued()
        heads = queued.of_run(self.open_run_id) if self.open_run_id else queued
        if head := heads.head().flag().first():
            self.due_at, self.due_priority, self.due_queue, self.due_agent = head
        elif waking := heads.soonest().flag().first():
            self.wakes_at = waking[0]
        elif self.open_run_id and queued.exists():
            self.blocked_reason = BlockedReason.OPEN_RUN

    def _changed(self) -> dict[str, Any]:
        return {name: value for name in _FENCED_FIELDS if (value := getattr(self, name)) != self._locked[name]}


def _leave(threads: list[Thread]) -> None:
    """Write what the fence's holder did to the threads themselves: events, ready flag, changed fields."""
    events = [event for thread in threads for event in thread.new_events]
    if events:
        type(events[0]).objects.bulk_create(events)
    for thread in threads:
        thread._judge()
        was_due_for = thread._locked["due_queue"], thread._locked["due_agent"]
        thread.became_due = thread.due_queue is not None and (thread.due_queue, thread.due_agent) != was_due_for
        changed = thread._changed()
        if changed:
            Thread.objects.filter(pk=thread.pk).update(updated_at=Now(), **changed)
