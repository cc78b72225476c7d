"""The broker away at submit, and gone in the middle of a run: work is delayed, never lost."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import SLACK_SECONDS, SWEEP_SECONDS, Live

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def frozen_redis(live: Live) -> Iterator[int]:
    """Redis accepts connections and answers nothing: the worst way for a broker to be away."""
    pid = live.stack.pid("redis")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    yield pid
    os.kill(pid, signal.SIGCONT)


def test_a_post_with_a_silent_broker_is_answered_within_about_a_second(live: Live, frozen_redis: int) -> None:
    live.stack.request("GET", "/v1/threads")  # the first request of a process also imports and connects
    started = time.monotonic()
    run = live.submit()
    first = time.monotonic() - started
    started = time.monotonic()
    second_run = live.submit()
    second = time.monotonic() - started
    os.kill(frozen_redis, signal.SIGCONT)
    assert first < 2.5, "one broker timeout, and a busy machine"
    assert second < 1.0, "the breaker is open: nobody waits for the broker again"
    for accepted in (run, second_run):
        accepted.wait_done(SWEEP_SECONDS + 2 * SLACK_SECONDS)
        accepted.assert_told_once()


def test_a_run_accepted_without_a_broker_is_executed_when_it_is_back(live: Live) -> None:
    old = live.stack.kill("redis")
    run = live.submit()
    wait_until(lambda: live.stack.pid("redis") not in (None, old), SLACK_SECONDS)
    run.wait_done(SWEEP_SECONDS + 2 * SLACK_SECONDS)
    run.assert_told_once()
    assert run.dispatch["attempt_count"] == 0


def test_a_broker_restarted_in_mid_run_costs_the_run_nothing(live: Live) -> None:
    run = live.submit(gate_at=2)
    run.wait_said("begins", step=2)
    old = live.stack.kill("redis")
    wait_until(lambda: live.stack.pid("redis") not in (None, old), SLACK_SECONDS)
    run.open_gate()
    run.wait_done()
    run.assert_told_once()
    dispatch = run.dispatch
    assert (dispatch["attempt_count"], dispatch["lost_count"]) == (0, 0)
    # The worker has found the broker again.
    live.submit().wait_done(SWEEP_SECONDS + 2 * SLACK_SECONDS)
