"""kill -9, a pause and a hang of workers in the middle of a run: real processes, real signals."""

import os
import signal
from collections.abc import Callable

import pytest

from mailbox_app.devtools.probes import descendants, living
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import LEASE_SECONDS, SLACK_SECONDS, Live, Watched

pytestmark = [pytest.mark.slow, pytest.mark.both, pytest.mark.timeout(300)]


def _halfway(live: Live) -> Watched:
    """A three-step run that has finished step 1 and hangs in step 2."""
    run = live.submit(gate_at=2)
    run.wait_said("begins", step=2)
    return run


def _assert_recovered(run: Watched, *, lost: int = 1) -> None:
    """Finished by another worker; the finished step was not done again, the unfinished one was."""
    run.wait_done()
    run.assert_told_once()
    assert [len(run.said("ends", step=number)) for number in (1, 2, 3)] == [1, 1, 1]
    assert len(run.said("begins", step=2)) == 1 + lost
    dispatch = run.dispatch
    assert (dispatch["lost_count"], dispatch["attempt_count"]) == (lost, 0)
    fences = [line["fence"] for line in run.said("enters")]
    assert fences == sorted(set(fences))


def test_a_run_survives_kill_9_of_the_worker_child(live: Live) -> None:
    run = _halfway(live)
    os.kill(run.said("begins", step=2)[-1]["pid"], signal.SIGKILL)
    run.open_gate()
    _assert_recovered(run)


def test_a_run_survives_kill_9_of_the_worker_parent(live: Live) -> None:
    run = _halfway(live)
    child = run.said("begins", step=2)[-1]["pid"]
    live.stack.kill("worker")
    wait_until(lambda: not living({child}), SLACK_SECONDS)
    assert not living({child}), "the pool child outlived its parent"
    run.open_gate()
    _assert_recovered(run)


def test_a_run_survives_kill_9_of_the_whole_stack(own_live: Callable[..., Live]) -> None:
    live = own_live()
    run = _halfway(live)
    assert live.stack.process is not None
    everything = descendants(live.stack.process.pid)
    live.stack.send_signal(signal.SIGKILL)
    live.stack.process.wait(SLACK_SECONDS)
    wait_until(lambda: not living(everything), SLACK_SECONDS)
    run.open_gate()
    live.stack.start()
    _assert_recovered(run)


def test_a_run_survives_kill_9_of_a_worker_with_threads(own_live: Callable[..., Live]) -> None:
    live = own_live("--pool", "threads")
    run = _halfway(live)
    live.stack.kill("worker")
    run.open_gate()
    _assert_recovered(run)


def test_a_worker_paused_past_its_lease_and_continued_changes_nothing(live: Live) -> None:
    run = _halfway(live)
    paused = run.said("begins", step=2)[-1]["pid"]
    os.kill(paused, signal.SIGSTOP)
    try:
        # The other child takes over; it waits in the same step, so the pause is over its lease for certain.
        run.wait_said("begins", step=2, times=2, seconds=LEASE_SECONDS + SLACK_SECONDS)
        run.open_gate()
        run.wait_done()
        before = run.everything()
    finally:
        os.kill(paused, signal.SIGCONT)
    left = run.wait_said("leaves", pid=paused)
    assert left["error"] == "LeaseLost"
    assert run.everything() == before
    run.assert_told_once()
    assert run.dispatch["lost_count"] == 1


def test_a_run_past_its_time_limit_is_a_failed_attempt_and_its_child_is_replaced(live: Live) -> None:
    run = live.submit("workload.hang")
    pid = run.wait_said("enters")["pid"]
    row = run.wait_done()
    assert row["error"]["code"] == "timed_out"
    assert run.dispatch["status"] == "dead_letter"
    wait_until(lambda: not living({pid}), SLACK_SECONDS)
    assert not living({pid})
    live.submit().wait_done()


def test_a_run_that_hangs_in_c_code_costs_its_children_and_becomes_a_dead_letter(live: Live) -> None:
    run = live.submit("workload.hang", hard=True)
    pid = run.wait_said("enters")["pid"]
    wait_until(lambda: not living({pid}), 2 * SLACK_SECONDS)
    assert not living({pid}), "the child is still in its C call"
    row = run.wait_done(4 * SLACK_SECONDS)
    assert (row["error"]["code"], run.dispatch["lost_count"]) == ("lost", 3)
    live.submit().wait_done(2 * SLACK_SECONDS)


def test_without_beat_and_maintenance_worker_a_killed_child_s_run_is_still_finished(
    own_live: Callable[..., Live],
) -> None:
    live = own_live("--without", "beat", "--without", "maintenance")
    run = _halfway(live)
    os.kill(run.said("begins", step=2)[-1]["pid"], signal.SIGKILL)
    run.open_gate()
    _assert_recovered(run)
