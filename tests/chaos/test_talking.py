"""Many talk on fifty threads while workers are killed: nothing is lost, read twice, or read after it was withdrawn."""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from mailbox_app.devtools.probes import StackProcess
from tests.chaos.live import SETTINGS, SLACK_SECONDS, Live
from tests.chaos.load import assert_healthy
from tests.chaos.talking import Talking
from tests.chaos.workers import Worker
from tests.proof.spoken import faults

# MAILBOX_TALK_SECONDS=<seconds> makes it last that long, MAILBOX_TALK_SEED=<number> makes it another one.
TALK_SECONDS = float(os.environ.get("MAILBOX_TALK_SECONDS", "10"))
SEED = int(os.environ.get("MAILBOX_TALK_SEED", "1"))
# A run may meet any number of kills: none is poison.
PATIENT = {**SETTINGS, "max_lost": 1000, "quarantine_after": 1000}
NAMES = ("talk-one", "talk-two")
LIVES_SECONDS = (0.5, 2.0)
FEWEST_KILLS = 3


@pytest.mark.slow
@pytest.mark.timeout(0 if "MAILBOX_TALK_SECONDS" in os.environ else 600)
def test_what_many_say_while_workers_are_killed_is_read_once_in_order_or_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "talkers.log"
    monkeypatch.setenv("MAILBOX_EXTRA_APPS", "tests.chaos.talkers")
    monkeypatch.setenv("TALKER_LOG", str(log))
    with StackProcess("--without", "worker", "--without", "flower", settings=PATIENT) as stack:
        live = Live(stack, tmp_path)
        dice, killed = random.Random(SEED), 0
        workers = {name: Worker(live, name, slots=4).__enter__() for name in NAMES}
        try:
            with Talking(live, seed=SEED) as talking:
                until = time.monotonic() + TALK_SECONDS
                while time.monotonic() < until or killed < FEWEST_KILLS:
                    time.sleep(dice.uniform(*LIVES_SECONDS))
                    name = dice.choice(NAMES)
                    workers[name].send(signal.SIGKILL)
                    workers[name].wait()
                    killed += 1
                    workers[name] = Worker(live, name, slots=4).__enter__()
            talking.end(6 * SLACK_SECONDS)
        finally:
            for worker in workers.values():
                worker.__exit__(None, None, None)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        stored = talking.stored()
        assert faults(talking.told, lines, stored) == []
        assert_healthy(live)
    did = Counter(line["what"] for line in [*talking.told, *lines])
    sys.stdout.write(f"{dict(did)}; {talking.refused} refused, {killed} workers killed, {len(stored.runs)} runs\n")
    assert min(did[what] for what in ("said", "edited", "withdrawn", "answered", "reads", "hears", "ordered")) >= 1
