"""Queue an activation of a run, on a fenced thread: its first, or the one by which it goes on."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mailbox_app import tracing
from mailbox_app.models import NOW, Boundary, Dispatch, Kind, Message, Run, Thread
from mailbox_app.operations import append, emit, freeze, lineage
from mailbox_app.operations.delivery import Delivery
from mailbox_app.operations.inputs import NewMessage
from mailbox_app.operations.submission import Parent
from mailbox_app.states import MessageState

# Raise it when the shape of `Run.activation` changes; older shapes are upcast when read.
ACTIVATION_VERSION = 1


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
    origin: str = "python"
    options: dict[str, Any]
    metadata: dict[str, Any]
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
    created = _created(thread, spec, thread.take_order())
    if durable is not None:
        created.pk = durable.run_id
        created.activation["digest"] = durable.digest
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
        origin="requeue",
        options=ended.options,
        metadata=ended.metadata,
    )
    created = _created(thread, spec, left[0].position)
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


def _created(thread: Thread, spec: RunSpec, order: int) -> Run:
    return Run(
        scope=thread.scope,
        thread=thread,
        agent=spec.agent,
        config_version=spec.config_version,
        dedupe_key=spec.dedupe_key,
        parent_run_id=None if spec.parent is None else spec.parent.run_id,
        order=order,
        activation={
            "version": ACTIVATION_VERSION,
            "origin": spec.origin,
            "options": spec.options,
            "metadata": spec.metadata,
            **({} if spec.posted is None else {"posted": spec.posted}),
            **({} if spec.parent is None else lineage.described(spec.parent)),
            **tracing.inject(),
        },
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
