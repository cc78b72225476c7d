"""Async agents in real worker processes: a hundred wait at once, and none is lost however their process ends."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import LEASE_SECONDS, SETTINGS, SLACK_SECONDS, Live, Watched
from tests.chaos.workers import Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, module_monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A stack without a worker."""
    module_monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    with StackProcess("--without", "worker", "--without", "flower", settings=SETTINGS) as stack:
        yield Live(stack, tmp_path_factory.mktemp("live"))


class Crowd:
    """Many runs of one agent that share a log and a gate."""

    def __init__(self, live: Live, folder: Path, agent: str, count: int, **options: Any) -> None:
        self.log, self.gate = folder / "crowd.log", folder / "crowd.gate"
        shared = {"log": str(self.log), "gate": str(self.gate), **options}
        self.live = live
        self.runs = [live.submit(agent, **shared).run_id for _ in range(count)]

    def said(self, what: str) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, lines) if line["what"] == what]

    def wait_said(self, what: str, times: int, seconds: float = 3 * SLACK_SECONDS) -> None:
        wait_until(lambda: len(self.said(what)) >= times, seconds)
        assert len(self.said(what)) >= times, f"{len(self.said(what))} of {times}"

    def rows(self) -> list[dict[str, Any]]:
        return self.live.rows(
            "SELECT run.status, run.final_output, run.error, dispatch.attempt_count, dispatch.lost_count,"
            " dispatch.claimed_by, dispatch.status AS dispatch_status"
            " FROM mailbox_run AS run JOIN mailbox_dispatch AS dispatch ON dispatch.run_id = run.id"
            " WHERE run.id = ANY(%s::uuid[])",
            self.runs,
        )

    def wait_done(self, seconds: float = 4 * SLACK_SECONDS) -> list[dict[str, Any]]:
        wait_until(lambda: all(row["status"] == "done" for row in self.rows()), seconds)
        assert [row for row in self.rows() if row["status"] != "done"] == []
        return self.rows()

    def assert_each_said_once(self) -> None:
        """The journal held: each message of each run is there once."""
        [counted] = self.live.rows(
            "SELECT count(*) AS messages, count(DISTINCT (producer_run_id, content)) AS different"
            " FROM mailbox_message WHERE producer_run_id = ANY(%s::uuid[])",
            self.runs,
        )
        assert counted == {"messages": 3 * len(self.runs), "different": 3 * len(self.runs)}


@pytest.fixture
def crowd(live: Live, tmp_path: Path) -> Callable[..., Crowd]:
    return lambda agent, count, **options: Crowd(live, tmp_path, agent, count, **options)


def test_a_hundred_runs_wait_at_once_in_one_process_with_two_slots(live: Live, crowd: Callable[..., Crowd]) -> None:
    with Worker(live, "hundred") as worker:
        waiting = crowd("workload.waits", 100)
        waiting.wait_said("enters", 100)
        lines = waiting.said("enters")
        assert ({line["pid"] for line in lines}, len({line["run"] for line in lines})) == ({worker.pid}, 100)
        assert waiting.said("returns") == [], "the peak: all are inside, none has left"

        one_more = crowd("workload.waits", 1)
        live.submit("workload.steps").wait_done()  # the slots are free for others
        time.sleep(1.5 * LEASE_SECONDS)  # their leases are renewed, or the sweep would take them back
        assert len(waiting.said("enters")) == 100, "and no place for another one"
        assert {row["lost_count"] for row in waiting.rows()} == {0}
        assert psutil.Process(worker.pid).num_threads() < 60

        waiting.gate.touch()
        rows = waiting.wait_done()
        assert {(row["final_output"], row["attempt_count"], row["lost_count"]) for row in rows} == {("waited", 0, 0)}
        one_more.wait_done()
        waiting.assert_each_said_once()


def test_a_warm_shutdown_lets_async_runs_finish_and_takes_no_new_ones(live: Live, crowd: Callable[..., Crowd]) -> None:
    with Worker(live, "warm") as worker:
        waiting = crowd("workload.waits", 30)
        waiting.wait_said("enters", 30)
        worker.send(signal.SIGTERM)
        worker.wait_output("worker.draining")
        later = live.submit("workload.steps")
        time.sleep(1.5 * LEASE_SECONDS)  # leases are kept meanwhile
        assert worker.process.poll() is None
        assert (later.row["status"], {row["dispatch_status"] for row in waiting.rows()}) == ("created", {"claimed"})
        waiting.gate.touch()
        assert worker.wait() == 0, worker.output[-3000:]
        rows = waiting.wait_done()
        assert {(row["attempt_count"], row["lost_count"]) for row in rows} == {(0, 0)}
    with Worker(live, "warm-next"):
        later.wait_done()


def test_a_cold_shutdown_in_the_middle_of_a_warm_one_leaves_runs_to_their_leases(
    live: Live, crowd: Callable[..., Crowd]
) -> None:
    with Worker(live, "cold") as worker:
        waiting = crowd("workload.waits", 5)
        waiting.wait_said("enters", 5)
        worker.send(signal.SIGTERM)
        worker.wait_output("worker.draining")
        worker.send(signal.SIGQUIT)
        assert worker.wait() != 0
    waiting.gate.touch()
    with Worker(live, "cold-next"):
        rows = waiting.wait_done()
    assert {(row["attempt_count"], row["lost_count"]) for row in rows} == {(0, 1)}
    waiting.assert_each_said_once()


@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
def test_async_runs_survive_kill_9(pool: str, live: Live, crowd: Callable[..., Crowd]) -> None:
    with Worker(live, f"killed-{pool}", pool=pool) as worker:
        waiting = crowd("workload.waits", 2)
        waiting.wait_said("enters", 2)
        worker.send(signal.SIGKILL)
        worker.wait()
    waiting.gate.touch()
    with Worker(live, f"killed-next-{pool}", pool=pool):
        rows = waiting.wait_done()
    assert {(row["final_output"], row["attempt_count"], row["lost_count"]) for row in rows} == {("waited", 0, 1)}
    waiting.assert_each_said_once()


def test_an_async_run_past_its_limit_is_settled_and_its_neighbours_go_on(
    live: Live, crowd: Callable[..., Crowd]
) -> None:
    with Worker(live, "limit") as worker:
        waiting = crowd("workload.waits", 3)
        waiting.wait_said("enters", 3)
        late = live.submit("workload.waits_long")
        assert late.wait_done()["error"]["code"] == "timed_out"
        assert late.wait_said("leaves")["error"] == "CancelledError"
        waiting.gate.touch()
        assert {row["attempt_count"] for row in waiting.wait_done()} == {0}
        assert worker.process.poll() is None


def test_an_async_run_past_its_limit_costs_a_prefork_child(live: Live) -> None:
    with Worker(live, "limit-prefork", pool="prefork") as worker:
        late = live.submit("workload.waits_long", block=True)
        pid = late.wait_said("enters")["pid"]
        assert late.wait_done()["error"]["code"] == "timed_out"
        wait_until(lambda: not psutil.pid_exists(pid), SLACK_SECONDS)
        assert (psutil.pid_exists(pid), worker.process.poll()) == (False, None)
        live.submit("workload.steps").wait_done()


def test_a_cancelled_async_run_stops_where_it_waits(live: Live) -> None:
    with Worker(live, "cancel"):
        run = live.submit("workload.waits")
        run.wait_said("enters")
        _ask_to_cancel(run)
        run.wait_done()
        assert (run.row["termination"]["type"], run.said("leaves")[0]["error"]) == ("cancelled", "CancelledError")


def test_a_full_process_leaves_async_runs_to_one_with_room_and_nothing_waits_for_the_sweep(
    tmp_path: Path, module_monkeypatch: pytest.MonkeyPatch
) -> None:
    module_monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    settings = {**SETTINGS, "sweep_seconds": 600}
    with StackProcess("--without", "worker", "--without", "flower", settings=settings) as stack:
        live = Live(stack, tmp_path)
        one, fifty = ({"MAILBOX_SETTINGS": json.dumps({**settings, "max_async_runs": seats})} for seats in (1, 50))
        with Worker(live, "full", **one) as full:
            first = live.submit("workload.waits")
            assert first.wait_said("enters")["pid"] == full.pid
            with Worker(live, "wide", **fifty) as wide:
                # Each signal may come to either of them.
                others = [live.submit("workload.waits") for _ in range(10) if not time.sleep(0.2)]
                assert {run.wait_said("enters")["pid"] for run in others} == {wide.pid}
            # The one with room is gone, killed; what is due now waits for the only seat, until it is free.
            last = live.submit("workload.waits")
            time.sleep(1)
            assert last.lines == []
            last.open_gate()
            first.open_gate()
            first.wait_done()
            began = time.monotonic()
            last.wait_done()
            assert time.monotonic() - began < 3


def _ask_to_cancel(run: Watched) -> None:
    with psycopg.connect(run.live.stack.environment["DATABASE_URL"]) as connection:
        connection.execute("UPDATE mailbox_dispatch SET cancel_requested_at = now() WHERE run_id = %s", [run.run_id])
