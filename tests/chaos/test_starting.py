"""Starting while something is away: a worker comes up without its database, and works when that is back."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from mailbox_app.devtools.servers import Servers, temporary_servers
from tests.chaos.live import SETTINGS, SLACK_SECONDS, Live
from tests.chaos.workers import Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EAGER = {**SETTINGS, "registration_seconds": 1.0}


@pytest.fixture
def own_servers() -> Iterator[Servers]:
    """Servers that the test stops and starts, and no stack starts again."""
    with temporary_servers() as servers:
        yield servers


@pytest.fixture
def live(own_servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A stack without a worker, on those servers."""
    monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    without = ("--without", "worker", "--without", "flower")
    with StackProcess(*without, settings=EAGER, environment=own_servers.environment) as stack:
        yield Live(stack, tmp_path)


def test_a_worker_started_without_its_database_registers_and_works_when_it_is_back(
    live: Live, own_servers: Servers
) -> None:
    run = live.submit()
    own_servers.postgres.stop()
    answer = live.stack.request("GET", "/health/ready")
    assert answer.status == 503, answer.text
    with Worker(live, "early", pool="prefork", MAILBOX_SETTINGS=json.dumps(EAGER)) as worker:
        wait_until(lambda: worker.output.count("worker.register_failed") >= 2, SLACK_SECONDS)
        assert worker.output.count("worker.register_failed") >= 2, "it tries again"
        own_servers.postgres.start()
        run.wait_done()
        run.assert_told_once()
        worker.wait_output("worker.registered")
        known = live.rows("SELECT worker FROM mailbox_agentregistration WHERE agent = 'workload.steps'")
        assert [row["worker"].partition("@")[0] for row in known] == ["early"]
        assert (run.dispatch["attempt_count"], run.dispatch["lost_count"], worker.process.poll()) == (0, 0, None)
        # The web's pool has looked for the database less and less often.
        wait_until(lambda: live.stack.request("GET", "/health/ready").status == 200, SLACK_SECONDS)
        live.submit().wait_done()
