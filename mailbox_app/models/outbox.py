"""One effect on another thread, written in the own transaction and applied later under the other thread's fence."""

from typing import TYPE_CHECKING

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.dispatch import Signal

from mailbox_app.models.base import Moving, MovingQuerySet, iff, uuid7
from mailbox_app.states import OutboxStatus

if TYPE_CHECKING:
    import uuid

# After the transaction that wrote outbox rows, which are `rows`: for who carries them. Lost: the sweep finds them.
written = Signal()


class OutboxKind(models.TextChoices):
    """What is to be done to the target: post a message; tell it that a child run has ended; cancel a child run."""

    MESSAGE = "message"
    WAKE = "wake"
    CANCEL = "cancel"


# What is in nobody's way, and has nothing to wait for.
ERRANDS = (OutboxKind.WAKE, OutboxKind.CANCEL)


class Outbox(Moving):
    """One effect on another thread; messages in order per (source thread, target), wakes and cancels in none."""

    NOUN = "outbox"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    source_thread = models.ForeignKey("mailbox.Thread", on_delete=models.CASCADE, related_name="outbox", db_index=False)
    # The target may not exist, or be gone: delivery finds out.
    target_thread_id = models.UUIDField()
    kind = models.CharField(max_length=20, choices=OutboxKind.choices)
    order = models.BigIntegerField()
    payload = models.JSONField(default=dict, blank=True)
    status = models.CharField(max_length=20, choices=OutboxStatus.choices, default=OutboxStatus.PENDING)
    attempt_count = models.IntegerField(default=0)
    available_at = models.DateTimeField(db_default=Now())
    last_error = models.TextField(blank=True, default="")
    completed_at = models.DateTimeField(null=True, blank=True)

    objects = MovingQuerySet["Outbox"].as_manager()

    if TYPE_CHECKING:
        source_thread_id: uuid.UUID

    class Meta:
        verbose_name_plural = "outbox"
        constraints = [
            models.CheckConstraint(condition=Q(kind__in=OutboxKind.values), name="outbox_kind_known"),
            models.CheckConstraint(condition=Q(status__in=OutboxStatus.values), name="outbox_status_known"),
            models.CheckConstraint(condition=Q(attempt_count__gte=0), name="outbox_attempts_not_negative"),
            models.CheckConstraint(
                condition=iff(~Q(status=OutboxStatus.PENDING), Q(completed_at__isnull=False)),
                name="outbox_ended_iff_completed",
            ),
            models.UniqueConstraint(
                fields=["source_thread", "target_thread_id", "order"], name="outbox_order_unique_per_pair"
            ),
        ]
        indexes = [
            models.Index(
                fields=["available_at", "id"], condition=Q(status=OutboxStatus.PENDING), name="outbox_pending"
            ),
            # What stands in front of a row: only what is pending.
            models.Index(
                fields=["source_thread", "target_thread_id", "order"],
                condition=Q(status=OutboxStatus.PENDING),
                name="outbox_in_order",
            ),
            models.Index(
                fields=["available_at", "id"],
                condition=Q(status=OutboxStatus.PENDING, kind__in=ERRANDS),
                name="outbox_errands",
            ),
            models.Index(
                fields=["target_thread_id", "available_at", "id"],
                condition=Q(status=OutboxStatus.PENDING, kind__in=ERRANDS),
                name="outbox_errands_to",
            ),
            models.Index(fields=["completed_at", "id"], condition=Q(completed_at__isnull=False), name="outbox_ended"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} to {self.target_thread_id}"
