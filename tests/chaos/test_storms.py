"""Storms under load: the database's connections ended every second, its crash, and all that may befall the broker.

Whatever it was: everything that was accepted ends once and in order, and the doctor finds nothing afterwards.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos import storms
from tests.chaos.live import SETTINGS, SLACK_SECONDS, Live
from tests.chaos.load import STORM_SECONDS, TIMEOUT, Load, Round, assert_healthy
from tests.chaos.workers import Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIMEOUT)]

# Shorter than by default (2 s): more signals are sent, and sooner.
FLAG_SECONDS = 0.2
STORMY = {**SETTINGS, "signal_flag_seconds": FLAG_SECONDS}
SLOTS = {"storm-threads": ("threads", 4), "storm-prefork": ("prefork", 2)}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, module_monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A stack with two workers of its own."""
    module_monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    with StackProcess("--without", "worker", "--without", "flower", settings=STORMY) as stack:
        live = Live(stack, tmp_path_factory.mktemp("live"))
        threads, prefork = (Worker(live, name, pool=pool, slots=slots) for name, (pool, slots) in SLOTS.items())
        with threads, prefork:
            yield live
            assert_healthy(live)
            assert (threads.process.poll(), prefork.process.poll()) == (None, None), "a storm ended a worker"


@contextmanager
def weathered(live: Live) -> Iterator[Load]:
    """Load before, during and after the block; in the end everything is as it should be."""
    told = Round(live)
    with Load(told) as load:
        wait_until(lambda: told.count("returns") >= 5, SLACK_SECONDS)
        yield load
        before = told.count("returns")
        wait_until(lambda: told.count("returns") >= before + 10, 2 * SLACK_SECONDS)
        assert told.count("returns") >= before + 10, "nothing goes on"
    told.assert_kept()


def test_connections_that_are_ended_every_second_lose_nothing(live: Live) -> None:
    with weathered(live), storms.again_and_again(lambda: storms.terminate_backends(live), every_seconds=1.0) as ended:
        time.sleep(STORM_SECONDS)
    assert sum(ended) >= STORM_SECONDS, "hardly anybody was disconnected"


def test_a_database_that_crashes_in_mid_run_loses_nothing(live: Live) -> None:
    with weathered(live):
        storms.crash_postgres(live)
        time.sleep(STORM_SECONDS / 4)
        storms.crash_postgres(live)


def test_a_broker_that_forgets_everything_again_and_again_delays_work_and_loses_none(live: Live) -> None:
    with weathered(live), storms.again_and_again(lambda: storms.flush(live), every_seconds=0.2) as forgotten:
        time.sleep(STORM_SECONDS)
    assert sum(forgotten) >= 1, "there was nothing to forget"


def test_a_broker_that_is_stopped_and_started_in_mid_run_loses_nothing(live: Live) -> None:
    with weathered(live):
        storms.restart_redis(live)
        time.sleep(STORM_SECONDS / 4)
        storms.restart_redis(live)


def test_a_broker_that_pauses_slows_a_post_by_about_a_second_and_loses_nothing(live: Live) -> None:
    with weathered(live) as load:
        storms.pause_redis(live, STORM_SECONDS / 2)
    assert load.slowest < 3.0, "one broker timeout, and a busy machine"


def test_signals_that_come_twice_do_nothing_twice(live: Live) -> None:
    with weathered(live), storms.every_signal_twice(live) as doubled:
        time.sleep(STORM_SECONDS)
    assert len(doubled) >= 3


def test_signals_pile_up_no_higher_than_there_are_slots(live: Live) -> None:
    told, slots = Round(live), sum(slots for _, slots in SLOTS.values())
    longest = []
    gates = [{"thread_key": f"gate {number}", "options": told.options(gate_at=1)} for number in range(slots)]
    told.post(*gates)
    wait_until(lambda: len(told.gated()) == slots, SLACK_SECONDS)
    assert len(told.gated()) == slots, "every slot is taken, so nobody takes a signal"
    for number in range(4 * slots):
        # A thread that was not due becomes so, and the flag of the signal before has fallen.
        told.post({"thread_key": f"pile {number}", "options": told.options()})
        longest.append(storms.signals_waiting(live))
        time.sleep(FLAG_SECONDS)
    told.gate.touch()
    told.assert_kept()
    assert 1 <= max(longest) <= slots, longest
