"""What tests of questions share: a claimed run that has asked, one that waits for answers, an answer."""

import json
import uuid
from datetime import timedelta
from typing import Any

from django.db.models.functions import Now

from mailbox_app.models import Ticket
from mailbox_app.operations import checkpoint, decide, settle
from mailbox_app.operations.ownership import Claim
from mailbox_app.outcomes import Suspended
from tests.operations import scene


def question(claim: Claim, name: str = "approve", **given: Any) -> checkpoint.Question:
    """What `ctx.ask(name)` hands to the verb."""
    entry = scene.entry(name, verb="ask")
    use = json.dumps([claim.turn, "ask", name, "", 1])
    return checkpoint.Question(
        **{
            "entry": entry,
            "ticket_id": str(uuid.uuid5(claim.run_id, use)),
            "question": "May I?",
            "arguments": {},
            "schema": None,
            "resume_mode": "replay_tool_call",
            "expires_in": None,
            **given,
        }
    )


def asked(*names: str, **given: Any) -> tuple[Claim, list[str]]:
    """A claimed run that has asked these questions, and their tickets' ids."""
    claim = scene.posted_and_taken()
    found = checkpoint.ask(claim, [question(claim, name, **given) for name in names or ("approve",)])
    return claim, [ticket.ticket_id for ticket in found]


def suspend(claim: Claim, ticket_ids: list[str]) -> None:
    """The asker lets its worker go."""
    settle.suspend(claim, Suspended(reason="tool_permission", name="approve", ticket_ids=ticket_ids))


def waiting(*names: str, **given: Any) -> tuple[Claim, list[str]]:
    """A run that waits for the answers to these questions."""
    claim, ids = asked(*names, **given)
    suspend(claim, ids)
    return claim, ids


def answer(claim: Claim, ticket_id: str, **given: Any) -> decide.Decided:
    return decide.ticket(
        **{"scope": scene.SCOPE, "run_id": claim.run_id, "ticket_id": ticket_id, "action": "resume", **given}
    )


def ticket(ticket_id: str) -> Ticket:
    return Ticket.objects.get(ticket_id=ticket_id)


def overdue(*ticket_ids: str) -> None:
    """Age the rows: they could be answered until a second ago."""
    aged = Ticket.objects.filter(ticket_id__in=ticket_ids).update(expires_at=Now() - timedelta(seconds=1))
    assert aged == len(ticket_ids)
