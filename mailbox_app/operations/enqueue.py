"""Queue an activation of a run, on a fenced thread: its first, or the one by which it goes on."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from mailbox_app import tracing
from mailbox_app.errors import SnapshotTooNew, SnapshotUnreadable
from mailbox_app.models import NOW, Boundary, Dispatch, Kind, Message, Run, Snapshot, Thread
from mailbox_app.operations import append, emit, freeze
from mailbox_app.operations.delivery import Delivery
from mailbox_app.operations.inputs import NewMessage
from mailbox_app.operations.submission import Parent
from mailbox_app.states import MessageState


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """How the run is to be executed: everything already checked and resolved."""

    agent: str
    queue: str
    priority: int
    max_attempts: int
    available_at: datetime | None = None
    config_version: str = ""
    dedupe_key: str | None = None
    client_id: str | None = None
    # Of the run's `Snapshot`. `adapter`: blank is that of the origin.
    origin: str = "python"
    adapter: str = ""
    run_mode: str = "background"
    options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    # What those who may join the run are judged by, where any may: `joining.marked`.
    posted: dict[str, Any] | None = None
    parent: Parent | None = None


@dataclass(frozen=True, kw_only=True)
class Durable:
    """Ids derived from the id a message has at its sender, and the digest of all that was sent under it."""

    run_id: uuid.UUID
    message_id: uuid.UUID
    digest: str


@dataclass(frozen=True, kw_only=True)
class Queued:
    """What was written."""

    run: Run
    dispatch: Dispatch
    message_ids: list[uuid.UUID]


def run(
    *,
    thread: Thread,
    spec: RunSpec,
    messages: Sequence[NewMessage],
    durable: Durable | None = None,
    delivery: Delivery | None = None,
) -> Queued:
    """Create a run with its messages and its dispatch; `durable`: for a single message that may be sent again.

    1. the run, last in the thread's order; 2. its messages, pending; 3. its dispatch; 4. the event.
    """
    created = _created(thread, spec, thread.take_order(), _snapshot(spec, messages, durable).write())
    if durable is not None:
        created.pk = durable.run_id
    thread.insert(created)
    ids = [] if durable is None else [durable.message_id]
    appended = append.pending(thread=thread, run=created, messages=messages, delivery=delivery, ids=ids)
    return _queued(thread, created, spec, [message.pk for message in appended])


def unread(*, thread: Thread, ended: Run, dispatch: Dispatch, messages: Sequence[Message]) -> Queued | None:
    """Give what a run that ends here has not read a run of its own, as that one was; None if there is nothing.

    Those that no new run may read stay where they are, and none of the others is held any more. The new run takes the
    place of the first message in the thread's order: nobody who came later goes before it.
    """
    left = [
        message
        for message in messages
        if message.state == MessageState.PENDING and freeze.is_eligible(message, boundary=Boundary.NEW_RUN, run=ended)
    ]
    if not left:
        return None
    spec = RunSpec(
        agent=ended.agent,
        config_version=ended.config_version,
        queue=dispatch.queue,
        priority=dispatch.priority,
        max_attempts=dispatch.max_attempts,
    )
    created = _created(thread, spec, left[0].position, _requeued(ended))
    thread.insert(created)
    for message in left:
        thread.change(message, run_id=created.pk, held=False)
    thread.pending_revision += 1
    queued = _queued(thread, created, spec, [message.pk for message in left])
    for message in left:
        emit.message_requeued(thread, message, ended=ended, run=created)
    return queued


def resume(*, thread: Thread, run: Run, after: Dispatch, at: datetime) -> Dispatch:
    """Queue the dispatch by which a waiting run goes on: as its last one was, with its counters at zero."""
    dispatch = Dispatch(
        thread=thread,
        run=run,
        agent=after.agent,
        version_key=after.version_key,
        queue=after.queue,
        priority=after.priority,
        order=after.order,
        epoch=thread.epoch,
        available_at=at,
        max_attempts=after.max_attempts,
    )
    thread.insert(dispatch)
    return dispatch


def _snapshot(spec: RunSpec, messages: Sequence[NewMessage], durable: Durable | None) -> Snapshot:
    senders = {message.sender for message in messages}
    return Snapshot(
        origin=spec.origin,
        adapter=spec.adapter or (spec.parent.adapter if spec.parent else "") or spec.origin,
        sender=senders.pop() if len(senders) == 1 else "",
        run_mode=spec.run_mode,
        options=spec.options,
        metadata=spec.metadata,
        posted=spec.posted,
        digest=None if durable is None else durable.digest,
        trace=tracing.inject().get("trace", {}),
        depth=0 if spec.parent is None else spec.parent.depth,
        detached=spec.parent is not None and spec.parent.is_detached,
    )


def _requeued(ended: Run) -> dict[str, Any]:
    """The snapshot of the run that reads what another has not: that one's, where it cannot be read unchanged."""
    try:
        known = ended.snapshot
    except (SnapshotTooNew, SnapshotUnreadable):
        activation: dict[str, Any] = ended.activation
        return activation
    return replace(known, origin="requeue", posted=None, digest=None, replayed_by=None).write()


def _created(thread: Thread, spec: RunSpec, order: int, activation: dict[str, Any]) -> Run:
    return Run(
        scope=thread.scope,
        thread=thread,
        agent=spec.agent,
        config_version=spec.config_version,
        dedupe_key=spec.dedupe_key,
        client_id=spec.client_id,
        parent_run_id=None if spec.parent is None else spec.parent.run_id,
        order=order,
        activation=activation,
    )


def _queued(thread: Thread, created: Run, spec: RunSpec, message_ids: list[uuid.UUID]) -> Queued:
    dispatch = Dispatch(
        thread=thread,
        run=created,
        agent=spec.agent,
        queue=spec.queue,
        priority=spec.priority,
        order=created.order,
        epoch=thread.epoch,
        # The fence's clock, so that a run for now is due the moment its transaction commits.
        available_at=spec.available_at or (NOW if thread.is_new else thread.locked_at),
        max_attempts=spec.max_attempts,
    )
    thread.insert(dispatch)
    thread.latest_run_id = created.pk
    emit.of_dispatch(
        thread,
        Kind.RUN_QUEUED,
        dispatch,
        message_ids=[str(pk) for pk in message_ids],
        available_at=None if spec.available_at is None else spec.available_at.isoformat(),
    )
    return Queued(run=created, dispatch=dispatch, message_ids=message_ids)
