"""Interrupt a thread: what is queued on it never starts, what is open stops, and what is said next comes first."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Q

from mailbox_app import hints
from mailbox_app.errors import DeliveryBlockedByBarrier
from mailbox_app.models import Boundary, Dispatch, Kind, Message, Run, TerminationType, Thread
from mailbox_app.operations import cancel, emit, ending, enqueue, freeze, inputs
from mailbox_app.states import SUPERSEDE, RunStatus

_TERMINATION: dict[str, Any] = {"type": TerminationType.CANCELLED, "detail": "interrupted"}


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """What an interrupt met on the thread, and did about it.

    `run_id` and `outcome`: the open run, and whether it has ended here, or its worker was asked. `waits_for`: the open
    run, when an answer for it is on its way and it was therefore left alone. `held_message_ids`: what nobody will read
    until it is released.
    """

    thread_id: uuid.UUID
    epoch: int
    run_id: uuid.UUID | None = None
    outcome: cancel.Outcome | None = None
    superseded_run_ids: list[uuid.UUID] = field(default_factory=list)
    held_message_ids: list[uuid.UUID] = field(default_factory=list)
    waits_for: uuid.UUID | None = None


@dataclass(kw_only=True)
class Stopped:
    """An interrupted thread: what was met, and each message that has lost its reader, with the run that was it."""

    met: Interruption
    unread: list[tuple[Message, Run]]


@dataclass(kw_only=True)
class _Found:
    """What stands on a thread: its open run, that one's claim, and what is queued, by what becomes of it."""

    open_run: Run | None = None
    claimed: Dispatch | None = None
    superseded: list[Dispatch] = field(default_factory=list)
    restamped: list[Dispatch] = field(default_factory=list)
    has_answers: bool = False

    @property
    def waits(self) -> bool:
        """Whether the open run waits, and nothing is queued by which it goes on."""
        if self.open_run is None or self.has_answers or self.open_run.status != RunStatus.WAITING:
            return False
        return all(dispatch.run_id != self.open_run.pk for dispatch in self.superseded)


def thread(*, scope: str, thread_id: uuid.UUID | str, reason: str = "") -> Interruption:
    """Stop what is open or due on a thread, and hold what was said to it, until somebody releases that.

    1. take the fence and look; 2. raise the epoch; 3. supersede the queued dispatches of older ones: their runs end
    cancelled; 4. end the open run, or ask its worker to stop it; 5. runs scheduled for later, and an open run for which
    an answer is on its way, are left alone and get the new epoch; 6. hold the messages nobody has read; 7. the events.

    On a thread where nothing is open or due, and when it is repeated, it changes nothing. `reason` is told with the
    events. Raises InvalidInput, ThreadNotFound, Gone.
    """
    inputs.text("scope", scope)
    reason = inputs.text("reason", reason, may_be_blank=True)
    found_id = inputs.identifier("thread_id", thread_id) or uuid.UUID(int=0)
    with Thread.objects.fence(found_id, scope=scope) as fenced:
        stopped = stop(fenced, reason=reason, holds=True)
    hints.tell(fenced)
    return stopped.met


def stop(thread: Thread, *, reason: str, holds: bool = False) -> Stopped:
    """Stop what is open or due on a fenced thread.

    `holds`: hold what it leaves unread; else the caller gives that to a run of its own (`pass_on`). Raises
    DeliveryBlockedByBarrier where that run could not come next, and then nothing is stopped.
    """
    thread.flush()
    found = _look(thread)
    unread = _unread(thread, found)
    if not holds:
        _refuse_barred(thread, found, unread)
    is_asked = found.claimed is not None and found.claimed.cancel_requested_at is not None
    stops = bool(found.superseded) or found.waits or (found.claimed is not None and not is_asked)
    if not stops and not (holds and unread):
        return Stopped(met=_met(thread, found), unread=unread)
    thread.epoch += 1
    # What it ends by them keeps the epoch it was queued in.
    for dispatch in found.restamped:
        thread.change(dispatch, epoch=thread.epoch)
    for dispatch in found.superseded:
        ending.drop(thread, dispatch.run, dispatch, by=SUPERSEDE, termination=_TERMINATION, reason=reason)
    if found.waits and found.open_run is not None:
        ending.drop(thread, found.open_run, None, by=SUPERSEDE, termination=_TERMINATION, reason=reason)
    if found.claimed is not None:
        ending.ask(thread, found.claimed, Kind.RUN_INTERRUPTED, reason=reason)
    if holds and unread:
        for message, reader in unread:
            thread.change(message, held=True, run_id=reader.pk)
        thread.pending_revision += 1
    met = _met(thread, found, held=[message.pk for message, _ in unread] if holds else [])
    facts = {
        "reason": reason,
        "run_id": met.run_id and str(met.run_id),
        "superseded_run_ids": [str(pk) for pk in met.superseded_run_ids],
        "held_message_ids": [str(pk) for pk in met.held_message_ids],
    }
    emit.of_thread(thread, Kind.THREAD_INTERRUPTED, epoch=thread.epoch, **facts)
    return Stopped(met=met, unread=unread)


def pass_on(thread: Thread, unread: Sequence[tuple[Message, Run]], queued: enqueue.Queued) -> None:
    """Give what the interrupted runs have not read to the new run, in front of its own; under the fence."""
    for message, reader in unread:
        thread.change(message, run_id=queued.run.pk)
        emit.message_requeued(thread, message, ended=reader, run=queued.run)
    if unread:
        thread.pending_revision += 1


def _look(thread: Thread) -> _Found:
    found = _Found()
    if thread.open_run_id is not None:
        found.open_run = Run.objects.get(pk=thread.open_run_id)
        found.claimed = Dispatch.objects.of_run(found.open_run.pk).claimed().first()
    queued = Dispatch.objects.filter(thread=thread).queued().select_related("run").order_by("order", "id")
    for dispatch in queued:
        run = dispatch.run
        if found.open_run is not None and run.pk == found.open_run.pk:
            # A wait that ends by itself brings no answer.
            found.has_answers = run.status == RunStatus.WAITING and run.resume_at is None
            found.open_run = run
            (found.restamped if found.has_answers else found.superseded).append(dispatch)
        elif dispatch.available_at > thread.locked_at:
            found.restamped.append(dispatch)
        else:
            found.superseded.append(dispatch)
    return found


def _unread(thread: Thread, found: _Found) -> list[tuple[Message, Run]]:
    """What the runs that stop have not read, and a new one may; each with its reader."""
    stopping = {dispatch.run_id: dispatch.run for dispatch in found.superseded}
    if found.open_run is not None and not found.has_answers:
        stopping[found.open_run.pk] = found.open_run
    if not stopping:
        return []
    # Whoever comes reads what has no owner: the open run, or the first that is queued.
    comes = found.open_run or next(iter(stopping.values()))
    pending = Message.objects.filter(thread=thread, held=False).pending().order_by("position", "id")
    unread = []
    for message in pending:
        reader = comes if message.run_id is None else stopping.get(message.run_id)
        if reader is None or reader.pk not in stopping:
            continue
        if freeze.is_eligible(message, boundary=Boundary.NEW_RUN, run=reader):
            unread.append((message, reader))
    return unread


def _refuse_barred(thread: Thread, found: _Found, unread: Sequence[tuple[Message, Run]]) -> None:
    """Refuse a run that would stand behind a barrier until somebody else's time has come.

    That is one of a run scheduled for later, which is left alone; or one that the new run is to read, and nobody may
    before what stands in front of it, which is such a run's.
    """
    scheduled = {dispatch.run_id for dispatch in found.restamped if dispatch.run.status == RunStatus.CREATED}
    if not scheduled:
        return
    concerned = scheduled | {reader.pk for _, reader in unread}
    passed_on = {message.pk for message, _ in unread}
    rows = Message.objects.filter(thread=thread, held=False).pending().order_by("position", "id")
    is_behind = False
    for message in rows.filter(Q(run_id__in=concerned) | Q(run_id__isnull=True)):
        is_behind = is_behind or message.run_id in scheduled
        if message.barrier and is_behind and (message.run_id in scheduled or message.pk in passed_on):
            raise DeliveryBlockedByBarrier(
                f"message {message.pk} is a barrier, and read by a run that is scheduled for later, or after it",
                thread_id=thread.pk,
                message_id=message.pk,
                run_id=message.run_id,
            )


def _met(thread: Thread, found: _Found, *, held: Sequence[uuid.UUID] = ()) -> Interruption:
    open_id = None if found.open_run is None or found.has_answers else found.open_run.pk
    outcome = None
    if open_id is not None:
        outcome = cancel.Outcome.CANCELLED if found.claimed is None else cancel.Outcome.REQUESTED
    return Interruption(
        thread_id=thread.pk,
        epoch=thread.epoch,
        run_id=open_id,
        outcome=outcome,
        superseded_run_ids=[dispatch.run_id for dispatch in found.superseded if dispatch.run_id != open_id],
        held_message_ids=list(held),
        waits_for=found.open_run.pk if found.open_run is not None and found.has_answers else None,
    )
