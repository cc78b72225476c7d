"""What an executing agent writes between its claim and its end: journal, messages, events; each fenced by its token.

Each function is one transaction and raises LeaseLost, having written nothing, when the claim has been lost.
"""

from dataclasses import dataclass
from typing import Any

from mailbox_app.errors import Cancelled
from mailbox_app.models import Boundary, JournalEntry, Message, Run
from mailbox_app.operations import append, emit, freeze
from mailbox_app.operations.ownership import Claim, owned


@dataclass(frozen=True, kw_only=True)
class Record:
    """The journal's name for one use of one verb in one turn, and the hash of its arguments."""

    verb: str
    name: str
    key: str = ""
    n: int
    arguments_hash: str


def reach(claim: Claim) -> list[Message]:
    """Read what arrived for the run at its next step. Raises Cancelled when somebody asked it to stop."""
    with owned(claim) as (thread, dispatch):
        if dispatch.cancel_requested_at is not None:
            raise Cancelled(f"run {claim.run_id} was cancelled")
        return freeze.at(thread=thread, boundary=Boundary.NEXT_STEP, run=dispatch.run)


def record(claim: Claim, entry: Record, result: Any) -> Any:
    """Journal a completed step; returns its result as a replay will read it.

    jsonb has an order of keys and a spelling of numbers of its own: code must not see other ones the first time.
    """
    with owned(claim) as (_, dispatch):
        written = _write(dispatch.run, claim, entry, result)
        return JournalEntry.objects.values_list("result", flat=True).get(pk=written.pk)


def say(claim: Claim, entry: Record, content: Any) -> dict[str, Any]:
    """Append an assistant message, with its journal entry and its event; returns {"message_id", "seq"}."""
    with owned(claim) as (thread, dispatch):
        message = append.produced(thread=thread, run=dispatch.run, content=content)
        result = {"message_id": str(message.pk), "seq": message.seq}
        _write(dispatch.run, claim, entry, result)
    return result


def emit_event(
    claim: Claim, entry: Record, kind: str, payload: Any, *, key: str | None, visibility: str
) -> dict[str, Any]:
    """Record an event of the team's own, with its journal entry; returns {"cursor"}.

    An event with a key the thread has already is not recorded again: its cursor is returned.
    """
    with owned(claim) as (thread, dispatch):
        known = None if key is None else thread.events.filter(key=key).values_list("cursor", flat=True).first()
        if known is None:
            event = emit.of_agent(
                thread, dispatch.run, kind, payload, dispatch=dispatch, key=key, visibility=visibility
            )
            known = event.cursor
        result = {"cursor": known}
        _write(dispatch.run, claim, entry, result)
    return result


def _write(run: Run, claim: Claim, entry: Record, result: Any) -> JournalEntry:
    return JournalEntry.objects.create(
        run=run,
        turn=claim.turn,
        verb=entry.verb,
        name=entry.name,
        key=entry.key,
        n=entry.n,
        arguments_hash=entry.arguments_hash,
        result=result,
    )
