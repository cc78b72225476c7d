"""Append messages and queue the run that will read them, on a fenced thread."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mailbox_app import tracing
from mailbox_app.models import NOW, Dispatch, Kind, Run, Thread
from mailbox_app.operations import append, emit
from mailbox_app.operations.inputs import NewMessage

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


@dataclass(frozen=True, kw_only=True)
class Queued:
    """What was written."""

    run: Run
    dispatch: Dispatch
    message_ids: list[uuid.UUID]


def run(*, thread: Thread, spec: RunSpec, messages: Sequence[NewMessage]) -> Queued:
    """Create a run with its messages and its dispatch.

    1. the run, last in the thread's order; 2. its messages, pending; 3. its dispatch; 4. the event.
    """
    created = Run(
        scope=thread.scope,
        thread=thread,
        agent=spec.agent,
        config_version=spec.config_version,
        dedupe_key=spec.dedupe_key,
        order=thread.take_order(),
        activation={
            "version": ACTIVATION_VERSION,
            "origin": spec.origin,
            "options": spec.options,
            "metadata": spec.metadata,
            **tracing.inject(),
        },
    )
    thread.insert(created)
    appended = append.pending(thread=thread, run=created, messages=messages)
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
        message_ids=[str(message.pk) for message in appended],
        available_at=None if spec.available_at is None else spec.available_at.isoformat(),
    )
    return Queued(run=created, dispatch=dispatch, message_ids=[message.pk for message in appended])
