"""The lease keeper: renews all claims of the executing process, and watches their leases and time limits."""

import contextlib
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.db import connection

from mailbox_app.conf import conf
from mailbox_app.errors import Cancelled, LeaseLost, Stop
from mailbox_app.execution.pool import Pool
from mailbox_app.operations.claim import Renewed
from mailbox_app.operations.ownership import Claim
from mailbox_app.telemetry import observe

# A look at least this often, should a wake-up be missed.
_LOOK_SECONDS = 1.0
# Each waits for a thread's fence with a connection of its own, while a hundred agents may run out of time together.
_ENDINGS = 8

Renew = Callable[[Collection[uuid.UUID]], Renewed]


@dataclass
class _Held:
    claim: Claim
    stop_with: Callable[[Stop], None]
    on_timeout: Callable[[], None]
    # This process's monotonic clock: it measures durations only, instants are the database's.
    lease_ends: float
    times_out: float
    is_cancelled: bool = False


class LeaseKeeper:
    """Renews what this process holds every `renewal_seconds`, in one statement, and watches leases and time limits.

    Two threads: a renewal that hangs must not keep the other from seeing that a lease is over. A database hiccup is
    retried until then; a claim that was lost stops that run alone, and so does a request to cancel it. `renew` is
    handed in by `tasks.py`.
    """

    def __init__(self, renew: Renew) -> None:
        self._renew = renew
        self._held: dict[uuid.UUID, _Held] = {}
        self._changed = threading.Condition()
        self._threads: dict[str, threading.Thread] = {}
        self._endings = Pool("mailbox-time-limit", lambda: _ENDINGS)
        self._pid = 0
        # When the watching thread looks next (monotonic), and whether the renewing one has nothing to renew.
        self._looks_at, self._is_idle = math.inf, True

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
        self, claim: Claim, *, stop_with: Callable[[Stop], None], on_timeout: Callable[[], None], timeout: float
    ) -> Iterator[None]:
        """Keep the claim's lease while the block runs; `on_timeout` is called once, in another thread."""
        now = time.monotonic()
        held = _Held(claim, stop_with, on_timeout, now + conf.lease_seconds, now + timeout)
        with self._changed:
            self._start()
            self._held[claim.token] = held
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

    def _start(self) -> None:
        """Start the threads in this process; a forked child has inherited none."""
        if self._pid != os.getpid():
            self._pid, self._held, self._threads = os.getpid(), {}, {}
            self._looks_at, self._is_idle = math.inf, True
        for name, work in (("mailbox-lease-keeper", self._renew_forever), ("mailbox-lease-watch", self._watch_forever)):
            if name not in self._threads or not self._threads[name].is_alive():
                self._threads[name] = threading.Thread(target=work, name=name, daemon=True)
                self._threads[name].start()

    def _watch_forever(self) -> None:
        while True:
            with self._changed:
                ends = [end for held in self._held.values() for end in (held.lease_ends, held.times_out)]
                now = time.monotonic()
                self._looks_at = min(*ends, now + _LOOK_SECONDS) if ends else math.inf
                self._changed.wait(timeout=max(0.0, self._looks_at - now) if ends else None)
                held_now = list(self._held.values())
            now = time.monotonic()
            for held in held_now:
                if held.lease_ends <= now:
                    self._lose(held)
                elif held.times_out <= now:
                    self._time_out(held)

    def _renew_forever(self) -> None:
        while True:
            with self._changed:
                while not self._held:
                    self._is_idle = True
                    self._changed.wait()
                self._is_idle = False
            has_renewed = True
            while self._held:
                # After a failure try again soon: the lease has two thirds left.
                time.sleep(conf.renewal_seconds if has_renewed else conf.renewal_seconds / 5)
                has_renewed = self._renew_all()

    def _renew_all(self) -> bool:
        with self._changed:
            held_now = list(self._held.values())
        started = time.monotonic()
        try:
            renewed = self._renew([held.claim.token for held in held_now])
        except Exception as error:  # whatever it is: this thread must not end while agents run
            observe("lease.renewal_failed", level=logging.WARNING, error=type(error).__name__, claims=len(held_now))
            return False
        finally:
            # One connection every few seconds costs less than one held idle by every executing process.
            with contextlib.suppress(Exception):
                connection.close()
        for held in held_now:
            if held.claim.token in renewed.lost:
                self._lose(held)
                continue
            held.lease_ends = started + conf.lease_seconds
            if held.claim.token in renewed.cancelled and not held.is_cancelled:
                held.is_cancelled = True
                held.stop_with(Cancelled(f"run {held.claim.run_id} was cancelled"))
        return True

    def _lose(self, held: _Held) -> None:
        with self._changed:
            if self._held.pop(held.claim.token, None) is None:
                return  # settled, or known to be lost, meanwhile
        held.stop_with(LeaseLost(f"the lease of dispatch {held.claim.dispatch_id} was lost"))
        observe("lease.lost", level=logging.WARNING, dispatch_id=held.claim.dispatch_id, run_id=held.claim.run_id)

    def _time_out(self, held: _Held) -> None:
        # In another thread: it waits for the thread's fence, and other leases are due meanwhile.
        try:
            self._endings.submit(held.on_timeout)
        except RuntimeError as error:  # no thread to be had now; the next look tries again
            observe("lease.time_out_failed", level=logging.ERROR, dispatch_id=held.claim.dispatch_id, error=str(error))
            time.sleep(_LOOK_SECONDS)
        else:
            held.times_out = float("inf")
