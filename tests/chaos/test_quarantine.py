"""A run that kills its process: after two of them it goes on apart, and its neighbours finish unharmed."""

import json
import signal
from collections.abc import Iterator

import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import RECOVERED_SECONDS, SETTINGS, Live
from tests.chaos.workers import Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

QUARANTINE = "mailbox.quarantine"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, module_monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A stack without a worker."""
    module_monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    with StackProcess("--without", "worker", "--without", "flower", settings=SETTINGS) as stack:
        yield Live(stack, tmp_path_factory.mktemp("live"))


def test_a_poison_run_costs_two_workers_and_then_only_itself(live: Live) -> None:
    mine = {"MAILBOX_SETTINGS": json.dumps(SETTINGS)}
    with Worker(live, "quarantine", pool="prefork", slots=1, queue=QUARANTINE, **mine) as quarantine:
        poison = live.submit("workload.poison")
        for number in (1, 2):
            with Worker(live, f"poisoned-{number}", **mine) as worker:
                assert worker.wait() == -signal.SIGKILL
            assert len(poison.said("enters")) == number
            # Nobody else claims it before the sweep has moved it.
            wait_until(lambda number=number: poison.dispatch["lost_count"] >= number, RECOVERED_SECONDS)
        with Worker(live, "healthy", **mine) as healthy:
            neighbours = [live.submit("workload.steps") for _ in range(4)]
            for one in neighbours:
                one.wait_done()
                assert (one.dispatch["lost_count"], one.dispatch["queue"]) == (0, "mailbox.default")
            assert poison.wait_done()["error"]["code"] == "lost"
            assert healthy.process.poll() is None, "it never saw the poison"
        assert (poison.dispatch["status"], poison.dispatch["queue"]) == ("dead_letter", QUARANTINE)
        pids = [line["pid"] for line in poison.said("enters")]
        assert len(pids) == SETTINGS["max_lost"] == 3
        assert (quarantine.pid in pids, quarantine.process.poll()) == (False, None), "only its child was lost"
