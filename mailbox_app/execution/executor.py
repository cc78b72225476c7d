"""One executing process: its slots claim and run what is due, its loop runs async agents, and it ends in order."""

import functools
import logging
import math
import mmap
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

from django.db import InterfaceError, OperationalError, connection

from mailbox_app import catalogue, hints
from mailbox_app.conf import conf
from mailbox_app.execution import runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.execution.places import Places
from mailbox_app.execution.together import Together
from mailbox_app.operations import candidates, claim, settle
from mailbox_app.operations.ownership import Claim
from mailbox_app.telemetry import observe

# A process that is worn out ends with this code (EX_TEMPFAIL of sysexits.h): start another one.
EXIT_CODE = 75

# How long to wait before looking again at due threads that others hold; doubles.
_FIRST_PAUSE_SECONDS = 0.005
# A signal that was passed on may come back at once, when everybody else is full too.
_PASS_SECONDS = 0.1
# A claim that had begun when the process stopped claiming is over by then, and its run under way.
_LAST_CLAIM_SECONDS = 1.0
# Heads taken in one transaction, at most: each slot waits for all of them.
_MOST_TOGETHER = 32


class Executor:
    """What the slots of one process share: its leases, its places, and whether it still claims.

    `stop_consuming` is handed in by `tasks.py`: it has the worker take no more signals and end with an exit code.
    """

    def __init__(self, keeper: LeaseKeeper, *, stop_consuming: Callable[[int], None]) -> None:
        self._keeper, self._stop_consuming = keeper, stop_consuming
        # Threads of the worker's pool; 0: this process is no worker, or a pool child, and nobody replaces it.
        self.slot_count = 0
        self._slots = Places("slot", lambda: self.slot_count, on_worn=self.retire)
        self._seats = Places("seat", lambda: int(conf.max_async_runs), on_worn=self.retire)
        # Queues with work for async agents that had to be left, for want of a seat.
        self._waiting: set[str] = set()
        self._passing, self._passed_at = threading.Lock(), 0.0
        self._retiring = threading.Lock()
        # Slots that look for work at the same time take it together; by queue, and whether async agents are left out.
        self._claiming: dict[tuple[str, bool], Together[uuid.UUID, claim.Claimed]] = {}
        # Shared with the children that a pool forks: only their parent hears that the worker is to end.
        self._leaving: mmap.mmap | None = None
        # When this process (monotonic) was seen to be leaving, and whether it has handed back what it held since.
        self._leaving_since, self._has_handed_back = math.inf, False

    def prepare(self) -> None:
        """Before the pool forks."""
        self._leaving = mmap.mmap(-1, 1)

    @property
    def is_leaving(self) -> bool:
        """Whether this process claims no more."""
        return self._leaving is not None and self._leaving[0] != 0

    def stop_claiming(self) -> None:
        """Claim no more, in this process and in those it forked; also from a signal handler."""
        if self._leaving is not None:
            self._leaving[0] = 1

    def work(self, *, queue: str, worker: str, own_process: bool) -> int:
        """Claim and run what is due on the queue, for about `claim_budget_seconds`; returns how many runs it began.

        The next signal is sent before each run, if due work is left, so that other slots start at once. Runs of async
        agents leave the slot to the event loop (not where the process is the run's own); while that is full, they are
        left to other processes.
        """
        ran, pause, stop_at = 0, _FIRST_PAUSE_SECONDS, time.monotonic() + conf.claim_budget_seconds
        while True:
            if self.is_leaving:
                if candidates.has_due(queue):
                    self._pass_on(queue)
                return ran
            is_full, taken = self._claim(queue, worker, own_process)
            if taken.claims and taken.has_more:
                hints.wake(queue)
            for one in taken.claims:
                self._execute(one, own_process)
                ran += 1
            if not taken.has_more and not taken.claims:
                if is_full and candidates.are_due(queue=queue, agents=catalogue.async_names()):
                    self._waiting.add(queue)
                    self._pass_on(queue)
                return ran
            if time.monotonic() >= stop_at:
                if taken.has_more or candidates.has_due(queue):
                    hints.wake(queue)
                return ran
            if not taken.claims:
                # All that is due is held by somebody: by who is claiming it, or by who is adding to it and, since it
                # was due already, will send no signal. Look again rather than leave it to the sweep.
                time.sleep(pause)
                pause *= 2

    def leave_in_time(self) -> bool:
        """Hand back what still runs `stop_seconds` after the worker was told to end; True: it ran on all the same.

        To be called about once a second: the runs have one more of them to notice that they own nothing any more.
        """
        now = time.monotonic()
        if not self.is_leaving or self._retiring.locked():
            return False
        self._leaving_since = min(self._leaving_since, now)
        if now < self._leaving_since + max(conf.stop_seconds, _LAST_CLAIM_SECONDS):
            return False
        if not (tokens := self._keeper.tokens):
            return self._has_handed_back
        # Before the runs are told: the process may be gone as soon as the last of them has stopped. Should the database
        # be away, their leases are kept, and the next call tries again.
        handed_back = settle.hand_back(tokens=tokens)
        self._keeper.drop_all()
        self._has_handed_back = True
        observe("worker.handed_back", level=logging.WARNING, handed_back=handed_back)
        return False

    def drain(self, *, is_hurried: Callable[[], bool]) -> bool:
        """Wait until the runs on the event loop have ended; False if told to hurry meanwhile."""
        if self._seats.taken:
            observe("worker.draining", runs=self._seats.taken)
        while self._seats.taken:
            if is_hurried():
                return False
            time.sleep(0.05)
        return True

    def retire(self, reason: str) -> None:
        """End this worker process, to be replaced: its places are held by code that does not return.

        It claims no more, lets its other runs go on for `retire_seconds`, hands back what is left and exits.
        """
        if not self.slot_count or not self._retiring.acquire(blocking=False):
            return
        observe("worker.retiring", level=logging.ERROR, reason=reason, runs=len(self._keeper.tokens))
        self.stop_claiming()
        self._stop_consuming(EXIT_CODE)
        threading.Thread(target=self._retire, name="mailbox-retire", daemon=True).start()

    def _claim(self, queue: str, worker: str, own_process: bool) -> tuple[bool, claim.Claimed]:
        """Claim one head, together with other slots; also whether async agents were left out, for want of a seat."""
        is_seated = not own_process and self._seats.take()
        is_full = not own_process and not is_seated
        keeps_seat = False
        try:
            taken = self._claim_one(queue, worker, is_full)
            keeps_seat = any(catalogue.is_async(one.agent) for one in taken.claims)
        finally:
            if is_seated and not keeps_seat:
                self._seats.leave()
        return is_full, taken

    def _claim_one(self, queue: str, worker: str, is_full: bool) -> claim.Claimed:
        token = uuid.uuid4()
        claiming = functools.partial(_claim_some, queue=queue, worker=worker, is_full=is_full)
        if not self._slots.are_many:
            return claiming([token])[0]
        return self._claiming.setdefault((queue, is_full), Together(claiming, most=_MOST_TOGETHER))(token)

    def _execute(self, one: Claim, own_process: bool) -> None:
        if own_process or not catalogue.is_async(one.agent):
            places = None if own_process else self._slots
            runner.run(one, keeper=self._keeper, own_process=own_process, places=places)
            return
        try:
            runner.begin(one, keeper=self._keeper, places=self._seats, on_end=self._free_seat)
        except RuntimeError:  # no thread to be had for the loop
            self._seats.leave()
            settle.hand_back(tokens=[one.token])
            raise

    def _free_seat(self) -> None:
        self._seats.leave()
        waiting, self._waiting = self._waiting, set()
        for queue in waiting:
            hints.wake(queue)

    def _pass_on(self, queue: str) -> None:
        """Send the signal to somebody who can act on it, not faster than it may circle among those who cannot."""
        with self._passing:
            time.sleep(max(0.0, self._passed_at + _PASS_SECONDS - time.monotonic()))
            self._passed_at = time.monotonic()
        hints.wake(queue)

    def _retire(self) -> None:
        stop_at = time.monotonic() + conf.retire_seconds
        time.sleep(_LAST_CLAIM_SECONDS)
        while self._keeper.tokens and time.monotonic() < stop_at:
            time.sleep(0.05)
        try:
            # Before the runs are told, as above.
            handed_back = settle.hand_back(tokens=self._keeper.tokens)
            self._keeper.drop_all()
            observe("worker.retired", level=logging.WARNING, handed_back=handed_back, exit_code=EXIT_CODE)
        except Exception as error:  # the process ends all the same; leases run out by themselves
            observe("worker.retired", level=logging.ERROR, error=type(error).__name__, exit_code=EXIT_CODE)
        finally:
            # Not sys.exit: that would wait for the very threads that do not return.
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(EXIT_CODE)


def _claim_some(tokens: Sequence[uuid.UUID], *, queue: str, worker: str, is_full: bool) -> list[claim.Claimed]:
    """Claim a head for each token, in one transaction; the first of them is told whether there is more."""
    try:
        agents = catalogue.sync_names() if is_full else catalogue.names()
        taken = claim.due(queue=queue, agents=agents, worker=worker, tokens=tokens)
    except (OperationalError, InterfaceError):
        # The COMMIT may have won: what it took is handed back, not orphaned.
        connection.close()
        settle.hand_back(tokens=tokens)
        raise
    shares = [claim.Claimed(claims=[one], has_more=False) for one in taken.claims]
    shares += [claim.Claimed(claims=[], has_more=taken.has_more) for _ in range(len(tokens) - len(shares))]
    return [replace(shares[0], has_more=taken.has_more), *shares[1:]]
