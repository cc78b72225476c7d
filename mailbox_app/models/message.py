"""One entry of a thread: pending until an agent reads it, then committed and immutable."""

from typing import Any

from django.db import models
from django.db.models import Q

from mailbox_app.models.base import Moving, MovingQuerySet, iff, not_blank, uuid7
from mailbox_app.models.run import Run
from mailbox_app.models.thread import Thread
from mailbox_app.states import MessageState


class Role(models.TextChoices):
    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    TOOL = "tool"


class Visibility(models.TextChoices):
    PUBLIC = "public"
    INTERNAL = "internal"


class Boundary(models.TextChoices):
    """Where in a run's life a pending message may be read."""

    INTERRUPT = "interrupt"
    NEXT_STEP = "next_step"
    ON_NATURAL_END = "on_natural_end"
    RESUME_INPUT = "resume_input"
    NEW_RUN = "new_run"


class Granularity(models.TextChoices):
    ONE = "one"
    BATCH = "batch"


class ReadAt(models.TextChoices):
    """The boundary at which a message was in fact read."""

    START = "start"
    CHECKPOINT = "checkpoint"
    RESUME = "resume"


class MessageQuerySet(MovingQuerySet["Message"]):
    def pending(self) -> "MessageQuerySet":
        return self.filter(state=MessageState.PENDING)

    def committed(self) -> "MessageQuerySet":
        return self.filter(state=MessageState.COMMITTED)

    def public(self) -> "MessageQuerySet":
        return self.filter(visibility=Visibility.PUBLIC)

    def read_in(self, run_id: Any, turn: int) -> "MessageQuerySet":
        """The input of one turn, in order."""
        return self.committed().filter(run_id=run_id, read_turn=turn).order_by("seq")

    def in_order(self) -> "MessageQuerySet":
        return self.order_by("seq")


class Message(Moving):
    """One entry of a thread, who reads it and how it is delivered."""

    NOUN = "message"
    STATUS_FIELD = "state"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    client_id = models.CharField(max_length=200, null=True, blank=True)
    scope = models.CharField(max_length=200)
    thread = models.ForeignKey(Thread, on_delete=models.CASCADE, related_name="messages", db_index=False)
    # The run that reads it: its owner. Null: whoever comes.
    run = models.ForeignKey(
        Run, null=True, blank=True, on_delete=models.SET_NULL, related_name="messages", db_index=False
    )
    state = models.CharField(max_length=20, choices=MessageState.choices, default=MessageState.PENDING)
    seq = models.BigIntegerField(null=True, blank=True)
    position = models.BigIntegerField()
    revision = models.BigIntegerField(default=1)
    held = models.BooleanField(default=False)
    retract_reason = models.CharField(max_length=100, blank=True, default="")
    read_turn = models.IntegerField(null=True, blank=True)
    read_at = models.CharField(max_length=20, blank=True, default="", choices=ReadAt.choices)
    visibility = models.CharField(max_length=20, choices=Visibility.choices, default=Visibility.PUBLIC)
    role = models.CharField(max_length=20, choices=Role.choices)
    # A string, or a list of parts: [{"type": "text", "text": …}, …].
    content = models.JSONField()
    metadata = models.JSONField(default=dict, blank=True)
    sender = models.CharField(max_length=200, blank=True, default="")
    producer_run_id = models.UUIDField(null=True, blank=True)
    boundary = models.CharField(max_length=20, choices=Boundary.choices, default=Boundary.NEW_RUN)
    granularity = models.CharField(max_length=20, choices=Granularity.choices, default=Granularity.BATCH)
    barrier = models.BooleanField(default=False)
    target_run_id = models.UUIDField(null=True, blank=True)
    fallback = models.CharField(max_length=20, choices=Boundary.choices, blank=True, default="")

    objects = MessageQuerySet.as_manager()

    class Meta:
        constraints = [
            not_blank("message_scope_not_blank", "scope"),
            models.CheckConstraint(condition=Q(role__in=Role.values), name="message_role_known"),
            models.CheckConstraint(condition=Q(state__in=MessageState.values), name="message_state_known"),
            models.CheckConstraint(
                condition=iff(Q(state=MessageState.COMMITTED), Q(seq__isnull=False)),
                name="message_committed_iff_numbered",
            ),
            models.CheckConstraint(condition=Q(seq__isnull=True) | Q(seq__gte=1), name="message_seq_from_one"),
            models.CheckConstraint(
                condition=iff(Q(state=MessageState.RETRACTED), ~Q(retract_reason="")),
                name="message_retracted_iff_reason",
            ),
            models.UniqueConstraint(fields=["thread", "seq"], name="message_seq_unique_in_thread"),
            models.UniqueConstraint(
                fields=["scope", "client_id"],
                condition=Q(client_id__isnull=False),
                name="message_client_id_unique_in_scope",
            ),
        ]
        indexes = [
            models.Index(
                fields=["thread", "run", "position", "id"],
                condition=Q(state=MessageState.PENDING),
                name="message_pending",
            ),
            # Nothing overtakes a barrier, whoever reads it: each look asks for those of its thread.
            models.Index(
                fields=["thread", "position", "id"],
                condition=Q(state=MessageState.PENDING, barrier=True),
                name="message_barrier",
            ),
            models.Index(fields=["run", "read_turn", "seq"], name="message_of_run"),
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.seq or self.state}"

    @property
    def text(self) -> str:
        """The content as text: the string itself, or its text parts joined."""
        if isinstance(self.content, str):
            return self.content
        parts = self.content if isinstance(self.content, list) else []
        return "".join(str(part["text"]) for part in parts if isinstance(part, dict) and part.get("type") == "text")
