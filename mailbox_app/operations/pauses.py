"""Pause an agent, a queue or a thread, and resume it: what has started goes on, nothing more starts.

Where a pause is looked at. Agents and queues: by the claim, twice (`candidates.py`, `claim.py`), so that paused work is
never taken and a backlog of it costs nothing. A thread: nowhere; its own row says that it is blocked, and is not due.
"""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Q

from mailbox_app import hints
from mailbox_app.errors import NotPaused
from mailbox_app.models import BlockedReason, Dispatch, Kind, Pause, PauseKind, Thread
from mailbox_app.operations import candidates, emit, gate, inputs
from mailbox_app.telemetry import after_commit, observe


@dataclass(frozen=True, kw_only=True)
class Paused:
    """The pause that stands. `changed`: it did not before; else it is somebody's earlier one, as that was made."""

    pause: Pause
    changed: bool


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The agents and queues that are paused."""

    agents: frozenset[str]
    queues: frozenset[str]

    def covers(self, queue: str, agent: str) -> bool:
        """Whether work of this agent on this queue does not start."""
        return agent in self.agents or queue in self.queues


def pause(*, kind: str, name: str, note: str = "", by: str = "", scope: str | None = None) -> Paused:
    """Start nothing more of an agent, a queue or a thread; what was claimed before goes on until it settles.

    `kind`: "agent", "queue" or "thread"; `name`: the agent's or queue's, known or not, or the thread's id. It holds
    from the commit on: whoever claims just now is waited for. What is paused already stays as it is. `by` names who
    asked, and `note` says why, for all who see that the work does not start. Raises InvalidInput, ThreadNotFound, Gone,
    and Retryable when a claim under way does not end.
    """
    kind, name = _target(kind, name)
    note = inputs.text("note", note, most=500, may_be_blank=True)
    by = inputs.text("by", by, may_be_blank=True)
    made = Pause(kind=kind, name=name, note=note, paused_by=by)
    known = Pause.objects.of(kind, name)
    with transaction.atomic():
        if kind == PauseKind.THREAD:
            with Thread.objects.fence(_thread_id(name), scope=scope) as thread:
                found = known.first()
                if found is None:
                    made.scope = thread.scope
                    made.save(force_insert=True)
                    thread.blocked_reason = BlockedReason.PAUSED
                    # How long no worker could run it counts anew from its resuming.
                    stamped = Dispatch.objects.filter(thread=thread, unrunnable_since__isnull=False).queued()
                    stamped.update(unrunnable_since=None)
                    emit.of_thread(thread, Kind.THREAD_PAUSED, by=by, note=note)
        else:
            # Who pauses holds the gate alone: nobody else inserts this row, and a locked one stays.
            gate.close()
            found = known.select_for_update().first()
            if found is None:
                made.save(force_insert=True)
        if found is None:
            made.refresh_from_db()
    if found is None:
        observe("work.paused", level=logging.WARNING, target=str(made), by=by)
    return Paused(pause=found or made, changed=found is None)


def resume(*, kind: str, name: str, by: str = "", scope: str | None = None) -> Pause:
    """End a pause, and wake workers for what it kept from starting; returns what it was.

    A thread is judged again: its head may start, unless an agent's or a queue's pause keeps it. Raises InvalidInput,
    ThreadNotFound, Gone, and NotPaused, which changes nothing.
    """
    kind, name = _target(kind, name)
    by = inputs.text("by", by, may_be_blank=True)
    with transaction.atomic():
        if kind == PauseKind.THREAD:
            with Thread.objects.fence(_thread_id(name), scope=scope) as thread:
                ended = _end(kind, name)
                thread.blocked_reason = ""
                emit.of_thread(thread, Kind.THREAD_RESUMED, by=by)
            hints.tell(thread)
        else:
            ended = _end(kind, name)
            # Looked for once the pause is gone: what becomes due before that commit sends a signal in vain.
            after_commit(_wake, kind, name)
    observe("work.resumed", level=logging.WARNING, target=str(ended), by=by)
    return ended


def standing() -> Standing:
    """What agents and queues are paused now."""
    rows = Pause.objects.exclude(kind=PauseKind.THREAD).values_list("kind", "name")
    found = {wanted: frozenset(name for kind, name in rows if kind == wanted) for wanted in PauseKind}
    return Standing(agents=found[PauseKind.AGENT], queues=found[PauseKind.QUEUE])


def of_dispatch(dispatch: Dispatch) -> Sequence[Pause]:
    """The pauses that keep a queued dispatch from starting, the oldest first; none of one that is not queued."""
    if dispatch.claim_token is not None or dispatch.completed_at is not None:
        return []
    return _keeping(dispatch.thread_id, dispatch.agent, dispatch.queue)


def of_thread(thread: Thread) -> Sequence[Pause]:
    """The pauses that keep a thread's head from starting, the oldest first."""
    if thread.due_at is None and not thread.is_paused:
        return []
    return _keeping(thread.pk, thread.due_agent, thread.due_queue)


def _keeping(thread_id: uuid.UUID, agent: str | None, queue: str | None) -> Sequence[Pause]:
    wanted = Q(kind=PauseKind.THREAD, name=str(thread_id))
    wanted |= Q(kind=PauseKind.AGENT, name=agent) | Q(kind=PauseKind.QUEUE, name=queue)
    return list(Pause.objects.filter(wanted).order_by("paused_at", "id"))


def _target(kind: str, name: str) -> tuple[PauseKind, str]:
    wanted = PauseKind(inputs.choice("kind", kind, PauseKind.values))
    name = inputs.text("name", name).strip()
    return wanted, str(_thread_id(name)) if wanted == PauseKind.THREAD else name


def _thread_id(name: str) -> uuid.UUID:
    found = inputs.identifier("name", name)
    assert found is not None
    return found


def _end(kind: PauseKind, name: str) -> Pause:
    """Delete the row; who comes second finds none."""
    found = Pause.objects.of(kind, name).select_for_update().first()
    if found is None:
        raise NotPaused(f"{kind} {name} is not paused", kind=str(kind), name=name)
    Pause.objects.filter(pk=found.pk).delete()
    return found


def _wake(kind: PauseKind, name: str) -> None:
    """Wake a worker for each queue on which the pause kept something. Lost: the sweep does it."""
    for queue in sorted(
        {q for q, agent in candidates.due_lanes() if name == (agent if kind == PauseKind.AGENT else q)}
    ):
        hints.wake(queue)
