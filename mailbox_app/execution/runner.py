"""Run one claim: context, agent, outcome, settle. Nothing is locked and no transaction is open while the agent runs."""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import InterfaceError, OperationalError, connection

from mailbox_app import catalogue, outcomes, tracing
from mailbox_app.conf import conf
from mailbox_app.errors import Cancelled, InvalidInput, LeaseLost, Suspended, TimedOut
from mailbox_app.execution.context import Context
from mailbox_app.execution.contract import outcome_of
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.operations import inputs, settle
from mailbox_app.operations.ownership import Claim
from mailbox_app.outcomes import Failed, Finished, Outcome, Retry, Stopped
from mailbox_app.telemetry import observe, running

# How long past its time limit a child may go on before C code ends it: the keeper's settle gets this long.
_HARD_LIMIT_GRACE_SECONDS = 5.0


def run(claim: Claim, *, keeper: LeaseKeeper, own_process: bool) -> None:
    """Execute a claimed dispatch to its end, turn by turn."""
    turn: Claim | None = claim
    while turn is not None:
        turn = run_turn(turn, keeper=keeper, own_process=own_process)


def run_turn(claim: Claim, *, keeper: LeaseKeeper, own_process: bool) -> Claim | None:
    """Execute one turn, and return the next one's claim if it is followed by one.

    Returns also when the lease was lost: then nothing more is written.

    `own_process`: this process runs one agent at a time and may be killed (prefork); its time limit is enforced. A
    thread cannot be killed: a run past its limit is settled without it, and its verbs raise from then on.
    """
    started = time.monotonic()
    spec = catalogue.find(claim.agent)
    context = Context(claim)
    limit = (spec.timeout_seconds if spec else None) or conf.timeout_seconds

    # One of the two ends the run, the agent or its time limit; the other must not kill a process that has gone on.
    ending, has_ended = threading.Lock(), False

    def time_out() -> None:
        with ending:
            if has_ended:
                return
            context.stop_with(LeaseLost(f"dispatch {claim.dispatch_id} ran past its limit of {limit:g} s"))
            try:
                message = f"ran past its limit of {limit:g} s"
                has_settled, _ = _settle(claim, Retry(code=TimedOut.code, message=message))
                observe("run.timed_out", level=logging.WARNING, **ids, agent=claim.agent, seconds=limit)
            finally:
                connection.close()
                # Whatever came of it, the lease is kept no longer: at worst the sweep takes the run back.
                keeper.forget(claim)
            if own_process and has_settled:
                os.kill(os.getpid(), signal.SIGKILL)

    ids: dict[str, Any] = {"thread_id": claim.thread_id, "run_id": claim.run_id, "dispatch_id": claim.dispatch_id}
    span = tracing.activation_span(claim.trace, agent=claim.agent, attempt=claim.attempt, **ids)
    holding = keeper.holding(claim, stop_with=context.stop_with, on_timeout=time_out, timeout=limit)
    with running(**ids), span, holding:
        with _hard_limit(limit + _HARD_LIMIT_GRACE_SECONDS, enforced=own_process):
            agent_outcome = _execute(claim, context)
        # From here on the agent has kept its limit, however long the thread is held by others.
        with ending:
            has_ended = True
            outcome = _judged(agent_outcome, context)
            _, following = (False, None) if outcome is None else _settle(claim, outcome)
    observe(
        "run.executed",
        run_id=claim.run_id,
        thread_id=claim.thread_id,
        dispatch_id=claim.dispatch_id,
        agent=claim.agent,
        attempt=claim.attempt,
        outcome=type(outcome).__name__.lower() if outcome else "lease_lost",
        seconds=round(time.monotonic() - started, 4),
    )
    return following


def _execute(claim: Claim, context: Context) -> Outcome:
    """Call the agent; how it ended, if nothing stopped it."""
    spec = catalogue.find(claim.agent)
    if spec is None:
        return Retry(code="agent_missing", message=f"this worker has no agent named {claim.agent!r}")
    try:
        return _finished(spec.function(context), context)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a library's cancellation is no Exception, and must not end the worker either
        if isinstance(error, SystemExit) and type(error) is not SystemExit:
            raise  # the worker's own shutdown, not the agent's sys.exit()
        if error is context.stop:
            return Stopped()
        observe(
            "agent.failed",
            level=logging.WARNING,
            run_id=claim.run_id,
            agent=claim.agent,
            error=type(error).__name__,
            # Where, not what: the text may hold what a user wrote.
            traceback="".join(traceback.format_tb(error.__traceback__, limit=-8)),
        )
        return outcome_of(RuntimeError(f"sys.exit({error.code!r})") if isinstance(error, SystemExit) else error)


def _judged(outcome: Outcome, context: Context) -> Outcome | None:
    """The outcome that counts: the first stop wins, whatever the agent made of it; None when its lease was lost."""
    if context.stop is None:
        return outcome
    if isinstance(context.stop, Suspended):
        wait: Outcome = context.stop.wait
        return wait
    return Stopped() if isinstance(context.stop, Cancelled) else None


def _finished(output: object, context: Context) -> Outcome:
    """The agent's return value as an outcome; a value that cannot be stored fails the run, and would again."""
    state: object = context.state  # an agent may have put anything there
    if not isinstance(state, dict):
        return Failed(code="invalid_output", message=f"state must be an object, not {type(state).__name__}")
    try:
        return Finished(
            output=inputs.document("output", output, most_bytes=conf.max_result_bytes),
            state=inputs.document("state", state, most_bytes=conf.max_result_bytes),
        )
    except InvalidInput as error:
        return Failed(code="invalid_output", message=error.message)


def _settle(claim: Claim, outcome: Outcome) -> tuple[bool, Claim | None]:
    """Tell the database, again and again while the lease may last.

    Returns whether the claim was still ours to settle, and the next turn's claim if there is one.

    A settle that already won, but whose answer was lost with the connection, recognises itself.
    """
    give_up_at = time.monotonic() + conf.lease_seconds
    pause = 0.05
    while True:
        try:
            return True, _tell(claim, outcome)
        except LeaseLost:
            observe(
                "settle.refused",
                level=logging.WARNING,
                dispatch_id=claim.dispatch_id,
                outcome=type(outcome).__name__.lower(),
            )
            return False, None
        except (OperationalError, InterfaceError) as error:
            if time.monotonic() >= give_up_at:
                raise
            observe("settle.retried", level=logging.WARNING, dispatch_id=claim.dispatch_id, error=type(error).__name__)
            connection.close()
            time.sleep(pause)
            pause = min(2 * pause, 2.0)


def _tell(claim: Claim, outcome: Outcome) -> Claim | None:
    match outcome:
        case Finished():
            return settle.complete(claim, output=outcome.output, state=outcome.state)
        case outcomes.Suspended():
            settle.suspend(claim, outcome)
        case Retry():
            settle.nack(
                claim, code=outcome.code, message=outcome.message, detail=outcome.detail, retry_after=outcome.after
            )
        case Failed():
            settle.dead_letter(claim, code=outcome.code, message=outcome.message, detail=outcome.detail)
        case Stopped():
            settle.stopped(claim)
    return None


@contextmanager
def _hard_limit(seconds: float, *, enforced: bool) -> Iterator[None]:
    """End this process if the block lasts longer, even in C code that never lets Python run again."""
    if not enforced:
        yield
        return
    # A C thread that needs no interpreter lock; it prints where every thread stood, then _exit(1).
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
