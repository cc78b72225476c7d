"""The lease keeper: renews all claims of the executing process, and watches their leases and when they must end."""

import contextlib
import logging
import math
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from django.db import InterfaceError, OperationalError, connection

from mailbox_app.conf import conf
from mailbox_app.errors import Cancelled, LeaseLost, Stop
from mailbox_app.execution.pool import Pool
from mailbox_app.hints import Aim
from mailbox_app.operations.claim import Renewed
from mailbox_app.operations.ownership import Claim
from mailbox_app.telemetry import observe

# A look at least this often, should a wake-up be missed.
_LOOK_SECONDS = 1.0
# Each waits for a thread's fence with a connection of its own, while a hundred agents may run out of time together.
_ENDINGS = 8
# Nudges for what this process may be about to hold: a claim is committed before it is kept.
_MOST_REMEMBERED = 256

Renew = Callable[[Collection[uuid.UUID]], Renewed]


@dataclass
class _Held:
    claim: Claim
    stop_with: Callable[[Stop], None]
    on_timeout: Callable[[], None]
    on_ignored: Callable[[], None]
    on_nudge: Callable[[], None]
    on_input: Callable[[int], None]
    # This process's monotonic clock: it measures durations only, instants are the database's.
    lease_ends: float
    times_out: float
    # When its request to stop counts as ignored.
    gives_up: float = math.inf
    is_cancelled: bool = False


class LeaseKeeper:
    """Renews what this process holds every `renewal_seconds`, in one statement, and watches leases and time limits.

    Two threads: a renewal that hangs must not keep the other from seeing that a lease is over. A database hiccup is
    retried until then; a claim that was lost stops that run alone, and so does a request to cancel it, which the next
    renewal finds, or the one that a nudge brings on; one that is ignored for `cancel_grace_seconds` ends the run
    without its code. It also tells each of what was said to it, and of the nudge itself. `renew` is handed in by
    `tasks.py`.
    """

    def __init__(self, renew: Renew) -> None:
        self._renew = renew
        self._nudged: set[uuid.UUID] = set()
        self._unknown: deque[Aim] = deque(maxlen=_MOST_REMEMBERED)
        self._held: dict[uuid.UUID, _Held] = {}
        self._changed = threading.Condition()
        self._threads: dict[str, threading.Thread] = {}
        self._endings = Pool("mailbox-time-limit", lambda: _ENDINGS)
        self._pid = 0
        # When the watching thread looks next (monotonic), and whether the renewing one has nothing to renew.
        self._looks_at, self._is_idle = math.inf, True
        # Whether the renewing thread keeps a connection.
        self._is_connected = False

    @property
    def tokens(self) -> list[uuid.UUID]:
        """The claims that are kept now."""
        with self._changed:
            return list(self._held) if self._pid == os.getpid() else []

    def drop_all(self) -> list[uuid.UUID]:
        """Stop every run as if its lease were lost, and renew none; returns their tokens. The process is to end."""
        with self._changed:
            dropped, self._held = self._held, {}
        for held in dropped.values():
            held.stop_with(LeaseLost(f"the worker of dispatch {held.claim.dispatch_id} ends"))
        return list(dropped)

    @contextmanager
    def holding(
        self,
        claim: Claim,
        *,
        stop_with: Callable[[Stop], None],
        on_timeout: Callable[[], None],
        timeout: float,
        on_ignored: Callable[[], None] = lambda: None,
        on_nudge: Callable[[], None] = lambda: None,
        on_input: Callable[[int], None] = lambda revision: None,
    ) -> Iterator[None]:
        """Keep the claim's lease while the block runs; `on_timeout` is called once, in another thread.

        So is `on_ignored`, when the run was asked to stop and the block still runs after `cancel_grace_seconds`. The
        other two may be called often, and must not wait for anything: `on_input` with the revision of what is pending
        at each renewal that finds something to read, `on_nudge` whenever somebody says that something has changed.
        """
        now = time.monotonic()
        held = _Held(
            claim, stop_with, on_timeout, on_ignored, on_nudge, on_input, now + conf.lease_seconds, now + timeout
        )
        with self._changed:
            self._start()
            self._held[claim.token] = held
            if _aim(claim) in self._unknown:
                self._nudged.add(claim.token)
                self._changed.notify_all()
            # Both threads look by themselves soon enough, but for what is due sooner, and for the first of all.
            if min(held.lease_ends, held.times_out) < self._looks_at or self._is_idle:
                self._changed.notify_all()
        try:
            yield
        finally:
            self.forget(claim)

    def forget(self, claim: Claim) -> None:
        """Renew this claim no longer."""
        with self._changed:
            self._held.pop(claim.token, None)
            if self._is_connected and not self._held:
                self._changed.notify_all()

    def listen(self, nudges: Callable[[], Iterator[Aim]]) -> None:
        """Follow these nudges, in a thread of their own in this process, which must have no other that does."""

        def follow() -> None:
            for aim in nudges():
                self.nudge(aim)

        threading.Thread(target=follow, name="mailbox-nudges", daemon=True).start()

    def nudge(self, aim: Aim) -> None:
        """Somebody says this activation is to look: ask its row now, if this process holds it or is about to."""
        with self._changed:
            named = [held for held in self._held.values() if _aim(held.claim) == aim]
            if not named:
                self._unknown.append(aim)
            self._nudged |= {held.claim.token for held in named if not held.is_cancelled}
            if self._nudged:
                self._changed.notify_all()
        for held in named:
            held.on_nudge()

    def _start(self) -> None:
        """Start the threads in this process; a forked child has inherited none."""
        if self._pid != os.getpid():
            self._pid, self._held, self._threads = os.getpid(), {}, {}
            self._looks_at, self._is_idle, self._is_connected = math.inf, True, False
            self._nudged.clear()
            self._unknown.clear()
        for name, work in (("mailbox-lease-keeper", self._renew_forever), ("mailbox-lease-watch", self._watch_forever)):
            if name not in self._threads or not self._threads[name].is_alive():
                self._threads[name] = threading.Thread(target=work, name=name, daemon=True)
                self._threads[name].start()

    def _watch_forever(self) -> None:
        while True:
            with self._changed:
                ends = [end for held in self._held.values() for end in (held.lease_ends, held.times_out, held.gives_up)]
                now = time.monotonic()
                self._looks_at = min(*ends, now + _LOOK_SECONDS) if ends else math.inf
                self._changed.wait(timeout=max(0.0, self._looks_at - now) if ends else None)
                held_now = list(self._held.values())
            now = time.monotonic()
            for held in held_now:
                if held.lease_ends <= now:
                    self._lose(held)
                elif held.times_out <= now:
                    held.times_out = self._end(held, held.on_timeout)
                elif held.gives_up <= now:
                    held.gives_up = self._end(held, held.on_ignored)

    def _renew_forever(self) -> None:
        renews_at = time.monotonic() + conf.renewal_seconds
        while True:
            with self._changed:
                while not self._held:
                    self._is_idle = True
                    self._disconnect()
                    self._changed.wait()
                    renews_at = time.monotonic() + conf.renewal_seconds
                self._is_idle = False
                while self._held and not self._nudged and (left := renews_at - time.monotonic()) > 0:
                    self._changed.wait(left)
                is_due = time.monotonic() >= renews_at
                held_now = [held for token, held in self._held.items() if is_due or token in self._nudged]
                self._nudged.clear()
            has_renewed = self._renew_some(held_now)
            # After a failure try again soon: the lease has two thirds left.
            again_at = time.monotonic() + (conf.renewal_seconds if has_renewed else conf.renewal_seconds / 5)
            renews_at = again_at if is_due else min(renews_at, again_at)

    def _renew_some(self, held_now: Sequence[_Held]) -> bool:
        if not held_now:
            return True
        started = time.monotonic()
        try:
            renewed = self._renew_once_more([held.claim.token for held in held_now])
        except Exception as error:  # whatever it is: this thread must not end while agents run
            observe("lease.renewal_failed", level=logging.WARNING, error=type(error).__name__, claims=len(held_now))
            self._disconnect()
            return False
        for held in held_now:
            if held.claim.token in renewed.lost:
                self._lose(held)
                continue
            held.lease_ends = started + conf.lease_seconds
            if held.claim.token in renewed.readable:
                held.on_input(renewed.readable[held.claim.token])
            if held.claim.token in renewed.cancelled and not held.is_cancelled:
                self._cancel(held, asked_at=time.monotonic() - renewed.cancelled[held.claim.token])
        return True

    def _renew_once_more(self, tokens: Collection[uuid.UUID]) -> Renewed:
        """Renew; at once again if it is the connection kept from the last time that has broken since.

        It is kept while anything is held: what a nudge is about would reach its agent later by a connection's making.
        """
        is_kept, self._is_connected = self._is_connected, True
        try:
            return self._renew(tokens)
        except (OperationalError, InterfaceError):
            if not is_kept:
                raise
            self._disconnect()
            self._is_connected = True
            return self._renew(tokens)

    def _disconnect(self) -> None:
        self._is_connected = False
        with contextlib.suppress(Exception):
            connection.close()

    def _cancel(self, held: _Held, *, asked_at: float) -> None:
        with self._changed:
            held.is_cancelled, held.gives_up = True, asked_at + conf.cancel_grace_seconds
            self._changed.notify_all()
        held.stop_with(Cancelled(f"run {held.claim.run_id} was cancelled"))

    def _lose(self, held: _Held) -> None:
        with self._changed:
            if self._held.pop(held.claim.token, None) is None:
                return  # settled, or known to be lost, meanwhile
        held.stop_with(LeaseLost(f"the lease of dispatch {held.claim.dispatch_id} was lost"))
        observe("lease.lost", level=logging.WARNING, dispatch_id=held.claim.dispatch_id, run_id=held.claim.run_id)

    def _end(self, held: _Held, end: Callable[[], None]) -> float:
        """Have the run ended; when to try that again.

        In another thread: it waits for the thread's fence, and other leases are due meanwhile.
        """
        try:
            self._endings.submit(end)
        except RuntimeError as error:  # no thread to be had now; the next look tries again
            observe("lease.time_out_failed", level=logging.ERROR, dispatch_id=held.claim.dispatch_id, error=str(error))
            time.sleep(_LOOK_SECONDS)
            return 0.0
        return math.inf


def _aim(claim: Claim) -> Aim:
    return Aim(claim.thread_id, claim.run_id, claim.dispatch_id)
