"""Write one submission, under its thread's fence: a run of its own, one it joins, or what the open run is to read."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from mailbox_app.conf import conf
from mailbox_app.errors import ActiveRunConflict, InvalidInput
from mailbox_app.models import Run, Thread
from mailbox_app.operations import agents, emit, enqueue, feed, interrupt, joining, room
from mailbox_app.operations.submission import Submission
from mailbox_app.states import RunStatus

_FURTHEST = timedelta(days=366)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a caller gets for an accepted submission: `run_id` is the run that will answer, `status` where it stands."""

    thread_id: uuid.UUID
    run_id: uuid.UUID
    # None only for a durable message that comes again when its run's activations are past their retention.
    dispatch_id: uuid.UUID | None
    message_ids: list[uuid.UUID]
    status: str
    # With `if_active="interrupt"`.
    interrupted: interrupt.Interruption | None = None


def one(
    given: Submission,
    thread: Thread,
    *,
    space: room.Room,
    latest_version: Callable[[str], str] = agents.latest_version,
) -> Receipt:
    """Refuse the submission, or write it.

    1. refuse what expects another open run, or none; 2. an interrupt stops what is open or due and comes next; 3. what
    steers is for the open run, and so is what is said to a run that waits for it; 4. anything else joins the last run
    that has not started, if it was said to the thread as this is, or 5. gets a run of its own.
    """
    _refuse_if_active(given, thread)
    if given.if_active == "interrupt" and not thread.is_new:
        return _interrupt(given, thread, latest_version)
    if thread.open_run_id is not None and (given.if_active == "steer" or given.is_posted):
        answering = _to_open_run(given, thread)
        if answering is not None:
            return answering
    queued = None
    if given.is_posted:
        queued = joining.join(given, thread, _spec(given, thread, latest_version))
    if queued is None:
        space.take(thread)
        queued = queue(given, thread, latest_version=latest_version)
    return _receipt(thread, queued)


def queue(
    given: Submission,
    thread: Thread,
    *,
    durable: enqueue.Durable | None = None,
    latest_version: Callable[[str], str] = agents.latest_version,
) -> enqueue.Queued:
    """Write run, messages, dispatch and events of a submission, under the fence."""
    spec = _spec(given, thread, latest_version)
    if thread.last_cursor == 0:
        emit.thread_created(thread)
    queued = enqueue.run(thread=thread, messages=given.messages, spec=spec, durable=durable, delivery=given.delivery)
    if spec.posted is not None:
        # Not written yet: the fence inserts the row as it is when it is left.
        queued.run.activation = joining.signed(queued.run.activation, by=given.by, message_ids=queued.message_ids)
    thread.consider(queued.dispatch)
    return queued


def _spec(given: Submission, thread: Thread, latest_version: Callable[[str], str]) -> enqueue.RunSpec:
    """How the submission's run is to be executed. Raises UnknownAgent, InvalidInput."""
    agent = given.agent or agents.of_thread(thread)
    wishes = agents.options(agent)
    if given.available_at is not None and given.available_at - thread.locked_at > _FURTHEST:
        raise InvalidInput("available_at", "too_far", "available_at must be within 366 days from now")
    return enqueue.RunSpec(
        agent=agent,
        config_version=agents.known_version(agent, given.config_version) or latest_version(agent),
        queue=wishes.get("queue") or conf.default_queue,
        priority=_first(given.priority, wishes.get("priority"), conf.default_priority),
        max_attempts=_first(given.max_attempts, wishes.get("max_attempts"), conf.max_attempts),
        # What lies in the past is for now, and goes before nobody who came earlier.
        available_at=None if given.available_at is None else max(given.available_at, thread.locked_at),
        dedupe_key=given.dedupe_key,
        client_id=given.client_id,
        origin=given.origin,
        run_mode="foreground" if given.if_active == "interrupt" else "background",
        options=given.options,
        metadata=given.metadata,
        posted=joining.mark(given),
        parent=given.parent,
    )


def _refuse_if_active(given: Submission, thread: Thread) -> None:
    found = thread.open_run_id
    facts = {"thread_id": thread.pk, "run_id": found}
    if given.if_active == "reject" and found is not None:
        raise ActiveRunConflict(f"thread {thread.pk} has the open run {found}", **facts)
    for expected in (given.expected_run_id, given.delivery.target_run_id):
        if expected is not None and expected != found:
            seen = "no open run" if found is None else f"the open run {found}"
            raise ActiveRunConflict(f"thread {thread.pk} has {seen}, not {expected}", **facts)


def _interrupt(given: Submission, thread: Thread, latest_version: Callable[[str], str]) -> Receipt:
    """Stop what is open or due on the thread, and queue the run that comes next on it."""
    stopped = interrupt.stop(thread, reason="")
    # A name of an ended run, such as its dedupe key, is free for the new one.
    thread.flush()
    queued = queue(given, thread, latest_version=latest_version)
    interrupt.pass_on(thread, stopped.unread, queued)
    thread.flush()
    thread.judge()
    return _receipt(thread, queued, stopped.met)


def _to_open_run(given: Submission, thread: Thread) -> Receipt | None:
    """Have the open run read it; None where another agent is to answer, or the run is not to be steered.

    What is only said to the thread is for the open run if that waits for it.
    """
    assert thread.open_run_id is not None, "the caller has looked"
    found = Run.objects.get(pk=thread.open_run_id)
    if given.agent or given.config_version:
        agent = given.agent or agents.of_thread(thread)
        agents.options(agent)
        agents.known_version(agent, given.config_version)
    if given.agent not in ("", found.agent):
        if given.expected_run_id is not None or given.delivery.target_run_id is not None:
            facts = {"thread_id": thread.pk, "run_id": found.pk}
            raise ActiveRunConflict(
                f"the open run {found.pk} is one of {found.agent!r}, not of {given.agent!r}", **facts
            )
        return None
    is_for_it = feed.waits_for_input(found) and not given.delivery.has_own_run
    if given.if_active != "steer" and not is_for_it:
        return None
    added = feed.open_run(thread=thread, run=found, messages=given.messages, delivery=given.delivery)
    return Receipt(
        thread_id=thread.pk,
        run_id=found.pk,
        dispatch_id=added.dispatch.pk,
        message_ids=[message.pk for message in added.messages],
        status=found.status,
    )


def _receipt(thread: Thread, queued: enqueue.Queued, interrupted: interrupt.Interruption | None = None) -> Receipt:
    return Receipt(
        thread_id=thread.pk,
        run_id=queued.run.pk,
        dispatch_id=queued.dispatch.pk,
        message_ids=queued.message_ids,
        status=RunStatus.CREATED,
        interrupted=interrupted,
    )


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
