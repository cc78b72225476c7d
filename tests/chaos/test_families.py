"""Parents wait for children, those for theirs, while workers are killed and some parents are cancelled."""

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import SETTINGS, SLACK_SECONDS, Live
from tests.chaos.load import STORM_SECONDS, TIMEOUT, assert_healthy
from tests.chaos.workers import Worker

FAMILIES, CHILDREN, GENERATIONS = 12, 2, 2
# A run may meet any number of kills: none is poison.
PATIENT = {**SETTINGS, "max_lost": 1000, "quarantine_after": 1000}
POOLS = {"family-threads": ("threads", 4), "family-prefork": ("prefork", 2)}
FEWEST_KILLS = 3
SEED = int(os.environ.get("MAILBOX_FAMILY_SEED", "1"))

TREE = """
    SELECT run.id::text, run.parent_run_id::text AS parent, run.status, run.termination->>'type' AS ended,
        run.final_output AS output, thread.parent_id::text AS parent_thread, parent.thread_id::text AS thread_of_parent
    FROM mailbox_run AS run JOIN mailbox_thread AS thread ON thread.id = run.thread_id
    LEFT JOIN mailbox_run AS parent ON parent.id = run.parent_run_id
"""


def post(live: Live, log: Path, number: int) -> str:
    options = {"log": str(log), "children": CHILDREN, "generations": GENERATIONS, "seconds": 0.05}
    body = {"agent": "workload.family", "messages": [f"family {number}"], "options": options}
    answer = live.stack.request("POST", "/v1/runs", body=body)
    assert answer.status == 202, answer.text
    return str(answer.json["run_id"])


def faults(rows: list[dict[str, Any]], cancelled: set[str]) -> list[str]:
    """What is wrong with the families, in words."""
    found = []
    runs = {row["id"]: row for row in rows}
    children: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "done":
            found.append(f"{row['id']} is {row['status']}")
        if row["parent"] is not None:
            children.setdefault(row["parent"], []).append(row["id"])
            if row["parent_thread"] != row["thread_of_parent"]:
                found.append(f"{row['id']} is on a thread of its own, but not below that of its parent")
    for row in rows:
        own = sorted(children.get(row["id"], []))
        if row["ended"] == "natural_end":
            told = row["output"] or {}
            if sorted(told) != own or len(own) not in (0, CHILDREN):
                found.append(f"{row['id']} has the children {own}, and was told of {sorted(told)}")
            for child_id, (ended, output) in told.items():
                if (ended, output) != (runs[child_id]["ended"], runs[child_id]["output"]):
                    found.append(f"{row['id']} was told of another end of {child_id} than it had")
        elif row["ended"] == "cancelled":
            if row["parent"] is None and row["id"] not in cancelled:
                found.append(f"{row['id']} was cancelled by nobody")
        else:
            found.append(f"{row['id']} ended by {row['ended']}")
    return found


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
def test_every_parent_hears_of_each_child_once_whoever_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    dice, killed, log = random.Random(SEED), 0, tmp_path / "families.log"
    with StackProcess("--without", "worker", "--without", "flower", settings=PATIENT) as stack:
        live = Live(stack, tmp_path)

        def worker(name: str) -> Worker:
            pool, slots = POOLS[name]
            return Worker(live, name, pool=pool, slots=slots).__enter__()

        workers = {name: worker(name) for name in POOLS}
        try:
            parents = [post(live, log, number) for number in range(FAMILIES)]
            cancelled = set(dice.sample(parents, 2))
            until = time.monotonic() + STORM_SECONDS
            while time.monotonic() < until or killed < FEWEST_KILLS:
                time.sleep(dice.uniform(0.3, 1.5))
                name = dice.choice(list(POOLS))
                workers[name].send(signal.SIGKILL)
                workers[name].wait()
                killed += 1
                workers[name] = worker(name)
                if killed == 1:
                    for run_id in cancelled:
                        assert live.stack.request("POST", f"/v1/runs/{run_id}/cancel").status in (200, 202)
            wait_until(lambda: not live.rows("SELECT FROM mailbox_run WHERE status <> 'done'"), 6 * SLACK_SECONDS)
        finally:
            for one in workers.values():
                one.__exit__(None, None, None)
        wait_until(lambda: not live.rows("SELECT FROM mailbox_outbox WHERE status = 'pending'"), SLACK_SECONDS)
        rows = live.rows(TREE)
        assert faults(rows, cancelled) == []
        assert_healthy(live)
        assert not live.rows("SELECT FROM mailbox_outbox WHERE status <> 'delivered'")
    ends = Counter(row["ended"] for row in rows)
    lines = f"{len(rows)} runs of {FAMILIES} families: {dict(ends)}; {killed} workers killed\n"
    sys.stdout.write(lines)
    assert ends["natural_end"] >= (FAMILIES - 2) * (1 + CHILDREN + CHILDREN**2)
