"""A rolling deploy: old and new workers side by side, with runs of both versions: no dead letters, no vain wait."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import RECOVERED_SECONDS, SETTINGS, SLACK_SECONDS, Live, Watched
from tests.chaos.workers import Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, module_monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A stack without a worker."""
    module_monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    with StackProcess("--without", "worker", "--without", "flower", settings=SETTINGS) as stack:
        yield Live(stack, tmp_path_factory.mktemp("live"))


def begun_by(live: Live, version: str, *agents: str, **options: Any) -> list[Watched]:
    """Runs that a worker of this version has begun, and that wait at their gates."""
    runs = [live.submit(agent, **options) for agent in agents]
    for run in runs:
        assert run.wait_said("enters")["version"] == version
        assert run.row["code_version"] == version
    return runs


def versions(run: Watched) -> list[str]:
    """Which version each attempt ran on."""
    return [line["version"] for line in run.said("enters")]


def no_dead_letters(live: Live) -> bool:
    return live.rows("SELECT id FROM mailbox_dispatch WHERE status = 'dead_letter'") == []


def test_runs_of_both_versions_finish_while_old_and_new_workers_run_side_by_side(live: Live) -> None:
    # Each worker's four slots are taken, so that it is known who begins what.
    agents = ("workload.versioned", "workload.versioned", "workload.strict", "workload.strict")
    with Worker(live, "old", slots=4, WORKLOAD_VERSION="1") as old:
        of_old = begun_by(live, "1", *agents, failures=4)
        with Worker(live, "new", slots=4, WORKLOAD_VERSION="2"):
            of_new = begun_by(live, "2", *agents, failures=4)
            for run in (*of_old, *of_new):
                run.open_gate()
            for run in (*of_old, *of_new):
                run.wait_done()

            # What a version began is gone on with by that version or, unless the agent is strict, a newer one.
            assert [run.row["final_output"][0] for run in (*of_old, *of_new)] == ["1"] * 4 + ["2"] * 4
            assert {version for run in of_new for version in versions(run)} == {"2"}
            assert {version for run in of_old[2:] for version in versions(run)} == {"1"}
            assert {len(versions(run)) for run in (*of_old, *of_new)} == {5}
            registered = live.rows(
                "SELECT worker, version, options FROM mailbox_agentregistration WHERE agent = %s", "workload.strict"
            )
            assert sorted((row["worker"].partition("@")[0], row["version"]) for row in registered) == [
                ("new", "2"),
                ("old", "1"),
            ]
            assert {tuple(row["options"]["accepts"]) for row in registered} == {()}

            # The old worker is killed in the middle of what it began: the new one takes over what it may.
            interrupted = begun_by_old(live, old)
            old.send(signal.SIGKILL)
            old.wait()
            for run in interrupted:
                run.open_gate()
            versioned, strict = interrupted
            assert versioned.wait_done()["final_output"] == ["1", "2"]
            assert versioned.dispatch["lost_count"] == 1

            # What may not be gone on with stays open, and is nobody's dead letter.
            wait_until(lambda: strict.dispatch["status"] == "queued", RECOVERED_SECONDS)
            live.submit("workload.steps").wait_done()
            time.sleep(3 * SETTINGS["sweep_seconds"])
            assert (strict.row["status"], strict.dispatch["status"]) == ("running", "queued")
            assert strict.dispatch["unrunnable_since"] is None
            with Worker(live, "rolled-back", WORKLOAD_VERSION="1"):
                assert strict.wait_done()["final_output"] == ["1", "1"]
    assert no_dead_letters(live)


def begun_by_old(live: Live, old: Worker) -> list[Watched]:
    """One run of each agent that the old worker has begun; what the new one takes is let go, and another one posted."""
    found = []
    for agent in ("workload.versioned", "workload.strict"):
        for _ in range(100):
            run = live.submit(agent, failures=1)
            line = run.wait_said("enters", seconds=SLACK_SECONDS)
            if line["pid"] == old.pid:
                found.append(run)
                break
            run.open_gate()
        else:
            raise AssertionError(f"the old worker began no run of {agent}")
    return found
