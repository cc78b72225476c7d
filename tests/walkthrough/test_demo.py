"""The first thing anyone runs: `manage.py demo`, as its own process, over real HTTP, PostgreSQL, Redis and Celery."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mailbox_app.devtools.probes import StackProcess, descendants, living
from mailbox_app.devtools.processes import owner_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.both]
ROOT = Path(__file__).resolve().parents[2]
ORDERS = (ROOT / "mailbox_project" / "examples" / "orders.csv").read_text().splitlines()


class DemoProcess(StackProcess):
    _command = (sys.executable, str(ROOT / "manage.py"), "demo")


def assert_shows_the_report(output: str) -> None:
    assert "202 Accepted  run " in output
    for kind in ("RunQueued", "RunStarted", "ColumnProfiled", "RunFinished"):
        assert f" s  {kind} " in output
    assert f"# {len(ORDERS) - 1} rows, {len(ORDERS[0].split(','))} columns" in output
    for column in ORDERS[0].split(","):
        assert f"| {column} " in output
    assert "Traceback" not in output
    assert "\x1b" not in output  # no colours where nobody sees them


def test_demo_once_prints_the_answer_and_leaves_nothing_running() -> None:
    demo = DemoProcess("--once", "--reset")
    try:
        for name in ("mailbox-state", "demo-token", "left-over"):
            (demo.state_dir / name).write_text("of an earlier start")
        demo.launch()
        assert demo.stop(0, seconds=150) == 0, demo.output
        assert_shows_the_report(demo.output)
        assert not (demo.state_dir / "left-over").exists()
        assert (demo.state_dir / "demo-token").read_text() != "of an earlier start"
        assert owner_of(demo.state_dir) is None
        assert not (demo.state_dir / "stack.json").exists()
    finally:
        demo.close()


def test_demo_stays_says_where_everything_is_and_ends_with_ctrl_c() -> None:
    demo = DemoProcess().start()
    try:
        assert wait_until(lambda: "Ctrl-C stops everything." in demo.output, 60), demo.output
        assert_shows_the_report(demo.output)
        for place in ("chat", "docs", "admin", "flower"):
            assert demo.facts["urls"][place] in demo.output
        assert demo.facts["token_file"] in demo.output
        assert demo.token not in demo.output

        pasted = demo.output[demo.output.index("curl -s ") : demo.output.index("Ctrl-C stops everything.")]
        answer = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True)
        if answer.returncode == 127:
            pytest.skip("curl is not installed")
        accepted = json.loads(answer.stdout)
        finished = wait_until(lambda: run_of(demo, accepted["run_id"])["status"] == "done", 30)
        assert finished, run_of(demo, accepted["run_id"])
        assert run_of(demo, accepted["run_id"])["final_output"] == "Hello, Mailbox!"

        visitor = demo.again("--once")
        assert visitor.returncode == 0, visitor.stderr
        assert f"using the stack of process {demo.facts['pid']}" in visitor.stdout
        assert_shows_the_report(visitor.stdout)

        family = descendants(demo.facts["pid"])
        assert demo.stop(signal.SIGINT) == 0
        assert not living(family)
        assert "Traceback" not in demo.output
    finally:
        demo.close()


def run_of(demo: StackProcess, run_id: str) -> dict[str, object]:
    return dict(demo.request("GET", f"/v1/runs/{run_id}").json)
