"""One claim on its way to its end: the agent's, its time limit's, or that of somebody's patience with it."""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

from mailbox_app import catalogue, tracing
from mailbox_app.conf import conf
from mailbox_app.errors import Cancelled, LeaseLost, Stop, Suspended, TimedOut
from mailbox_app.execution.context import Context
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.execution.loop import loop
from mailbox_app.execution.places import Places
from mailbox_app.execution.settling import tell
from mailbox_app.operations.ownership import Claim
from mailbox_app.outcomes import Outcome, Retry, Stopped
from mailbox_app.telemetry import observe, running

# A loop that does nothing for so long is blocked by an agent, which nothing but the end of the process can stop.
_ANSWER_SECONDS = 5.0


class Activation:
    """A claim that is being executed. One thing ends it, the agent, its time limit or a request to stop that it
    ignored; the others change nothing.

    `own_process`: this process runs one agent at a time and may be killed (prefork). Else a run past its limit, or that
    does not stop, is settled without its code, which keeps its place among `places` until it returns. `looks_next`:
    whoever executes it looks for work on its queue next.
    """

    def __init__(
        self, claim: Claim, *, keeper: LeaseKeeper, own_process: bool, places: Places | None, looks_next: bool
    ) -> None:
        self.claim, self.own_process = claim, own_process
        self.spec = catalogue.find(claim.agent)
        self.context = Context(claim)
        self.is_async = self.spec is not None and self.spec.is_async
        self.limit = float((self.spec.timeout_seconds if self.spec else None) or conf.timeout_seconds)
        self._keeper, self._places, self._looks_next = keeper, places, looks_next
        # The other end must not kill a process that has gone on.
        self._ending, self._has_ended, self._is_left = threading.Lock(), False, False
        self._task: asyncio.Task[object] | None = None
        self._started = time.monotonic()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the claim's lease and watch its time limit while the block runs."""
        ids = self._ids
        span = tracing.activation_span(self.claim.trace, agent=self.claim.agent, attempt=self.claim.attempt, **ids)
        holding = self._keeper.holding(
            self.claim,
            stop_with=self.stop,
            on_timeout=self.time_out,
            timeout=self.limit,
            on_ignored=self.give_up,
            on_nudge=self.context.stir,
            on_input=self.context.told,
        )
        try:
            with running(**ids), span, holding:
                yield
        finally:
            self.claim.emitted.close()
            if self._places is not None:
                self._places.regain(self.claim)

    @property
    def _ids(self) -> dict[str, Any]:
        return {name: getattr(self.claim, name) for name in ("thread_id", "run_id", "dispatch_id")}

    def runs_as(self, task: "asyncio.Task[object]") -> None:
        """The agent's own task, to be cancelled when the run is to stop; called on the loop, before it begins."""
        self._task = task
        if self.context.stop is not None:
            task.cancel()

    def stop(self, stop: Stop) -> None:
        """Have every further verb raise this, and cancel the agent where it waits; for the keeper."""
        self.context.stop_with(stop)
        if self._task is not None:
            loop.cancel(self._task)

    def time_out(self) -> None:
        """End the run at its time limit, unless the agent was quicker; for the keeper."""
        message = f"ran past its limit of {self.limit:g} s"
        self._leave("run.timed_out", message, Retry(code=TimedOut.code, message=message), self.limit)

    def give_up(self) -> None:
        """End the run, which was asked to stop and has not in time, unless it just has; for the keeper."""
        grace = float(conf.cancel_grace_seconds)
        self._leave("run.cancel_ignored", f"did not stop within {grace:g} s", Stopped(), grace)

    def _leave(self, name: str, message: str, outcome: Outcome, seconds: float) -> None:
        """Settle the claim without its code; every verb of the context raises from now on."""
        with self._ending:
            if self._has_ended or self._is_left:
                return
            self._is_left = True
            self.stop(LeaseLost(f"dispatch {self.claim.dispatch_id} {message}"))
            has_settled = False
            try:
                has_settled, _ = tell(self.claim, outcome)
                observe(name, level=logging.WARNING, **self._ids, agent=self.claim.agent, seconds=seconds)
            finally:
                connection.close()
                # Whatever came of it, the lease is kept no longer: at worst the sweep takes the run back.
                self._keeper.forget(self.claim)
                if self._places is not None:
                    self._places.abandon(self.claim)
            if self.own_process and has_settled:
                os.kill(os.getpid(), signal.SIGKILL)
        if self._places is not None and self.is_async and not loop.answers(within=_ANSWER_SECONDS):
            self._places.wear_out("the event loop is blocked")

    def end(self, agent_outcome: Outcome) -> tuple[Outcome | None, Claim | None]:
        """Settle by what came first; returns the outcome that counted (None: the lease was lost) and the next turn."""
        following = None
        # From here on the agent has kept its limit, however long the thread is held by others.
        with self._ending:
            self._has_ended = True
            outcome = self._judged(agent_outcome)
            if outcome is not None:
                are_many = self._places is not None and self._places.are_many
                _, following = tell(self.claim, outcome, together=are_many, looks_next=self._looks_next)
        return outcome, following

    def _judged(self, outcome: Outcome) -> Outcome | None:
        """The outcome that counts: the first stop wins, whatever the agent made of it; None when its lease was lost."""
        if self._is_left:
            return None
        if self.context.stop is None:
            return outcome
        if isinstance(self.context.stop, Suspended):
            wait: Outcome = self.context.stop.wait
            return wait
        return Stopped() if isinstance(self.context.stop, Cancelled) else None

    def report(self, outcome: Outcome | None) -> None:
        """Say how it ended."""
        claim = self.claim
        observe(
            "run.executed",
            run_id=claim.run_id,
            thread_id=claim.thread_id,
            dispatch_id=claim.dispatch_id,
            agent=claim.agent,
            attempt=claim.attempt,
            outcome=type(outcome).__name__.lower() if outcome else "lease_lost",
            seconds=round(time.monotonic() - self._started, 4),
        )
