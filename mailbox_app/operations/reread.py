"""What a run reads again when its turn begins again: after a failure, a lost worker, or as a replay of another run."""

from django.db.models import Q

from mailbox_app.models import Message, ReadAt, Run
from mailbox_app.models.message import MessageQuerySet


def turn(run: Run) -> list[Message]:
    """What the run's present turn began with, in order: checkpoints and waits hand over again what they had read."""
    return list(_read(run).exclude(read_at__in=(ReadAt.CHECKPOINT, ReadAt.RESUME)))


def checkpoints(run: Run, *, after_seq: int) -> list[Message]:
    """What checkpoints of the run's present turn have read past that number, in order."""
    return list(_read(run).filter(read_at=ReadAt.CHECKPOINT, seq__gt=after_seq))


def whole_turn(run: Run) -> list[Message]:
    """All that the run's present turn has read, in order."""
    return list(_read(run))


def _read(run: Run) -> MessageQuerySet:
    """What it has read itself and, in the turn a replay began with, what its original had."""
    if run.replay_of_id is None:
        return Message.objects.read_in(run.pk, run.turn)
    read = Q(run=run) | Q(pk__in=run.input.get("message_ids", ()))
    return Message.objects.filter(read, thread=run.thread_id, read_turn=run.turn).committed().in_order()
