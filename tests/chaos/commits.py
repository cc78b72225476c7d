"""Transactions whose COMMIT is lost, or answered by nobody: by what each is known, and the run in which it happens."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import kills
from tests.chaos.live import Watched
from tests.chaos.wire import Moment, Trap
from tests.chaos.wired import Stage

# What becomes of a COMMIT when the connection is cut.
FATES = {"unsent": Moment.COMMIT, "unanswered": Moment.ANSWER}


@dataclass(frozen=True)
class Transaction:
    """One verb's. `options`: of the run's agent; `meanwhile`: what brings it about while its agent is at its gate."""

    name: str
    words: tuple[bytes, ...]
    agent: str = "workload.ends"
    options: dict[str, Any] = field(default_factory=dict)
    meanwhile: Callable[[Stage, Watched], None] | None = None
    # What the run makes of it: its output or its error's code, and the events of which it has exactly one.
    output: Any = "did 1"
    error: str = ""
    once: tuple[str, ...] = ()
    attempts: int = 0
    lost: int = 0


def _steer(stage: Stage, run: Watched) -> None:
    stage.say(run, "left", boundary="next_step")


def _add(stage: Stage, run: Watched) -> None:
    stage.say(run, "more", boundary="on_natural_end")


def _cancel(stage: Stage, run: Watched) -> None:
    answer = stage.stack.request("POST", f"/v1/runs/{run.run_id}/cancel", body={})
    assert answer.json["outcome"] == "requested"


OF_WORKERS = (
    Transaction("claim", kills.CLAIM, once=("RunStarted",)),
    Transaction("record", kills.record(1)),
    Transaction("say", (b'"verb": "say"',), "workload.steps", {"steps": 1}),
    Transaction(
        "checkpoint", (b'"read_at": "checkpoint"',), options={"end": "read"}, meanwhile=_steer, output="did 1 left"
    ),
    Transaction("finish", kills.FINISH, once=("RunFinished",)),
    Transaction("turn", (b'"kind": "TurnStarted"',), meanwhile=_add, once=("TurnStarted", "RunFinished")),
    Transaction("retry", (b'"retry_backoff"',), options={"end": "retry"}, once=("RunRescheduled",), attempts=1),
    Transaction(
        "fail",
        (b'"kind": "RunErrored"',),
        options={"end": "fail"},
        output=None,
        error="permanent",
        once=("RunErrored",),
        attempts=1,
    ),
    Transaction(
        "wait",
        (b'"kind": "RunSuspended"',),
        options={"end": "wait"},
        output="did 1 gone",
        once=("RunSuspended", "RunResumed"),
    ),
    Transaction(
        "go-on", (b'"kind": "RunResumed"',), options={"end": "wait"}, output="did 1 gone", once=("RunSuspended",)
    ),
    Transaction(
        "stop", (b'"kind": "RunCancelled"',), "workload.polls", meanwhile=_cancel, output=None, once=("RunCancelled",)
    ),
    Transaction("renew", (b"SET lease_until = statement_timestamp()",), options={"gate_at": 1}),
)
OF_PASSES = (
    Transaction("promote", kills.PROMOTE, options={"end": "retry"}, once=("RunRescheduled",), attempts=1),
    Transaction("reclaim", kills.RECLAIM, options={"gate_at": 1}, once=("RunRescheduled",), lost=1),
)


def wanted(pools: Sequence[str]) -> list[tuple[str, Transaction, str]]:
    """What this session takes: in a round, one fate of each transaction in each pool, the other one in the other."""
    takes_all = kills.takes_all()
    return [
        (pool, one, fate)
        for pool_place, pool in enumerate(pools)
        for place, one in enumerate(OF_WORKERS)
        for fate_place, fate in enumerate(FATES)
        if takes_all or (pool_place + place + fate_place) % 2 == 0
    ]


def trapped(
    stage: Stage, wire: str, transaction: Transaction, moment: Moment, *, cuts: bool = False
) -> AbstractContextManager[Trap]:
    """Stop the first such transaction on this wire, in a block."""
    return stage.wires[wire].trap(*transaction.words, moment=moment, cuts=cuts)
