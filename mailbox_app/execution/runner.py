"""Run one claim: context, agent, outcome, settle. Nothing is locked and no transaction is open while the agent runs."""

import asyncio
import faulthandler
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput, LeaseLost
from mailbox_app.execution.activation import Activation
from mailbox_app.execution.async_context import AsyncContext
from mailbox_app.execution.contract import outcome_of
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.execution.loop import loop, nothing_left_behind, on, verbs
from mailbox_app.execution.places import Places
from mailbox_app.operations import inputs
from mailbox_app.operations.ownership import Claim
from mailbox_app.outcomes import Failed, Finished, Outcome, Retry, Stopped
from mailbox_app.telemetry import observe

# How long past its time limit a child may go on before C code ends it: the keeper's settle gets this long.
_HARD_LIMIT_GRACE_SECONDS = 5.0

# A pool child that is told to end, as all are by a cold shutdown, does sys.exit(signal - 256) where it stands, in
# billiard's handler. That is the worker's end, and costs the run no attempt.
_SIGNALLED = range(-255, -191)

# The loop itself keeps no task alive.
_tidying: set[asyncio.Task[Any]] = set()


def run(claim: Claim, *, keeper: LeaseKeeper, own_process: bool, places: Places | None = None) -> None:
    """Execute a claimed dispatch to its end, turn by turn; the caller looks for work on its queue next."""
    turn: Claim | None = claim
    while turn is not None:
        turn = run_turn(turn, keeper=keeper, own_process=own_process, places=places)


def run_turn(claim: Claim, *, keeper: LeaseKeeper, own_process: bool, places: Places | None = None) -> Claim | None:
    """Execute one turn, and return the next one's claim if it is followed by one.

    Returns also when the lease was lost: then nothing more is written.

    An async agent runs on the process's loop, and this thread waits for it. `own_process`: this process runs one agent
    at a time and may be killed (prefork); its time limit is enforced. A thread cannot be killed: a run past its limit
    is settled without it, its verbs raise from then on, and its place among `places` is abandoned until it returns.
    """
    activation = Activation(claim, keeper=keeper, own_process=own_process, places=places, looks_next=True)
    with activation.held():
        with _hard_limit(activation.limit + _HARD_LIMIT_GRACE_SECONDS, enforced=own_process):
            if activation.is_async:
                agent_outcome = loop.spawn(_execute_async(activation)).result()
            else:
                agent_outcome = _execute(activation)
        outcome, following = activation.end(agent_outcome)
    activation.report(outcome)
    return following


def begin(claim: Claim, *, keeper: LeaseKeeper, places: Places, on_end: Callable[[], None]) -> None:
    """Execute a claimed dispatch of an async agent on the process's loop, and return at once.

    `on_end` is called when its place is free again, in a thread where it may wait for a broker.
    """
    activate = partial(Activation, keeper=keeper, own_process=False, places=places, looks_next=False)
    loop.spawn(_execute_beside(claim, activate, on_end))


async def _execute_beside(claim: Claim, activate: Callable[[Claim], Activation], on_end: Callable[[], None]) -> None:
    """What `run` does, where nothing may block."""
    turn: Claim | None = claim
    try:
        while turn is not None:
            activation, turn = activate(turn), None
            with activation.held():
                agent_outcome = await _execute_async(activation)
                outcome = None
                # A lost run is nobody's to settle: whoever has it may hold its thread for long.
                if not isinstance(activation.context.stop, LeaseLost):
                    outcome, turn = await on(verbs, partial(activation.end, agent_outcome))
            activation.report(outcome)
    except Exception as error:  # nobody waits for this task: its lease runs out, and the sweep takes the run back
        ids = {"run_id": claim.run_id, "dispatch_id": claim.dispatch_id}
        observe("settle.failed", level=logging.ERROR, **ids, error=type(error).__name__)
    finally:
        await on(verbs, on_end)


def _execute(activation: Activation) -> Outcome:
    """Call the agent; how it ended, if nothing stopped it."""
    if activation.spec is None:
        return _missing(activation)
    try:
        return _finished(activation.spec.function(activation.context), activation)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a library's cancellation is no Exception, and must not end the worker either
        if isinstance(error, SystemExit) and (type(error) is not SystemExit or error.code in _SIGNALLED):
            raise  # the worker's own shutdown, not the agent's sys.exit()
        return _failed(error, activation)


async def _execute_async(activation: Activation) -> Outcome:
    """Await the agent in a task of its own, which may be cancelled."""
    task = asyncio.ensure_future(_call(activation))
    activation.runs_as(task)
    await asyncio.wait([task])
    tidying = asyncio.ensure_future(_tidy())
    _tidying.add(tidying)
    tidying.add_done_callback(_tidying.discard)
    # Cancelled before it began: it was lost or asked to stop by then.
    return Stopped() if task.cancelled() else task.result()


@sync_to_async
def _tidy() -> None:
    """Close what asgiref's thread keeps open: agents that await the ORM share it, and one broken connection with it."""
    close_old_connections()


async def _call(activation: Activation) -> Outcome:
    if activation.spec is None:
        return _missing(activation)
    context = AsyncContext(activation.context)
    try:
        async with nothing_left_behind():
            output = await activation.spec.function(context)
        return _finished(output, activation)
    except BaseException as error:  # asyncio would let SystemExit end the loop, and with it everybody's run
        return _failed(error, activation)


def _missing(activation: Activation) -> Outcome:
    return Retry(code="agent_missing", message=f"this worker has no agent named {activation.claim.agent!r}")


def _failed(error: BaseException, activation: Activation) -> Outcome:
    """How the agent's exception ends its activation."""
    claim = activation.claim
    stop = activation.context.stop
    if error is stop or (stop is not None and isinstance(error, asyncio.CancelledError)):
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
    if isinstance(error, SystemExit):
        error = RuntimeError(f"sys.exit({error.code!r})")
    return outcome_of(error, activation.spec)


def _finished(output: object, activation: Activation) -> Outcome:
    """The agent's return value as an outcome; a value that cannot be stored fails the run, and would again."""
    state: object = activation.context.state  # an agent may have put anything there
    if not isinstance(state, dict):
        return Failed(code="invalid_output", message=f"state must be an object, not {type(state).__name__}")
    try:
        return Finished(
            output=inputs.document("output", output, most_bytes=conf.max_result_bytes),
            state=inputs.document("state", state, most_bytes=conf.max_result_bytes),
        )
    except InvalidInput as error:
        return Failed(code="invalid_output", message=error.message)


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
