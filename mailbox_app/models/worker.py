"""What live workers can run, and when each maintenance pass last ran."""

from datetime import timedelta

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app.conf import conf
from mailbox_app.models.base import not_blank

# A worker writes that it lives every `registration_seconds`; two of those may be late or lost.
_MISSED = 3


class AgentRegistrationQuerySet(models.QuerySet["AgentRegistration"]):
    def remembered(self, seconds: float) -> "AgentRegistrationQuerySet":
        """Registrations seen within that time, whether their worker lives or not."""
        return self.filter(seen_at__gte=Now() - timedelta(seconds=seconds))

    def live(self) -> "AgentRegistrationQuerySet":
        """Registrations of workers that were seen lately, and have not said that they end."""
        return self.remembered(_MISSED * conf.registration_seconds)

    def of_worker(self, worker: str) -> "AgentRegistrationQuerySet":
        return self.filter(worker=worker)

    def touch(self) -> int:
        """Write down that their worker lives, where that was last written about `registration_seconds` ago."""
        return self.filter(seen_at__lt=Now() - timedelta(seconds=conf.registration_seconds * 0.9)).update(seen_at=Now())

    def leave(self) -> int:
        """Write down that their worker has ended: no longer live, remembered as any other that was not seen since."""
        past = Now() - timedelta(seconds=_MISSED * conf.registration_seconds)
        return self.filter(seen_at__gt=past).update(seen_at=past)

    def by_queue(self) -> dict[str, tuple[int, int]]:
        """How many workers serve each queue, and the slots of those together."""
        found: dict[str, tuple[int, int]] = {}
        for row in self.order_by("worker").values("worker", "queues", "slots").distinct():
            for queue in row["queues"]:
                workers, slots = found.get(queue, (0, 0))
                found[queue] = workers + 1, slots + row["slots"]
        return found


class AgentRegistration(models.Model):
    """One agent one worker can run. `queues` and `slots` are the worker's."""

    id = models.BigAutoField(primary_key=True)
    worker = models.CharField(max_length=200)
    agent = models.CharField(max_length=200)
    version = models.CharField(max_length=100)
    queues = models.JSONField(default=list)
    slots = models.IntegerField(default=1)
    # The agent's own options, so that a process that cannot import it knows them: {"max_attempts": …, "queue": …}.
    options = models.JSONField(default=dict, blank=True)
    registered_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now())
    # When the worker said that it stops; null while it runs, or was killed.
    gone_at = models.DateTimeField(null=True, blank=True)

    objects = AgentRegistrationQuerySet.as_manager()

    class Meta:
        constraints = [
            not_blank("agent_registration_names_not_blank", "worker", "agent", "version"),
            models.CheckConstraint(condition=Q(slots__gte=1), name="agent_registration_slots_from_one"),
            models.UniqueConstraint(fields=["worker", "agent"], name="agent_registration_once_per_worker"),
        ]
        indexes = [models.Index(fields=["agent", "-seen_at"], name="agent_registration_of_agent")]

    def __str__(self) -> str:
        return f"{self.agent} {self.version} on {self.worker}"


class MaintenanceQuerySet(models.QuerySet["Maintenance"]):
    def begin(self, name: str, *, at_most_every: float) -> bool:
        """Write down that a pass begins, unless one began within so many seconds; whether it did not."""
        self.bulk_create([Maintenance(name=name)], ignore_conflicts=True)
        old = Q(last_started_at=None) | Q(last_started_at__lte=Now() - timedelta(seconds=at_most_every))
        return bool(self.filter(old, name=name).update(last_started_at=Now()))

    def is_late(self, name: str, *, by: float) -> bool:
        """Whether no such pass began within so many seconds, by the database's clock."""
        return not self.filter(name=name, last_started_at__gt=Now() - timedelta(seconds=by)).exists()

    def finish(self, name: str, *, worker: str) -> None:
        """Write down that the pass is over, and who ran it."""
        self.filter(name=name).update(last_finished_at=Now(), worker=worker)


class Maintenance(models.Model):
    """One row per periodic pass: who ran it last, and when; passes do no harm side by side."""

    name = models.CharField(max_length=40, primary_key=True)
    last_started_at = models.DateTimeField(null=True, blank=True)
    last_finished_at = models.DateTimeField(null=True, blank=True)
    worker = models.CharField(max_length=200, blank=True, default="")

    objects = MaintenanceQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "maintenance"

    def __str__(self) -> str:
        return self.name
