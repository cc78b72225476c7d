"""Give an open run what is said to it: for its next step, its next turn or, where it waits for input, to go on with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mailbox_app import hints
from mailbox_app.errors import Conflict
from mailbox_app.models import Boundary, Dispatch, Message, ReadAt, Run, TerminationType, Thread
from mailbox_app.operations import append, emit, ending, enqueue, freeze, waits
from mailbox_app.operations.delivery import Delivery
from mailbox_app.operations.inputs import NewMessage
from mailbox_app.states import WITHDRAW, DispatchStatus, RunStatus


@dataclass(frozen=True, kw_only=True)
class Fed:
    """What was added, and the run's latest activation: by which it goes on, where it waited for this."""

    messages: list[Message]
    dispatch: Dispatch


def waits_for_input(run: Run) -> bool:
    """Whether the run waits for a message, also while its resume is queued."""
    return run.status == RunStatus.WAITING and (run.waiting or {}).get("reason") == waits.USER_INPUT


def open_run(*, thread: Thread, run: Run, messages: Sequence[NewMessage], delivery: Delivery) -> Fed:
    """Have the thread's open run read the messages; under the fence.

    A run that waits for input goes on with them, whatever their boundary, but for its natural end. What it does not
    come to read gets a run of its own, unless it was for this run and no other. Raises Conflict for `resume_input`
    where the run waits for no input.
    """
    takes = waits_for_input(run) and delivery.boundary != Boundary.ON_NATURAL_END
    if delivery.boundary == Boundary.RESUME_INPUT and not takes:
        raise Conflict(f"run {run.pk} does not wait for input", run_id=run.pk)
    if not takes:
        added = append.pending(
            thread=thread, run=None, messages=messages, boundary=delivery.boundary, delivery=delivery
        )
        last = waits.last_dispatch(run)
        if last.status == DispatchStatus.CLAIMED and delivery.boundary == Boundary.NEXT_STEP:
            hints.nudge(last)
        return Fed(messages=added, dispatch=last)
    added = append.pending(
        thread=thread,
        run=None,
        messages=messages,
        boundary=Boundary.RESUME_INPUT,
        delivery=delivery if delivery.target_run_id is not None else _for(run, delivery),
    )
    last = waits.last_dispatch(run)
    if Dispatch.objects.of_run(run.pk).queued().exists():
        return Fed(messages=added, dispatch=last)
    assert run.waiting is not None, "it waits"
    waits.record(thread, run, run.waiting["entry"], None)
    return Fed(messages=added, dispatch=enqueue.resume(thread=thread, run=run, after=last, at=thread.locked_at))


def nudge(thread: Thread) -> None:
    """Once something else than before may stand in front of what was said to it: have the executing run look again."""
    if thread.active_run_id is not None:
        for claimed in Dispatch.objects.of_run(thread.active_run_id).claimed():
            hints.nudge(claimed)


def gather(thread: Thread, run: Run) -> bool:
    """As a run begins to wait for input: whether some was there already, which is its from now on; under the fence.

    That is what no checkpoint has read, and what the first unstarted run of the same agent was to read that was said
    to the thread: that run ends, for it has nothing left to read.
    """
    found = [
        message
        for message in freeze.unread(thread=thread, run=run)
        if message.boundary == Boundary.NEXT_STEP and freeze.is_eligible(message, boundary=Boundary.NEXT_STEP, run=run)
    ]
    for message in found:
        _turn_over(thread, message, run)
    joined = _unstarted(thread, run)
    if joined is not None:
        queued = Dispatch.objects.of_run(joined.pk).queued().get()
        said = list(Message.objects.filter(thread=thread, run=joined, held=False).pending().order_by("position", "id"))
        for message in said:
            _turn_over(thread, message, run)
            emit.message_requeued(thread, message, ended=joined, run=run)
        termination = {"type": TerminationType.CANCELLED, "detail": "joined"}
        ending.drop(thread, joined, queued, by=WITHDRAW, termination=termination, reason="joined")
        found += said
    if found:
        thread.pending_revision += 1
    return bool(found)


def read(thread: Thread, run: Run) -> dict[str, Any]:
    """Read what was said to a run that waited for input, as it goes on; the columns of the run that change by it.

    The agent gets it from `ctx.suspend`, at every replay: the wait's record in the journal holds it.
    """
    if not waits_for_input(run):
        return {}
    assert run.waiting is not None, "it waits"
    said = [
        message
        for message in freeze.unread(thread=thread, run=run)
        if freeze.is_eligible(message, boundary=Boundary.RESUME_INPUT, run=run)
    ]
    messages = freeze.number(thread=thread, run=run, messages=said, read_at=ReadAt.RESUME)
    waits.change_record(thread, run, run.waiting["entry"], [_told(message) for message in messages])
    return {"input": freeze.input_of(run, messages)}


def _for(run: Run, delivery: Delivery) -> Delivery:
    return replace(delivery, target_run_id=run.pk, fallback=Boundary.NEW_RUN.value)


def _turn_over(thread: Thread, message: Message, run: Run) -> None:
    """Make a pending message input of the waiting run; should that end first, another reads it as it would have."""
    fallback = message.fallback if message.target_run_id == run.pk else Boundary.NEW_RUN.value
    thread.change(message, run_id=None, boundary=Boundary.RESUME_INPUT.value, target_run_id=run.pk, fallback=fallback)


def _unstarted(thread: Thread, run: Run) -> Run | None:
    rows = Dispatch.objects.filter(thread=thread, agent=run.agent, available_at__lte=thread.locked_at).queued()
    rows = rows.filter(run__activation__has_key="posted", run__status=RunStatus.CREATED)
    found = rows.select_related("run").order_by("priority", "order", "id").first()
    return None if found is None else found.run


def _told(message: Message) -> dict[str, Any]:
    """A message as the journal keeps it, for `IncomingMessage`."""
    return {
        "id": str(message.pk),
        "seq": message.seq,
        "role": message.role,
        "content": message.content,
        "text": message.text,
        "metadata": message.metadata,
        "sender": message.sender,
        "created_at": message.created_at.isoformat(),
    }
