"""Limit how many runs of an agent, or of a scope, execute at once, and how often an agent starts.

What runs goes on, whatever the limit becomes. Runs claimed before it came count all the same: as long as they run, so
many permits fewer are there to be taken.
"""

import logging
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.functions import Now

from mailbox_app.errors import InvalidInput, NotLimited
from mailbox_app.models import BlockedReason, Dispatch, Limit, LimitKind, Permit, Thread
from mailbox_app.models.limit import LONGEST_PERIOD_SECONDS, MOST_AT_ONCE, MOST_STARTS
from mailbox_app.operations import gate, inputs, permits
from mailbox_app.telemetry import after_commit, observe


@dataclass(frozen=True, kw_only=True)
class Put:
    """The limit as it is now. `created`: there was none before."""

    limit: Limit
    created: bool


def put(
    *,
    kind: str,
    name: str,
    most: int | None = None,
    starts: int | None = None,
    seconds: float | None = None,
    note: str = "",
    by: str = "",
) -> Put:
    """Set the limit of an agent or a scope, in place of the one it has; what runs goes on.

    `most`: runs that execute at once, 1 to 1,000. `starts` within `seconds`: how often an agent starts, the next
    attempt of a run as well as its first; so many at once after a rest, then evenly. At least one of the two. It holds
    from the commit on: whoever claims just now is waited for. `note` says why, `by` names who asked. Raises
    InvalidInput, and Retryable when a claim under way does not end.
    """
    kind, name = _target(kind, name)
    given = _bounds(kind, most, starts, seconds)
    given |= {"note": inputs.text("note", note, most=500, may_be_blank=True)}
    given |= {"set_by": inputs.text("by", by, may_be_blank=True)}
    with transaction.atomic():
        gate.close()
        limit = Limit.objects.of(kind, name).select_for_update(no_key=True).first()
        created = limit is None or limit.is_over
        if limit is None:
            limit = Limit(kind=kind, name=name, **given)
            limit.save(force_insert=True)
        else:
            # Another rate begins with a full bucket.
            is_same_rate = (limit.starts, limit.seconds) == (given["starts"], given["seconds"])
            full_at = limit.full_at if is_same_rate else None
            Limit.objects.filter(pk=limit.pk).update(**given, full_at=full_at, set_at=Now())
        limit.refresh_from_db()
        _fit(limit)
        after_commit(permits.let_start, kind, name)
    observe("limit.set", level=logging.WARNING, target=str(limit), bounds=limit.bounds, by=by)
    return Put(limit=limit, created=created)


def remove(*, kind: str, name: str, by: str = "") -> Limit:
    """Take away the limit of an agent or a scope, and let start what it kept; returns what it was.

    Raises InvalidInput, and NotLimited, which changes nothing.
    """
    kind, name = _target(kind, name)
    by = inputs.text("by", by, may_be_blank=True)
    with transaction.atomic():
        limit = Limit.objects.of(kind, name).in_force().select_for_update(no_key=True).first()
        if limit is None:
            raise NotLimited(f"{kind} {name} has no limit", kind=kind, name=name)
        was = Limit.objects.get(pk=limit.pk)
        Limit.objects.filter(pk=limit.pk).update(most=None, starts=None, seconds=None, full_at=None)
        limit.refresh_from_db()
        _fit(limit)
        after_commit(permits.let_start, kind, name)
    observe("limit.removed", level=logging.WARNING, target=str(was), by=by)
    return was


def settle() -> None:
    """Fit the permits of limits that are not yet as they were set to what runs now; for the tick."""
    for pk in Limit.objects.filter(is_settling=True).order_by("pk").values_list("pk", flat=True):
        with transaction.atomic():
            limit = Limit.objects.filter(pk=pk).select_for_update(no_key=True, skip_locked=True).first()
            if limit is not None:
                _fit(limit)
                after_commit(permits.let_start, limit.kind, limit.name)


def refit(ids: Collection[uuid.UUID]) -> None:
    """Have the next tick look at these limits, though nothing seems left to be done for them."""
    Limit.objects.filter(pk__in=ids).update(is_settling=True)


def of_dispatch(dispatch: Dispatch) -> list[Limit]:
    """The limit that keeps a queued dispatch from starting now, if one does: [it], else []."""
    if dispatch.claim_token is not None or dispatch.completed_at is not None:
        return []
    thread = dispatch.thread
    is_next = thread.open_run_id in (None, dispatch.run_id)
    return _keeping(thread, dispatch.agent) if is_next else []


def of_thread(thread: Thread) -> list[Limit]:
    """The limit that keeps a thread's head from starting now, if one does: [it], else []."""
    return _keeping(thread, thread.due_agent)


def _keeping(thread: Thread, agent: str | None) -> list[Limit]:
    if thread.blocked_reason == BlockedReason.SCOPE_LIMIT:
        return list(Limit.objects.of(LimitKind.SCOPE, thread.scope).in_force().with_held())
    if thread.due_at is None:
        return []
    of_agent = Limit.objects.of(LimitKind.AGENT, agent or "").in_force()
    return list(of_agent.reached().with_held())


def _fit(limit: Limit) -> None:
    """Bring the limit's permits to their number; under its row's lock.

    Runs that execute without a permit, claimed before there was a limit, count as if they held one. Where there are too
    many, free permits go at once, and held ones are retired: they go when they have come back. How many there are is
    not changed by those who take and give back meanwhile, and nobody is waited for. A limit that is over goes with its
    last permit.
    """
    mine = Permit.objects.filter(limit=limit)
    # What a claim or the end of one holds just now is left for the next look.
    loose = mine.select_for_update(no_key=True, skip_locked=True).order_by("pk")
    without = _claimed_without_permit(limit).count()
    change = max(0, (limit.most or 0) - without) - mine.filter(is_retired=False).count()
    if change > 0:
        # Whoever executes under one counts first; those that came back go below.
        change -= _set(loose.held().filter(is_retired=True)[:change], is_retired=False)
        Permit.objects.bulk_create([Permit(limit=limit) for _ in range(change)])
        change = 0
    elif change < 0:
        change += _delete(loose.free().filter(is_retired=False)[:-change])
        change += _set(loose.held().filter(is_retired=False)[:-change], is_retired=True) if change else 0
    _delete(loose.free().filter(is_retired=True))
    if limit.is_over and not mine.exists():
        limit.delete()
        return
    limit.is_settling = bool(change or without or limit.is_over or mine.filter(is_retired=True).exists())
    limit.save(update_fields=["is_settling"])


def _claimed_without_permit(limit: Limit) -> QuerySet[Dispatch]:
    claimed = Dispatch.objects.claimed()
    claimed = (
        claimed.filter(agent=limit.name) if limit.kind == LimitKind.AGENT else claimed.filter(run__scope=limit.name)
    )
    return claimed.exclude(Exists(Permit.objects.filter(limit=limit, dispatch_id=OuterRef("pk"))))


def _set(permits: QuerySet[Permit], **values: Any) -> int:
    found = [permit.pk for permit in permits]
    return Permit.objects.filter(pk__in=found).update(**values) if found else 0


def _delete(permits: QuerySet[Permit]) -> int:
    found = [permit.pk for permit in permits]
    return Permit.objects.filter(pk__in=found).delete()[0] if found else 0


def _target(kind: str, name: str) -> tuple[LimitKind, str]:
    return LimitKind(inputs.choice("kind", kind, LimitKind.values)), inputs.text("name", name).strip()


def _bounds(kind: LimitKind, most: Any, starts: Any, seconds: Any) -> dict[str, Any]:
    """The bounds, checked: at least one, and a rate whole, and of an agent."""
    if most is None and starts is None:
        raise InvalidInput("most", "required", "most, or starts and seconds, is required")
    if (starts is None) != (seconds is None):
        missing = "seconds" if seconds is None else "starts"
        raise InvalidInput(missing, "required", "starts and seconds are given together or not at all")
    if starts is not None and kind != LimitKind.AGENT:
        raise InvalidInput("starts", "not_allowed", "starts are limited of agents only")
    return {
        "most": None if most is None else inputs.whole("most", most, least=1, most=MOST_AT_ONCE),
        "starts": None if starts is None else inputs.whole("starts", starts, least=1, most=MOST_STARTS),
        "seconds": None if seconds is None else _period(seconds),
    }


def _period(value: Any) -> float:
    seconds = inputs.duration("seconds", value, most=LONGEST_PERIOD_SECONDS)
    if seconds < 1:
        raise InvalidInput("seconds", "out_of_range", f"seconds must be 1 or more, not {seconds:g}")
    return seconds
