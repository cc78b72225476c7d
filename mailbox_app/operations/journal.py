"""How the journal names one use of a verb, and its record is written."""

from dataclasses import dataclass
from typing import Any

from mailbox_app.models import JournalEntry, Run, Thread


@dataclass(frozen=True, kw_only=True)
class Record:
    """The journal's name for one use of one verb in one turn, and the hash of its arguments."""

    verb: str
    name: str
    key: str = ""
    n: int
    arguments_hash: str


def write(thread: Thread, run: Run, record: Record, result: Any) -> None:
    """Have the fence write the record of an effect that this turn of the run has completed."""
    thread.insert(
        JournalEntry(
            run=run,
            turn=run.turn,
            verb=record.verb,
            name=record.name,
            key=record.key,
            n=record.n,
            arguments_hash=record.arguments_hash,
            result=result,
        )
    )
