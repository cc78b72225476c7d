"""Rows past the verbs: one valid row a call, in any status, with only what the test names different.

`given.run(status="waiting")` fills what the database demands of a waiting run. For tests of the rows themselves; tests
of behaviour submit (`make.py`).
"""

import itertools
import uuid
from datetime import timedelta
from typing import Any

from django.db.models import Model
from django.db.models.functions import Now

from mailbox_app.models import (
    UNCLAIMED,
    AgentRegistration,
    AgentVersion,
    ApiToken,
    Dispatch,
    Event,
    IdempotencyKey,
    JournalEntry,
    Limit,
    Maintenance,
    Message,
    Outbox,
    Pause,
    Permit,
    Run,
    Thread,
    Ticket,
)

_numbers = itertools.count(1)


def columns(noun: str, status: str) -> dict[str, Any]:
    """Every column the database ties to a status, as a row of that status has it (a new claim token each time)."""
    match noun, status:
        case "run", _:
            return {
                "started_at": None if status == "created" else Now(),
                "waiting": {"reason": "user_input", "message": "go on?"} if status == "waiting" else None,
                "wait_until": Now() + timedelta(days=7) if status == "waiting" else None,
                "finished_at": Now() if status == "done" else None,
            }
        case "dispatch", "claimed":
            claim = {"claim_token": uuid.uuid4(), "claimed_by": "worker@here:1", "lease_until": Now()}
            return {**claim, "completed_at": None}
        case "dispatch", _:
            return {**UNCLAIMED, "completed_at": None if status == "queued" else Now()}
        case "message", _:
            return {
                "seq": next(_numbers) if status == "committed" else None,
                "retract_reason": "withdrawn" if status == "retracted" else "",
            }
        case "ticket", _:
            return {"answered_at": Now() if status == "answered" else None}
        case "outbox", _:
            return {"completed_at": None if status == "pending" else Now()}
    raise ValueError(f"no noun {noun!r}")


def thread(**fields: Any) -> Thread:
    if fields.get("due_at") is not None:
        fields.setdefault("due_version", "")
    return Thread.objects.create(**{"scope": "acme", **fields})


def run(*, status: str = "created", **fields: Any) -> Run:
    owner = fields.pop("thread", None) or thread()
    given = {"scope": owner.scope, "agent": "echo", "order": next(_numbers), **columns("run", status), **fields}
    return Run.objects.create(thread=owner, status=status, **given)


def dispatch(*, status: str = "queued", **fields: Any) -> Dispatch:
    activated = fields.pop("run", None) or run()
    given = {"agent": activated.agent, "queue": "mailbox.default", "order": activated.order}
    given |= {**columns("dispatch", status), **fields}
    return Dispatch.objects.create(thread=activated.thread, run=activated, status=status, **given)


def message(*, status: str = "pending", **fields: Any) -> Message:
    owner = fields.pop("thread", None) or thread()
    given = {"scope": owner.scope, "role": "user", "content": "hello", "position": next(_numbers)}
    given |= {**columns("message", status), **fields}
    return Message.objects.create(thread=owner, state=status, **given)


def event(**fields: Any) -> Event:
    owner = fields.pop("thread", None) or thread()
    given = {"cursor": next(_numbers), "kind": "RunQueued", "payload": {"agent": "echo"}, **fields}
    return Event.objects.create(thread=owner, **given)


def journal_entry(**fields: Any) -> JournalEntry:
    given = {"turn": 1, "verb": "step", "name": "look-up", "n": 1, "arguments_hash": "0" * 64, "result": [1]}
    return JournalEntry.objects.create(run=fields.pop("run", None) or run(), **{**given, **fields})


def ticket(*, status: str = "open", **fields: Any) -> Ticket:
    asked = fields.pop("run", None) or run()
    given = {"ticket_id": f"ticket-{next(_numbers)}", "question": "May I?", **columns("ticket", status), **fields}
    return Ticket.objects.create(run=asked, status=status, **given)


def outbox(*, status: str = "pending", **fields: Any) -> Outbox:
    source = fields.pop("source_thread", None) or thread()
    given = {"target_thread_id": uuid.uuid4(), "kind": "message", "order": next(_numbers)}
    given |= {**columns("outbox", status), **fields}
    return Outbox.objects.create(source_thread=source, status=status, **given)


def registration(**fields: Any) -> AgentRegistration:
    given = {"worker": f"worker@{next(_numbers)}", "agent": "echo", "version": "1", "queues": ["mailbox.default"]}
    return AgentRegistration.objects.create(**{**given, **fields})


def pause(**fields: Any) -> Pause:
    return Pause.objects.create(**{"kind": "agent", "name": f"agent {next(_numbers)}", **fields})


def limit(**fields: Any) -> Limit:
    return Limit.objects.create(**{"kind": "agent", "name": f"agent {next(_numbers)}", "most": 1, **fields})


def permit(**fields: Any) -> Permit:
    return Permit.objects.create(**{"limit": fields.pop("limit", None) or limit(), **fields})


def agent_version(**fields: Any) -> AgentVersion:
    return AgentVersion.objects.create(**{"agent": "echo", "version": f"v{next(_numbers)}", **fields})


def maintenance(**fields: Any) -> Maintenance:
    return Maintenance.objects.create(**{"name": f"pass-{next(_numbers)}", "last_started_at": Now(), **fields})


def idempotency_key(**fields: Any) -> IdempotencyKey:
    given = {"scope": "acme", "key": f"key-{next(_numbers)}", "request_hash": "0" * 64, "status_code": 202}
    return IdempotencyKey.objects.create(**{**given, **fields})


def api_token(**fields: Any) -> ApiToken:
    token, _ = ApiToken.objects.issue(**{"name": "demo", "scope": "acme", **fields})
    return token


def row(noun: str, **fields: Any) -> Model:
    """A row of the noun of that name, as `states.py` spells it."""
    makers = {"run": run, "dispatch": dispatch, "message": message, "ticket": ticket, "outbox": outbox}
    return makers[noun](**fields)
