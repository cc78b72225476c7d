"""One queue entry that activates a run: who may execute it, until when, and how often that failed."""

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app.models.base import Moving, MovingQuerySet, iff, not_blank, uuid7
from mailbox_app.models.run import Run
from mailbox_app.models.thread import Thread
from mailbox_app.states import LIVE_DISPATCH, TERMINAL_DISPATCH, DispatchStatus


class Resolution(models.TextChoices):
    """What an operator did about a dead letter."""

    REPLAYED = "replayed"
    DISCARDED = "discarded"


# The columns of a claim, as whoever ends it leaves them.
UNCLAIMED: dict[str, Any] = {"claim_token": None, "claimed_by": "", "lease_until": None}


class DispatchQuerySet(MovingQuerySet["Dispatch"]):
    def queued(self) -> "DispatchQuerySet":
        return self.filter(status=DispatchStatus.QUEUED)

    def claimed(self) -> "DispatchQuerySet":
        return self.filter(status=DispatchStatus.CLAIMED)

    def of_run(self, run_id: uuid.UUID) -> "DispatchQuerySet":
        return self.filter(run_id=run_id)

    def held_by(self, token: uuid.UUID) -> "DispatchQuerySet":
        """The dispatch this claim token owns; empty once the lease was lost."""
        return self.claimed().filter(claim_token=token)

    def expired(self) -> "DispatchQuerySet":
        """Claims whose lease ended strictly before now, by the database's clock."""
        return self.claimed().filter(lease_until__lt=Now())

    def ignoring(self, *, seconds: float) -> "DispatchQuerySet":
        """Claims whose run was asked to stop so long ago, and has not."""
        return self.claimed().filter(cancel_requested_at__lt=Now() - timedelta(seconds=seconds))

    def dead_letters(self) -> "DispatchQuerySet":
        """Dead letters nobody has dealt with."""
        return self.filter(status=DispatchStatus.DEAD_LETTER, resolution="")

    def terminal(self) -> "DispatchQuerySet":
        return self.filter(status__in=TERMINAL_DISPATCH)


class Dispatch(Moving):
    """One queue entry: who may execute its run, until when, and what came of it."""

    NOUN = "dispatch"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    thread = models.ForeignKey(Thread, on_delete=models.CASCADE, related_name="dispatches")
    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="dispatches")
    # The run's agent, here so that a thread's head can be judged without a join.
    agent = models.CharField(max_length=200)
    # Sortable form of the code version that started the run: no older worker may go on with it. Blank: not started.
    version_key = models.CharField(max_length=400, blank=True, default="", db_collation="C")
    queue = models.CharField(max_length=100)
    priority = models.SmallIntegerField(default=128)
    order = models.BigIntegerField()
    epoch = models.BigIntegerField(default=0)
    status = models.CharField(max_length=20, choices=DispatchStatus.choices, default=DispatchStatus.QUEUED)
    available_at = models.DateTimeField(db_default=Now())
    unrunnable_since = models.DateTimeField(null=True, blank=True)
    attempt_count = models.IntegerField(default=0)
    lost_count = models.IntegerField(default=0)
    max_attempts = models.IntegerField(default=5)
    last_error = models.TextField(blank=True, default="")
    claim_token = models.UUIDField(null=True, blank=True)
    claimed_by = models.CharField(max_length=200, blank=True, default="")
    claimed_at = models.DateTimeField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    # Of the limits it counts against: ids of Permit; null: none. Leaving the claim gives them back.
    permit_ids = models.JSONField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    # The last claim's token, kept after it ended: a settle whose answer was lost recognises itself by it.
    instance_id = models.UUIDField(null=True, blank=True)
    fence = models.BigIntegerField(null=True, blank=True)
    # Projection of the activation's result; null while the dispatch is live.
    run_status = models.CharField(max_length=20, null=True, blank=True)
    termination = models.JSONField(null=True, blank=True)
    response = models.JSONField(null=True, blank=True)
    error = models.JSONField(null=True, blank=True)
    resolution = models.CharField(max_length=20, blank=True, default="", choices=Resolution.choices)
    resolved_at = models.DateTimeField(null=True, blank=True)
    completed_at = models.DateTimeField(null=True, blank=True)

    objects = DispatchQuerySet.as_manager()

    # Who held the claim when the row was read; a move that ends the claim forgets `claimed_by`.
    executor: str = ""

    if TYPE_CHECKING:
        thread_id: uuid.UUID
        run_id: uuid.UUID

    class Meta:
        verbose_name_plural = "dispatches"
        constraints = [
            not_blank("dispatch_names_not_blank", "agent", "queue"),
            models.CheckConstraint(condition=Q(status__in=DispatchStatus.values), name="dispatch_status_known"),
            models.CheckConstraint(condition=Q(priority__gte=0, priority__lte=255), name="dispatch_priority_in_range"),
            models.CheckConstraint(
                condition=Q(attempt_count__gte=0, lost_count__gte=0, max_attempts__gte=1)
                & Q(attempt_count__lte=models.F("max_attempts")),
                name="dispatch_attempts_within_max",
            ),
            models.CheckConstraint(
                condition=(
                    Q(status=DispatchStatus.CLAIMED, claim_token__isnull=False, lease_until__isnull=False)
                    & Q(claimed_by__regex=r"\S")
                )
                | (
                    ~Q(status=DispatchStatus.CLAIMED)
                    & Q(claim_token__isnull=True, lease_until__isnull=True, claimed_by="")
                ),
                name="dispatch_claimed_iff_leased",
            ),
            models.CheckConstraint(
                condition=Q(status=DispatchStatus.CLAIMED) | Q(permit_ids__isnull=True),
                name="dispatch_permits_only_claimed",
            ),
            models.CheckConstraint(
                condition=~Q(status=DispatchStatus.QUEUED)
                | Q(run_status__isnull=True, termination__isnull=True, response__isnull=True, error__isnull=True),
                name="dispatch_queued_carries_no_result",
            ),
            models.CheckConstraint(
                condition=iff(Q(status__in=TERMINAL_DISPATCH), Q(completed_at__isnull=False)),
                name="dispatch_terminal_iff_completed",
            ),
            models.CheckConstraint(
                condition=Q(resolution="") | Q(status=DispatchStatus.DEAD_LETTER, resolved_at__isnull=False),
                name="dispatch_only_dead_letters_resolved",
            ),
            models.UniqueConstraint(
                fields=["thread"], condition=Q(status=DispatchStatus.CLAIMED), name="dispatch_one_claimed_per_thread"
            ),
            models.UniqueConstraint(
                fields=["run"], condition=Q(status__in=LIVE_DISPATCH), name="dispatch_one_live_per_run"
            ),
        ]
        indexes = [
            models.Index(
                fields=["thread", "priority", "order", "id"],
                condition=Q(status=DispatchStatus.QUEUED),
                name="dispatch_head",
            ),
            models.Index(
                fields=["thread", "available_at", "id"],
                condition=Q(status=DispatchStatus.QUEUED),
                name="dispatch_waking",
            ),
            models.Index(
                fields=["-completed_at", "-id"],
                condition=Q(status=DispatchStatus.DEAD_LETTER, resolution=""),
                name="dispatch_dead_letter",
            ),
            models.Index(
                fields=["completed_at", "id"], condition=Q(status__in=TERMINAL_DISPATCH), name="dispatch_terminal"
            ),
            models.Index(
                fields=["unrunnable_since", "id"],
                condition=Q(status=DispatchStatus.QUEUED, unrunnable_since__isnull=False),
                name="dispatch_unrunnable",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.agent} {self.pk}"

    @classmethod
    def from_db(cls, db: Any, field_names: Any, values: Any, **options: Any) -> "Dispatch":
        """Remember who held the claim."""
        found = super().from_db(db, field_names, values, **options)
        found.executor = found.__dict__.get("claimed_by", "")
        return found


class DeadLetter(Dispatch):
    """A dispatch that failed for good, as the admin lists it apart; rows are Dispatch rows."""

    class Meta:
        proxy = True
        default_permissions = ("view",)
        permissions = [
            ("replay_deadletter", "Can run a dead letter again"),
            ("replay_fresh_deadletter", "Can run a dead letter again without its journal"),
            ("discard_deadletter", "Can discard a dead letter"),
        ]
        verbose_name = "dead letter"
        # The admin sorts by it, and HTML shows no leading space: dead letters stand first.
        verbose_name_plural = " Dead letters"
