"""What was said to a thread and nobody has read: let what an interrupt has held be read after all."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from mailbox_app import hints
from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput, MessageNotFound
from mailbox_app.models import Dispatch, Message, Run, Thread
from mailbox_app.operations import agents, enqueue, inputs
from mailbox_app.operations.enqueue import Queued


@dataclass(frozen=True, kw_only=True)
class Released:
    """The messages that were held until now, and the new runs that will read them, in their order."""

    thread_id: uuid.UUID
    message_ids: list[uuid.UUID]
    run_ids: list[uuid.UUID]


def release(
    *, scope: str, thread_id: uuid.UUID | str, message_ids: Sequence[uuid.UUID | str] | None = None
) -> Released:
    """Have held messages of a thread (None: all of them) read: by new runs, each as the run was that lost them.

    A new run takes the place of its first message in the thread's order. What is not held any more is left as it is.
    Raises InvalidInput, ThreadNotFound, Gone, MessageNotFound, UnknownAgent; each changes nothing.
    """
    inputs.text("scope", scope)
    found_id = inputs.identifier("thread_id", thread_id) or uuid.UUID(int=0)
    wanted = None if message_ids is None else _wanted(message_ids)
    with Thread.objects.fence(found_id, scope=scope) as thread:
        held = Message.objects.filter(thread=thread, held=True).pending().select_related("run")
        if wanted is not None:
            _refuse_unknown(thread, wanted)
            held = held.filter(pk__in=wanted)
        found = list(held.order_by("position", "id"))
        queued = [_requeued(thread, run, list(group)) for run, group in groupby(found, key=lambda one: one.run)]
    hints.tell(thread)
    return Released(
        thread_id=thread.pk,
        message_ids=[message.pk for message in found],
        run_ids=[one.run.pk for one in queued if one is not None],
    )


def _wanted(message_ids: Sequence[uuid.UUID | str]) -> set[uuid.UUID]:
    if isinstance(message_ids, str) or not isinstance(message_ids, Sequence):
        raise InvalidInput("message_ids", "not_a_list", "message_ids must be a list")
    if not message_ids or len(message_ids) > conf.max_messages:
        limits = f"from 1 to {conf.max_messages}"
        raise InvalidInput("message_ids", "wrong_length", f"message_ids must name {limits}, not {len(message_ids)}")
    found = {inputs.identifier(f"message_ids[{index}]", one) for index, one in enumerate(message_ids)}
    if None in found:
        raise InvalidInput("message_ids", "not_an_id", "message_ids must hold no null")
    return {pk for pk in found if pk is not None}


def _refuse_unknown(thread: Thread, wanted: set[uuid.UUID]) -> None:
    known = Message.objects.filter(thread=thread, pk__in=wanted).values_list("pk", flat=True)
    for missing in sorted(wanted - set(known))[:1]:
        raise MessageNotFound(f"thread {thread.pk} has no message {missing}", message_id=missing)


def _requeued(thread: Thread, run: Run | None, messages: list[Message]) -> Queued | None:
    ended = run or Run.objects.filter(thread=thread).latest("order")
    last = Dispatch.objects.of_run(ended.pk).order_by("created_at", "id").last()
    return enqueue.unread(thread=thread, ended=ended, dispatch=last or _as_asked(ended), messages=messages)


def _as_asked(run: Run) -> Dispatch:
    """What the agent asks for, where the run's own dispatch is past its retention."""
    wishes = agents.options(run.agent)
    return Dispatch(
        queue=wishes.get("queue") or conf.default_queue,
        priority=wishes.get("priority", conf.default_priority),
        max_attempts=wishes.get("max_attempts", conf.max_attempts),
    )
