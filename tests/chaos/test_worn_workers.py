"""A thread cannot be killed: a process half of whose slots are held by code past its limit is replaced."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import SETTINGS, SLACK_SECONDS, Live
from tests.chaos.workers import Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXIT_CODE = 75


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, module_monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A stack without a worker."""
    module_monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    with StackProcess("--without", "worker", "--without", "flower", settings=SETTINGS) as stack:
        yield Live(stack, tmp_path_factory.mktemp("live"))


def told(output: str, event: str) -> list[dict[str, Any]]:
    """The facts of each of the app's lines about this event."""
    lines = [line for line in output.splitlines() if f" mailbox {event} " in line]
    return [json.loads(line.partition(f" mailbox {event} ")[2]) for line in lines]


def test_a_process_with_half_its_slots_abandoned_claims_no_more_finishes_the_others_and_ends(live: Live) -> None:
    with Worker(live, "worn") as worker:
        other = live.submit("workload.steps", gate_at=2)
        other.wait_said("begins", step=2)
        stuck = live.submit("workload.stuck")
        assert stuck.wait_done()["error"]["code"] == "timed_out"
        assert told(worker.output, "slot.abandoned")[0]["run_id"] == stuck.run_id
        worker.wait_output("worker.retiring")
        assert told(worker.output, "worker.retiring")[0]["reason"] == "1 of 2 slots abandoned"
        later = live.submit("workload.steps")
        time.sleep(2)
        assert (later.row["status"], worker.process.poll()) == ("created", None)
        other.open_gate()
        other.wait_done()
        assert worker.wait() == EXIT_CODE, worker.output[-3000:]
        assert told(worker.output, "worker.retired") == [{"exit_code": EXIT_CODE, "handed_back": 0}]
        other.assert_told_once()
        assert (other.dispatch["attempt_count"], other.dispatch["lost_count"]) == (0, 0)
    with Worker(live, "worn-next"):
        later.wait_done()


def test_what_still_runs_when_the_time_is_over_is_handed_back_at_no_cost(live: Live) -> None:
    settings = json.loads(live.stack.environment["MAILBOX_SETTINGS"])
    with Worker(live, "hurried", MAILBOX_SETTINGS=json.dumps({**settings, "retire_seconds": 2})) as worker:
        other = live.submit("workload.steps", gate_at=2)
        waiting = live.submit("workload.waits")
        other.wait_said("begins", step=2)
        waiting.wait_said("enters")
        live.submit("workload.stuck")
        assert worker.wait() == EXIT_CODE, worker.output[-3000:]
        assert told(worker.output, "worker.retired") == [{"exit_code": EXIT_CODE, "handed_back": 2}]
        for run in (other, waiting):
            dispatch = run.dispatch
            assert (dispatch["status"], dispatch["attempt_count"], dispatch["lost_count"]) == ("queued", 0, 0)
            run.open_gate()
    with Worker(live, "hurried-next"):
        waiting.wait_done()
        other.wait_done()
        other.assert_told_once()


def test_a_slot_whose_code_returns_in_time_is_a_slot_again(live: Live) -> None:
    with Worker(live, "regained") as worker:
        stuck = live.submit("workload.stuck")
        stuck.wait_done()
        worker.wait_output("slot.abandoned")
        stuck.open_gate()
        worker.wait_output("slot.regained")
        for _ in range(3):
            live.submit("workload.steps").wait_done()
        time.sleep(6)  # longer than the grace
        assert ("worker.retiring" in worker.output, worker.process.poll()) == (False, None)


def test_a_process_whose_event_loop_is_blocked_is_replaced(live: Live) -> None:
    with Worker(live, "blocked") as worker:
        blocking = live.submit("workload.waits_long", block=True)
        blocking.wait_said("enters")
        behind = live.submit("workload.waits")
        wait_until(lambda: behind.row["status"] == "running", SLACK_SECONDS)
        assert blocking.wait_done()["error"]["code"] == "timed_out"
        worker.wait_output("worker.retiring")
        assert told(worker.output, "worker.retiring")[0]["reason"] == "the event loop is blocked"
        worker.send(9)
        behind.open_gate()
    with Worker(live, "blocked-next"):
        behind.wait_done()


def test_the_stack_s_own_worker_is_replaced_when_it_is_worn_out(own_live: Callable[..., Live]) -> None:
    live = own_live("--pool", "threads", "--without", "flower")
    before = live.stack.pid("worker")
    live.submit("workload.stuck").wait_done()
    wait_until(lambda: live.stack.pid("worker") not in (before, None), 2 * SLACK_SECONDS)
    assert f"worker ended with exit code {EXIT_CODE}; starting it again" in live.stack.output
    live.submit().wait_done()
