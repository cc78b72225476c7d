"""Delete what is past its retention, in small batches. Every `gc_seconds`."""

from datetime import timedelta
from typing import Any

from django.db.models import Exists, Max, OuterRef, QuerySet
from django.db.models.functions import Now

from mailbox_app.conf import conf
from mailbox_app.models import (
    AgentRegistration,
    Dispatch,
    Event,
    IdempotencyKey,
    JournalEntry,
    Message,
    Outbox,
    Run,
    Thread,
    Ticket,
)
from mailbox_app.states import DispatchStatus, OutboxStatus


def batch() -> int:
    """Delete up to one batch of each kind of row; returns how many went."""
    return _dispatches() + _events() + _outbox() + _threads() + _idempotency_keys() + _registrations()


def _dispatches() -> int:
    """Finished dispatches of done runs; a dead letter nobody dealt with stays for its own, longer time."""
    rows = Dispatch.objects.terminal().filter(run__finished_at__isnull=False)
    old = rows.filter(completed_at__lt=_ago(conf.dispatch_retention_seconds))
    dead = Dispatch.objects.dead_letters().filter(completed_at__lt=_ago(conf.dead_letter_retention_seconds))
    kept = old.exclude(status=DispatchStatus.DEAD_LETTER, resolution="")
    return _delete(kept.order_by("completed_at", "id")) + _delete(dead.order_by("completed_at", "id"))


def _events() -> int:
    """Old events; a thread remembers how far it lost them.

    Not those of a thread with an unresolved dead letter, nor of a deleted thread: they go with it.
    """
    kept = Dispatch.objects.dead_letters().filter(thread_id=OuterRef("thread_id"))
    old = Event.objects.filter(created_at__lt=_ago(conf.event_retention_seconds)).exclude(Exists(kept))
    found = list(
        old.filter(thread__deleted_at=None).order_by("created_at", "id").values_list("pk", flat=True)[: conf.batch_size]
    )
    pruned = 0
    for row in Event.objects.filter(pk__in=found).values("thread_id").annotate(last=Max("cursor")):
        with Thread.objects.filter(pk=row["thread_id"]).order_by("id").fence_free(limit=1) as threads:
            for thread in threads:
                # Everything up to the cursor goes, so that what is left has no gap.
                gone = Event.objects.filter(thread=thread, cursor__lte=row["last"]).delete()[0]
                thread.pruned_cursor = max(thread.pruned_cursor, row["last"])
                pruned += gone
    return pruned


def _outbox() -> int:
    """What was delivered; what was given up stays as long as a dead letter."""
    delivered = Outbox.objects.filter(status=OutboxStatus.DELIVERED)
    old = delivered.filter(completed_at__lt=_ago(conf.outbox_retention_seconds))
    dead = Outbox.objects.filter(status=OutboxStatus.DEAD_LETTER)
    given_up = dead.filter(completed_at__lt=_ago(conf.dead_letter_retention_seconds))
    return _delete(old.order_by("completed_at", "id")) + _delete(given_up.order_by("completed_at", "id"))


def _threads() -> int:
    """Deleted threads with all that is theirs, in batches of rows: the thread itself goes last.

    One with a dead letter nobody dealt with stays as long as that does.
    """
    kept = Dispatch.objects.dead_letters().filter(thread_id=OuterRef("pk"))
    old = Thread.objects.filter(deleted_at__lt=_ago(conf.deleted_thread_retention_seconds)).exclude(Exists(kept))
    found = list(old.order_by("deleted_at", "id").values_list("pk", flat=True)[: conf.batch_size])
    pruned = 0
    belongings: tuple[QuerySet[Any], ...] = (
        Event.objects.filter(thread_id__in=found),
        JournalEntry.objects.filter(run__thread_id__in=found),
        Ticket.objects.filter(run__thread_id__in=found),
        Outbox.objects.filter(source_thread_id__in=found),
        Message.objects.filter(thread_id__in=found),
        Dispatch.objects.filter(thread_id__in=found),
        Run.objects.filter(thread_id__in=found),
    )
    for rows in belongings:
        pruned += _delete(rows.order_by("pk"))
        if pruned >= conf.batch_size:
            return pruned
    return pruned + _delete(Thread.objects.filter(pk__in=found).order_by("pk"))


def _idempotency_keys() -> int:
    old = IdempotencyKey.objects.filter(created_at__lt=_ago(conf.idempotency_retention_seconds))
    return _delete(old.order_by("created_at", "id"))


def _registrations() -> int:
    gone = AgentRegistration.objects.filter(seen_at__lt=_ago(conf.registration_retention_seconds))
    return _delete(gone.order_by("seen_at", "id"))


def _ago(seconds: float) -> Any:
    return Now() - timedelta(seconds=seconds)


def _delete(rows: QuerySet[Any]) -> int:
    """Delete one batch; returns how many rows of the kind itself went."""
    found = list(rows.values_list("pk", flat=True)[: conf.batch_size])
    if not found:
        return 0
    deleted = rows.model._default_manager.filter(pk__in=found).delete()[1]
    return int(deleted.get(rows.model._meta.label, 0))
