"""Do what the clock asks for, every `due_tick_seconds` (several at once do no harm), or what is made to come now."""

import uuid
from dataclasses import dataclass

from django.db.models import Exists, OuterRef
from django.db.models.functions import Now

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.errors import NotScheduled, RunNotFound
from mailbox_app.models import Dispatch, Kind, Run, Thread, Ticket
from mailbox_app.operations import emit, ending, inputs, tickets
from mailbox_app.states import LIVE_DISPATCH


def promote() -> int:
    """Rewrite the ready flag of threads whose head was scheduled, or backing off, until now; returns how many.

    One batch in one transaction. A thread somebody holds just now is left to its holder, who rewrites the flag too.
    """
    waking = Thread.objects.waking().order_by("wakes_at", "id")
    with waking.fence_free(limit=conf.batch_size) as threads:
        pass  # leaving the fence judges each thread again
    for thread in threads:
        hints.tell(thread)
    return len(threads)


def expire_tickets() -> int:
    """Let up to one batch of questions lapse that nobody has answered in time, their runs with it; returns how many.

    One transaction a thread. A thread somebody holds just now is left to the next pass.
    """
    overdue = Ticket.objects.overdue().order_by("expires_at", "id")
    found = list(overdue.values_list("run__thread_id", flat=True)[: conf.batch_size])
    return sum(_lapse_on(thread_id) for thread_id in dict.fromkeys(found))


def _lapse_on(thread_id: uuid.UUID) -> int:
    lapsed = 0
    with Thread.objects.filter(pk=thread_id).order_by("id").fence_free(limit=1) as threads:
        for thread in threads:
            # Under the fence: an answer that came first counts.
            overdue = list(Ticket.objects.overdue().filter(run__thread=thread).select_related("run").order_by("id"))
            by_run = {ticket.run_id: ticket.run for ticket in overdue}
            for run in by_run.values():
                tickets.lapse(thread, run, [ticket for ticket in overdue if ticket.run_id == run.pk])
            lapsed = len(overdue)
    for thread in threads:
        hints.tell(thread)
    return lapsed


def expire_waits() -> int:
    """End up to one batch of runs whose wait nobody has ended in time, one transaction a thread; returns how many."""
    overdue = Run.objects.overdue().exclude(_goes_on()).order_by("wait_until", "id")
    found = list(overdue.values_list("thread_id", flat=True)[: conf.batch_size])
    return sum(_expire_on(thread_id) for thread_id in found)


def _expire_on(thread_id: uuid.UUID) -> int:
    with Thread.objects.filter(pk=thread_id).order_by("id").fence_free(limit=1) as threads:
        for thread in threads:
            # Under the fence: a resume that came first has saved it.
            run = Run.objects.overdue().exclude(_goes_on()).filter(thread=thread).first()
            if run is None:
                return 0
            ending.expire_wait(thread, run)
    for thread in threads:
        hints.tell(thread)
    return len(threads)


def _goes_on() -> Exists:
    return Exists(Dispatch.objects.filter(run_id=OuterRef("pk"), status__in=LIVE_DISPATCH))


@dataclass(frozen=True, kw_only=True)
class MadeDue:
    """The dispatch that may start now. `changed`: it could not before."""

    thread_id: uuid.UUID
    run_id: uuid.UUID
    dispatch_id: uuid.UUID
    changed: bool


def run_now(*, run_id: uuid.UUID, by: str = "", scope: str | None = None) -> MadeDue:
    """Let a run that is scheduled for later, or backing off, start now; one that could already is left alone.

    It keeps its place: what goes before it on its thread still does. `by` names who asked, for operators. Raises
    RunNotFound, Gone, and NotScheduled when nothing of it is queued.
    """
    by = inputs.text("by", by, may_be_blank=True)
    runs = Run.objects.filter(pk=run_id)
    if scope is not None:
        runs = runs.in_scope(scope)
    thread_id = runs.values_list("thread_id", flat=True).first()
    if thread_id is None:
        raise RunNotFound(f"run not found: {run_id}", run_id=run_id)
    with Thread.objects.fence(thread_id) as thread:
        dispatch = Dispatch.objects.of_run(run_id).queued().first()
        if dispatch is None:
            status = Run.objects.values_list("status", flat=True).get(pk=run_id)
            raise NotScheduled(f"run {run_id} is {status} and has nothing queued", run_id=run_id, run_status=status)
        changed = dispatch.available_at > thread.locked_at
        if changed:
            Dispatch.objects.filter(pk=dispatch.pk).update(available_at=thread.locked_at, updated_at=Now())
            emit.of_dispatch(thread, Kind.RUN_RESCHEDULED, dispatch, reason="run_now")
            emit.of_operator(thread, Kind.RUN_MADE_DUE, dispatch, by=by)
    hints.tell(thread)
    return MadeDue(thread_id=thread.pk, run_id=run_id, dispatch_id=dispatch.pk, changed=changed)
