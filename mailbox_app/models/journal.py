"""The record of one completed effect of an agent: a replayed turn finds it and does nothing."""

import uuid

from django.db import models
from django.db.models.functions import Now

from mailbox_app.models.base import not_blank
from mailbox_app.models.run import Run


class JournalQuerySet(models.QuerySet["JournalEntry"]):
    def of_turn(self, run_id: uuid.UUID, turn: int) -> "JournalQuerySet":
        return self.filter(run_id=run_id, turn=turn).order_by("id")


class JournalEntry(models.Model):
    """One completed effect of one turn, found again by what was called and its n-th use."""

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="journal", db_index=False)
    turn = models.IntegerField()
    verb = models.CharField(max_length=40)
    name = models.CharField(max_length=200)
    key = models.CharField(max_length=200, blank=True, default="")
    # Its n-th use in the turn, from 1.
    n = models.IntegerField()
    arguments_hash = models.CharField(max_length=64)
    result = models.JSONField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = JournalQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "journal entries"
        constraints = [
            not_blank("journal_names_not_blank", "verb", "name"),
            models.UniqueConstraint(
                fields=["run", "turn", "verb", "name", "key", "n"], name="journal_entry_once_per_use"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.verb} {self.name} #{self.n}"
