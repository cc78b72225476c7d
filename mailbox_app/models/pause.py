"""A pause: an agent, a queue or a thread of which nothing starts until somebody resumes it."""

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app.models.base import iff, not_blank, uuid7


class PauseKind(models.TextChoices):
    """What is paused. An agent and a queue are everybody's, a thread is its scope's."""

    AGENT = "agent"
    QUEUE = "queue"
    THREAD = "thread"


class PauseQuerySet(models.QuerySet["Pause"]):
    def visible_in(self, scope: str) -> "PauseQuerySet":
        """Those of agents and queues, and of the scope's own threads."""
        return self.filter(Q(scope=scope) | ~Q(kind=PauseKind.THREAD))

    def of(self, kind: str, name: str) -> "PauseQuerySet":
        return self.filter(kind=kind, name=name)


class Pause(models.Model):
    """One standing pause; there is no row of one that is over. `name`: of the agent or the queue; the thread's id."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    kind = models.CharField(max_length=10, choices=PauseKind.choices)
    name = models.CharField(max_length=200)
    # The thread's; blank for an agent and a queue.
    scope = models.CharField(max_length=200, blank=True, default="")
    note = models.CharField(max_length=500, blank=True, default="")
    paused_by = models.CharField(max_length=200, blank=True, default="")
    paused_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = PauseQuerySet.as_manager()

    class Meta:
        constraints = [
            not_blank("pause_name_not_blank", "name"),
            models.CheckConstraint(condition=Q(kind__in=PauseKind.values), name="pause_kind_known"),
            models.CheckConstraint(
                condition=iff(Q(kind=PauseKind.THREAD), ~Q(scope="")), name="pause_scope_iff_of_thread"
            ),
            # Every claim asks for an agent and a queue by this index.
            models.UniqueConstraint(fields=["kind", "name"], name="pause_once"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"
