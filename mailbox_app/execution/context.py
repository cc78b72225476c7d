"""`Context`: what a team's agent may do. Every verb with an effect is journalled and fenced by the claim."""

import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar, cast

from django.db import InterfaceError, OperationalError, connection

from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput, Permanent, ReplayMismatch, Stop
from mailbox_app.execution import caller
from mailbox_app.execution.contract import IncomingMessage
from mailbox_app.execution.live import LiveText
from mailbox_app.models import JournalEntry, Kind, Message, Visibility
from mailbox_app.operations import checkpoint, inputs
from mailbox_app.operations.checkpoint import Record
from mailbox_app.operations.ownership import Claim, refuse_transaction
from mailbox_app.telemetry import observe

Result = TypeVar("Result")
Attempted = TypeVar("Attempted")

_Slot = tuple[str, str, str, int]


class Context:
    """One activation of one run, as its agent sees it.

    The agent runs its turn from the top at every attempt, with the same `messages`. A verb that was completed before
    returns its record and does nothing. Once the run was cancelled or its lease lost, every verb raises that again.
    """

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._caller = caller.identity()
        self._uses: Counter[tuple[str, str, str]] = Counter()
        self._counting = threading.Lock()
        self._journal: dict[_Slot, JournalEntry] | None = None
        # Set when a write may have won although its answer was lost.
        self._must_look = False
        self._stop: Stop | None = None
        self._live = LiveText(claim)
        self.messages = [IncomingMessage.of(message) for message in claim.messages]
        self.state: dict[str, Any] = claim.state

    @property
    def thread_id(self) -> str:
        return str(self._claim.thread_id)

    @property
    def run_id(self) -> str:
        return str(self._claim.run_id)

    @property
    def dispatch_id(self) -> str:
        return str(self._claim.dispatch_id)

    @property
    def agent(self) -> str:
        return self._claim.agent

    @property
    def attempt(self) -> int:
        """1 the first time; counts failures and lost leases."""
        return self._claim.attempt

    @property
    def turn(self) -> int:
        return self._claim.turn

    @property
    def fence_token(self) -> int:
        """Strictly increasing per thread: hand it to systems that should refuse a worker that lost its lease."""
        return self._claim.fence

    @property
    def options(self) -> dict[str, Any]:
        return self._claim.options

    @property
    def metadata(self) -> dict[str, Any]:
        return self._claim.metadata

    @property
    def config(self) -> dict[str, Any]:
        """The published configuration the run is bound to (AgentVersion); {} if it is bound to none."""
        return self._claim.config

    def history(self, limit: int = 50) -> list[IncomingMessage]:
        """The last `limit` messages of the thread before this turn's first input, oldest first."""
        self._check()
        rows = Message.objects.filter(thread_id=self._claim.thread_id, seq__lt=self._claim.first_seq).committed()
        latest = self._persist(lambda: list(rows.order_by("-seq")[: max(0, limit)]))
        return [IncomingMessage.of(row) for row in reversed(latest)]

    def step(
        self, name: str, function: Callable[..., Result], *args: Any, key: str | None = None, **kwargs: Any
    ) -> Result:
        """Call the function once per run and turn, also across crashes, and return its result as JSON gives it back.

        Arguments and result are JSON; other objects go into a closure. The function may run again after a crash that
        came before its record was committed, never after. Steps do not nest.
        """
        entry = self._entry("step", name, key, [list(args), kwargs])
        known = self._known(entry)
        if known is not None:
            return cast(Result, known.result)
        inside = caller.step.set(name)
        try:
            result = inputs.document(
                f"result of step {name}", function(*args, **kwargs), most_bytes=conf.max_result_bytes
            )
        except BaseException:
            self._unuse(entry)
            raise
        finally:
            caller.step.reset(inside)
        self._check()
        return cast(Result, self._effect(entry, checkpoint.record, result))

    def say(self, content: Any, *, key: str | None = None) -> dict[str, Any]:
        """Append an assistant message to the thread now; returns {"message_id", "seq"}."""
        said = inputs.messages([inputs.NewMessage(content=content, role="assistant")])[0].content
        entry = self._entry("say", "message", key, said)
        known = self._known(entry)
        if known is not None:
            return cast(dict[str, Any], known.result)
        return cast(dict[str, Any], self._effect(entry, checkpoint.say, said))

    def emit(
        self, kind: str, payload: Any = None, *, key: str | None = None, visibility: str = Visibility.PUBLIC
    ) -> dict[str, Any]:
        """Record an event of your own kind on the thread; returns {"cursor"}. `key` makes it unique in the thread."""
        inputs.text("kind", kind, most=100)
        if kind in Kind.values:
            raise InvalidInput("kind", "reserved", f"the event kind {kind} belongs to the system")
        inputs.choice("visibility", visibility, Visibility.values)
        if key is not None:
            inputs.text("key", key)
        body = inputs.document("payload", {} if payload is None else payload, most_bytes=conf.max_metadata_bytes)
        entry = self._entry("emit", kind, key, [body, visibility])
        known = self._known(entry)
        if known is not None:
            return cast(dict[str, Any], known.result)
        written = self._effect(entry, checkpoint.emit_event, kind, body, key=key, visibility=visibility)
        return cast(dict[str, Any], written)

    def delta(self, text: str) -> None:
        """Show a piece of text to whoever watches the run now. It is stored nowhere."""
        self._check()
        if text:
            self._live.delta(text)

    def checkpoint(self) -> list[IncomingMessage]:
        """Stop here if the run was cancelled; returns what arrived for it to read at this step, oldest first."""
        self._check()
        arrived = self._persist(lambda: self._fenced(checkpoint.reach))
        return [IncomingMessage.of(message) for message in arrived]

    def belongs_to(self, task: object) -> None:
        """Take this task for the agent's own; for the runner."""
        self._caller = task

    def stop_with(self, stop: Stop) -> None:
        """Make every further verb raise this; for the runner and the lease keeper, not for agents."""
        if self._stop is None:
            self._stop = stop

    @property
    def stop(self) -> Stop | None:
        """What ended this activation from outside, if anything did."""
        return self._stop

    def _check(self) -> None:
        if self._stop is not None:
            raise self._stop

    def _fenced(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return operation(self._claim, *args, **kwargs)
        except Stop as stop:
            self.stop_with(stop)
            raise

    def _effect(self, entry: Record, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Write an effect with its record, once: after a broken connection it is looked for before another try."""

        def write() -> Any:
            if self._must_look:
                known = self._known(entry)
                if known is not None:
                    return known.result
            try:
                return self._fenced(operation, entry, *args, **kwargs)
            except (OperationalError, InterfaceError):
                # The COMMIT may have won.
                self._journal, self._must_look = None, True
                raise

        try:
            return self._persist(write)
        except BaseException:
            self._unuse(entry)
            raise

    def _persist(self, attempt: Callable[[], Attempted]) -> Attempted:
        """Call it again after a broken connection, while the lease may last: a database hiccup costs no attempt."""
        give_up_at = time.monotonic() + conf.lease_seconds
        pause = 0.05
        while True:
            self._check()
            try:
                return attempt()
            except (OperationalError, InterfaceError) as error:
                if connection.in_atomic_block or time.monotonic() >= give_up_at:
                    raise
                facts = {"run_id": self._claim.run_id, "error": type(error).__name__}
                observe("verb.retried", level=logging.WARNING, **facts)
                connection.close()
                time.sleep(pause)
                pause = min(2 * pause, 2.0)

    def _unuse(self, entry: Record) -> None:
        """Take a use back that left no record: an agent that tries again must find the same use when it is replayed."""
        with self._counting:
            self._uses[(entry.verb, entry.name, entry.key)] -= 1

    def _entry(self, verb: str, name: str, key: str | None, arguments: Any) -> Record:
        """The journal's name for this use of a verb; refused here, before any effect, if it cannot have one."""
        self._check()
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

    def _known(self, entry: Record) -> JournalEntry | None:
        if self._journal is None:
            rows: list[JournalEntry] = []
            if self._claim.replays or self._must_look:
                journal = JournalEntry.objects.of_turn(self._claim.run_id, self._claim.turn)
                rows = self._persist(lambda: list(journal))
            self._journal = {(row.verb, row.name, row.key, row.n): row for row in rows}
        known = self._journal.get((entry.verb, entry.name, entry.key, entry.n))
        if known is not None and known.arguments_hash != entry.arguments_hash:
            raise ReplayMismatch(
                f"use {entry.n} of {entry.verb} {entry.name!r} was journalled with other arguments than these"
            )
        return known
