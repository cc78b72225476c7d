"""A rolling restart under load: each worker is told to end and started anew; nothing is lost, repeated or charged."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mailbox_app.devtools.probes import StackProcess, descendants
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import SETTINGS, SLACK_SECONDS, Live, Watched
from tests.chaos.load import TIMEOUT, Load, Round, assert_healthy
from tests.chaos.workers import Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIMEOUT)]

# MAILBOX_CHAOS_ROUNDS=<rounds> restarts each worker so often.
ROUNDS = int(os.environ.get("MAILBOX_CHAOS_ROUNDS", "1"))
STOP_SECONDS = 2.0
# Leases as they are by default: nothing that goes on in time goes on because one was over.
STOPPING = {**SETTINGS, "stop_seconds": STOP_SECONDS, "lease_seconds": 30.0}
POOLS = {"one": ("threads", 4), "two": ("threads", 4), "three": ("prefork", 2)}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, module_monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A stack without a worker."""
    module_monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    with StackProcess("--without", "worker", "--without", "flower", settings=STOPPING) as stack:
        yield Live(stack, tmp_path_factory.mktemp("live"))


def started(live: Live, name: str) -> Worker:
    pool, slots = POOLS[name]
    return Worker(live, name, pool=pool, slots=slots, MAILBOX_SETTINGS=json.dumps(STOPPING))


def held_by(live: Live, worker: Worker, agent: str) -> Watched:
    """A run that this worker executes and that goes on until its gate opens; what others take is let go."""
    for _ in range(100):
        run = live.submit(agent, gate_at=2)
        run.wait_said("begins" if agent == "workload.steps" else "enters", **({"step": 2} if "steps" in agent else {}))
        if run.lines[-1]["pid"] in descendants(worker.pid):
            return run
        run.open_gate()
    raise AssertionError(f"{worker.name} takes nothing")


def stop(worker: Worker) -> float:
    """Tell it to end, as a supervisor does; how long that took."""
    began = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.output[-3000:]
    return time.monotonic() - began


def test_a_rolling_restart_under_load_loses_and_repeats_nothing_and_costs_nothing(live: Live) -> None:
    told, held = Round(live), []
    with ExitStack() as stack:
        workers = {name: stack.enter_context(started(live, name)) for name in POOLS}
        with Load(told):
            for number, name in enumerate(name for _ in range(ROUNDS) for name in POOLS):
                # Longer than the worker's grace, and alternately in a slot and on the loop.
                run = held_by(live, workers[name], ("workload.steps", "workload.waits")[number % 2])
                before = told.count("returns")
                seconds = stop(workers[name])
                assert STOP_SECONDS <= seconds < STOP_SECONDS + SLACK_SECONDS
                run.wait_said("enters", times=2, seconds=SLACK_SECONDS)
                run.open_gate()
                workers[name] = stack.enter_context(started(live, name))
                wait_until(lambda before=before: told.count("returns") > before + 10, SLACK_SECONDS)
                assert told.count("returns") > before + 10, "the others went on"
                held.append(run)
        for run in held:
            run.wait_done()
            dispatch = run.dispatch
            assert (dispatch["attempt_count"], dispatch["lost_count"], dispatch["status"]) == (0, 0, "acked")
            fences = [line["fence"] for line in run.said("enters")]
            assert fences == sorted(set(fences))
            if run.said("begins"):
                run.assert_told_once()
        told.assert_kept()
        assert_healthy(live)
    assert told.costs() == (0, 0)
