"""The ready flag: columns of a thread that say whether, and by whom, its head can be claimed now."""

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from django.db import models
from django.db.models import Q

from mailbox_app.models.writes import NOW, ask

if TYPE_CHECKING:
    from mailbox_app.models.dispatch import Dispatch


class BlockedReason(models.TextChoices):
    """Why due work on a thread does not start."""

    OPEN_RUN = "open_run"
    BARRIER = "barrier"
    SCOPE_LIMIT = "scope_limit"
    PAUSED = "paused"


FLAG = (
    *("due_at", "due_priority", "due_queue", "due_agent", "due_version", "wakes_at"),
    *("blocked_reason", "blocked_priority", "blocked_since"),
)

# What can start now, first by priority and order; and what can start first of the rest, which may go before it.
# `has_barrier`: whether a barrier is pending, so that it may not be the first in order that can start.
HEADS_OF = """
    (
        SELECT TRUE AS is_due, {has_barrier} AS has_barrier, available_at, priority, queue, agent, version_key
        FROM mailbox_dispatch
        WHERE thread_id = {thread} AND status = 'queued' AND available_at <= statement_timestamp()
        ORDER BY priority, "order", id LIMIT 1
    )
    UNION ALL
    (
        SELECT FALSE, FALSE, available_at, priority, queue, agent, version_key
        FROM mailbox_dispatch
        WHERE thread_id = {thread} AND status = 'queued' AND available_at > statement_timestamp()
        ORDER BY available_at, id LIMIT 1
    )
"""
# One probe of an index that is mostly empty, for a head that is due.
_HAS_BARRIER = """(
            SELECT id FROM mailbox_message
            WHERE thread_id = %(thread)s AND state = 'pending' AND barrier AND NOT held LIMIT 1
        ) IS NOT NULL"""
HEADS = HEADS_OF.format(thread="%(thread)s", has_barrier=_HAS_BARRIER)
# While a run is open, its own: one at most.
HEAD_OF_RUN = """
    SELECT available_at <= statement_timestamp(), FALSE, available_at, priority, queue, agent, version_key
    FROM mailbox_dispatch WHERE run_id = %(run)s AND status = 'queued'
"""

# What `freeze.is_eligible` says of a new run.
_READABLE = """state = 'pending' AND NOT held
            AND (fallback <> '' OR boundary <> 'resume_input' AND target_run_id IS NULL)"""
# Of the queued dispatches, where a barrier is pending: those whose run could read something at its start, or has
# nothing to read. Nothing goes past the first barrier, so it alone decides. A run starts with what stands in front of
# it; or with the barrier itself, once nothing does. Follows FROM mailbox_dispatch AS dispatch.
PAST_BARRIER = f"""
    CROSS JOIN LATERAL (
        SELECT position, id FROM mailbox_message
        WHERE thread_id = dispatch.thread_id AND state = 'pending' AND barrier AND NOT held
        ORDER BY position, id LIMIT 1
    ) AS barrier
    LEFT JOIN LATERAL (
        SELECT position, id FROM mailbox_message
        WHERE thread_id = dispatch.thread_id AND run_id = dispatch.run_id AND {_READABLE}
        ORDER BY position, id LIMIT 1
    ) AS own ON TRUE
    LEFT JOIN LATERAL (
        SELECT position, id FROM mailbox_message
        WHERE thread_id = dispatch.thread_id AND run_id IS NULL AND {_READABLE}
        ORDER BY position, id LIMIT 1
    ) AS anybodys ON TRUE
    WHERE (
        own.id IS NULL
        OR (own.position, own.id) < (barrier.position, barrier.id)
        OR (anybodys.position, anybodys.id) < (barrier.position, barrier.id)
        OR barrier.id IN (own.id, anybodys.id) AND (
            SELECT id FROM mailbox_message
            WHERE thread_id = dispatch.thread_id AND state = 'pending' AND NOT held
                AND (position, id) < (barrier.position, barrier.id)
            LIMIT 1
        ) IS NULL
    )
"""
HEAD_PAST_BARRIER = f"""
    SELECT dispatch.available_at, dispatch.priority, dispatch.queue, dispatch.agent, dispatch.version_key
    FROM mailbox_dispatch AS dispatch {PAST_BARRIER}
        AND dispatch.thread_id = %(thread)s AND dispatch.status = 'queued'
        AND dispatch.available_at <= statement_timestamp()
    ORDER BY dispatch.priority, dispatch."order", dispatch.id LIMIT 1
"""


class ReadyFlag(models.Model):
    """Due: the head can be claimed now. Waking: there may be another head later. Blocked: something else is in front.

    A thread that is due may wake too: what comes due then may go first, or be somebody's who cannot run the other.
    Paused is the one reason that stays while a run is claimed: it is the thread's, and not its head's. A head that was
    due and found its scope's limit reached keeps its place: whoever gives a permit back makes the first of them due.
    """

    due_at = models.DateTimeField(null=True, blank=True)
    due_priority = models.SmallIntegerField(null=True, blank=True)
    due_queue = models.CharField(max_length=100, null=True, blank=True)
    due_agent = models.CharField(max_length=200, null=True, blank=True)
    # Dispatch.version_key of the head; blank: any version may take it.
    due_version = models.CharField(max_length=400, null=True, blank=True, db_collation="C")
    wakes_at = models.DateTimeField(null=True, blank=True)
    blocked_reason = models.CharField(max_length=20, blank=True, default="", choices=BlockedReason.choices)
    # Of what the limit of its scope keeps from starting: due_priority and due_at, as they were.
    blocked_priority = models.SmallIntegerField(null=True, blank=True)
    blocked_since = models.DateTimeField(null=True, blank=True)

    if TYPE_CHECKING:
        active_run_id: uuid.UUID | None
        open_run_id: uuid.UUID | None
        deleted_at: datetime | None
        locked_at: datetime
        _is_judged: bool

    class Meta:
        abstract = True
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    due_at__isnull=True,
                    due_priority__isnull=True,
                    due_queue__isnull=True,
                    due_agent__isnull=True,
                    due_version__isnull=True,
                )
                | Q(
                    due_at__isnull=False,
                    due_priority__isnull=False,
                    due_queue__isnull=False,
                    due_agent__isnull=False,
                    due_version__isnull=False,
                    active_run_id__isnull=True,
                    blocked_reason="",
                ),
                name="thread_due_flag_whole_or_absent",
            ),
            models.CheckConstraint(
                condition=(
                    Q(blocked_reason=BlockedReason.SCOPE_LIMIT, active_run_id__isnull=True)
                    & Q(blocked_priority__isnull=False, blocked_since__isnull=False)
                )
                | (
                    ~Q(blocked_reason=BlockedReason.SCOPE_LIMIT)
                    & Q(blocked_priority__isnull=True, blocked_since__isnull=True)
                ),
                name="thread_blocked_place_iff_scope_limit",
            ),
        ]
        indexes = [
            models.Index(
                fields=["due_queue", "due_agent", "due_version", "due_priority", "due_at", "id"],
                condition=Q(due_at__isnull=False),
                name="thread_due",
            ),
            models.Index(fields=["wakes_at", "id"], condition=Q(wakes_at__isnull=False), name="thread_waking"),
            models.Index(
                fields=["scope", "blocked_priority", "blocked_since", "id"],
                condition=Q(blocked_reason=BlockedReason.SCOPE_LIMIT),
                name="thread_over_scope_limit",
            ),
        ]

    @property
    def is_paused(self) -> bool:
        """Whether nothing of the thread may start until somebody resumes it."""
        return self.blocked_reason == BlockedReason.PAUSED

    def judge(self, found: "list[tuple[Any, ...]] | None" = None) -> None:
        """Rewrite the ready flag from what is queued in the database, in a statement younger than the lock.

        Due: the head can be claimed now. Waking: another can later. Blocked: the open run waits, so nothing else may
        start; or all that is due stands behind a barrier, whose own run cannot start yet; or the thread is paused,
        which nothing but its resuming ends. None of these while a run is claimed:
        whoever settles it judges again. The fence does this when it is left; a verb calls it earlier when what it has
        not written yet changes nothing that is queued. `found`: the rows of HEADS, where the verb's own look has
        brought them.
        """
        self._is_judged, is_paused = True, self.is_paused
        self._clear_flag()
        if self.deleted_at is not None:
            return
        if is_paused:
            self.blocked_reason = BlockedReason.PAUSED
        if is_paused or self.active_run_id is not None:
            return
        if found is None:
            thread = {"thread": self.pk}
            found = ask(HEADS, thread) if self.open_run_id is None else ask(HEAD_OF_RUN, {"run": self.open_run_id})
            if not found and self.open_run_id is not None and ask(HEADS, thread):
                self.blocked_reason = BlockedReason.OPEN_RUN
        for is_due, has_barrier, *head in found:
            if not has_barrier:
                self._point_at(is_due, *head)
            elif past := ask(HEAD_PAST_BARRIER, {"thread": self.pk}):
                self._point_at(True, *past[0])
            else:
                self.blocked_reason = BlockedReason.BARRIER

    def consider(self, dispatch: "Dispatch") -> None:
        """Rewrite the ready flag for one more queued dispatch, the last in order: the flag itself says all else.

        Where it does not say enough, leaving the fence judges: what would go before others that are queued may stand
        behind the barrier of one of them.
        """
        if self.active_run_id is not None or self.is_paused:
            self._is_judged = True
            return
        if self.open_run_id is not None:
            self._is_judged = True
            if self.due_at is None and self.wakes_at is None:
                self.blocked_reason = BlockedReason.OPEN_RUN
            return
        available_at = dispatch.available_at
        is_due = cast(Any, available_at) is NOW or available_at <= self.locked_at
        if is_due and self.blocked_priority is not None:
            self._is_judged = True
            self.blocked_priority = min(self.blocked_priority, dispatch.priority)
        elif is_due and self.due_priority is not None and dispatch.priority >= self.due_priority:
            self._is_judged = True
        elif self.due_at is None and self.wakes_at is None and not self.blocked_reason:
            self._is_judged = True
            self._point_at(
                is_due, available_at, dispatch.priority, dispatch.queue, dispatch.agent, dispatch.version_key
            )
        elif not is_due:
            self._is_judged = True
            self.wakes_at = available_at if self.wakes_at is None else min(self.wakes_at, available_at)

    def block_by_scope(self) -> None:
        """Have the head that was due wait, in its place, until a permit of the scope is given back."""
        priority, since = self.due_priority, self.due_at
        self._is_judged, wakes_at = True, self.wakes_at
        self._clear_flag()
        self.blocked_reason, self.wakes_at = BlockedReason.SCOPE_LIMIT, wakes_at
        self.blocked_priority, self.blocked_since = priority, since

    def _clear_flag(self) -> None:
        self.due_at = self.due_priority = self.due_queue = self.due_agent = self.due_version = self.wakes_at = None
        self.blocked_reason, self.blocked_priority, self.blocked_since = "", None, None

    def _point_at(self, is_due: bool, at: datetime, priority: int, queue: str, agent: str, version: str) -> None:
        if is_due:
            self.due_at, self.due_priority, self.due_queue, self.due_agent = at, priority, queue, agent
            self.due_version = version
        else:
            self.wakes_at = at
