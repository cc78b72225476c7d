"""What an agent has emitted and no transaction has written yet: its next write takes it along, or nothing does."""

import math
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mailbox_app.conf import conf
from mailbox_app.models import Dispatch, JournalEntry, Run, Thread
from mailbox_app.operations import emit, journal
from mailbox_app.operations.journal import Record
from mailbox_app.telemetry import after_commit

# JSON (bytes) of one activation that waits to be written, at most.
_MOST_BYTES = 1_048_576


@dataclass(frozen=True, kw_only=True, slots=True)
class Emission:
    """One event of the team's own, checked, and the journal's name for its use. `size`: bytes of its payload's JSON."""

    record: Record
    payload: Any
    key: str | None
    visibility: str
    size: int


class Emitted:
    """The events one activation has emitted, in their order, until the transaction that wrote them is committed.

    Every write of the activation begins with them, so nothing it has done is durable without what it said before.
    Several threads may add to it and write it: the thread's fence lets one write at a time.
    """

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._waiting: dict[Record, Emission] = {}
        self._bytes, self._is_over = 0, False
        # What a transaction was to write whose end nobody has told: it may have won.
        self._doubtful: set[Record] = set()
        # When that was tried last (monotonic).
        self.written_at = -math.inf

    def add(self, emission: Emission) -> bool:
        """Keep one more; False, and it is not kept, when the activation is over."""
        with self._changing:
            if self._is_over:
                return False
            self._waiting[emission.record] = emission
            self._bytes += emission.size
            return True

    def close(self) -> None:
        """The activation is over: what was not written never will be."""
        with self._changing:
            self._waiting, self._bytes, self._is_over = {}, 0, True

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    @property
    def is_full(self) -> bool:
        """Whether so much waits that whoever adds to it is to write it."""
        return len(self._waiting) >= conf.emit_batch or self._bytes >= _MOST_BYTES

    def write(self, thread: Thread, dispatch: Dispatch) -> None:
        """Have the fence write all of it, each event with its journal entry; the caller has proven the claim.

        An event with a key the thread has already is not recorded again.
        """
        if self.is_empty:
            return
        run = dispatch.run
        with self._changing:
            doubtful, self._doubtful = self._doubtful, set(self._waiting)
        if doubtful:
            self._forget(_written(run, doubtful))
        with self._changing:
            waiting = [one for one in self._waiting.values() if one.record in self._doubtful]
        self.written_at = time.monotonic()
        keys = [one.key for one in waiting if one.key is not None]
        known: dict[str | None, int] = {}
        if keys:
            known = dict(thread.events.filter(key__in=keys).values_list("key", "cursor"))
        for one in waiting:
            cursor = known.get(one.key)
            if cursor is None:
                kind = one.record.name
                cursor = emit.of_agent(
                    thread, run, kind, one.payload, dispatch=dispatch, key=one.key, visibility=one.visibility
                ).cursor
            if one.key is not None:
                known[one.key] = cursor
            journal.write(thread, run, one.record, {"cursor": cursor})
        after_commit(self._forget, [one.record for one in waiting])

    def _forget(self, written: Collection[Record]) -> None:
        with self._changing:
            for record in written:
                self._doubtful.discard(record)
                emission = self._waiting.pop(record, None)
                self._bytes -= 0 if emission is None else emission.size


def _written(run: Run, records: Collection[Record]) -> list[Record]:
    """Those of them that the journal has."""
    found = JournalEntry.objects.of_turn(run.pk, run.turn).filter(verb="emit", name__in={one.name for one in records})
    slots = set(found.values_list("name", "key", "n"))
    return [one for one in records if (one.name, one.key, one.n) in slots]
