"""What tests of verbs share: a submission, a claim, an aged lease, every table before and after."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.db import connection
from django.db.models.functions import Now

from mailbox_app.models import Dispatch, Event, Message, Run, Thread
from mailbox_app.operations import checkpoint, claim, submit
from mailbox_app.operations.emitted import Emission
from mailbox_app.operations.journal import Record
from mailbox_app.operations.ownership import Claim
from mailbox_app.operations.submit import Receipt
from mailbox_app.outcomes import Suspended

OnThread = Claim | Receipt | Run | Dispatch

SCOPE = "acme"
QUEUE = "mailbox.default"
WORKER = "worker@here:1"


def tables() -> dict[str, list[dict[str, Any]]]:
    """Every row of every table of the app, by model, in key order."""
    models = [model for model in apps.get_app_config("mailbox").get_models() if not model._meta.proxy]
    return {model.__name__: list(model._default_manager.order_by("pk").values()) for model in models}


@contextmanager
def nothing_changes() -> Iterator[None]:
    """Assert that the block leaves every row of every table as it was."""
    before = tables()
    yield
    after = tables()
    for name, rows in before.items():
        assert after[name] == rows, f"{name} changed"


def post(text: str = "hello there", *, agent: str = "echo", **given: Any) -> Receipt:
    """Submit one message, on a new thread unless told otherwise."""
    return submit.run(**{"scope": SCOPE, "messages": [text], "agent": agent, **given})


def take(*, agents: tuple[str, ...] = ("echo",), queue: str = QUEUE, worker: str = WORKER) -> Claim | None:
    """Claim one due run, as a worker that has these agents."""
    taken = claim.due(queue=queue, agents=agents, worker=worker, tokens=[uuid.uuid4()])
    return taken.claims[0] if taken.claims else None


def taken(**given: Any) -> Claim:
    """`take`, where there must be one."""
    found = take(**given)
    assert found is not None, "nothing could be claimed"
    return found


def posted_and_taken(text: str = "hello there", **given: Any) -> Claim:
    post(text, **given)
    return taken()


def emission(kind: str, payload: Any, *, n: int = 1, key: str | None = None, visibility: str = "public") -> Emission:
    """An event of the agent's own."""
    return Emission(record=entry(kind, verb="emit", n=n), payload=payload, key=key, visibility=visibility, size=100)


def emit(claim: Claim, kind: str, payload: Any, **given: Any) -> None:
    """Record an event of the agent's own."""
    claim.emitted.add(emission(kind, payload, **given))
    checkpoint.flush(claim)


def expire_lease(of: Claim, *, by: timedelta = timedelta(seconds=1)) -> None:
    """Age the row: its lease ended that long ago, by the database's clock."""
    assert Dispatch.objects.filter(pk=of.dispatch_id).update(lease_until=Now() - by) == 1


def ask_to_cancel(of: Claim) -> None:
    assert Dispatch.objects.filter(pk=of.dispatch_id).update(cancel_requested_at=Now()) == 1


def make_available(of: Claim | Receipt) -> None:
    """Age the row: its backoff, or its schedule, is over; the flag does not know yet."""
    Dispatch.objects.filter(pk=of.dispatch_id).update(available_at=Now() - timedelta(milliseconds=1))
    Thread.objects.filter(pk=of.thread_id, wakes_at__isnull=False).update(wakes_at=Now() - timedelta(milliseconds=1))


def thread(of: OnThread) -> Thread:
    return Thread.objects.get(pk=of.thread_id)


def run(of: Claim | Receipt) -> Run:
    return Run.objects.get(pk=of.run_id)


def dispatch(of: Claim | Receipt) -> Dispatch:
    return Dispatch.objects.get(pk=of.dispatch_id)


def log(of: OnThread) -> list[tuple[int, str, Any]]:
    """The committed messages of the thread: (seq, role, content)."""
    rows = Message.objects.filter(thread_id=of.thread_id).committed().in_order()
    return list(rows.values_list("seq", "role", "content"))


def kinds(of: OnThread) -> list[str]:
    """The thread's events in order; their cursors must have no gap."""
    events = Event.objects.filter(thread_id=of.thread_id).order_by("cursor")
    assert [event.cursor for event in events] == list(range(1, len(events) + 1))
    return [event.kind for event in events]


def last_event(of: Claim | Receipt) -> Event:
    return Event.objects.filter(thread_id=of.thread_id).latest("cursor")


def flag(of: Claim | Receipt) -> tuple[Any, ...]:
    """(is due, priority, queue, agent, wakes, why blocked)."""
    row = thread(of)
    return (
        row.due_at is not None,
        row.due_priority,
        row.due_queue,
        row.due_agent,
        row.wakes_at is not None,
        row.blocked_reason,
    )


DUE = (True, 128, QUEUE, "echo", False, "")
# Something else of the thread is scheduled.
DUE_AND_WAKING = (True, 128, QUEUE, "echo", True, "")
IDLE = (False, None, None, None, False, "")
WAKING = (False, None, None, None, True, "")


def database_now() -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return cursor.fetchone()[0]


def wait(reason: str = "external_event", *, name: str = "", **given: Any) -> Suspended:
    """What an agent's `ctx.suspend` tells the runner."""
    slot = {"name": name or reason, "key": "", "n": 1, "arguments_hash": "0" * 64}
    return Suspended(**{"reason": reason, "name": name, "entry": slot, **given})


def entry(name: str = "look-up", *, verb: str = "step", n: int = 1) -> Record:
    return Record(verb=verb, name=name, n=n, arguments_hash="0" * 64)
