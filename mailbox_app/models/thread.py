"""A conversation: the unit of order. Its row is the one lock, and the ready flag workers look for."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import connection, models, transaction
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app.errors import Gone, ThreadNotFound
from mailbox_app.models.base import Moving, not_blank, uuid7
from mailbox_app.models.limit import Permit
from mailbox_app.models.outbox import Outbox, OutboxKind, written
from mailbox_app.models.ready import FLAG, ReadyFlag
from mailbox_app.models.writes import Writes, columns, read
from mailbox_app.states import DispatchStatus, Move, RunStatus
from mailbox_app.telemetry import after_commit

if TYPE_CHECKING:
    from django.db.models.fields.related_descriptors import RelatedManager

    from mailbox_app.models.dispatch import Dispatch
    from mailbox_app.models.event import Event
    from mailbox_app.models.message import Message
    from mailbox_app.models.run import Run


# Everything a verb may change on a fenced thread. `_leave` writes a group of which anything differs, and the whole of
# it: what several threads have in common becomes one statement, and one that was planned before.
_GROUPS = (
    ("epoch", "pending_revision", "last_seq", "last_cursor", "pruned_cursor", "next_order", "claim_count"),
    ("active_run_id", "open_run_id", "latest_run_id", "state_run_id"),
    FLAG,
    ("key", "title", "metadata", "deleted_at"),
)
_FENCED_FIELDS = tuple(name for group in _GROUPS for name in group)

# Which workers can take a thread's head: when it changes, others must be woken.
_LANE = ("due_queue", "due_agent", "due_version")

# In the order of the ids, whatever the statement: two verbs that hold several threads must not meet crosswise. The
# clock is read above the lock: a wait for it is over when it is.
_LOCK = """
    SELECT {columns}, clock_timestamp()
    FROM (
        SELECT * FROM mailbox_thread WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR NO KEY UPDATE
    ) AS thread
"""

_LOCK_FREE = """
    SELECT {columns}, clock_timestamp()
    FROM mailbox_thread AS thread WHERE id = ANY(%(ids)s::uuid[]) AND deleted_at IS NULL
    FOR NO KEY UPDATE SKIP LOCKED
"""


class ThreadQuerySet(models.QuerySet["Thread"]):
    def in_scope(self, scope: str) -> "ThreadQuerySet":
        return self.filter(scope=scope)

    def not_deleted(self) -> "ThreadQuerySet":
        return self.filter(deleted_at=None)

    def waking(self) -> "ThreadQuerySet":
        """Threads whose head was scheduled for a time that has come."""
        return self.filter(wakes_at__lte=Now())

    @contextmanager
    def fence(self, thread_id: uuid.UUID, *, scope: str | None = None) -> Iterator["Thread"]:
        """Hold the thread's row (FOR NO KEY UPDATE: inserts that point here need not wait) for one transaction.

        Take it before any other lock. Leaving writes what was done to the thread and its things (`Thread.insert`,
        `move`, `change`, `record`) and its ready flag; an exception writes nothing. Raises ThreadNotFound (also for
        another scope's thread) and Gone.
        """
        with transaction.atomic(), self.hold(self.lock([thread_id], scope=scope)) as threads:
            yield threads[0]

    @contextmanager
    def fence_free(self, *, limit: int) -> Iterator[list["Thread"]]:
        """Hold up to `limit` threads of this queryset that nobody else holds, by one statement; else like `fence`.

        It never waits for a lock, so the order in which the rows are taken cannot deadlock.
        """
        with transaction.atomic():
            free = self.select_for_update(no_key=True, skip_locked=True, of=("self",)).annotate(clock=Now())
            threads = list(free.not_deleted()[:limit])
            for thread in threads:
                thread.locked_at = thread.__dict__.pop("clock")
            with self.hold(threads):
                yield threads

    @contextmanager
    def fence_some(self, ids: Sequence[uuid.UUID]) -> Iterator[list["Thread"]]:
        """Hold those of these threads that nobody else holds, in no particular order; else like `fence`."""
        with transaction.atomic(), self.hold(self.locked(_LOCK_FREE, {"ids": list(ids)})) as threads:
            yield threads

    def lock(self, ids: Sequence[uuid.UUID], *, scope: str | None = None) -> list["Thread"]:
        """Lock these rows in the caller's transaction, in the order of their ids; raises as `fence` does."""
        found = {thread.pk: thread for thread in self.locked(_LOCK, {"ids": list(ids)})}
        for thread_id in ids:
            thread = found.get(thread_id)
            if thread is None or (scope is not None and thread.scope != scope):
                raise ThreadNotFound(f"thread not found: {thread_id}", thread_id=thread_id)
            if thread.deleted_at is not None:
                raise Gone(f"thread {thread_id} was deleted at {thread.deleted_at.isoformat()}", thread_id=thread_id)
        return [found[thread_id] for thread_id in ids]

    def locked(self, sql: str, params: dict[str, Any]) -> list["Thread"]:
        """The threads a locking statement finds; it selects `{columns}` of `thread` and the clock above its lock."""
        threads = []
        for thread, clock in read(Thread, sql.replace("{columns}", columns(Thread, "thread")), params):
            thread.locked_at = clock
            threads.append(thread)
        return threads

    @contextmanager
    def hold(self, threads: "list[Thread]") -> Iterator["list[Thread]"]:
        """Act on threads this transaction has locked, or has just made; leaving writes all that was done."""
        writes = Writes()
        for thread in threads:
            thread._enter(writes)
        yield threads
        _leave(threads, writes)


class Thread(ReadyFlag):
    """One conversation: its lock, its counters and its ready flag."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    scope = models.CharField(max_length=200)
    key = models.CharField(max_length=200, null=True, blank=True)
    title = models.CharField(max_length=500, blank=True, default="")
    metadata = models.JSONField(default=dict, blank=True)
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="children", db_index=False
    )
    epoch = models.BigIntegerField(default=0)
    last_seq = models.BigIntegerField(default=0)
    last_cursor = models.BigIntegerField(default=0)
    pruned_cursor = models.BigIntegerField(default=0)
    next_order = models.BigIntegerField(default=1)
    claim_count = models.BigIntegerField(default=0)
    pending_revision = models.BigIntegerField(default=1)
    # Plain ids, not foreign keys: the rows are written under this row's lock, and a key would only add checks.
    active_run_id = models.UUIDField(null=True, blank=True)
    open_run_id = models.UUIDField(null=True, blank=True)
    latest_run_id = models.UUIDField(null=True, blank=True)
    # The run whose end state the next run starts with.
    state_run_id = models.UUIDField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False)
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects = ThreadQuerySet.as_manager()

    if TYPE_CHECKING:
        dispatches: "RelatedManager[Dispatch]"
        messages: "RelatedManager[Message]"
        runs: "RelatedManager[Run]"
        events: "RelatedManager[Event]"
        parent_id: uuid.UUID | None

    # Set by the fence.
    became_due: bool = False
    # Permits that were given back under it.
    given_back: list[uuid.UUID]
    # Outbox rows that were written under it.
    _sent: list[Outbox]
    _writes: Writes
    _locked: dict[str, Any]
    _locked_at: datetime | None = None
    _is_judged: bool = False

    class Meta:
        constraints = [
            not_blank("thread_scope_not_blank", "scope"),
            models.CheckConstraint(
                condition=Q(key__isnull=True) | Q(key__regex=r"\S"), name="thread_key_null_or_not_blank"
            ),
            # Key first: the admin looks keys up without knowing their scope.
            models.UniqueConstraint(
                fields=["key", "scope"],
                condition=Q(deleted_at__isnull=True, key__isnull=False),
                name="thread_key_unique_in_scope",
            ),
            *ReadyFlag.Meta.constraints,
            models.CheckConstraint(
                condition=Q(last_seq__gte=0, last_cursor__gte=0, epoch__gte=0, claim_count__gte=0)
                & Q(pruned_cursor__gte=0, pruned_cursor__lte=models.F("last_cursor")),
                name="thread_counters_in_range",
            ),
            models.CheckConstraint(
                condition=Q(active_run_id__isnull=True)
                | Q(open_run_id__isnull=False, open_run_id=models.F("active_run_id")),
                name="thread_active_run_is_open_run",
            ),
        ]
        indexes = [
            *ReadyFlag.Meta.indexes,
            models.Index(fields=["scope", "-updated_at", "-id"], name="thread_recent_in_scope"),
            models.Index(fields=["parent"], condition=Q(parent__isnull=False), name="thread_child_of"),
            models.Index(fields=["deleted_at"], condition=Q(deleted_at__isnull=False), name="thread_deleted"),
        ]

    def __str__(self) -> str:
        return self.key or str(self.pk)

    @property
    def locked_at(self) -> datetime:
        """The database's clock when this transaction came to hold the thread."""
        if self._locked_at is None:  # just made: no statement has told it yet
            with connection.cursor() as cursor:
                cursor.execute("SELECT clock_timestamp()")
                self._locked_at = cursor.fetchone()[0]
        return self._locked_at

    @locked_at.setter
    def locked_at(self, clock: datetime) -> None:
        self._locked_at = clock

    @property
    def is_new(self) -> bool:
        """Whether this transaction made the thread, and has not written it yet."""
        return self._state.adding

    def take_order(self) -> int:
        """The next place in the thread's order of runs and pending messages; only under the fence."""
        self.next_order += 1
        return self.next_order - 1

    def insert(self, row: models.Model) -> None:
        """Have the fence write a new row of this thread's; only under the fence."""
        self._writes.insert(row)
        if isinstance(row, Outbox):
            self._sent.append(row)

    def send(self, kind: OutboxKind, target_thread_id: uuid.UUID, payload: dict[str, Any]) -> Outbox:
        """Have the fence write an effect on another thread, and whoever carries it hear of it after the commit."""
        row = Outbox(
            source_thread=self,
            target_thread_id=target_thread_id,
            kind=kind,
            order=self.take_order(),
            available_at=self.locked_at,
            payload=payload,
        )
        self.insert(row)
        return row

    def change(self, row: models.Model, **values: Any) -> None:
        """Have the fence write these attributes of a row, none of them its status; only under the fence."""
        if getattr(row, "STATUS_FIELD", None) in values:
            raise ValueError(f"the status of a {type(row).__name__} changes by a move")
        self._writes.change(row, values)

    def move(self, row: Moving, move: Move, **values: Any) -> None:
        """Have the fence move a row along one edge of `states.py`; only under the fence.

        The caller has looked at the row: leaving the fence raises RuntimeError, and rolls back, if the row is not where
        the edge begins.
        """
        if move.noun != row.NOUN:
            raise ValueError(f"{move.noun}.{move.name} is no move of a {row.NOUN}")
        if move.source == DispatchStatus.CLAIMED and (held := getattr(row, "permit_ids", None)):
            values["permit_ids"] = None
            self._give_back(held)
        if move.noun == "run" and move.target == RunStatus.DONE:
            self._tell_parent(row.pk, getattr(row, "parent_run_id", None))
        self._writes.change(row, {**values, row.STATUS_FIELD: move.target}, source=move.source)

    def _tell_parent(self, run_id: uuid.UUID, parent_run_id: uuid.UUID | None) -> None:
        """Have the run that waits for this one hear of its end, by whatever path it came."""
        if parent_run_id is not None and self.parent_id is not None:
            facts = {"run_id": str(parent_run_id), "child_run_id": str(run_id)}
            self.send(OutboxKind.WAKE, self.parent_id, facts)

    def _give_back(self, permit_ids: Sequence[str]) -> None:
        for permit_id in permit_ids:
            self._writes.change(Permit(pk=uuid.UUID(permit_id)), {"dispatch_id": None})
            self.given_back.append(uuid.UUID(permit_id))

    def flush(self) -> None:
        """Write now what was done so far: for a look that must see it, or an order a unique index asks for."""
        self._writes.flush()

    def record(self, event: "Event") -> "Event":
        """Number an event (cursor: gap-free, in commit order) and have the fence write it; only under the fence."""
        self.last_cursor += 1
        event.thread, event.cursor = self, self.last_cursor
        self.insert(event)
        return event

    def _enter(self, writes: Writes) -> None:
        self._writes, self._is_judged, self.given_back, self._sent = writes, False, [], []
        self._locked = {name: getattr(self, name) for name in _FENCED_FIELDS}

    def _write(self) -> None:
        self.became_due = self.due_at is not None and any(getattr(self, name) != self._locked[name] for name in _LANE)
        if self.is_new:
            self._writes.insert(self)
        else:
            changed = {
                name: getattr(self, name)
                for group in _GROUPS
                if any(getattr(self, one) != self._locked[one] for one in group)
                for name in group
            }
            if changed:
                self._writes.change(self, changed)


def _leave(threads: list[Thread], writes: Writes) -> None:
    """Write what the fence's holder did to its threads: their things, their ready flags, themselves."""
    unjudged = [thread for thread in threads if not thread._is_judged]
    if any(thread.active_run_id is None for thread in unjudged):
        writes.flush()
    for thread in unjudged:
        thread.judge()
    for thread in threads:
        thread._write()
    writes.flush()
    sent = [row for thread in threads for row in thread._sent]
    if sent:
        after_commit(_tell_carriers, sent)


def _tell_carriers(rows: list[Outbox]) -> None:
    written.send_robust(sender=Outbox, rows=rows)
