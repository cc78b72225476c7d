"""Carry messages from one thread to another: from the outbox, under the target's fence, once and in order.

A run writes what it sends as an outbox row, in the transaction of its own thread. Whoever delivers holds the target's
fence and nothing of the source; whoever gives up holds the source's and nothing of the target: two threads never wait
for each other. The names of run and message derive from the message's id at its sender, so a delivery that is repeated,
by whomever and however often at once, finds what the first one wrote.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import IntegrityError, connection, transaction

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.errors import Conflict, Gone, ThreadNotFound
from mailbox_app.models import Outbox, OutboxKind, Run, Thread, Visibility, columns, read
from mailbox_app.operations import accept, checkpoint, enqueue, inputs, keys, outbox, submission, submit
from mailbox_app.operations.journal import Record
from mailbox_app.operations.ownership import Claim
from mailbox_app.states import DELIVER
from mailbox_app.telemetry import observe

# The first of each pair (source, target) that is due. What stands behind a row that backs off is not due either.
DUE = """
    SELECT outbox.source_thread_id, outbox.target_thread_id
    FROM mailbox_outbox AS outbox
    WHERE outbox.status = 'pending' AND outbox.kind = 'message' AND outbox.available_at <= statement_timestamp()
        AND NOT EXISTS (
            SELECT FROM mailbox_outbox AS earlier
            WHERE earlier.status = 'pending' AND earlier.kind = 'message'
                AND earlier.source_thread_id = outbox.source_thread_id
                AND earlier.target_thread_id = outbox.target_thread_id AND earlier."order" < outbox."order"
        )
    ORDER BY outbox.available_at, outbox.id
    LIMIT %(limit)s
"""
# The ORM cannot compare with the server's clock in what it selects and lock the same row.
FIRST = """
    SELECT {columns}, source.scope, outbox.available_at <= statement_timestamp()
    FROM mailbox_outbox AS outbox JOIN mailbox_thread AS source ON source.id = outbox.source_thread_id
    WHERE outbox.status = 'pending' AND outbox.kind = 'message'
        AND outbox.source_thread_id = %(source)s AND outbox.target_thread_id = %(target)s
    ORDER BY outbox."order"
    LIMIT 1
"""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """Where a durable message is; `is_new`: this call made it."""

    thread_id: uuid.UUID
    run_id: uuid.UUID
    message_id: uuid.UUID
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class _Sent:
    submission: submission.Submission
    durable: enqueue.Durable


def message(
    *,
    scope: str,
    thread_id: uuid.UUID | str,
    message_id: str,
    content: Any,
    role: str = "user",
    agent: str = "",
    metadata: Mapping[str, Any] | None = None,
    sender: str = "",
    visibility: str = Visibility.PUBLIC,
    origin: str = "durable",
) -> Delivered:
    """Post a message and queue the run that answers it, once per `message_id`, however often it is called.

    1. check the input; 2. reserve the id, take the thread's fence; 3. it is there: the same answer, or Conflict if it
    came with another body; 4. write it; 5. after commit, wake a worker. The id belongs to one thread of the scope.

    Raises InvalidInput, UnknownAgent, ThreadNotFound, Gone and Conflict.
    """
    sent = _checked(scope, thread_id, message_id, content, role, agent, metadata, sender, origin, visibility)
    assert sent.submission.thread_id is not None
    try:
        with transaction.atomic():
            keys.reserve([sent.submission])
            with Thread.objects.fence(sent.submission.thread_id, scope=scope) as thread:
                delivered = _post(thread, sent)
            hints.tell(thread)
    except IntegrityError as error:
        raise submit.refusal(error, [sent.submission]) from error
    return delivered


def send(
    claim: Claim,
    entry: Record,
    *,
    thread_id: uuid.UUID | None,
    thread_key: str | None,
    payload: dict[str, Any],
) -> dict[str, Any]:
    """Write down a message of the claim's run to another thread, and deliver it as soon as that is durable.

    The thread of a key is made if it is missing. A delivery that does not succeed at once is left to the sweep.
    """

    def target() -> uuid.UUID:
        if thread_key is None:
            assert thread_id is not None, "the context has checked that there is one of the two"
            return thread_id
        return keys.of_threads(claim.scope, [thread_key])[thread_key]

    return checkpoint.send(claim, entry, target=target, payload=payload)


def batch() -> int:
    """Deliver, or give up, up to one batch of what is due; returns how many rows came to an end.

    What is sent between two threads arrives in its order. A target that somebody holds just now is left for the next
    pass, and a row that fails is tried again after its backoff; until then those behind it wait.
    """
    with connection.cursor() as cursor:
        cursor.execute(DUE, {"limit": conf.batch_size})
        pairs = cursor.fetchall()
    ended = 0
    for source_id, target_id in pairs:
        ended += _between(source_id, target_id, most=conf.batch_size - ended)
        if ended >= conf.batch_size:
            break
    return ended


def at_once(sender: Any, *, rows: Sequence[Outbox], **_: Any) -> None:
    """Deliver what has just been written to be sent, as well as it goes; lost with the process: the sweep delivers.

    A receiver of `models.outbox_written`.
    """
    pairs = {(row.source_thread_id, row.target_thread_id) for row in rows if row.kind == OutboxKind.MESSAGE}
    for source_id, target_id in sorted(pairs):
        try:
            _between(source_id, target_id, most=conf.batch_size)
        except Exception as error:  # whoever sent it is not to fail of it
            observe("delivery.left", level=logging.WARNING, thread_id=source_id, error=type(error).__name__)


def _between(source_id: uuid.UUID, target_id: uuid.UUID, *, most: int) -> int:
    """Deliver what is pending from one thread to the other, in order, up to the first that cannot be ended now."""
    ended = 0
    while ended < most:
        row, scope, is_due = _first(source_id, target_id) or (None, "", False)
        if row is None or not is_due or not outbox.end(row, partial(_deliver, row, scope)):
            break
        ended += 1
    return ended


def _first(source_id: uuid.UUID, target_id: uuid.UUID) -> tuple[Outbox, str, bool] | None:
    sql = FIRST.replace("{columns}", columns(Outbox, "outbox"))
    for row, scope, is_due in read(Outbox, sql, {"source": source_id, "target": target_id}):
        return row, scope, is_due
    return None


def _deliver(row: Outbox, scope: str) -> bool:
    given = row.payload
    sent = _checked(
        scope,
        row.target_thread_id,
        given["message_id"],
        given["content"],
        given["role"],
        given["agent"],
        given["metadata"],
        given["sender"],
        "durable",
    )
    target = Thread.objects.in_scope(scope).filter(pk=row.target_thread_id)
    try:
        with transaction.atomic():
            keys.reserve([sent.submission])
            with target.order_by("id").fence_free(limit=1) as threads:
                for thread in threads:
                    first = _first(row.source_thread_id, row.target_thread_id)
                    if first is None or first[0].pk != row.pk:
                        return True  # somebody else has ended it meanwhile
                    _post(thread, sent)
                    thread.move(row, DELIVER, completed_at=thread.locked_at)
            for thread in threads:
                hints.tell(thread)
    except IntegrityError as error:
        raise submit.refusal(error, [sent.submission]) from error
    if not threads:
        _refuse_missing(target.first(), row.target_thread_id)
    return bool(threads)


def _refuse_missing(thread: Thread | None, thread_id: uuid.UUID) -> None:
    """Raise for a thread that is not there; one that is held by somebody is."""
    if thread is None:
        raise ThreadNotFound(f"thread not found: {thread_id}", thread_id=thread_id)
    if thread.deleted_at is not None:
        raise Gone(f"thread {thread_id} was deleted at {thread.deleted_at.isoformat()}", thread_id=thread_id)


def _checked(
    scope: str,
    thread_id: uuid.UUID | str,
    message_id: str,
    content: Any,
    role: str,
    agent: str,
    metadata: Mapping[str, Any] | None,
    sender: str,
    origin: str,
    visibility: str = Visibility.PUBLIC,
) -> _Sent:
    """Check a durable message, and derive the names of what it makes."""
    said = inputs.NewMessage(
        content=content,
        role=role,
        client_id=inputs.text("message_id", message_id),
        metadata=metadata or {},
        sender=sender,
        visibility=visibility,
    )
    given = submission.check(scope=scope, messages=[said], agent=agent, thread_id=thread_id, origin=origin)
    if given.thread_id is None:
        raise ThreadNotFound("a durable message names its thread")
    body = given.messages[0]
    described = [body.content, body.role, dict(body.metadata), body.sender, given.agent]
    if body.visibility != Visibility.PUBLIC:  # left out else, so that what was sent before is still the same
        described.append(body.visibility)
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    name = json.dumps([scope, str(given.thread_id), message_id])
    return _Sent(
        submission=given,
        durable=enqueue.Durable(
            run_id=uuid.uuid5(uuid.NAMESPACE_OID, f"run {name}"),
            message_id=uuid.uuid5(uuid.NAMESPACE_OID, f"message {name}"),
            digest=digest,
        ),
    )


def _post(thread: Thread, sent: _Sent) -> Delivered:
    """Write the message with its run, unless they are there; under the thread's fence."""
    names = {"thread_id": thread.pk, "run_id": sent.durable.run_id, "message_id": sent.durable.message_id}
    known = Run.objects.filter(pk=sent.durable.run_id).first()
    if known is None:
        accept.queue(sent.submission, thread, durable=sent.durable)
        return Delivered(**names, is_new=True)
    if known.shown.digest != sent.durable.digest:
        message_id = sent.submission.messages[0].client_id
        raise Conflict(f"message {message_id!r} came to thread {thread.pk} before, with another body", **names)
    return Delivered(**names, is_new=False)
