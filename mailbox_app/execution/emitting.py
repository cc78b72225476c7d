"""Records what running agents have emitted when nothing else does: one thread of each process, for all its runs.

Mostly an agent's next verb takes it along. What waits longer is recorded here, some runs in one transaction, each run
no more often than every `emit_seconds`; no agent waits for that.
"""

import contextlib
import contextvars
import logging
import os
import threading
import time
import uuid
from collections.abc import Sequence

from django.db import InterfaceError, OperationalError, connection, connections

from mailbox_app.conf import conf
from mailbox_app.execution.pool import Pool
from mailbox_app.operations import checkpoint
from mailbox_app.operations.ownership import Claim
from mailbox_app.telemetry import observe

# Long enough for an agent's next verb to come first, and for others of its kind to come along.
_SOON_SECONDS = 0.05
# After how long a thread that somebody holds is tried again, and after how long a database that is away.
_HELD_SECONDS = 0.05
_RETRY_SECONDS = 1.0
# Runs of one transaction: what their own verbs wait for.
_MOST_TOGETHER = 16


def soon(claim: Claim) -> None:
    """Have what the agent has emitted recorded, unless a verb of its own does so first."""
    if not connection.in_atomic_block:  # else it is a test's transaction: nobody else sees the claim
        _recorder.want(claim, max(_SOON_SECONDS, _left(claim)))


def rest() -> None:
    """Have the recorder let go of the database, unless an agent still runs that has emitted something.

    For who empties whole tables next, or drops the database, as the end of a test does.
    """
    _recorder.rest()


def _left(claim: Claim) -> float:
    """Seconds until its run may be written for again."""
    return float(claim.emitted.written_at + conf.emit_seconds - time.monotonic())


class _Recorder:
    """Which claims have something to be recorded, from when on (monotonic), and the thread that does it."""

    def __init__(self) -> None:
        self._thread = Pool("mailbox-emitting", lambda: 1)
        self._changed = threading.Condition()
        # By claim and turn: all turns of a run have one token, and each emits for itself.
        self._wanted: dict[tuple[uuid.UUID, int], tuple[float, Claim]] = {}
        self._is_running, self._is_recording, self._is_connected, self._looks_at = False, False, False, 0.0

    def want(self, claim: Claim, seconds: float) -> None:
        """Record what it has emitted after so long; a claim that waits already keeps its time."""
        at = time.monotonic() + seconds
        with self._changed:
            self._wanted.setdefault((claim.token, claim.turn), (at, claim))
            if at < self._looks_at:
                self._changed.notify()
            if self._is_running:
                return
            self._is_running = True
        try:
            contextvars.Context().run(self._thread.submit, self._run)
        except RuntimeError:  # no thread to be had: a verb of each will record it
            with self._changed:
                self._is_running = False
                self._wanted.clear()

    def rest(self) -> None:
        """Wait while it records, and have its connection closed if nothing else is to be recorded."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_recording)
            self._wanted = {name: want for name, want in self._wanted.items() if not want[1].emitted.is_empty}
            self._changed.notify_all()
            if self._wanted or not self._is_connected:
                return
            self._is_connected = False
        with contextlib.suppress(TimeoutError):  # an agent that has just begun to emit keeps it
            self._thread.submit(connections.close_all).result(timeout=1.0)

    def _run(self) -> None:
        while claims := self._due():
            self._record_or_tell([claim for claim in claims if self._is_ripe(claim)])

    def _record_or_tell(self, claims: Sequence[Claim]) -> None:
        try:
            self._record(claims)
        except Exception as error:
            connection.close()
            if len(claims) > 1:  # nothing of any was recorded, and one of them may be why
                for claim in claims:
                    self._record_or_tell([claim])
            else:  # its next verb meets it too, and tells the agent
                # Its first line: PostgreSQL's next one may hold what the agent emitted.
                message = str(error).partition("\n")[0][:200]
                observe("emit.failed", level=logging.ERROR, error=type(error).__name__, message=message)

    def _due(self) -> list[Claim]:
        """Wait until some are due, and take them; none when none is wanted, and the thread has ended then."""
        with self._changed:
            if self._is_recording:
                self._is_recording = False
                self._changed.notify_all()
            while self._wanted:
                now = time.monotonic()
                due = sorted((at, name) for name, (at, _) in self._wanted.items() if at <= now)
                if due:
                    self._is_recording = self._is_connected = True
                    return [self._wanted.pop(name)[1] for _, name in due[:_MOST_TOGETHER]]
                self._looks_at = min(at for at, _ in self._wanted.values())
                self._changed.wait(self._looks_at - now)
            self._is_running = False
            return []

    def _is_ripe(self, claim: Claim) -> bool:
        """Whether it has anything to record now; what a verb has written for meanwhile is wanted later."""
        if claim.emitted.is_empty:
            return False
        if (left := _left(claim)) > 0:
            self.want(claim, left)
            return False
        return True

    def _record(self, claims: Sequence[Claim]) -> None:
        held: Sequence[Claim] = []
        try:
            if claims:
                held = checkpoint.flush_some(claims)
        except (OperationalError, InterfaceError) as error:
            observe("emit.retried", level=logging.WARNING, claims=len(claims), error=type(error).__name__)
            connection.close()
            for claim in claims:
                self.want(claim, _RETRY_SECONDS)
        for claim in held:
            self.want(claim, _HELD_SECONDS)


_recorder = _Recorder()


def _begin_anew() -> None:
    global _recorder
    _recorder = _Recorder()


# A forked child has none of its parent's runs, and of its locks none that anybody would give back.
os.register_at_fork(after_in_child=_begin_anew)
