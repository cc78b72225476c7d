"""A limit: how many runs of an agent, or of a scope, execute at once, or how often an agent starts; and its permits."""

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.db import models
from django.db.models import Count, DurationField, Exists, ExpressionWrapper, F, Func, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Now

from mailbox_app.models.base import iff, not_blank, uuid7

if TYPE_CHECKING:
    import uuid

# Each of so many is a row, and looked through by whoever changes the limit.
MOST_AT_ONCE = 1_000
# So often within the period, at most; a period is a second or more, for the due tick is what notices that it is over.
MOST_STARTS = 100_000
LONGEST_PERIOD_SECONDS = 86_400.0


class LimitKind(models.TextChoices):
    """What is limited: an agent, whoever asks for it; or a scope, whatever it asks for."""

    AGENT = "agent"
    SCOPE = "scope"


class LimitQuerySet(models.QuerySet["Limit"]):
    def of(self, kind: str, name: str) -> "LimitQuerySet":
        return self.filter(kind=kind, name=name)

    def in_force(self) -> "LimitQuerySet":
        """Those that are not over."""
        return self.exclude(most=None, starts=None)

    def reached(self) -> "LimitQuerySet":
        """Those by which nothing more may start just now; `candidates.UNLIMITED` says the same for a claim."""
        free = Permit.objects.free().filter(limit=OuterRef("pk"), is_retired=False)
        step = F("seconds") / F("starts") * 0.999
        wait = Func(
            F("seconds") - step, template="make_interval(secs => %(expressions)s)", output_field=DurationField()
        )
        is_empty = Q(full_at__gt=ExpressionWrapper(Now() + wait, output_field=models.DateTimeField()))
        return self.filter(is_empty | (Q(most__isnull=False) & ~Exists(free)))

    def with_held(self) -> "LimitQuerySet":
        """With `held`: how many runs hold a permit now."""
        held = Permit.objects.held().filter(limit=OuterRef("pk")).values("limit").annotate(number=Count("pk"))
        # A look for each row that is read, not a join of all limits and permits there are.
        return self.annotate(held=Coalesce(Subquery(held.values("number")), 0))


class Limit(models.Model):
    """One limit. `most`: runs that execute at once; `starts` within `seconds`: how often one starts; null: no bound.

    Starts are counted by a bucket that holds `starts` and is filled evenly within `seconds`. `full_at` says when it
    will be full: each start moves that by `seconds / starts`, and there is none while it lies further ahead than the
    period less one such step.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    kind = models.CharField(max_length=10, choices=LimitKind.choices)
    name = models.CharField(max_length=200)
    most = models.IntegerField(null=True, blank=True)
    starts = models.IntegerField(null=True, blank=True)
    seconds = models.FloatField(null=True, blank=True)
    full_at = models.DateTimeField(null=True, blank=True)
    # The permits are not yet as many as `most` asks for: what was claimed before the limit came holds none, what it
    # allowed too many is given back one by one. The due tick fits them until they are.
    is_settling = models.BooleanField(default=False)
    note = models.CharField(max_length=500, blank=True, default="")
    set_by = models.CharField(max_length=200, blank=True, default="")
    set_at = models.DateTimeField(db_default=Now())

    objects = LimitQuerySet.as_manager()

    class Meta:
        constraints = [
            not_blank("limit_name_not_blank", "name"),
            models.CheckConstraint(condition=Q(kind__in=LimitKind.values), name="limit_kind_known"),
            models.CheckConstraint(
                condition=(Q(most__isnull=True) | Q(most__gte=1, most__lte=MOST_AT_ONCE))
                & (Q(starts__isnull=True) | Q(starts__gte=1, starts__lte=MOST_STARTS))
                & (Q(seconds__isnull=True) | Q(seconds__gte=1, seconds__lte=LONGEST_PERIOD_SECONDS)),
                name="limit_numbers_in_range",
            ),
            models.CheckConstraint(
                condition=iff(Q(starts__isnull=True), Q(seconds__isnull=True)), name="limit_rate_whole_or_absent"
            ),
            models.CheckConstraint(
                condition=Q(starts__isnull=True) | Q(kind=LimitKind.AGENT), name="limit_rate_only_of_agent"
            ),
            models.CheckConstraint(
                condition=Q(full_at__isnull=True) | Q(starts__isnull=False), name="limit_bucket_only_with_rate"
            ),
            # Every claim asks for an agent and a scope by this index.
            models.UniqueConstraint(fields=["kind", "name"], name="limit_once"),
        ]
        indexes = [models.Index(fields=["id"], condition=Q(is_settling=True), name="limit_settling")]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def starts_left(self, now: datetime) -> int:
        """How many starts there are in the bucket; only where there is one."""
        assert self.starts is not None
        assert self.seconds is not None
        ahead = 0.0 if self.full_at is None else max(0.0, (self.full_at - now).total_seconds())
        # A thousandth may be wanting, for what is rounded; `candidates.UNLIMITED` says the same.
        return max(0, math.floor((self.seconds - ahead) * self.starts / self.seconds + 0.001))

    def full_after(self, started: int, now: datetime) -> datetime:
        """When the bucket will be full if so many are taken from it now; only where there is one."""
        assert self.starts is not None
        assert self.seconds is not None
        base = now if self.full_at is None else max(self.full_at, now)
        return base + timedelta(seconds=started * self.seconds / self.starts)

    @property
    def is_over(self) -> bool:
        """Whether it was removed, and its row stays only until the last permit is given back."""
        return self.most is None and self.starts is None

    @property
    def bounds(self) -> str:
        """What it allows, in words."""
        words = [] if self.most is None else [f"{self.most} at once"]
        if self.starts is not None:
            words.append(f"{self.starts} starts in {self.seconds:g} s")
        return ", ".join(words) or "no bound any more"


class PermitQuerySet(models.QuerySet["Permit"]):
    def held(self) -> "PermitQuerySet":
        return self.filter(dispatch_id__isnull=False)

    def free(self) -> "PermitQuerySet":
        return self.filter(dispatch_id=None)


class Permit(models.Model):
    """The right to execute one run under a limit; there are as many as the limit allows, each held or free.

    A claim takes a free one that nobody else takes just now, and never waits for it; the fence gives it back with the
    move that ends the claim. Only free ones are deleted: one too many that is held is retired until it comes back.
    """

    # A run must be able to end, whatever somebody has done to the permits.
    MAY_BE_GONE = True

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    limit = models.ForeignKey(Limit, on_delete=models.CASCADE, related_name="permits", db_index=False)
    # A plain id, not a foreign key: the row is written with the dispatch, under its thread's fence.
    dispatch_id = models.UUIDField(null=True, blank=True)
    is_retired = models.BooleanField(default=False)

    objects = PermitQuerySet.as_manager()

    if TYPE_CHECKING:
        limit_id: uuid.UUID

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["dispatch_id", "limit"],
                condition=Q(dispatch_id__isnull=False),
                name="permit_once_per_dispatch",
            ),
        ]
        # The free ones of a limit are found by it, and counted.
        indexes = [models.Index(fields=["limit", "is_retired", "dispatch_id"], name="permit_of_limit")]

    def __str__(self) -> str:
        return f"permit {self.pk}"
