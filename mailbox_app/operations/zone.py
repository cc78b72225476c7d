"""Find the pending messages a caller names, and refuse what was read, withdrawn or changed since the caller looked."""

import uuid
from collections.abc import Sequence

from mailbox_app.errors import AlreadyConsumed, Gone, InvalidInput, MessageNotFound, RevisionConflict
from mailbox_app.models import Message, Thread
from mailbox_app.operations import inputs
from mailbox_app.states import MessageState

_MAX_REVISION = 2**63 - 1


def ids(thread_id: uuid.UUID | str, message_id: uuid.UUID | str) -> tuple[uuid.UUID, uuid.UUID]:
    """The ids of a thread and a message, checked; that of nobody for null."""
    nobody = uuid.UUID(int=0)
    found = inputs.identifier("thread_id", thread_id), inputs.identifier("message_id", message_id)
    return found[0] or nobody, found[1] or nobody


def list_of_ids(message_ids: Sequence[uuid.UUID | str], *, most: int) -> list[uuid.UUID]:
    """At least one id, each checked, in the order given."""
    if isinstance(message_ids, str) or not isinstance(message_ids, Sequence):
        raise InvalidInput("message_ids", "not_a_list", "message_ids must be a list")
    if not message_ids or len(message_ids) > most:
        limits = f"from 1 to {most}"
        raise InvalidInput("message_ids", "wrong_length", f"message_ids must name {limits}, not {len(message_ids)}")
    found = [inputs.identifier(f"message_ids[{index}]", one) for index, one in enumerate(message_ids)]
    if None in found:
        raise InvalidInput("message_ids", "not_an_id", "message_ids must hold no null")
    return [pk for pk in found if pk is not None]


def check_revision(name: str, value: int | None) -> None:
    """Refuse what can be no revision; None is no guard."""
    if value is not None:
        inputs.whole(name, value, least=1, most=_MAX_REVISION)


def find(thread: Thread, message_id: uuid.UUID) -> Message:
    """The message with its run, while nobody has read it; under the fence."""
    message = Message.objects.filter(thread=thread, pk=message_id).select_related("run").first()
    if message is None:
        raise MessageNotFound(f"thread {thread.pk} has no message {message_id}", message_id=message_id)
    if message.state == MessageState.COMMITTED:
        # What a run said was committed at once.
        reader = message.run_id or message.producer_run_id
        raise AlreadyConsumed(
            f"message {message_id} is number {message.seq} of its thread's log, by run {reader}",
            message_id=message_id,
            run_id=reader,
            seq=message.seq,
        )
    if message.state == MessageState.RETRACTED:
        raise Gone(f"message {message_id} was retracted: {message.retract_reason}", message_id=message_id)
    return message


def find_all(thread: Thread, wanted: Sequence[uuid.UUID]) -> list[Message]:
    """All these messages (ids and positions), while nobody has read any; under the fence."""
    found = list(Message.objects.filter(thread=thread, pk__in=wanted).pending().only("id", "position"))
    for missing in sorted(set(wanted) - {message.pk for message in found})[:1]:
        find(thread, missing)  # refuses, and says why
    return found


def refuse_unknown(thread: Thread, wanted: set[uuid.UUID]) -> None:
    """Refuse ids that are no messages of the thread, read or not."""
    known = Message.objects.filter(thread=thread, pk__in=wanted).values_list("pk", flat=True)
    for missing in sorted(wanted - set(known))[:1]:
        raise MessageNotFound(f"thread {thread.pk} has no message {missing}", message_id=missing)


def refuse_stale_message(thread: Thread, message: Message, revision: int | None) -> None:
    """Refuse unless the message still is at this revision; None is any."""
    if revision not in (None, message.revision):
        raise RevisionConflict(
            f"message {message.pk} is at revision {message.revision}, not {revision}",
            message_id=message.pk,
            revision=message.revision,
            pending_revision=thread.pending_revision,
        )


def refuse_stale(thread: Thread, pending_revision: int | None) -> None:
    """Refuse unless all that is pending on the thread still is at this revision; None is any."""
    if pending_revision not in (None, thread.pending_revision):
        raise RevisionConflict(
            f"what is pending on thread {thread.pk} is at revision {thread.pending_revision}, not {pending_revision}",
            pending_revision=thread.pending_revision,
        )
