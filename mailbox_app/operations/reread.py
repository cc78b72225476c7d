"""What a run reads again when its turn begins again: after a failure, a lost worker, or as a replay of another run."""

from django.db.models import Q

from mailbox_app.models import Message, ReadAt, Run
from mailbox_app.models.message import MessageQuerySet


def turn(run: Run) -> list[Message]:
    """What the run's present turn began with, in order: what it has read and, in a replay, what its original had."""
    return list(_read(run).exclude(read_at=ReadAt.CHECKPOINT))


def at_checkpoints(run: Run, *, after_seq: int) -> list[Message]:
    """What checkpoints of the turn have read past that number: it is handed over by a checkpoint again."""
    return list(_read(run).filter(read_at=ReadAt.CHECKPOINT, seq__gt=after_seq))


def whole(run: Run) -> list[Message]:
    """All of it."""
    return list(_read(run))


def _read(run: Run) -> MessageQuerySet:
    if run.replay_of_id is None:
        return Message.objects.read_in(run.pk, run.turn)
    read = Q(run=run, read_turn=run.turn) | Q(pk__in=run.input.get("message_ids", ()))
    return Message.objects.filter(thread=run.thread_id).committed().filter(read).in_order()
