"""Answer a question that a run has put to a human: once, and for good."""

import uuid
from dataclasses import dataclass
from typing import Any

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.errors import AlreadyDecided, Gone, RunNotFound, TicketExpired, TicketNotFound
from mailbox_app.models import Run, Thread, Ticket, uuid7
from mailbox_app.operations import inputs, schemas, tickets
from mailbox_app.states import TicketStatus


@dataclass(frozen=True, kw_only=True)
class Decided:
    """The answer as it stands. `status`: "resumed", and by which dispatch; "stored", for the run that executes, or
    waits for other answers too."""

    run_id: uuid.UUID
    thread_id: uuid.UUID
    ticket_id: str
    decision_id: str
    action: str
    status: str
    dispatch_id: uuid.UUID | None


def ticket(
    *,
    scope: str,
    run_id: uuid.UUID | str,
    ticket_id: str,
    action: str,
    payload: Any = None,
    decision_id: str | None = None,
    by: str = "",
) -> Decided:
    """Answer an open question: `ctx.ask` returns the action ("resume" or "cancel") and the payload.

    1. check the input, and against the question's schema the payload of a "resume"; 2. take the fence; 3. the first
    answer is written, journalled and told; 4. it was the last the run waited for: queue the one dispatch by which it
    goes on; a run that executes just now is nudged instead; 5. after commit, wake a worker.

    Sent again under its `decision_id`, it changes nothing and gets the first answer. `by` names who answered. Raises
    InvalidInput, RunNotFound, TicketNotFound (also for a run that has ended without an answer), AlreadyDecided,
    TicketExpired, Gone.
    """
    inputs.text("scope", scope)
    found_id = inputs.identifier("run_id", run_id) or uuid.UUID(int=0)
    inputs.text("ticket_id", ticket_id)
    inputs.choice("action", action, tickets.ACTIONS)
    inputs.optional_text("decision_id", decision_id)
    by = inputs.text("by", by, may_be_blank=True)
    payload = inputs.document("payload", payload, most_bytes=conf.max_metadata_bytes)
    thread_id = Run.objects.in_scope(scope).filter(pk=found_id).values_list("thread_id", flat=True).first()
    if thread_id is None:
        raise RunNotFound(f"run not found: {run_id}", run_id=run_id)
    asked = _find(found_id, ticket_id)
    if asked.status == TicketStatus.OPEN and action == tickets.RESUME and asked.schema is not None:
        # Before the fence: a schema never changes, and may take its time.
        schemas.refuse("payload", payload, schema=asked.schema)
    with Thread.objects.fence(thread_id) as thread:
        run = Run.objects.filter(pk=found_id).first()
        if run is None:
            raise Gone(f"run {run_id} has been deleted", run_id=run_id)
        asked = _find(found_id, ticket_id)
        if asked.status == TicketStatus.OPEN:
            if asked.expires_at is not None and asked.expires_at <= thread.locked_at:
                raise _expired(asked)
            tickets.answer(
                thread, run, asked, action=action, payload=payload, decision_id=decision_id or str(uuid7()), by=by
            )
        else:
            _repeated(asked, action, payload, decision_id)
    hints.tell(thread)
    return _decided(thread, asked)


def _find(run_id: uuid.UUID, ticket_id: str) -> Ticket:
    found = Ticket.objects.of_run(run_id).filter(ticket_id=ticket_id).first()
    if found is None:
        raise TicketNotFound(f"run {run_id} has no ticket {ticket_id!r}", run_id=run_id, ticket_id=ticket_id)
    return found


def _repeated(asked: Ticket, action: str, payload: Any, decision_id: str | None) -> None:
    """Pass what was answered in just this way under just this id; refuse all else."""
    facts = {"run_id": asked.run_id, "ticket_id": asked.ticket_id}
    if asked.status == TicketStatus.CANCELLED:
        raise TicketNotFound(f"run {asked.run_id} has ended: nobody answered {asked.ticket_id!r}", **facts)
    if asked.status == TicketStatus.EXPIRED:
        raise _expired(asked)
    answer = asked.answer or {}
    if decision_id != asked.decision_id:
        raise AlreadyDecided(
            f"ticket {asked.ticket_id!r} was answered ({answer.get('action')}) by decision {asked.decision_id!r}",
            **facts,
            decision_id=asked.decision_id,
        )
    if (answer["action"], answer["payload"]) != (action, payload):
        raise AlreadyDecided(f"decision {decision_id!r} came with another action or payload", **facts)


def _expired(asked: Ticket) -> TicketExpired:
    until = None if asked.expires_at is None else asked.expires_at.isoformat()
    return TicketExpired(
        f"ticket {asked.ticket_id!r} could be answered until {until}", run_id=asked.run_id, ticket_id=asked.ticket_id
    )


def _decided(thread: Thread, asked: Ticket) -> Decided:
    answer = asked.answer or {}
    dispatch_id = answer.get("dispatch_id")
    return Decided(
        run_id=asked.run_id,
        thread_id=thread.pk,
        ticket_id=asked.ticket_id,
        decision_id=asked.decision_id,
        action=answer["action"],
        status="stored" if dispatch_id is None else "resumed",
        dispatch_id=None if dispatch_id is None else uuid.UUID(dispatch_id),
    )
