"""What a run reads again when its turn begins again: after a failure, a lost worker, or as a replay of another run."""

from django.db.models import Q

from mailbox_app.models import Message, Run


def turn(run: Run) -> list[Message]:
    """The input of the run's present turn, in order: what it has read and, in a replay, what its original had."""
    if run.replay_of_id is None:
        return list(Message.objects.read_in(run.pk, run.turn))
    read = Q(run=run, read_turn=run.turn) | Q(pk__in=run.input.get("message_ids", ()))
    return list(Message.objects.filter(thread=run.thread_id).committed().filter(read).in_order())
