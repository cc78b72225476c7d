"""Two hundred clients that come and go at random while everything is killed: each is told what the table has."""

import asyncio
import json
import os
import random
import sys
from pathlib import Path

import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import SETTINGS, SLACK_SECONDS, Live
from tests.chaos.load import assert_healthy
from tests.chaos.soaking import Soak, held, one_listener

# MAILBOX_STREAM_SECONDS=<seconds> makes it last that long, MAILBOX_STREAM_SEED=<number> another one, and
# MAILBOX_STREAM_CLIENTS=<number> changes how many look.
SECONDS = float(os.environ.get("MAILBOX_STREAM_SECONDS", "20"))
SEED = int(os.environ.get("MAILBOX_STREAM_SEED", "1"))
CLIENTS = int(os.environ.get("MAILBOX_STREAM_CLIENTS", "200" if "MAILBOX_STREAM_SECONDS" in os.environ else "60"))
# A run may meet any number of kills: none is poison. A client that stalls may be cut off, feeds forget early.
PATIENT = {
    **SETTINGS, "max_lost": 1000, "quarantine_after": 1000, "stream_send_seconds": 3.0, "stream_buffer_entries": 50,
    "stream_seconds": 20.0, "wait_poll_seconds": 0.2,
}  # fmt: skip
# What the process keeps for itself: threads of its pools, connections of the pool.
MOST_THREADS, MOST_FILES = 40, 60
MOST_GROWN_MIB = 60.0


@pytest.mark.slow
@pytest.mark.timeout(0 if "MAILBOX_STREAM_SECONDS" in os.environ else 300)
def test_many_clients_that_come_and_go_are_told_what_the_table_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILBOX_EXTRA_APPS", "tests.chaos.streamers")
    random.seed(SEED)
    given = ("--pool", "threads", "--concurrency", "24", "--without", "flower")
    with StackProcess(*given, settings=PATIENT) as stack:
        live = Live(stack, tmp_path)
        soak = Soak(live, CLIENTS, SECONDS, SEED)
        figures = asyncio.run(soak.run())
        wait_until(lambda: held(live).listeners == 0, SLACK_SECONDS)
        left = held(live)
        with one_listener(live, soak.quiet_thread):
            wait_until(lambda: held(live).listeners == 1, SLACK_SECONDS)
            heard = held(live)
        figures |= {"threads left": left.threads, "files left": left.files, "topics left": len(heard.topics)}
        sys.stdout.write(json.dumps(figures) + "\n")
        assert (left.listeners, left.topics, heard.listeners, heard.topics) == (0, (), 1, ())
        assert left.in_transaction == 0
        assert (left.threads <= MOST_THREADS, left.files <= MOST_FILES) == (True, True), left
        assert figures["web MiB at the end"] - figures["web MiB at 50 %"] < MOST_GROWN_MIB
        assert figures["200 answers"] > CLIENTS
        assert_healthy(live)
