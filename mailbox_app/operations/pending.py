"""What was said to a thread and nobody has read: change it, withdraw it, put it in order, release what is held.

Until the run that reads a message starts, or reaches the boundary at which it does. A message has a `revision`, all
that is pending on the thread a `pending_revision`: a caller who names the number it has seen changes nothing that
somebody else has changed since.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Min

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput
from mailbox_app.models import Boundary, Dispatch, Kind, Message, Run, TerminationType, Thread
from mailbox_app.operations import agents, emit, ending, enqueue, feed, freeze, inputs, waits, zone
from mailbox_app.operations.enqueue import Queued
from mailbox_app.states import RETRACT, WITHDRAW, RunStatus

RETRACT_REASON = "withdrawn"
_RETRACTED: dict[str, Any] = {"type": TerminationType.CANCELLED, "detail": "messages_retracted"}

# As long as the column.
_MAX_REASON = 100
# A caller who orders more has lost sight of the thread; so many rows are rewritten within a second or two.
_MOST_ORDERED = 10_000


@dataclass(frozen=True, kw_only=True)
class Edited:
    """The message as it is now."""

    message: Message
    pending_revision: int


@dataclass(frozen=True, kw_only=True)
class Retracted:
    """A message that will never be read; and the run that has ended because it was to read nothing else, or the queued
    dispatch by which a waiting run would have gone on with it."""

    thread_id: uuid.UUID
    message_id: uuid.UUID
    cancelled_run_id: uuid.UUID | None
    withdrawn_dispatch_id: uuid.UUID | None
    pending_revision: int


@dataclass(frozen=True, kw_only=True)
class Reordered:
    """The messages that stand somewhere else than before, in their order, and the queued runs that do."""

    thread_id: uuid.UUID
    message_ids: list[uuid.UUID]
    run_ids: list[uuid.UUID]
    pending_revision: int


@dataclass(frozen=True, kw_only=True)
class Released:
    """The messages that were held until now, and the new runs that will read them, in their order."""

    thread_id: uuid.UUID
    message_ids: list[uuid.UUID]
    run_ids: list[uuid.UUID]
    pending_revision: int


def edit(
    *,
    scope: str,
    thread_id: uuid.UUID | str,
    message_id: uuid.UUID | str,
    content: Any = None,
    metadata: Mapping[str, Any] | None = None,
    revision: int | None = None,
) -> Edited:
    """Give a pending message another content, other metadata (the whole of it), or both; None leaves what is.

    `revision`: change nothing unless it still is the message's. Whoever reads the message reads it whole, before or
    after. Raises InvalidInput, ThreadNotFound, MessageNotFound, Gone, AlreadyConsumed, RevisionConflict.
    """
    inputs.text("scope", scope)
    found_id, wanted = zone.ids(thread_id, message_id)
    zone.check_revision("revision", revision)
    given: dict[str, Any] = {}
    if content is not None:
        given["content"] = inputs.content("content", content)
    if metadata is not None:
        given["metadata"] = inputs.mapping("metadata", metadata)
    if not given:
        raise InvalidInput("content", "required", "content, metadata or both are required")
    with Thread.objects.fence(found_id, scope=scope) as thread:
        message = zone.find(thread, wanted)
        zone.refuse_stale_message(thread, message, revision)
        changed = {name: value for name, value in given.items() if getattr(message, name) != value}
        if changed:
            thread.change(message, revision=message.revision + 1, **changed)
            thread.pending_revision += 1
            emit.message_edited(thread, message, changed=sorted(changed))
    hints.tell(thread)
    return Edited(message=message, pending_revision=thread.pending_revision)


def retract(
    *,
    scope: str,
    thread_id: uuid.UUID | str,
    message_id: uuid.UUID | str,
    reason: str = "",
    revision: int | None = None,
) -> Retracted:
    """Withdraw a pending message, held or not: nobody will read it.

    1. take the fence, look at the message and its guard; 2. retract it; 3. a run that has not started and was to read
    nothing else is cancelled; a waiting run that was to go on with nothing else goes on waiting; 4. the events.

    `revision`: as for `edit`. `reason` is kept with the message. Raises InvalidInput, ThreadNotFound, MessageNotFound,
    Gone (also when it was retracted before), AlreadyConsumed, RevisionConflict.
    """
    inputs.text("scope", scope)
    found_id, wanted = zone.ids(thread_id, message_id)
    zone.check_revision("revision", revision)
    reason = inputs.text("reason", reason, most=_MAX_REASON, may_be_blank=True).strip() or RETRACT_REASON
    with Thread.objects.fence(found_id, scope=scope) as thread:
        message = zone.find(thread, wanted)
        zone.refuse_stale_message(thread, message, revision)
        run = message.run
        thread.move(message, RETRACT, retract_reason=reason)
        thread.pending_revision += 1
        emit.message_retracted(thread, message, run)
        cancelled_run_id = None
        if run is not None and run.status == RunStatus.CREATED and not _is_wanted(thread, run, message):
            queued = Dispatch.objects.of_run(run.pk).queued().first()
            ending.drop(thread, run, queued, by=WITHDRAW, termination=_RETRACTED, reason=reason)
            cancelled_run_id = run.pk
        withdrawn = _unneeded_resume(thread, message)
        if withdrawn is not None:
            thread.move(withdrawn, WITHDRAW, completed_at=thread.locked_at, run_status=RunStatus.WAITING)
            waits.erase_record(withdrawn.run)
        feed.nudge(thread)
    hints.tell(thread)
    return Retracted(
        thread_id=thread.pk,
        message_id=message.pk,
        cancelled_run_id=cancelled_run_id,
        withdrawn_dispatch_id=None if withdrawn is None else withdrawn.pk,
        pending_revision=thread.pending_revision,
    )


def reorder(
    *,
    scope: str,
    thread_id: uuid.UUID | str,
    message_ids: Sequence[uuid.UUID | str],
    pending_revision: int | None = None,
) -> Reordered:
    """Put these pending messages in front of all others, in this order; the others keep theirs.

    1. take the fence, look at messages and guard; 2. give the messages that move the places there are; 3. a queued run
    stands where the first message it will read does: move those whose place is not right any more; 4. the event.

    `pending_revision`: change nothing unless it still is the thread's. An order that is so already changes nothing.
    Raises InvalidInput, ThreadNotFound, MessageNotFound, Gone, AlreadyConsumed, RevisionConflict.
    """
    inputs.text("scope", scope)
    found_id = inputs.identifier("thread_id", thread_id) or uuid.UUID(int=0)
    wanted = zone.list_of_ids(message_ids, most=_MOST_ORDERED)
    if len(set(wanted)) != len(wanted):
        raise InvalidInput("message_ids", "duplicate_id", "message_ids names the same message twice")
    zone.check_revision("pending_revision", pending_revision)
    with Thread.objects.fence(found_id, scope=scope) as thread:
        found = zone.find_all(thread, wanted)
        zone.refuse_stale(thread, pending_revision)
        last = max(message.position for message in found)
        concerned = Message.objects.filter(thread=thread, position__lte=last).pending().order_by("position", "id")
        rows = list(concerned.only("id", "position", "revision", "run_id", "held"))
        by_id = {row.pk: row for row in rows}
        front = [by_id.pop(pk) for pk in wanted]
        places = [row.position for row in rows]
        moved = [(row, place) for row, place in zip([*front, *by_id.values()], places, strict=True)]
        moved = [(row, place) for row, place in moved if row.position != place]
        run_ids: list[uuid.UUID] = []
        if moved:
            for row, place in moved:
                thread.change(row, position=place, revision=row.revision + 1)
            run_ids = _move_runs(thread, rows, last)
            feed.nudge(thread)
            thread.pending_revision += 1
            emit.of_thread(
                thread,
                Kind.MESSAGES_REORDERED,
                message_ids=[str(pk) for pk in wanted],
                run_ids=[str(pk) for pk in run_ids],
                pending_revision=thread.pending_revision,
            )
    hints.tell(thread)
    return Reordered(
        thread_id=thread.pk,
        message_ids=[row.pk for row, _ in moved],
        run_ids=run_ids,
        pending_revision=thread.pending_revision,
    )


def release(
    *,
    scope: str,
    thread_id: uuid.UUID | str,
    message_ids: Sequence[uuid.UUID | str] | None = None,
    pending_revision: int | None = None,
) -> Released:
    """Have held messages of a thread (None: all of them) read: by new runs, each as the run was that lost them.

    A new run takes the place of its first message in the thread's order. What is not held any more is left as it is.
    `pending_revision`: as for `reorder`. Raises InvalidInput, ThreadNotFound, Gone, MessageNotFound, RevisionConflict,
    UnknownAgent; each changes nothing.
    """
    inputs.text("scope", scope)
    found_id = inputs.identifier("thread_id", thread_id) or uuid.UUID(int=0)
    wanted = None if message_ids is None else set(zone.list_of_ids(message_ids, most=conf.max_messages))
    zone.check_revision("pending_revision", pending_revision)
    with Thread.objects.fence(found_id, scope=scope) as thread:
        held = Message.objects.filter(thread=thread, held=True).pending().select_related("run")
        if wanted is not None:
            zone.refuse_unknown(thread, wanted)
            held = held.filter(pk__in=wanted)
        zone.refuse_stale(thread, pending_revision)
        found = list(held.order_by("position", "id"))
        lost: dict[Run | None, list[Message]] = {}
        for message in found:
            lost.setdefault(message.run, []).append(message)
        queued = [_requeued(thread, run, messages) for run, messages in lost.items()]
    hints.tell(thread)
    return Released(
        thread_id=thread.pk,
        message_ids=[message.pk for message in found],
        run_ids=[one.run.pk for one in queued if one is not None],
        pending_revision=thread.pending_revision,
    )


def _is_wanted(thread: Thread, run: Run, retracted: Message) -> bool:
    """Whether a run that has not started will read something else, or must: nobody else would."""
    left = [message for message in freeze.unread(thread=thread, run=run) if message.pk != retracted.pk]
    if any(message.run_id == run.pk for message in left):
        return True
    if not any(freeze.is_eligible(message, boundary=Boundary.NEW_RUN, run=run) for message in left):
        return False
    return not Run.objects.filter(thread=thread).not_done().exclude(pk=run.pk).exists()


def _unneeded_resume(thread: Thread, retracted: Message) -> Dispatch | None:
    """The queued dispatch by which the waiting run would have gone on with this message, and with no other."""
    run = None if thread.open_run_id is None else Run.objects.get(pk=thread.open_run_id)
    if run is None or retracted.held or not _feeds(retracted, run):
        return None
    if run.status != RunStatus.WAITING or (run.waiting or {}).get("reason") != waits.USER_INPUT:
        return None
    if any(_feeds(message, run) for message in freeze.unread(thread=thread, run=run) if message.pk != retracted.pk):
        return None
    return Dispatch.objects.of_run(run.pk).queued().select_related("run").first()


def _feeds(message: Message, run: Run) -> bool:
    return freeze.is_eligible(message, boundary=Boundary.RESUME_INPUT, run=run)


def _move_runs(thread: Thread, rows: Sequence[Message], last: int) -> list[uuid.UUID]:
    """Put the queued runs up to this place in the order of the first messages they will read; those that moved."""
    queued = Dispatch.objects.filter(thread=thread, order__lte=last).queued().select_related("run")
    waiting = {dispatch.run_id: dispatch for dispatch in queued if dispatch.run.status == RunStatus.CREATED}
    own = Message.objects.filter(thread=thread, run_id__in=waiting, held=False, position__gt=last).pending()
    first: dict[Any, int] = dict(own.order_by().values_list("run_id").annotate(Min("position")))
    for row in rows:
        if row.run_id in waiting and not row.held:
            first[row.run_id] = min(row.position, first.get(row.run_id, row.position))
    # A place somebody's message stands in is that one's: a run of its own may come to stand there.
    places = {row.position for row in rows}
    moved, before = [], 0
    for place, run_id in sorted((place, run_id) for run_id, place in first.items()):
        dispatch = waiting[run_id]
        # A run was made before its messages: its own number, too, is right between theirs and those in front.
        if not before < dispatch.order <= place or dispatch.order in places - {place}:
            thread.change(dispatch.run, order=place)
            thread.change(dispatch, order=place)
            moved.append(run_id)
        before = place
    return moved


def _requeued(thread: Thread, run: Run | None, messages: list[Message]) -> Queued | None:
    ended = run or Run.objects.filter(thread=thread).latest("order")
    last = Dispatch.objects.of_run(ended.pk).order_by("created_at", "id").last()
    return enqueue.unread(thread=thread, ended=ended, dispatch=last or _as_asked(ended), messages=messages)


def _as_asked(run: Run) -> Dispatch:
    """What the agent asks for, where the run's own dispatch is past its retention."""
    wishes = agents.options(run.agent)
    return Dispatch(
        queue=wishes.get("queue") or conf.default_queue,
        priority=wishes.get("priority", conf.default_priority),
        max_attempts=wishes.get("max_attempts", conf.max_attempts),
    )
