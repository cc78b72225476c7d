"""One user intent and its outcome."""

import uuid
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app.models.base import Moving, MovingQuerySet, iff, not_blank, uuid7
from mailbox_app.models.snapshot import Snapshot
from mailbox_app.models.thread import Thread
from mailbox_app.states import OPEN_RUN, RunStatus

if TYPE_CHECKING:
    from django.db.models.fields.related_descriptors import RelatedManager

    from mailbox_app.models.dispatch import Dispatch
    from mailbox_app.models.journal import JournalEntry
    from mailbox_app.models.message import Message


class TerminationType(models.TextChoices):
    """Why a run stopped, for now (suspended) or for good."""

    NATURAL_END = "natural_end"
    BEHAVIOR_REQUESTED = "behavior_requested"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"
    SUSPENDED = "suspended"
    ERROR = "error"


class RunQuerySet(MovingQuerySet["Run"]):
    def in_scope(self, scope: str) -> "RunQuerySet":
        return self.filter(scope=scope)

    def open(self) -> "RunQuerySet":
        return self.filter(status__in=OPEN_RUN)

    def done(self) -> "RunQuerySet":
        return self.filter(status=RunStatus.DONE)

    def overdue(self) -> "RunQuerySet":
        """Runs that wait, and should have stopped waiting by now, by the database's clock."""
        return self.filter(status=RunStatus.WAITING, wait_until__lte=Now())

    def waiting(self) -> "RunQuerySet":
        return self.filter(status=RunStatus.WAITING)

    def not_done(self) -> "RunQuerySet":
        return self.exclude(status=RunStatus.DONE)


class Run(Moving):
    """One intent: what it is to do, how far it is and how it ended."""

    NOUN = "run"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    client_id = models.CharField(max_length=200, null=True, blank=True)
    scope = models.CharField(max_length=200)
    dedupe_key = models.CharField(max_length=200, null=True, blank=True)
    thread = models.ForeignKey(Thread, on_delete=models.CASCADE, related_name="runs", db_index=False)
    agent = models.CharField(max_length=200)
    code_version = models.CharField(max_length=100, blank=True, default="")
    config_version = models.CharField(max_length=100, blank=True, default="")
    parent_run = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="child_runs", db_index=False
    )
    replay_of = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="replays", db_index=False
    )
    status = models.CharField(max_length=20, choices=RunStatus.choices, default=RunStatus.CREATED)
    turn = models.IntegerField(default=1)
    order = models.BigIntegerField()
    # {"type": TerminationType, "detail": …}; null until the run first stops.
    termination = models.JSONField(null=True, blank=True)
    final_output = models.JSONField(null=True, blank=True)
    # {"code", "message"}
    error = models.JSONField(null=True, blank=True)
    # {"reason", "message", "name", "entry", "since", "ticket_ids"}; see `operations/waits.py`.
    waiting = models.JSONField(null=True, blank=True)
    resume_at = models.DateTimeField(null=True, blank=True)
    # When a wait ends by itself.
    wait_until = models.DateTimeField(null=True, blank=True)
    # What came by /resume and no wait has taken yet: [{"name", "payload", "resume_id"}], oldest first.
    resumes = models.JSONField(default=list, blank=True)
    # {"from_seq", "to_seq", "message_ids"}
    input = models.JSONField(default=dict, blank=True)
    output = models.JSONField(default=dict, blank=True)
    # How the run came about: a `Snapshot`, of the version that was current then.
    activation = models.JSONField(default=dict, blank=True)
    state = models.JSONField(default=dict, blank=True)
    steps = models.IntegerField(default=0)
    input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = RunQuerySet.as_manager()

    if TYPE_CHECKING:
        thread_id: uuid.UUID
        dispatches: "RelatedManager[Dispatch]"
        messages: "RelatedManager[Message]"
        journal: "RelatedManager[JournalEntry]"

    class Meta:
        permissions = [("cancel_run", "Can cancel a run"), ("run_now_run", "Can let a scheduled run start now")]
        constraints = [
            not_blank("run_names_not_blank", "scope", "agent"),
            models.CheckConstraint(condition=Q(status__in=RunStatus.values), name="run_status_known"),
            models.CheckConstraint(condition=Q(turn__gte=1), name="run_turn_from_one"),
            models.CheckConstraint(
                condition=iff(Q(status=RunStatus.WAITING), Q(waiting__isnull=False)),
                name="run_waiting_iff_waiting_state",
            ),
            models.CheckConstraint(
                condition=iff(Q(status=RunStatus.WAITING), Q(wait_until__isnull=False)),
                name="run_every_wait_has_an_end",
            ),
            models.CheckConstraint(
                condition=iff(Q(status=RunStatus.DONE), Q(finished_at__isnull=False)), name="run_done_iff_finished"
            ),
            models.CheckConstraint(
                condition=Q(status=RunStatus.DONE) | Q(final_output__isnull=True, error__isnull=True),
                name="run_outcome_only_when_done",
            ),
            models.CheckConstraint(
                condition=Q(status__in=[RunStatus.CREATED, RunStatus.DONE]) | Q(started_at__isnull=False),
                name="run_open_only_after_start",
            ),
            models.UniqueConstraint(
                fields=["thread"], condition=Q(status__in=OPEN_RUN), name="run_one_open_per_thread"
            ),
            models.UniqueConstraint(
                fields=["scope", "dedupe_key"],
                condition=~Q(status=RunStatus.DONE) & Q(dedupe_key__isnull=False),
                name="run_dedupe_key_unique_while_not_done",
            ),
            models.UniqueConstraint(
                fields=["scope", "client_id"],
                condition=Q(client_id__isnull=False),
                name="run_client_id_unique_in_scope",
            ),
        ]
        # A run is written three times, and each write adds to every index that holds it: most hold few.
        indexes = [
            models.Index(fields=["thread", "-order"], name="run_of_thread"),
            models.Index(fields=["scope", "-created_at", "-id"], name="run_recent_in_scope"),
            models.Index(fields=["parent_run"], condition=Q(parent_run__isnull=False), name="run_child_of"),
            models.Index(fields=["replay_of"], condition=Q(replay_of__isnull=False), name="run_replay_of"),
            models.Index(fields=["wait_until", "id"], condition=Q(status=RunStatus.WAITING), name="run_waiting_until"),
            models.Index(
                fields=["scope", "-created_at", "-id"],
                condition=Q(status=RunStatus.WAITING),
                name="run_waiting_in_scope",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.agent} {self.pk}"

    @property
    def waits_for(self) -> dict[str, Any] | None:
        """`waiting` as those who watch the run may see it: without the journal's name for it."""
        return (
            None if self.waiting is None else {name: value for name, value in self.waiting.items() if name != "entry"}
        )

    @property
    def snapshot(self) -> Snapshot:
        """How the run came about, to act by. Raises SnapshotTooNew, SnapshotUnreadable."""
        return Snapshot.read(self.activation)

    @property
    def shown(self) -> Snapshot:
        """How the run came about, to be looked at: of a snapshot that cannot be read, what can be told."""
        return Snapshot.shown(self.activation)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.shown.options)

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self.shown.metadata)
