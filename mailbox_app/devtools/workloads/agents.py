"""Agents that say what they do in an append-only file, and that stop where they are told to."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from mailbox_app.errors import Permanent, Transient
from mailbox_app.execution import AsyncContext, Context, agent


@agent("workload.noop")
def noop(ctx: Context) -> None:
    """Do nothing: what is left is the queue's own cost."""


@agent("workload.steps")
def steps(ctx: Context) -> str:
    """Do `steps` journalled steps, logging each; in step `gate_at`, wait until the file `gate` exists.

    Options: log (path), steps, gate_at, gate (path), seconds (of a step). Says "step n" before each; outputs them all.
    """
    options = ctx.options
    with _telling(ctx):
        done = []
        for number in range(1, options.get("steps", 3) + 1):
            ctx.say(f"step {number}")
            done.append(ctx.step(f"step-{number}", lambda number=number: _step(ctx, number)))
        return f"did {' '.join(map(str, done))}"


@agent("workload.hang", timeout_seconds=1, max_attempts=1)
def hang(ctx: Context) -> None:
    """Go past the time limit: asleep, or (option `hard`) in C code that never lets Python run again."""
    with _telling(ctx):
        if ctx.options.get("hard"):
            # PyDLL keeps the interpreter lock while it calls.
            ctypes.PyDLL(None).sleep(600)
        while True:
            time.sleep(0.05)


@agent("workload.fail", max_attempts=2)
def fail(ctx: Context) -> None:
    """Fail, to be tried again once: at once, or after `seconds`."""
    raise Transient("as it was told to", retry_after=ctx.options.get("seconds", 0.0))


@agent("workload.ends", max_attempts=2)
def ends(ctx: Context) -> str:
    """Do one journalled step, then end as option `end` says; what is tried again or resumed returns.

    "retry": fail once, to be tried again after `seconds`; "fail": fail for good; "wait": wait for a resume named "go";
    "read": look at a checkpoint. Options log, gate_at and gate are those of `workload.steps`.
    """
    with _telling(ctx):
        done: list[object] = [ctx.step("step-1", lambda: _step(ctx, 1))]
        match ctx.options.get("end"):
            case "retry" if ctx.attempt == 1:
                raise Transient("as it was told to", retry_after=ctx.options.get("seconds", 0.1))
            case "fail":
                raise Permanent("as it was told to")
            case "wait":
                done.append(ctx.suspend("external_event", name="go"))
            case "read":
                done += [message.text for message in ctx.checkpoint()]
        return f"did {' '.join(map(str, done))}"


@agent("workload.family")
def family(ctx: Context) -> dict[str, object]:
    """Spawn `children` runs of this agent, one generation fewer below each, and wait for them; outputs what each did.

    Options: log (path), children, generations (0: spawn none), seconds (before and after the wait).
    """
    options = ctx.options
    generations = int(options.get("generations", 1))
    with _telling(ctx):
        time.sleep(options.get("seconds", 0.0))
        below = {**options, "generations": generations - 1}
        for number in range(options.get("children", 2) if generations else 0):
            ctx.spawn(f"child {number}", agent="workload.family", options=below, key=str(number))
        ended = ctx.wait_for_children()
        time.sleep(options.get("seconds", 0.0))
        return {one["run_id"]: [one["termination"]["type"], one["output"]] for one in ended}


@agent("workload.stuck", timeout_seconds=1, max_attempts=1)
def stuck(ctx: Context) -> None:
    """Go past the time limit until the file `gate` exists, without a verb that could stop it."""
    with _telling(ctx):
        while not Path(ctx.options["gate"]).exists():
            time.sleep(0.05)


@agent("workload.polls")
def polls(ctx: Context) -> None:
    """Look at checkpoints, again and again, until one says to stop."""
    with _telling(ctx):
        while True:
            ctx.checkpoint()
            time.sleep(0.05)


@agent("workload.ignores")
def ignores(ctx: Context) -> None:
    """Heed nothing until the file `gate` exists."""
    with _telling(ctx):
        while not Path(ctx.options["gate"]).exists():
            time.sleep(0.05)


@agent("workload.poison")
def poison(ctx: Context) -> None:
    """End its process, as the kernel does when memory is short."""
    with _telling(ctx):
        os.kill(os.getpid(), signal.SIGKILL)


@agent("workload.waits")
async def waits(ctx: AsyncContext) -> str:
    """Wait on the event loop until the file `gate` exists; says "in" before and "out" after."""
    with _telling(ctx):
        await ctx.asay("in")
        await _gate(ctx)
        await ctx.asay("out")
        return "waited"


@agent("workload.waits_long", timeout_seconds=1, max_attempts=1)
async def waits_long(ctx: AsyncContext) -> None:
    """Wait past the time limit; with option `block`, so that the event loop stands still until `gate` exists."""
    with _telling(ctx):
        while ctx.options.get("block") and not Path(ctx.options["gate"]).exists():
            time.sleep(0.05)
        await asyncio.sleep(600)


@agent("workload.versioned", version=os.environ.get("WORKLOAD_VERSION", "1"))
def versioned(ctx: Context) -> list[str]:
    """Journal which version began it; wait until `gate` exists and fail, `failures` times; at last tell both."""
    return _versioned(ctx)


@agent("workload.strict", version=os.environ.get("WORKLOAD_VERSION", "1"), accepts=())
def strict(ctx: Context) -> list[str]:
    """As `versioned`, and goes on with nothing that another version has started."""
    return _versioned(ctx)


def _versioned(ctx: Context) -> list[str]:
    version = os.environ.get("WORKLOAD_VERSION", "1")
    with _telling(ctx, version=version):
        begun = ctx.step("begin", lambda: version)
        if ctx.attempt <= ctx.options.get("failures", 1):
            while not Path(ctx.options["gate"]).exists():
                time.sleep(0.02)
            raise Transient("once more", retry_after=0.1)
        return [begun, version]


async def _gate(ctx: AsyncContext) -> None:
    while not Path(ctx.options["gate"]).exists():
        await asyncio.sleep(0.05)


def _step(ctx: Context, number: int) -> int:
    _tell(ctx, "begins", step=number)
    if number == ctx.options.get("gate_at"):
        while not Path(ctx.options["gate"]).exists():
            time.sleep(0.02)
    time.sleep(ctx.options.get("seconds", 0.0))
    _tell(ctx, "ends", step=number)
    return number


@contextlib.contextmanager
def _telling(ctx: Context | AsyncContext, **facts: object) -> Iterator[None]:
    _tell(ctx, "enters", **facts)
    try:
        yield
    except BaseException as error:
        _tell(ctx, "leaves", error=type(error).__name__)
        raise
    _tell(ctx, "returns")


def _tell(ctx: Context | AsyncContext, what: str, **facts: object) -> None:
    if "log" not in ctx.options:
        return
    line = {
        "what": what, "run": ctx.run_id, "attempt": ctx.attempt, "fence": ctx.fence_token,
        "pid": os.getpid(), "at": time.time(), **facts,
    }  # fmt: skip
    # One write to a file opened for appending: lines of several processes do not mix.
    with open(ctx.options["log"], "ab", buffering=0) as log:
        log.write(json.dumps(line).encode() + b"\n")


@agent("workload.idle")
async def idle(ctx: AsyncContext) -> list[float]:
    """Wait for `seconds` on the event loop; answer with when that began and ended."""
    began = time.time()
    await asyncio.sleep(ctx.options.get("seconds", 1.0))
    return [began, time.time()]


@agent("workload.clock")
def clock(ctx: Context) -> float:
    """Answer with the time (seconds) at which its first line ran."""
    return time.time()


@agent("workload.parked", queue="mailbox.parked")
def parked(ctx: Context) -> None:
    """Wait on a queue that no worker serves."""
