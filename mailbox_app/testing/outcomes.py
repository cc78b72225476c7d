"""Say what must have come of a run, and answer what it asks."""

import uuid
from collections.abc import Sequence
from typing import Any
from unittest.mock import ANY

from mailbox_app.models import Dispatch, Event, Kind, Message, Role, Run, Thread, Ticket
from mailbox_app.operations import decide
from mailbox_app.operations.submit import Receipt
from mailbox_app.states import DispatchStatus, RunStatus

OfRun = Run | Receipt | uuid.UUID | str
OfThread = Thread | Run | Receipt | uuid.UUID | str


def assert_run_finished(run: OfRun, output: Any = ANY) -> Run:
    """The run came to its natural end, with this output (any, if none is given); returns its row as it is now."""
    row = _run(run)
    if row.status != RunStatus.DONE or (row.termination or {}).get("type") != "natural_end":
        raise AssertionError(f"the run has not finished: {_described(row)}")
    if not (row.final_output == output):  # ANY knows == alone
        raise AssertionError(f"the run's output is {row.final_output!r}, not {output!r}")
    return row


def assert_dead_letter(run: OfRun, code: str | None = None) -> Dispatch:
    """The run failed for good, with this error code (any, if none is given); returns its dispatch."""
    row = _run(run)
    dispatch = row.dispatches.latest("created_at", "id")
    if dispatch.status != DispatchStatus.DEAD_LETTER:
        raise AssertionError(f"the run is no dead letter: {_described(row)}")
    found = (row.error or {}).get("code")
    if code is not None and found != code:
        raise AssertionError(f"the dead letter's code is {found!r}, not {code!r}: {_described(row)}")
    return dispatch


def assert_waiting(run: OfRun, reason: str | None = None) -> Run:
    """The run was suspended and waits for this reason (any, if none is given); returns its row as it is now."""
    row = _run(run)
    if row.status != RunStatus.WAITING:
        raise AssertionError(f"the run does not wait: {_described(row)}")
    found = (row.waiting or {}).get("reason")
    if reason is not None and found != reason:
        raise AssertionError(f"the run waits for {found!r}, not {reason!r}")
    return row


def assert_events(thread: OfThread, kinds: Sequence[str], *, own_only: bool = False) -> list[Event]:
    """The thread's events are of these kinds, in this order; returns them. `own_only`: those of `ctx.emit` alone."""
    rows = Event.objects.filter(thread_id=_thread_id(thread)).order_by("cursor")
    events = [event for event in rows if not (own_only and event.kind in Kind.values)]
    found = [event.kind for event in events]
    if found != list(kinds):
        raise AssertionError(f"the thread's events are {found}, not {list(kinds)}")
    return events


def assert_said(thread: OfThread, texts: Sequence[str]) -> list[Message]:
    """The thread's assistant messages have these texts, in this order; returns them."""
    said = list(Message.objects.filter(thread_id=_thread_id(thread), role=Role.ASSISTANT).committed().in_order())
    found = [message.text for message in said]
    if found != list(texts):
        raise AssertionError(f"the assistant said {found}, not {list(texts)}")
    return said


def answer(
    run: OfRun, name: str, payload: Any = None, *, action: str = "resume", by: str = "test", **given: Any
) -> decide.Decided:
    """Answer the run's open question of this name, as a human does; `given` and errors are those of `decide.ticket`.

    The run goes on with the next `run_until_idle`. AssertionError: it asks nothing of that name.
    """
    row = _run(run)
    asked = Ticket.objects.of_run(row.pk).open()
    ticket = asked.filter(name=name).order_by("created_at", "id").first()
    if ticket is None:
        others = ", ".join(repr(one) for one in asked.order_by("created_at", "id").values_list("name", flat=True))
        raise AssertionError(f"the run does not ask {name!r}, but {others or 'nothing'}: {_described(row)}")
    named = {"scope": row.scope, "run_id": row.pk, "ticket_id": ticket.ticket_id, "action": action}
    return decide.ticket(**{**named, "payload": payload, "by": by, **given})


def run_id(of: OfRun) -> uuid.UUID | str:
    """The id of a run, by whatever names it."""
    match of:
        case Run():
            return of.pk
        case Receipt():
            return of.run_id
        case _:
            return of


def _described(run: Run) -> str:
    """A run for the message of a failed assertion."""
    facts: dict[str, Any] = {"status": run.status, "agent": run.agent}
    facts |= {"termination": run.termination, "error": run.error, "waiting": run.waiting, "output": run.final_output}
    dispatch = run.dispatches.order_by("-created_at", "-id").first()
    if dispatch is not None:
        facts |= {"dispatch": dispatch.status, "attempts": dispatch.attempt_count, "last_error": dispatch.last_error}
    events = Event.objects.filter(run_id=run.pk).order_by("cursor").values_list("kind", flat=True)
    told = ", ".join(f"{name} {value!r}" for name, value in facts.items() if value not in (None, ""))
    return f"run {run.pk}: {told}; events {', '.join(events)}"


def _run(of: OfRun) -> Run:
    return Run.objects.get(pk=run_id(of))


def _thread_id(of: OfThread) -> uuid.UUID | str:
    match of:
        case Thread():
            return of.pk
        case Run() | Receipt():
            return of.thread_id
        case _:
            return of
