"""The state machine: every status and every legal move. A status is written by two `move()`s alone.

`python -m mailbox_app.states` prints the diagram that docs/states.md shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from django.db.models import TextChoices


class RunStatus(TextChoices):
    CREATED = "created"
    RUNNING = "running"
    WAITING = "waiting"
    DONE = "done"


class DispatchStatus(TextChoices):
    QUEUED = "queued"
    CLAIMED = "claimed"
    ACKED = "acked"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    DEAD_LETTER = "dead_letter"


class MessageState(TextChoices):
    PENDING = "pending"
    COMMITTED = "committed"
    RETRACTED = "retracted"


class TicketStatus(TextChoices):
    OPEN = "open"
    ANSWERED = "answered"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class OutboxStatus(TextChoices):
    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True)
class Move:
    """One legal edge. `noun` is the model it belongs to, `meaning` what happened."""

    noun: str
    name: str
    source: str
    target: str
    meaning: str


# A run: one user intent and its outcome.
START = Move("run", "start", RunStatus.CREATED, RunStatus.RUNNING, "its first dispatch was claimed")
SUSPEND = Move("run", "suspend", RunStatus.RUNNING, RunStatus.WAITING, "it waits for somebody or something")
RESUME = Move("run", "resume", RunStatus.WAITING, RunStatus.RUNNING, "its resuming dispatch was claimed")
FINISH = Move("run", "finish", RunStatus.RUNNING, RunStatus.DONE, "it ended, well or badly")
DROP = Move("run", "drop", RunStatus.CREATED, RunStatus.DONE, "it ended before it started")
END_WAIT = Move("run", "end_wait", RunStatus.WAITING, RunStatus.DONE, "it ended while it waited")

# A dispatch: one activation of a run.
CLAIM = Move("dispatch", "claim", DispatchStatus.QUEUED, DispatchStatus.CLAIMED, "a worker owns it under a lease")
ACK = Move("dispatch", "ack", DispatchStatus.CLAIMED, DispatchStatus.ACKED, "the activation is over")
NACK = Move("dispatch", "nack", DispatchStatus.CLAIMED, DispatchStatus.QUEUED, "failed, attempts left")
RECLAIM = Move("dispatch", "reclaim", DispatchStatus.CLAIMED, DispatchStatus.QUEUED, "its lease ran out")
HAND_BACK = Move("dispatch", "hand_back", DispatchStatus.CLAIMED, DispatchStatus.QUEUED, "its worker is stopping")
DEAD_LETTER = Move(
    "dispatch", "dead_letter", DispatchStatus.CLAIMED, DispatchStatus.DEAD_LETTER, "failed for good, or lost too often"
)
EXPIRE = Move("dispatch", "expire", DispatchStatus.QUEUED, DispatchStatus.DEAD_LETTER, "no worker can run it")
WITHDRAW = Move("dispatch", "withdraw", DispatchStatus.QUEUED, DispatchStatus.CANCELLED, "cancelled before its start")
STOP = Move("dispatch", "stop", DispatchStatus.CLAIMED, DispatchStatus.CANCELLED, "cancelled while it was claimed")
SUPERSEDE = Move("dispatch", "supersede", DispatchStatus.QUEUED, DispatchStatus.SUPERSEDED, "an interrupt overtook it")

# A message: one entry of a thread.
COMMIT = Move("message", "commit", MessageState.PENDING, MessageState.COMMITTED, "an agent read it")
RETRACT = Move("message", "retract", MessageState.PENDING, MessageState.RETRACTED, "it will never be read")

# A ticket: one question to a human.
ANSWER = Move("ticket", "answer", TicketStatus.OPEN, TicketStatus.ANSWERED, "the first answer won")
LAPSE = Move("ticket", "lapse", TicketStatus.OPEN, TicketStatus.EXPIRED, "nobody answered in time")
CLOSE = Move("ticket", "close", TicketStatus.OPEN, TicketStatus.CANCELLED, "its run ended")

# An outbox row: one effect on another thread.
DELIVER = Move("outbox", "deliver", OutboxStatus.PENDING, OutboxStatus.DELIVERED, "applied under the target's fence")
ABANDON = Move("outbox", "abandon", OutboxStatus.PENDING, OutboxStatus.DEAD_LETTER, "refused, or failed too often")

MOVES: tuple[Move, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Move))

STATUSES: dict[str, type[TextChoices]] = {
    "run": RunStatus,
    "dispatch": DispatchStatus,
    "message": MessageState,
    "ticket": TicketStatus,
    "outbox": OutboxStatus,
}

# A run that is open holds its thread: nothing else on it starts.
OPEN_RUN = (RunStatus.RUNNING, RunStatus.WAITING)
LIVE_DISPATCH = (DispatchStatus.QUEUED, DispatchStatus.CLAIMED)
TERMINAL_DISPATCH = tuple(status for status in DispatchStatus if status not in LIVE_DISPATCH)


def moves_of(noun: str) -> Iterator[Move]:
    """Every legal move of one noun, in the order of this file."""
    return (move for move in MOVES if move.noun == noun)


def diagram() -> str:
    """The machine as Markdown: one Mermaid diagram and one table a noun."""
    parts = []
    for noun, statuses in STATUSES.items():
        initial = next(iter(statuses))
        moves = list(moves_of(noun))
        lines = [f"## {noun}", "", "```mermaid", "stateDiagram-v2", f"    [*] --> {initial.value}"]
        lines += [f"    {move.source} --> {move.target}: {move.name}" for move in moves]
        sources = {move.source for move in moves}
        lines += [f"    {status.value} --> [*]" for status in statuses if status.value not in sources]
        lines += ["```", "", "| move | from | to | meaning |", "|---|---|---|---|"]
        lines += [f"| {move.name} | {move.source} | {move.target} | {move.meaning} |" for move in moves]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(diagram(), end="")
