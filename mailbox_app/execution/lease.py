"""The lease keeper: one thread of the executing process that renews all its claims and watches their time limits."""

import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.db import Error as DatabaseError
from django.db import InterfaceError, connection

from mailbox_app.conf import conf
from mailbox_app.errors import LeaseLost, Stop
from mailbox_app.operations.ownership import Claim
from mailbox_app.telemetry import observe

Renew = Callable[[Collection[uuid.UUID]], set[uuid.UUID]]


@dataclass
class _Held:
    claim: Claim
    stop_with: Callable[[Stop], None]
    on_timeout: Callable[[], None]
    # This process's monotonic clock: it measures durations only, instants are the database's.
    lease_ends: float
    times_out: float


class LeaseKeeper:
    """Renews what this process holds every `renewal_seconds`, in one statement.

    A database hiccup is retried until the lease is over; a claim that was lost stops that run alone. `renew` is handed
    in by `tasks.py`: tokens in, lost tokens out.
    """

    def __init__(self, renew: Renew) -> None:
        self._renew = renew
        self._held: dict[uuid.UUID, _Held] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._pid = 0

    @contextmanager
    def holding(
        self, claim: Claim, *, stop_with: Callable[[Stop], None], on_timeout: Callable[[], None], timeout: float
    ) -> Iterator[None]:
        """Keep the claim's lease while the block runs; `on_timeout` is called once, in a thread of its own."""
        self._start()
        now = time.monotonic()
        held = _Held(claim, stop_with, on_timeout, now + conf.lease_seconds, now + timeout)
        with self._changed:
            self._held[claim.token] = held
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._held.pop(claim.token, None)

    def _start(self) -> None:
        """Start the thread in this process; a forked child has inherited none."""
        with self._changed:
            if self._pid == os.getpid() and self._thread is not None and self._thread.is_alive():
                return
            if self._pid != os.getpid():
                self._pid, self._held = os.getpid(), {}
            self._thread = threading.Thread(target=self._keep, name="mailbox-lease-keeper", daemon=True)
            self._thread.start()

    def _keep(self) -> None:
        renew_at = time.monotonic() + conf.renewal_seconds
        while True:
            with self._changed:
                if not self._held:
                    self._changed.wait()
                    renew_at = time.monotonic() + conf.renewal_seconds
                due = min([renew_at, *(held.times_out for held in self._held.values())])
                self._changed.wait(timeout=max(0.0, due - time.monotonic()))
                held_now = list(self._held.values())
            now = time.monotonic()
            for held in held_now:
                if held.times_out <= now:
                    held.times_out = float("inf")
                    # A thread of its own: it waits for the thread's fence, and other leases are due meanwhile.
                    threading.Thread(target=held.on_timeout, name="mailbox-time-limit", daemon=True).start()
            if now >= renew_at:
                renewed = self._renew_all(held_now)
                # After a failure try again soon: the lease has two thirds left.
                renew_at = time.monotonic() + (conf.renewal_seconds if renewed else conf.renewal_seconds / 5)

    def _renew_all(self, held_now: list[_Held]) -> bool:
        started = time.monotonic()
        try:
            lost = self._renew([held.claim.token for held in held_now])
        except (DatabaseError, InterfaceError, OSError) as error:
            observe("lease.renewal_failed", level=30, error=type(error).__name__, claims=len(held_now))
            lost = {held.claim.token for held in held_now if held.lease_ends <= time.monotonic()}
            renewed = False
        else:
            renewed = True
            for held in held_now:
                held.lease_ends = started + conf.lease_seconds
        finally:
            # One connection every few seconds costs less than one held idle by every executing process.
            connection.close()
        for held in held_now:
            if held.claim.token in lost:
                observe("lease.lost", level=30, dispatch_id=held.claim.dispatch_id, run_id=held.claim.run_id)
                held.stop_with(LeaseLost(f"the lease of dispatch {held.claim.dispatch_id} was lost"))
                with self._changed:
                    self._held.pop(held.claim.token, None)
        return renewed
