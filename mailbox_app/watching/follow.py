"""Follow a run or a thread: its events in order, what its agent says live, and what comes between.

It looks four times a second, and is told nothing: so it is the same without Redis, but for live text, and behind every
pooler. Between two looks no transaction is open.
"""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from django.db import InterfaceError, OperationalError, connection

from mailbox_app.models import Event
from mailbox_app.watching import rows, text
from mailbox_app.watching.rows import Look, Target

# Soon enough for somebody who reads along; a look costs two or three lookups by index.
_LOOK_SECONDS = 0.25
# How long a database that does not answer is left alone.
_AWAY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Said:
    """Live text from an offset (characters) of what the attempt says; `has_gap`: some before it was not kept."""

    run_id: uuid.UUID
    attempt: int
    offset: int
    text: str
    has_gap: bool


@dataclass(frozen=True)
class Note:
    """A sentence about the following itself."""

    text: str


@dataclass(frozen=True, kw_only=True)
class End:
    """There is no more: the run is done, or its thread was deleted. `how` the run ended."""

    target: Target
    status: str
    how: str | None = None


def follow(target: Target, *, cursor: int = 0, is_live: bool = True) -> Iterator[Event | Said | Note | End]:
    """What there is past the cursor and, if it is to go on, what comes, until the run is done.

    A thread is followed until it is deleted. Raises OperationalError or InterfaceError if it is not to go on and the
    database does not answer; else that is noted, and tried again.
    """
    voice = _Voice()
    noted, is_away = 0, False
    while True:
        try:
            seen = rows.look(target, cursor)
        except (OperationalError, InterfaceError) as error:
            if not is_live:
                raise
            if not is_away:
                yield Note(f"the database does not answer ({type(error).__name__}); trying again")
            is_away = True
            connection.close()
            time.sleep(_AWAY_SECONDS)
            continue
        if is_away:
            is_away = False
            yield Note("the database answers again")
        if seen is None:
            yield End(target=target, status="gone")
            return
        if cursor < seen.pruned and noted < seen.pruned:
            noted = seen.pruned
            yield Note(f"events of the thread up to {noted} are past their retention and gone")
        said = None if seen.has_more else voice.hear(target, seen)
        if said is not None and not voice.comes_after:
            yield said
        yield from seen.events
        if said is not None and voice.comes_after:
            yield said
        cursor = seen.head
        if seen.has_more:
            continue
        if seen.is_done or seen.is_deleted:
            yield End(target=target, status="done" if seen.is_done else "deleted", how=seen.ended)
            return
        if not is_live:
            return
        time.sleep(_LOOK_SECONDS)


class _Voice:
    """How far the live text of the latest activation was heard, of its latest turn."""

    def __init__(self) -> None:
        self._of: tuple[uuid.UUID | None, int, int] = (None, 0, 0)
        self._end = self._closed = 0
        # Whether the events of the same look go before what was heard: its start is among them, or a message that has
        # closed what was said before.
        self.comes_after = False

    def hear(self, target: Target, seen: Look) -> Said | None:
        """What the open run has said since it was heard before."""
        run_id = seen.open_run_id
        if run_id is None or target.run_id not in (None, run_id):
            return None
        kept = text.kept(run_id, seen.fence)
        if kept is None or kept.turn != seen.turn:  # one is over, or its beginning comes with the next look
            return None
        of = (run_id, seen.fence, kept.turn)
        is_other = self._of != of
        if is_other:
            self._of, self._end, self._closed = of, 0, 0
        self.comes_after = is_other or kept.closed > self._closed
        heard = max(self._end, kept.closed)
        self._closed, self._end = kept.closed, max(self._end, kept.end)
        news = kept.text[max(0, heard - kept.start) :]
        if not news:
            return None
        offset = max(heard, kept.start)
        return Said(run_id=run_id, attempt=kept.attempt, offset=offset, text=news, has_gap=kept.start > heard)
