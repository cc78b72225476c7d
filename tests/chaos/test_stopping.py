"""Requests to stop, in real worker processes: told through Redis they arrive long before the renewal that would find
them, without it by that renewal; code that ignores them costs its run nothing more."""

import json
import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import SETTINGS, SLACK_SECONDS, Live, Watched
from tests.chaos.workers import Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Found by a renewal alone, a request would take up to so long.
RENEWAL_SECONDS = 200.0
PATIENT = {**SETTINGS, "lease_seconds": 3 * RENEWAL_SECONDS, "broker_retry_seconds": 0.5}
HASTY = {**SETTINGS, "cancel_grace_seconds": 1.0}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, module_monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A stack without a worker."""
    module_monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    with StackProcess("--without", "worker", "--without", "flower", settings=PATIENT) as stack:
        yield Live(stack, tmp_path_factory.mktemp("live"))


def cancel(run: Watched, *, wait: float = 5) -> tuple[int, str, float]:
    """Status, outcome and seconds of a request that waits for the stop."""
    began = time.monotonic()
    answer = run.live.stack.request("POST", f"/v1/runs/{run.run_id}/cancel?wait={wait}", body={})
    return answer.status, answer.json["outcome"], time.monotonic() - began


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_an_async_agent_asleep_stops_before_the_cancel_request_has_waited_for_it(pool: str, live: Live) -> None:
    with Worker(live, f"told-{pool}", pool=pool, MAILBOX_SETTINGS=json.dumps(PATIENT)):
        asleep, other = live.submit("workload.waits"), live.submit("workload.waits")
        asleep.wait_said("enters")
        other.wait_said("enters")
        status, outcome, seconds = cancel(asleep)
        assert (status, outcome) == (200, "cancelled"), (seconds, asleep.row)
        assert asleep.said("leaves")[0]["error"] == "CancelledError"
        assert (asleep.row["termination"], asleep.dispatch["status"]) == ({"type": "cancelled"}, "cancelled")
        other.open_gate()
        assert other.wait_done()["final_output"] == "waited", "nobody asked it to stop"


def test_a_sync_agent_that_polls_checkpoints_stops_within_the_request(live: Live) -> None:
    with Worker(live, "polls", MAILBOX_SETTINGS=json.dumps(PATIENT)):
        run = live.submit("workload.polls")
        run.wait_said("enters")
        assert cancel(run)[:2] == (200, "cancelled")
        assert run.said("leaves")[0]["error"] == "Cancelled"


def test_a_worker_listens_again_when_redis_is_back_and_nobody_minds_that_it_was_away(live: Live) -> None:
    with Worker(live, "deaf", MAILBOX_SETTINGS=json.dumps(PATIENT)) as worker:
        first = live.submit("workload.waits")
        first.wait_said("enters")
        old = live.stack.kill("redis")
        worker.wait_output("listen.failed")
        status, outcome, seconds = cancel(first, wait=0)
        assert (status, outcome) == (202, "requested")
        assert seconds < 3, "a broker timeout at most, and a busy machine"
        wait_until(lambda: live.stack.pid("redis") not in (None, old), SLACK_SECONDS)
        # What was said meanwhile is lost; the row is not, and the next renewal would find it.
        worker.wait_output("listen.resumed")
        second = live.submit("workload.waits")
        second.wait_said("enters", seconds=3 * SLACK_SECONDS)
        assert cancel(second)[:2] == (200, "cancelled")
        assert worker.process.poll() is None


def test_without_redis_the_next_renewal_stops_the_run(live: Live) -> None:
    settings = json.dumps({**SETTINGS, "redis_url": ""})
    with Worker(live, "untold", MAILBOX_SETTINGS=settings):
        run = live.submit("workload.waits")
        run.wait_said("enters")
        assert cancel(run)[:2] == (200, "cancelled"), "renewed every second"


def test_a_prefork_child_whose_agent_ignores_its_cancellation_is_killed(live: Live) -> None:
    with Worker(live, "ignores", pool="prefork", MAILBOX_SETTINGS=json.dumps(HASTY)) as worker:
        run = live.submit("workload.ignores")
        pid = run.wait_said("enters")["pid"]
        assert cancel(run, wait=0)[1] == "requested"
        assert run.wait_done()["termination"] == {"type": "cancelled"}
        wait_until(lambda: not psutil.pid_exists(pid), SLACK_SECONDS)
        assert (psutil.pid_exists(pid), worker.process.poll()) == (False, None)
        live.submit("workload.steps").wait_done()


def test_a_thread_whose_agent_ignores_its_cancellation_is_left_behind(live: Live) -> None:
    with Worker(live, "abandons", slots=4, MAILBOX_SETTINGS=json.dumps(HASTY)) as worker:
        run = live.submit("workload.ignores")
        run.wait_said("enters")
        assert cancel(run, wait=0)[1] == "requested"
        assert run.wait_done()["termination"] == {"type": "cancelled"}
        worker.wait_output("slot.abandoned")
        live.submit("workload.steps").wait_done()
        run.open_gate()
        worker.wait_output("slot.regained")


def test_a_worker_that_is_gone_leaves_its_cancelled_run_to_the_sweep(live: Live) -> None:
    with Worker(live, "gone", MAILBOX_SETTINGS=json.dumps(SETTINGS)) as worker:
        run = live.submit("workload.ignores")
        run.wait_said("enters")
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        assert cancel(run, wait=0)[1] == "requested"
    assert run.wait_done()["termination"] == {"type": "cancelled"}, "with its lease of 3 s, not after another attempt"
    assert (run.dispatch["status"], len(run.said("enters"))) == ("cancelled", 1)
