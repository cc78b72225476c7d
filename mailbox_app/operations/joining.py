"""What is said to a thread in quick succession becomes one run: whoever comes later joins the one that has not started.

`Run.activation["posted"]` marks a run that may be joined: {"sender": whose messages it reads, "by": {caller: message
ids}}. A run that was submitted, a durable one, a child and a replay carry no mark, or are not looked at.
"""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mailbox_app.conf import conf
from mailbox_app.errors import SnapshotTooNew, SnapshotUnreadable
from mailbox_app.models import Dispatch, Kind, Message, Run, Snapshot, Thread
from mailbox_app.operations import append, emit
from mailbox_app.operations.enqueue import Queued, RunSpec
from mailbox_app.operations.submission import Submission


def mark(given: Submission) -> dict[str, Any] | None:
    """What the run is marked with; None: nobody may join it, and it joins nobody's."""
    senders = {message.sender for message in given.messages}
    if not given.is_posted or len(senders) > 1 or not given.delivery.is_plain:
        return None
    return {"sender": senders.pop(), "by": {}}


def join(given: Submission, thread: Thread, spec: RunSpec) -> Queued | None:
    """Add the messages to the run they would else be queued right behind; None if there is none that fits.

    That is the last one of its priority that could start now: what joins it goes before nothing that came earlier.
    """
    if spec.posted is None or thread.is_new:
        return None
    last = (
        Dispatch.objects.filter(thread=thread, priority=spec.priority, available_at__lte=thread.locked_at)
        .queued()
        .select_related("run")
        .order_by("-order", "-id")
        .first()
    )
    if last is None or last.run_id == thread.open_run_id or not _is_alike(last.run, spec):
        return None
    waiting = Message.objects.filter(thread=thread, run=last.run).pending().count()
    if waiting + len(given.messages) > conf.max_messages:
        return None
    appended = append.pending(thread=thread, run=last.run, messages=given.messages)
    ids = [message.pk for message in appended]
    thread.change(last.run, activation=signed(last.run.activation, by=given.by, message_ids=ids))
    emit.of_dispatch(thread, Kind.MESSAGES_JOINED, last, message_ids=[str(pk) for pk in ids])
    return Queued(run=last.run, dispatch=last, message_ids=ids)


def signed(activation: dict[str, Any], *, by: str, message_ids: Sequence[uuid.UUID]) -> dict[str, Any]:
    """The activation of a run that may be joined, with who said these messages."""
    known = Snapshot.read(activation)
    assert known.posted is not None, "the caller has looked"
    posted = known.posted
    said = {**posted["by"], by: [*posted["by"].get(by, ()), *map(str, message_ids)]}
    return replace(known, posted={**posted, "by": said}).write()


def of_others(run: Run, messages: Sequence[Message], *, by: str | None) -> list[Message]:
    """Those of an unstarted run's own unread messages that others than `by` have said; none unless `by` said any."""
    posted = _posted(run)
    if posted is None or by is None or by not in posted["by"]:
        return []
    said: dict[str, list[str]] = posted["by"]
    return [message for message in messages if message.run_id == run.pk and str(message.pk) not in said[by]]


def _posted(run: Run) -> dict[str, Any] | None:
    """The run's mark; None where its snapshot cannot be read, too: that is the claim's trouble, not a caller's."""
    return run.shown.posted


def _is_alike(run: Run, spec: RunSpec) -> bool:
    """Whether the run was made as the new one would be, and for the same sender."""
    try:
        known = run.snapshot
    except (SnapshotTooNew, SnapshotUnreadable):
        return False
    if known.posted is None or spec.posted is None or known.posted["sender"] != spec.posted["sender"]:
        return False
    is_plain = run.dedupe_key is None and run.parent_run_id is None and run.replay_of_id is None
    made = (run.agent, run.config_version, known.options)
    return is_plain and made == (spec.agent, spec.config_version, spec.options)
