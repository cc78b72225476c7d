"""What an executing agent writes between its claim and its end: journal, messages, events; each fenced by its token.

Each function is one transaction and raises LeaseLost, having written nothing, when the claim has been lost.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction

from mailbox_app.errors import Cancelled, ReplayMismatch
from mailbox_app.models import Boundary, Dispatch, JournalEntry, Message, OutboxKind, Run, Thread, Ticket
from mailbox_app.operations import append, emit, freeze, journal, reread
from mailbox_app.operations.journal import Record
from mailbox_app.operations.ownership import Claim, find_some, owned, proved, refuse_transaction


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a human is asked, checked, and the ids that follow from where. `expires_in`: seconds; None: no end."""

    entry: Record
    ticket_id: str
    question: str
    arguments: dict[str, Any]
    schema: dict[str, Any] | None
    resume_mode: str
    expires_in: float | None


def reach(claim: Claim, *, after_seq: int | None = None) -> list[Message]:
    """Read what arrived for the run at its next step. Raises Cancelled when somebody asked it to stop.

    `after_seq`: hand over, in front of it, what checkpoints of this turn have read past that number before, in an
    earlier activation or in a try whose answer was lost.
    """
    with owned(claim) as (thread, dispatch):
        if dispatch.cancel_requested_at is not None:
            raise Cancelled(f"run {claim.run_id} was cancelled")
        run = dispatch.run
        before: list[Message] = []
        if after_seq is not None:
            before = reread.checkpoints(run, after_seq=after_seq)
        arrived = freeze.at(thread=thread, boundary=Boundary.NEXT_STEP, run=run)
        if arrived:
            thread.change(run, input=freeze.input_of(run, arrived))
    return [*before, *arrived]


def record(claim: Claim, entry: Record, result: Any) -> Any:
    """Journal a completed step; returns its result as a replay will read it.

    jsonb has an order of keys and a spelling of numbers of its own: code must not see other ones the first time.
    """
    with owned(claim) as (thread, dispatch):
        journal.write(thread, dispatch.run, entry, result)
        thread.flush()
        slot = {"verb": entry.verb, "name": entry.name, "key": entry.key, "n": entry.n}
        return JournalEntry.objects.of_turn(claim.run_id, claim.turn).values_list("result", flat=True).get(**slot)


def say(claim: Claim, entry: Record, content: Any) -> dict[str, Any]:
    """Append an assistant message, with its journal entry and its event; returns {"message_id", "seq"}."""
    with owned(claim) as (thread, dispatch):
        message = append.produced(thread=thread, run=dispatch.run, content=content)
        facts = {"message_id": str(message.pk), "seq": message.seq}
        return _effect(thread, dispatch.run, entry, facts)


def flush(claim: Claim) -> None:
    """Record the events that the agent has emitted: what every other verb does first."""
    with owned(claim):
        pass


def flush_some(claims: Sequence[Claim]) -> list[Claim]:
    """`flush` for several claims in one transaction; returns those whose thread somebody else holds just now.

    Claims that own nothing any more are passed over. Any error rolls back all of them.
    """
    by_thread = {claim.thread_id: claim for claim in claims}
    with Thread.objects.fence_some(list(by_thread)) as threads:
        held = find_some([by_thread[thread.pk] for thread in threads])
        for thread in threads:
            claim = by_thread.pop(thread.pk)
            if (dispatch := held.get(claim.token)) is not None:
                claim.emitted.write(thread, dispatch)
    return list(by_thread.values())


def usage(claim: Claim, entry: Record, *, input_tokens: int, output_tokens: int, steps: int) -> dict[str, int]:
    """Add to what the run has used, with the journal entry; returns its totals so far."""
    with owned(claim) as (thread, dispatch):
        run = dispatch.run
        used = {
            "input_tokens": run.input_tokens + input_tokens,
            "output_tokens": run.output_tokens + output_tokens,
            "steps": run.steps + steps,
        }
        thread.change(run, **used)
        return _effect(thread, run, entry, used)


def send(claim: Claim, entry: Record, *, target: Callable[[], uuid.UUID], payload: dict[str, Any]) -> dict[str, Any]:
    """Write down a message to another thread, with its journal entry; returns {"outbox_id", "thread_id", "message_id"}.

    It is delivered under the other thread's fence, later, in the order of these rows. `target` finds that thread, or
    makes it, in this transaction: before the fence, because it may wait for who makes it at the same time.
    """
    refuse_transaction()
    with transaction.atomic():
        target_id = target()
        with proved(claim) as (thread, dispatch):
            row = thread.send(OutboxKind.MESSAGE, target_id, payload)
            names = {"outbox_id": row.pk, "thread_id": target_id, "message_id": payload["message_id"]}
            facts = {name: str(value) for name, value in names.items()}
            return _effect(thread, dispatch.run, entry, facts)


def spawn(claim: Claim, entry: Record, *, child: Callable[[Thread, Run], dict[str, str]]) -> dict[str, str]:
    """Make a child run on a thread of its own, by `child`, with the journal entry; returns what that tells of it.

    All in one transaction: nobody knows the new thread yet, so it is waited for by nobody. Raises Cancelled when
    somebody asked the run to stop: what it spawned then would outlive it.
    """
    with owned(claim) as (thread, dispatch):
        if dispatch.cancel_requested_at is not None:
            raise Cancelled(f"run {claim.run_id} was cancelled")
        facts = child(thread, dispatch.run)
        emit.child_spawned(thread, dispatch, **facts)
        return _effect(thread, dispatch.run, entry, facts)


def ask(claim: Claim, questions: Sequence[Question]) -> list[Ticket]:
    """Put these questions to a human, unless the run has: a ticket each. Returns all as they stand, in their order.

    It may be called again when its answer was lost, or its activation: a ticket's id is its use's, for ever. Raises
    Cancelled when somebody asked the run to stop, and ReplayMismatch for a question that was asked otherwise.
    """
    with owned(claim) as (thread, dispatch):
        if dispatch.cancel_requested_at is not None:
            raise Cancelled(f"run {claim.run_id} was cancelled")
        wanted = [question.ticket_id for question in questions]
        asked = {found.ticket_id: found for found in Ticket.objects.of_run(claim.run_id).filter(ticket_id__in=wanted)}
        for question in questions:
            known = asked.get(question.ticket_id)
            if known is None:
                asked[question.ticket_id] = _opened(thread, dispatch, claim, question)
            elif known.entry["arguments_hash"] != question.entry.arguments_hash:
                raise ReplayMismatch(f"the question {question.entry.name!r} was asked with other arguments than these")
        return [asked[ticket_id] for ticket_id in wanted]


def _opened(thread: Thread, dispatch: Dispatch, claim: Claim, question: Question) -> Ticket:
    seconds = question.expires_in
    ticket = Ticket(
        run=dispatch.run,
        ticket_id=question.ticket_id,
        name=question.entry.name,
        turn=claim.turn,
        entry={field: value for field, value in asdict(question.entry).items() if field != "verb"},
        question=question.question,
        arguments=question.arguments,
        schema=question.schema,
        resume_mode=question.resume_mode,
        expires_at=None if seconds is None else thread.locked_at + timedelta(seconds=seconds),
    )
    thread.insert(ticket)
    emit.ticket_opened(thread, ticket, dispatch)
    return ticket


def _effect(thread: Thread, run: Run, entry: Record, facts: dict[str, Any]) -> dict[str, Any]:
    """Journal what a verb tells of its effect; returns it as a replay will read it: jsonb puts shorter names first."""
    result = {name: facts[name] for name in sorted(facts, key=lambda name: (len(name), name))}
    journal.write(thread, run, entry, result)
    return result
