"""mailbox_bench, run whole at a small scale: every scenario on a stack of its own, figures, machine and settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "manage.py", "mailbox_bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=170)


@pytest.mark.slow
def test_every_scenario_reports_figures_beside_machine_and_settings() -> None:
    before = {process.pid for process in psutil.process_iter()}
    done = bench("--rounds", "1", "--scale", "0.02", "--concurrency", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    figures = found["medians"]
    assert {
        "celery",
        "submit",
        "bulk",
        "http",
        "drain-500",
        "drain-200",
        "drain-1",
        "latency",
        "scheduled",
        "waiting",
    } <= set(figures)
    assert all(value > 0 for scenario in figures.values() for value in scenario.values())
    assert {"runs_per_second"} == set(figures["drain-200"])
    assert figures["latency"]["p50_ms"] <= figures["latency"]["p99_ms"]
    assert figures["scheduled"]["p50_ms"] <= figures["scheduled"]["max_ms"]
    assert figures["waiting"]["most_at_once"] == 16, "all of them, on two worker processes"
    assert found["settings"]["workers"] == 2
    assert "PostgreSQL" in found["machine"]["servers"]
    assert "fsync on synchronous_commit on" in found["machine"]["servers"]
    assert "django" in found["machine"]["packages"]
    left = [one for one in psutil.process_iter(["cmdline"]) if one.pid not in before]
    assert not [one for one in left if "mailbox-bench-" in " ".join(one.info["cmdline"] or [])]


def test_a_scenario_that_does_not_exist_is_named() -> None:
    done = bench("--only", "nothing", "--rounds", "0")
    assert done.returncode != 0
    assert "no scenario nothing; there are celery, submit" in done.stderr
