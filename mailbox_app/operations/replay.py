"""Deal with a dead letter, once: run it again as a new run, or say that it was looked at."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.db import IntegrityError, OperationalError, connection
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app import hints
from mailbox_app.errors import (
    AlreadyResolved,
    Conflict,
    DeadLetterNotFound,
    DuplicateKey,
    Gone,
    NothingToReplay,
    Retryable,
)
from mailbox_app.models import Dispatch, Kind, Message, Resolution, Run, Thread
from mailbox_app.models.dispatch import DispatchQuerySet
from mailbox_app.operations import emit, inputs, reread
from mailbox_app.states import DispatchStatus

MOST_AT_ONCE = 1000
# SQLSTATE of deadlock_detected and serialization_failure.
_LOST_TO_ANOTHER = ("40P01", "40001")

# The ORM has no INSERT … SELECT, and results may be megabytes each: they need not come here and go back.
_COPY_JOURNAL = """
    INSERT INTO mailbox_journalentry (run_id, turn, verb, name, key, n, arguments_hash, result)
    SELECT %(to)s, turn, verb, name, key, n, arguments_hash, result
    FROM mailbox_journalentry WHERE run_id = %(from)s AND turn = %(turn)s
    ORDER BY id
"""


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The new run that a dead letter became."""

    thread_id: uuid.UUID
    run_id: uuid.UUID
    dispatch_id: uuid.UUID
    replay_of: uuid.UUID
    status: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one call did. `has_more`: more dead letters match than it went through."""

    replayed: list[Replayed] = field(default_factory=list)
    # (dispatch id, error code) of those that were refused; they stay as they are.
    refused: list[tuple[uuid.UUID, str]] = field(default_factory=list)
    has_more: bool = False


def one(*, dispatch_id: uuid.UUID, by: str, scope: str | None = None, fresh: bool = False) -> Replayed:
    """Run a dead letter again: a new run on its thread that reads what the dead one had read.

    1. find it, take its thread's fence; 2. resolve it, by compare-and-set; 3. gather its input; 4. write the new run
    with the same agent, configuration, options, turn and starting state, the journal of that turn (none if `fresh`, for
    code that has changed under it) and a dispatch with the same queue, priority and attempts; 5. events.

    `by` names who asked and is kept with the run's origin. Raises DeadLetterNotFound, Gone, AlreadyResolved,
    NothingToReplay, SnapshotUnreadable, SnapshotTooNew, DuplicateKey (another run holds the dead one's dedupe key),
    Retryable; each changes nothing.
    """
    by = inputs.text("by", by)
    thread_id = _find(dispatch_id, scope)
    dedupe_key: str | None = None
    try:
        with Thread.objects.fence(thread_id) as thread:
            dead = _resolve(dispatch_id, Resolution.REPLAYED)
            dedupe_key = dead.run.dedupe_key
            messages = reread.whole_turn(dead.run)
            if not messages:
                raise NothingToReplay(f"run {dead.run_id} had read nothing", run_id=dead.run_id)
            again = _run(thread, dead.run, messages, by)
            if not fresh:
                with connection.cursor() as cursor:
                    cursor.execute(_COPY_JOURNAL, {"from": dead.run_id, "to": again.pk, "turn": again.turn})
            dispatch = _dispatch(thread, dead, again)
            thread.latest_run_id = again.pk
            emit.of_operator(thread, Kind.DEAD_LETTER_REPLAYED, dead, by=by, fresh=fresh, replayed_as=str(again.pk))
            emit.of_dispatch(
                thread,
                Kind.RUN_QUEUED,
                dispatch,
                replay_of=str(dead.run_id),
                message_ids=again.input["message_ids"],
                available_at=dispatch.available_at.isoformat(),
            )
    except IntegrityError as error:
        if _constraint(error) != "run_dedupe_key_unique_while_not_done":
            raise
        raise DuplicateKey(
            f"another run holds the dedupe key {dedupe_key!r}", dedupe_key=dedupe_key, dispatch_id=dispatch_id
        ) from error
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) not in _LOST_TO_ANOTHER:
            raise
        raise Retryable("another transaction was in the way; try again") from error
    hints.tell(thread)
    return Replayed(
        thread_id=thread.pk,
        run_id=again.pk,
        dispatch_id=dispatch.pk,
        replay_of=dead.run_id,
        status=again.status,
    )


def discard(*, dispatch_id: uuid.UUID, by: str, reason: str = "", scope: str | None = None) -> None:
    """Say that a dead letter was looked at and will not be run again; then it is kept no longer than any dispatch.

    Raises DeadLetterNotFound, Gone, AlreadyResolved.
    """
    by, reason = inputs.text("by", by), inputs.text("reason", reason, may_be_blank=True)
    thread_id = _find(dispatch_id, scope)
    with Thread.objects.fence(thread_id) as thread:
        dead = _resolve(dispatch_id, Resolution.DISCARDED)
        emit.of_operator(thread, Kind.DEAD_LETTER_DISCARDED, dead, by=by, reason=reason)
    hints.tell(thread)


def many(
    *,
    by: str,
    scope: str | None = None,
    agent: str | None = None,
    queue: str | None = None,
    code: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    limit: int = 100,
    fresh: bool = False,
) -> Batch:
    """Replay up to `limit` dead letters that match, the oldest first, each in a transaction of its own.

    One that is refused (its thread is gone, somebody was quicker, its dedupe key is held) is told and passed over, up
    to `limit` of them. `code` is the error's.
    """
    limit = inputs.whole("limit", limit, least=1, most=MOST_AT_ONCE)
    rows = matching(
        scope=scope, agent=agent, queue=queue, code=code, created_after=created_after, created_before=created_before
    ).order_by("completed_at", "id")
    replayed: list[Replayed] = []
    refused: list[tuple[uuid.UUID, str]] = []
    passed = Q()
    while True:
        wanted = min(limit - len(replayed), limit - len(refused))
        found = list(rows.filter(passed).values_list("pk", "completed_at")[: wanted + 1])
        for dispatch_id, _ in found[:wanted]:
            try:
                replayed.append(one(dispatch_id=dispatch_id, by=by, scope=scope, fresh=fresh))
            except (Conflict, Gone, DeadLetterNotFound, Retryable) as error:
                refused.append((dispatch_id, error.code))
        has_more = len(found) > wanted
        if not has_more or limit in (len(replayed), len(refused)):
            return Batch(replayed=replayed, refused=refused, has_more=has_more)
        last_id, reached = found[wanted - 1]
        passed = Q(completed_at__gte=reached) & (Q(completed_at__gt=reached) | Q(pk__gt=last_id))


def matching(
    *,
    scope: str | None = None,
    agent: str | None = None,
    queue: str | None = None,
    code: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> DispatchQuerySet:
    """Dead letters nobody has dealt with, on threads that were not deleted; a filter that is None filters nothing."""
    given: dict[str, Any] = {
        "thread__scope": scope,
        "agent": agent,
        "queue": queue,
        "error__code": code,
        "created_at__gte": inputs.instant("created_after", created_after),
        "created_at__lt": inputs.instant("created_before", created_before),
    }
    filters = {name: value for name, value in given.items() if value is not None}
    return Dispatch.objects.dead_letters().filter(thread__deleted_at=None, **filters)


def _find(dispatch_id: uuid.UUID, scope: str | None) -> uuid.UUID:
    """The thread of a dead letter, dealt with or not."""
    rows = Dispatch.objects.filter(pk=dispatch_id, status=DispatchStatus.DEAD_LETTER)
    if scope is not None:
        rows = rows.filter(thread__scope=scope)
    thread_id = rows.values_list("thread_id", flat=True).first()
    if thread_id is None:
        raise DeadLetterNotFound(f"dead letter not found: {dispatch_id}", dispatch_id=dispatch_id)
    return thread_id


def _resolve(dispatch_id: uuid.UUID, resolution: Resolution) -> Dispatch:
    """Deal with it, unless somebody was quicker; under the fence."""
    unresolved = Dispatch.objects.filter(pk=dispatch_id).dead_letters()
    resolved = unresolved.update(resolution=resolution, resolved_at=Now(), updated_at=Now())
    dead = Dispatch.objects.select_related("run").filter(pk=dispatch_id).first()
    if dead is None:
        raise DeadLetterNotFound(f"dead letter not found: {dispatch_id}", dispatch_id=dispatch_id)
    if not resolved:
        replay = Run.objects.filter(replay_of=dead.run_id).order_by("-order").values_list("pk", flat=True).first()
        raise AlreadyResolved(
            f"dead letter {dispatch_id} was {dead.resolution} at {dead.resolved_at}",
            dispatch_id=dispatch_id,
            resolution=dead.resolution,
            run_id=replay,
        )
    return dead


def _run(thread: Thread, dead: Run, messages: Sequence[Message], by: str) -> Run:
    return Run.objects.create(
        scope=dead.scope,
        thread=thread,
        agent=dead.agent,
        config_version=dead.config_version,
        dedupe_key=dead.dedupe_key,
        replay_of=dead,
        turn=dead.turn,
        order=thread.take_order(),
        input={
            "from_seq": messages[0].seq,
            "to_seq": messages[-1].seq,
            "message_ids": [str(message.pk) for message in messages],
        },
        state=dead.state,
        activation=replace(dead.snapshot, origin="replay", posted=None, digest=None, replayed_by=by).write(),
    )


def _dispatch(thread: Thread, dead: Dispatch, run: Run) -> Dispatch:
    return Dispatch.objects.create(
        thread=thread,
        run=run,
        agent=run.agent,
        queue=dead.queue,
        priority=dead.priority,
        order=run.order,
        epoch=thread.epoch,
        # The fence's clock, so that it is due the moment its transaction commits.
        available_at=thread.locked_at,
        max_attempts=dead.max_attempts,
    )


def _constraint(error: IntegrityError) -> str | None:
    return getattr(getattr(error.__cause__, "diag", None), "constraint_name", None)
