"""How long a run stands still when its worker is killed. By hand: with leases of 30 s it takes a while.

    python -m tests.chaos.recovery [--rounds 20] [--lease 30 --lease 3] [--pool threads]

Each round is one worker with one slot that holds one run and is killed (SIGKILL) at a moment of its own; another worker
stands by. Measured from the kill to the first line of the run's next activation: what was left of the lease, then the
next sweep. Prints one JSON object for each lease; exit code 1 if a run was lost, ended twice or began a finished step
anew.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import SLACK_SECONDS, Live, Watched
from tests.chaos.workers import Worker

# Workers killed beside each other: their kills are spread over more than a renewal, and a round takes half a minute.
TOGETHER = 5
DEFAULT_LEASE_SECONDS = 30.0


def main(arguments: list[str]) -> int:
    """Print the figures; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.recovery")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--lease", type=float, action="append", help="seconds; may be given several times")
    parser.add_argument("--pool", choices=("threads", "prefork"), default="threads")
    given = parser.parse_args(arguments)
    os.environ["MAILBOX_EXTRA_APPS"] = "mailbox_app.devtools.workloads"
    is_broken = False
    for lease in given.lease or (DEFAULT_LEASE_SECONDS, 3.0):
        figures = measure(rounds=given.rounds, lease_seconds=lease, pool=given.pool)
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()
        is_broken |= bool(figures["runs_lost"] or figures["finished_steps_repeated"])
    return int(is_broken)


def measure(*, rounds: int, lease_seconds: float, pool: str) -> dict[str, Any]:
    """Kill so many workers, each with a run in its hands; all but the lease is as it is by default."""
    settings = {"lease_seconds": lease_seconds}
    with tempfile.TemporaryDirectory(prefix="mailbox-recovery-") as folder, contextlib.ExitStack() as stack:
        own = stack.enter_context(StackProcess("--without", "worker", "--without", "flower", settings=settings))
        live = Live(own, Path(folder))
        runs: list[Watched] = []
        taken: list[float] = []
        while len(runs) < rounds:
            count = min(TOGETHER, rounds - len(runs))
            runs += _round(live, pool, count, spread_seconds=lease_seconds / 3, taken=taken)
        return _figures(runs, taken) | {"lease_seconds": lease_seconds, "pool": pool}


def _figures(runs: list[Watched], taken: list[float]) -> dict[str, Any]:
    rows = [(run.row, run.dispatch) for run in runs]
    return {
        "rounds": len(runs),
        "p50_seconds": round(statistics.median(taken), 1),
        "max_seconds": round(max(taken), 1),
        "runs_lost": sum((run["status"], dispatch["status"]) != ("done", "acked") for run, dispatch in rows),
        "leases_lost": sum(dispatch["lost_count"] for _, dispatch in rows),
        "starts_repeated": sum(len(run.said("enters")) - 1 for run in runs),
        "unfinished_steps_repeated": sum(len(run.said("begins", step=2)) - 1 for run in runs),
        "finished_steps_repeated": sum(len(run.said("ends", step=step)) - 1 for run in runs for step in (1, 2, 3)),
    }


def _round(live: Live, pool: str, count: int, *, spread_seconds: float, taken: list[float]) -> list[Watched]:
    with contextlib.ExitStack() as stack:
        names = [f"killed-{number}" for number in range(count)]
        workers = [stack.enter_context(Worker(live, name, pool=pool, slots=1)) for name in names]
        runs = [live.submit(gate_at=2) for _ in workers]
        for run in runs:
            run.wait_said("begins", step=2, seconds=3 * SLACK_SECONDS)
        stack.enter_context(Worker(live, "stands-by", slots=count))
        held_by = {str(run.dispatch["claimed_by"]).partition("@")[0]: run for run in runs}
        killed_at: dict[str, float] = {}
        for worker in workers:
            time.sleep(random.uniform(0, 2 * spread_seconds / count))
            killed_at[worker.name] = time.time()
            worker.send(signal.SIGKILL)
        for name, run in held_by.items():
            run.wait_said("begins", step=2, times=2, seconds=90)
            taken.append(run.said("enters")[1]["at"] - killed_at[name])
            run.open_gate()
        for run in runs:
            wait_until(lambda run=run: run.row["status"] == "done", 2 * SLACK_SECONDS)
    return runs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
