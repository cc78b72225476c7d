"""What operators see of real workers: exact counts from all their processes, their presence, Flower's tasks."""

import base64
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mailbox_app.devtools.client import request
from mailbox_app.devtools.probes import ROOT, StackProcess, descendants, living
from mailbox_app.devtools.processes import end, free_port, spawn, wait_until
from tests.chaos.live import RECOVERED_SECONDS, SETTINGS, SLACK_SECONDS, Live

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TOKEN = secrets.token_urlsafe(24)
QUEUE = "mailbox.default"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(url: str) -> Samples:
    """Every sample of an endpoint: {(name, labels): value}."""
    answer = request("GET", url, token=TOKEN)
    assert answer.status == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


@pytest.fixture(scope="module", params=["prefork", "threads"])
def watched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, module_monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Live, int]]:
    """A stack with a pool of each kind, and the port of its worker's own endpoint."""
    module_monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    port = free_port(29_000 + secrets.randbelow(500))
    settings = {**SETTINGS, "metrics_token": TOKEN, "metrics_port": port, "registration_seconds": 1.0}
    # Two workers of one host cannot serve one port: the maintenance worker is left out, the worker stands in for it.
    with StackProcess("--pool", request.param, "--without", "maintenance", settings=settings) as stack:
        yield Live(stack, tmp_path_factory.mktemp("live")), port


def endpoints(live: Live, port: int) -> list[str]:
    return [f"{live.stack.facts['urls']['web']}/metrics", f"http://127.0.0.1:{port}/metrics"]


def agent_counts(samples: Samples, agent: str) -> dict[str, float]:
    def of(name: str, **more: str) -> float:
        return value(samples, name, agent=agent, **more)

    return {
        "submitted": of("mailbox_runs_submitted_total", queue=QUEUE),
        "claims": of("mailbox_claims_total", queue=QUEUE),
        "started": of("mailbox_enqueue_to_start_seconds_count"),
        "finished": of("mailbox_start_to_complete_seconds_count", outcome="natural_end"),
        "retried": of("mailbox_start_to_complete_seconds_count", outcome="retry"),
        "buried": of("mailbox_start_to_complete_seconds_count", outcome="dead_letter"),
        "retries": of("mailbox_retries_total"),
        "dead_letters": of("mailbox_dead_letters_total"),
    }


def test_counts_of_all_processes_are_exact_wherever_they_are_asked_for(watched: tuple[Live, int]) -> None:
    live, port = watched
    before = agent_counts(scraped(endpoints(live, port)[0]), "workload.noop")
    runs = [live.submit("workload.noop") for _ in range(40)]
    for run in runs:
        run.wait_done()
    for url in endpoints(live, port):
        wait_until(lambda url=url: agent_counts(scraped(url), "workload.noop")["finished"] >= 40, SLACK_SECONDS)
        now = agent_counts(scraped(url), "workload.noop")
        assert {name: now[name] - before[name] for name in now} == {
            "submitted": 40, "claims": 40, "started": 40, "finished": 40,
            "retried": 0, "buried": 0, "retries": 0, "dead_letters": 0,
        }, url  # fmt: skip


def test_failures_are_counted_once_each(watched: tuple[Live, int]) -> None:
    live, port = watched
    before = agent_counts(scraped(endpoints(live, port)[0]), "workload.fail")
    for _ in range(3):
        live.submit("workload.fail").wait_done()
    for url in endpoints(live, port):
        wait_until(lambda url=url: agent_counts(scraped(url), "workload.fail")["buried"] >= 3, SLACK_SECONDS)
        now = agent_counts(scraped(url), "workload.fail")
        assert {name: now[name] - before[name] for name in now} == {
            "submitted": 3, "claims": 6, "started": 6, "finished": 0,
            "retried": 3, "buried": 3, "retries": 3, "dead_letters": 3,
        }, url  # fmt: skip


def test_what_a_killed_process_counted_stays_counted_and_its_file_does_not(watched: tuple[Live, int]) -> None:
    live, port = watched
    live.submit("workload.noop").wait_done()
    url = endpoints(live, port)[0]
    before = scraped(url)
    run = live.submit(gate_at=2)
    victim = run.wait_said("begins", step=2)["pid"]
    folder = live.stack.state_dir / "metrics"
    files = set(folder.glob("*.counts"))
    os.kill(victim, signal.SIGKILL)
    run.open_gate()
    run.wait_done()
    lost = ("mailbox_leases_lost_total", (("agent", "workload.steps"),))
    wait_until(lambda: scraped(url).get(lost, 0) > before.get(lost, 0), RECOVERED_SECONDS)
    after = scraped(url)
    counters = [key for key in before if key[0].endswith(("_total", "_count", "_bucket", "_sum"))]
    assert [key for key in counters if after.get(key, 0.0) < before[key]] == []
    assert after[lost] - before.get(lost, 0) == 1
    assert files - set(folder.glob("*.counts")), "the file of the dead process is still there"


def test_gauges_show_the_rows(watched: tuple[Live, int]) -> None:
    live, port = watched
    for name in ("due_tick", "sweep"):
        wait_until(lambda name=name: _age(live, port, name) < SLACK_SECONDS, RECOVERED_SECONDS)
    run = live.submit(gate_at=1)
    run.wait_said("begins", step=1)
    samples = scraped(endpoints(live, port)[0])
    run.open_gate()
    run.wait_done()
    assert value(samples, "mailbox_database_up") == 1
    assert value(samples, "mailbox_dispatches", queue=QUEUE, status="claimed") == 1
    assert value(samples, "mailbox_workers", queue=QUEUE) == 1
    assert value(samples, "mailbox_worker_slots", queue=QUEUE) == 2
    assert value(samples, "mailbox_depth_is_estimated") == 0
    own = scraped(endpoints(live, port)[1])
    assert [key for key in own if key[0] in ("mailbox_workers", "mailbox_dispatches")] == [], "rows are asked for once"


def _age(live: Live, port: int, name: str) -> float:
    samples = scraped(endpoints(live, port)[0])
    return samples.get(("mailbox_maintenance_age_seconds", (("maintenance", name),)), float("inf"))


def test_the_worker_s_endpoint_wants_the_token_and_has_one_page(watched: tuple[Live, int]) -> None:
    _, port = watched
    url = f"http://127.0.0.1:{port}"
    assert request("GET", f"{url}/metrics").status == 401
    assert request("GET", f"{url}/metrics", token="another").status == 401
    assert request("GET", f"{url}/", token=TOKEN).status == 404


def test_the_endpoint_is_a_process_of_its_own_that_comes_back_and_ends_with_its_worker(
    watched: tuple[Live, int],
) -> None:
    live, port = watched
    worker = live.stack.pid("worker")
    assert worker is not None
    [server] = [pid for pid in descendants(worker) if "mailbox_app.exposer" in _command(pid)]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: _serves(port), SLACK_SECONDS)
    assert value(scraped(endpoints(live, port)[1]), "mailbox_flags_repaired_total") == 0
    [again] = [pid for pid in descendants(worker) if "mailbox_app.exposer" in _command(pid)]
    live.stack.kill("worker")
    wait_until(lambda: not living({again}), SLACK_SECONDS)
    assert not living({again}), "the endpoint outlived its worker"
    live.submit("workload.noop").wait_done()


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _serves(port: int) -> bool:
    try:
        return request("GET", f"http://127.0.0.1:{port}/metrics", token=TOKEN).status == 200
    except OSError:
        return False


def _seen(live: Live) -> dict[str, Any]:
    """The registration of the worker's agent `echo`: when it was seen, and whether that makes it live."""
    [row] = live.rows(
        """SELECT worker, seen_at, seen_at >= now() - interval '3 seconds' AS is_live
           FROM mailbox_agentregistration WHERE agent = 'echo' AND worker LIKE 'worker@%%'"""
    )
    return row


def test_a_living_worker_is_seen_again_and_again(watched: tuple[Live, int]) -> None:
    live, _ = watched
    wait_until(lambda: _seen(live)["is_live"], SLACK_SECONDS)
    first = _seen(live)["seen_at"]
    wait_until(lambda: _seen(live)["seen_at"] > first, SLACK_SECONDS)
    second = _seen(live)["seen_at"]
    assert second > first
    wait_until(lambda: _seen(live)["seen_at"] > second, SLACK_SECONDS)
    assert _seen(live)["seen_at"] > second
    assert _seen(live)["is_live"]


def test_a_worker_whose_consumer_is_stuck_is_live_no_longer(watched: tuple[Live, int]) -> None:
    live, port = watched
    wait_until(lambda: _seen(live)["is_live"], SLACK_SECONDS)
    # Of a prefork worker only the parent stops: its children go on, and must not speak for it.
    live.stack.kill("worker", signal.SIGSTOP)
    try:
        wait_until(lambda: not _seen(live)["is_live"], 2 * SLACK_SECONDS)
        assert not _seen(live)["is_live"]
        assert value(scraped(endpoints(live, port)[0]), "mailbox_workers", queue=QUEUE) == 0
    finally:
        live.stack.kill("worker", signal.SIGCONT)
    wait_until(lambda: _seen(live)["is_live"], SLACK_SECONDS)
    assert _seen(live)["is_live"]


@contextmanager
def another_worker(live: Live, folder: Path, **settings: Any) -> Iterator[tuple[str, Popen[bytes], Path]]:
    """A worker of the same stack for a queue of its own, ready: its name, its process, its output."""
    name, log = f"extra-{secrets.token_hex(4)}@here", folder / "output.log"
    environment = {**os.environ, **live.stack.environment, "TMPDIR": str(folder)}
    environment["MAILBOX_SETTINGS"] = json.dumps({**SETTINGS, "metrics_token": TOKEN, **settings})
    command = [sys.executable, "-m", "celery", "-A", "mailbox_project", "worker", "-n", name]
    with log.open("wb") as output:
        worker = spawn([*command, "-Q", "elsewhere", "-c", "1"], env=environment, cwd=ROOT, output=output)
        try:
            wait_until(lambda: bool(live.rows(REGISTERED, name)), 2 * SLACK_SECONDS)
            yield name, worker, log
        finally:
            end(worker)


REGISTERED = """
    SELECT seen_at >= now() - interval '3 seconds' AS is_live, gone_at IS NOT NULL AS has_left
    FROM mailbox_agentregistration WHERE worker = %s
"""


def test_a_worker_that_ends_is_live_no_longer_at_once_and_its_agents_are_remembered(
    watched: tuple[Live, int], tmp_path: Path
) -> None:
    live, port = watched
    with another_worker(live, tmp_path, registration_seconds=600.0) as (name, worker, log):
        assert {row["is_live"] for row in live.rows(REGISTERED, name)} == {True}, log.read_text()
        worker.send_signal(signal.SIGTERM)
        worker.wait(SLACK_SECONDS)
    assert {row["has_left"] for row in live.rows(REGISTERED, name)} == {True}
    assert value(scraped(endpoints(live, port)[0]), "mailbox_workers", queue="elsewhere") == 0


def test_a_worker_without_a_folder_serves_what_it_counted_itself_and_leaves_nothing(
    watched: tuple[Live, int], tmp_path: Path
) -> None:
    live, _ = watched
    own = free_port(29_500 + secrets.randbelow(400))
    with another_worker(live, tmp_path, metrics_folder="", metrics_port=own) as (_, worker, log):
        wait_until(lambda: _serves(own), SLACK_SECONDS)
        samples = scraped(f"http://127.0.0.1:{own}/metrics")
        assert value(samples, "mailbox_settles_refused_total") == 0, log.read_text()
        assert agent_counts(samples, "workload.noop")["submitted"] == 0
        assert list(tmp_path.glob("mailbox-metrics-*")) != []
        worker.send_signal(signal.SIGTERM)
        worker.wait(SLACK_SECONDS)
    assert list(tmp_path.glob("mailbox-metrics-*")) == []
    assert not _serves(own)


def test_a_port_that_is_taken_is_told_and_keeps_no_worker_from_working(
    watched: tuple[Live, int], tmp_path: Path
) -> None:
    live, port = watched
    with another_worker(live, tmp_path, metrics_port=port) as (name, _, log):
        assert "metrics.port_failed" in log.read_text()
        assert {row["is_live"] for row in live.rows(REGISTERED, name)} == {True}


class Page:
    """Flower's API, with its login."""

    def __init__(self, stack: StackProcess) -> None:
        self._url = stack.facts["urls"]["flower"]
        login = base64.b64encode("{user}:{password}".format(**stack.facts["flower"]).encode()).decode()
        self._headers = {"Authorization": f"Basic {login}"}

    def task(self, uuid: str) -> dict[str, Any]:
        """The task of this uuid, {} while Flower knows none."""
        answer = request("GET", f"{self._url}/api/tasks?limit=10000", headers=self._headers)
        return dict(answer.json.get(str(uuid), {})) if answer.status == 200 else {}

    def names(self) -> set[str]:
        """Of all tasks it knows."""
        answer = request("GET", f"{self._url}/api/tasks?limit=10000", headers=self._headers)
        return {task["name"] for task in answer.json.values()}

    def wait(self, uuid: str, state: str) -> dict[str, Any]:
        wait_until(lambda: self.task(uuid).get("state") == state, RECOVERED_SECONDS)
        return self.task(uuid)


def test_flower_shows_an_activation_as_a_task_of_the_worker_that_executed_it(watched: tuple[Live, int]) -> None:
    live, _ = watched
    run = live.submit("echo")
    run.wait_done()
    shown = Page(live.stack).wait(run.dispatch["id"], "SUCCESS")
    assert {name: shown[name] for name in ("name", "state", "result", "worker")} == {
        "name": "mailbox.run.echo",
        "state": "SUCCESS",
        "result": "'natural end'",
        "worker": _seen(live)["worker"],
    }
    assert shown["kwargs"] == repr({"thread": run.thread_id, "run": run.run_id, "attempt": 1})
    assert shown["received"] <= shown["started"] <= shown["succeeded"]
    assert "go" not in re.findall(r"\w+", json.dumps(shown)), "what the user said is not shown"


def test_flower_is_not_flooded_with_wake_ups_and_passes(watched: tuple[Live, int]) -> None:
    live, _ = watched
    run = live.submit("echo")
    run.wait_done()
    page = Page(live.stack)
    page.wait(run.dispatch["id"], "SUCCESS")
    assert {name.rpartition(".")[0] for name in page.names()} <= {"mailbox.run", "mailbox.run.workload"}


def test_flower_shows_a_failed_attempt_and_the_dead_letter_it_ends_as(watched: tuple[Live, int]) -> None:
    live, _ = watched
    run = live.submit("workload.fail", seconds=600)
    page = Page(live.stack)
    wait_until(lambda: run.dispatch["attempt_count"] == 1, SLACK_SECONDS)
    shown = page.wait(run.dispatch["id"], "RETRY")
    assert (shown["name"], shown["state"]) == ("mailbox.run.workload.fail", "RETRY")
    assert shown["exception"].startswith("retry: ")
    last = live.submit("workload.fail")
    last.wait_done()
    shown = page.wait(last.dispatch["id"], "FAILURE")
    assert (shown["state"], shown["retries"]) == ("FAILURE", 1)
    assert shown["exception"].startswith("dead letter: ")


def test_flower_shows_that_a_killed_worker_s_run_was_taken_back(watched: tuple[Live, int]) -> None:
    live, _ = watched
    run = live.submit(gate_at=2)
    page = Page(live.stack)
    started = page.wait(run.wait_said("begins", step=2) and run.dispatch["id"], "STARTED")
    assert started["state"] == "STARTED"
    os.kill(run.said("begins", step=2)[0]["pid"], signal.SIGKILL)
    run.wait_said("begins", step=2, times=2, seconds=RECOVERED_SECONDS)
    wait_until(lambda: page.task(run.dispatch["id"]).get("retries") == 1, SLACK_SECONDS)
    shown = page.task(run.dispatch["id"])
    assert shown["retried"] >= started["started"]
    assert shown["exception"] == "lease lost"
    run.open_gate()
    run.wait_done()
    assert page.wait(run.dispatch["id"], "SUCCESS")["state"] == "SUCCESS"


def test_a_run_past_its_time_limit_is_shown_as_failed_though_its_process_is_gone(watched: tuple[Live, int]) -> None:
    live, _ = watched
    run = live.submit("workload.hang")
    run.wait_done()
    shown = Page(live.stack).wait(run.dispatch["id"], "FAILURE")
    assert (shown["state"], shown["exception"]) == ("FAILURE", "dead letter: timed_out")
