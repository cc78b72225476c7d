"""One question an agent put to a human."""

import uuid
from typing import TYPE_CHECKING

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app.models.base import Moving, MovingQuerySet, iff, not_blank, uuid7
from mailbox_app.models.run import Run
from mailbox_app.states import TicketStatus


class TicketQuerySet(MovingQuerySet["Ticket"]):
    def open(self) -> "TicketQuerySet":
        return self.filter(status=TicketStatus.OPEN)

    def of_run(self, run_id: uuid.UUID) -> "TicketQuerySet":
        return self.filter(run_id=run_id)

    def overdue(self) -> "TicketQuerySet":
        """Open questions that should have been answered by now, by the database's clock."""
        return self.open().filter(expires_at__lte=Now())


class Ticket(Moving):
    """One question of a run, and its first answer."""

    NOUN = "ticket"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="tickets", db_index=False)
    # Derived from its journal key: the same at every replay of the turn.
    ticket_id = models.CharField(max_length=200)
    # As the agent calls the question: `ctx.ask(name)`.
    name = models.CharField(max_length=200, blank=True, default="")
    turn = models.IntegerField(default=1)
    # What its answer is called in the journal: {"name", "key", "n", "arguments_hash"}.
    entry = models.JSONField(default=dict, blank=True)
    status = models.CharField(max_length=20, choices=TicketStatus.choices, default=TicketStatus.OPEN)
    question = models.TextField(blank=True, default="")
    arguments = models.JSONField(default=dict, blank=True)
    schema = models.JSONField(null=True, blank=True)
    resume_mode = models.CharField(max_length=40, blank=True, default="")
    expires_at = models.DateTimeField(null=True, blank=True)
    # {"action", "payload", "expired", "dispatch_id"}; the last names the dispatch by which the run went on, if it did.
    answer = models.JSONField(null=True, blank=True)
    decision_id = models.CharField(max_length=200, blank=True, default="")
    answered_by = models.CharField(max_length=200, blank=True, default="")
    answered_at = models.DateTimeField(null=True, blank=True)

    objects = TicketQuerySet.as_manager()

    if TYPE_CHECKING:
        run_id: uuid.UUID

    class Meta:
        permissions = [("answer_ticket", "Can answer a question of a run")]
        constraints = [
            not_blank("ticket_id_not_blank", "ticket_id"),
            models.CheckConstraint(condition=Q(status__in=TicketStatus.values), name="ticket_status_known"),
            models.CheckConstraint(
                condition=iff(Q(status=TicketStatus.ANSWERED), Q(answered_at__isnull=False)),
                name="ticket_answered_iff_answered_at",
            ),
            models.UniqueConstraint(fields=["run", "ticket_id"], name="ticket_once_per_run"),
        ]
        indexes = [models.Index(fields=["expires_at", "id"], condition=Q(status=TicketStatus.OPEN), name="ticket_open")]

    def __str__(self) -> str:
        return f"{self.name} {self.ticket_id}".strip()
