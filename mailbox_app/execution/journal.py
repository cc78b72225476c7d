"""The journal of one activation: which effects its turn has completed, and what stops it."""

import hashlib
import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import InterfaceError, OperationalError, connection

from mailbox_app import saying
from mailbox_app.conf import conf
from mailbox_app.errors import Permanent, ReplayMismatch, Stop
from mailbox_app.execution import caller
from mailbox_app.models import JournalEntry
from mailbox_app.operations import inputs
from mailbox_app.operations.journal import Record
from mailbox_app.operations.ownership import Claim, refuse_transaction
from mailbox_app.telemetry import observe

Attempted = TypeVar("Attempted")

# Should the lease run out meanwhile, its keeper is to say so first: that ends the activation, whatever the agent does.
_KEEPER_SECONDS = 1.0

_Slot = tuple[str, str, str, int]


class Journal:
    """Names each use of a verb, finds its record, and writes an effect with its record exactly once.

    Once something has stopped the activation, every call raises that again.
    """

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._caller = caller.identity()
        self._uses: Counter[tuple[str, str, str]] = Counter()
        self._counting = threading.Lock()
        self._records: dict[_Slot, JournalEntry] | None = None
        # Set when a write may have won although its answer was lost.
        self._must_look = False
        self._stop: Stop | None = None

    def belongs_to(self, task: object) -> None:
        """Take this task for the agent's own."""
        self._caller = task

    @property
    def stop(self) -> Stop | None:
        """What ended this activation, if anything did."""
        return self._stop

    def stop_with(self, stop: Stop) -> None:
        """Make every further call raise this; the first one stays."""
        if self._stop is None:
            self._stop = stop

    def check(self) -> None:
        """Raise what has stopped the activation, if anything did."""
        if self._stop is not None:
            raise self._stop

    def entry(self, verb: str, name: str, key: str | None, arguments: Any) -> Record:
        """The journal's name for this use of a verb; refused here, before any effect, if it cannot have one."""
        self.check()
        refuse_transaction()
        inputs.text(f"name of a {verb}", name)
        if caller.step.get() is not None:
            raise Permanent(f"{verb} {name!r} was called inside step {caller.step.get()!r}: steps do not nest")
        if key is None and caller.identity() != self._caller:
            raise Permanent(f"{verb} {name!r} was called from another thread or task than the agent's; it needs a key=")
        hashed = inputs.document(f"arguments of {verb} {name}", arguments, most_bytes=conf.max_result_bytes)
        digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
        with self._counting:
            self._uses[(verb, name, key or "")] += 1
            n = self._uses[(verb, name, key or "")]
        return Record(verb=verb, name=name, key=key or "", n=n, arguments_hash=digest)

    @property
    def is_unread(self) -> bool:
        """Whether the first look for a record will read the table."""
        return self._records is None and (self._claim.replays or self._must_look)

    def known(self, entry: Record) -> JournalEntry | None:
        """The record of this use, if the turn has completed it before. Raises ReplayMismatch."""
        if self._records is None:
            rows: list[JournalEntry] = []
            if self.is_unread:
                journal = JournalEntry.objects.of_turn(self._claim.run_id, self._claim.turn)
                rows = self.persist(lambda: list(journal))
            self._records = {(row.verb, row.name, row.key, row.n): row for row in rows}
        known = self._records.get((entry.verb, entry.name, entry.key, entry.n))
        if known is not None and known.arguments_hash != entry.arguments_hash:
            raise ReplayMismatch(
                f"use {entry.n} of {entry.verb} {entry.name!r} was journalled with other arguments than these"
            )
        return known

    def derived_id(self, entry: Record) -> str:
        """An id for what this use makes: the same at each replay, another one's nowhere."""
        use = [self._claim.turn, entry.verb, entry.name, entry.key, entry.n]
        return str(uuid.uuid5(self._claim.run_id, json.dumps(use)))

    @contextmanager
    def inside(self, entry: Record) -> Iterator[None]:
        """Run a step's function in this block: no verb may be called, and what it raises takes the use back."""
        token = caller.step.set(entry.name)
        try:
            yield
        except BaseException:
            self._unuse(entry)
            raise
        finally:
            caller.step.reset(token)

    def once(self, entry: Record, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The record's result if there is one, else that of `effect`."""
        known = self.known(entry)
        return self.effect(entry, operation, *args, **kwargs) if known is None else known.result

    def effect(self, entry: Record, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Write an effect with its record, once: after a broken connection it is looked for before another try."""

        def write() -> Any:
            if self._must_look:
                known = self.known(entry)
                if known is not None:
                    return known.result
            try:
                return self.fenced(operation, entry, *args, **kwargs)
            except (OperationalError, InterfaceError):
                # The COMMIT may have won.
                self._records, self._must_look = None, True
                raise

        try:
            return self.persist(write)
        except BaseException:
            self._unuse(entry)
            raise

    def repeat(self, entries: Sequence[Record], operation: Callable[..., Any], *args: Any) -> Any:
        """Call a verb that may be called any number of times for these uses; what it raises takes them back."""
        try:
            return self.persist(lambda: self.fenced(operation, *args))
        except BaseException:
            for entry in entries:
                self._unuse(entry)
            raise

    def fenced(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a verb that proves the claim; what stops it stops the activation."""
        try:
            return operation(self._claim, *args, **kwargs)
        except Stop as stop:
            self.stop_with(stop)
            raise

    def persist(self, attempt: Callable[[], Attempted]) -> Attempted:
        """Call it again after a broken connection, while the lease may last: a database hiccup costs no attempt."""
        give_up_at = time.monotonic() + conf.lease_seconds + _KEEPER_SECONDS
        pause = 0.05
        while True:
            self.check()
            try:
                return attempt()
            except (OperationalError, InterfaceError) as error:
                if connection.in_atomic_block or time.monotonic() >= give_up_at:
                    raise
                facts = {"run_id": self._claim.run_id, "error": type(error).__name__}
                observe("verb.retried", level=logging.WARNING, **facts)
                saying.doubt(self._claim.thread_id)
                connection.close()
                time.sleep(pause)
                pause = min(2 * pause, 2.0)

    def _unuse(self, entry: Record) -> None:
        """Take a use back that left no record: an agent that tries again must find the same use when it is replayed."""
        with self._counting:
            self._uses[(entry.verb, entry.name, entry.key)] -= 1
