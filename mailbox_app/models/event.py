"""One durable fact, numbered per thread (its cursor), written in the transaction that made it true."""

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app.kinds import TERMINAL_KINDS, Kind
from mailbox_app.models.base import not_blank
from mailbox_app.models.message import Visibility
from mailbox_app.models.thread import Thread


class EventQuerySet(models.QuerySet["Event"]):
    def after(self, cursor: int) -> "EventQuerySet":
        """Events past a cursor, in order."""
        return self.filter(cursor__gt=cursor).order_by("cursor")

    def public(self) -> "EventQuerySet":
        return self.filter(visibility=Visibility.PUBLIC)


class Event(models.Model):
    """One fact of a thread, at its cursor."""

    id = models.BigAutoField(primary_key=True)
    thread = models.ForeignKey(Thread, on_delete=models.CASCADE, related_name="events", db_index=False)
    cursor = models.BigIntegerField()
    # Plain ids: an event outlives the dispatch it speaks of.
    run_id = models.UUIDField(null=True, blank=True)
    dispatch_id = models.UUIDField(null=True, blank=True)
    kind = models.CharField(max_length=100)
    payload = models.JSONField(default=dict, blank=True)
    visibility = models.CharField(max_length=20, choices=Visibility.choices, default=Visibility.PUBLIC)
    schema_version = models.SmallIntegerField(default=1)
    correlation_id = models.CharField(max_length=200, blank=True, default="")
    # Only from ctx.emit(key=): system events are unique by the transaction they are in.
    key = models.CharField(max_length=200, null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = EventQuerySet.as_manager()

    class Meta:
        constraints = [
            not_blank("event_kind_not_blank", "kind"),
            models.CheckConstraint(condition=Q(cursor__gte=1), name="event_cursor_from_one"),
            models.UniqueConstraint(fields=["thread", "cursor"], name="event_cursor_unique_in_thread"),
            models.UniqueConstraint(
                fields=["thread", "key"], condition=Q(key__isnull=False), name="event_key_unique_in_thread"
            ),
        ]
        indexes = [
            models.Index(fields=["run_id", "cursor"], name="event_of_run"),
            models.Index(fields=["created_at", "id"], name="event_age"),
        ]

    def __str__(self) -> str:
        return f"{self.cursor} {self.kind}"


__all__ = ["TERMINAL_KINDS", "Event", "Kind"]
