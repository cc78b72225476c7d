"""Workers write down what they do, one is killed in the middle, and what was written keeps every promise."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailbox_app.devtools.probes import StackProcess
from mailbox_app.devtools.processes import wait_until
from tests.chaos.live import RECOVERED_SECONDS, SETTINGS, SLACK_SECONDS, Live
from tests.chaos.load import Round
from tests.chaos.workers import Worker
from tests.proof.history import Accepted, faults

# MAILBOX_PROOF_RUNS=<runs> makes the round longer; each 200 runs one worker is killed.
RUNS = int(os.environ.get("MAILBOX_PROOF_RUNS", "200"))
THREADS = 20
BATCH = 50


def a_run(place: int = 1, **given: Any) -> Accepted:
    return Accepted(
        **{"id": f"r{place}", "thread": "t", "place": place, "status": "done", "ended": 1, "lost": 0, **given}
    )


def said(*steps: tuple[str, int, int]) -> list[dict[str, Any]]:
    return [{"what": what, "run": f"r{place}", "fence": fence} for what, place, fence in steps]


GOOD = said(
    ("enters", 1, 1), ("returns", 1, 1), ("enters", 2, 2), ("leaves", 2, 2), ("enters", 2, 3), ("returns", 2, 3)
)
TAKEN_OVER = said(("enters", 1, 1), ("enters", 1, 2), ("returns", 1, 2), ("leaves", 1, 1))


@pytest.mark.parametrize(
    ("accepted", "lines"),
    [
        ([a_run(), a_run(2)], GOOD),
        ([a_run(lost=1)], TAKEN_OVER),
        ([a_run(lost=1)], TAKEN_OVER[:3]),
        ([a_run(handed_back=1)], TAKEN_OVER),
    ],
    ids=["one after the other", "a lost lease", "a killed worker", "handed back"],
)
def test_a_good_history_has_no_faults(accepted: list[Accepted], lines: list[dict[str, Any]]) -> None:
    assert faults(accepted, lines) == []


@pytest.mark.parametrize(
    ("accepted", "lines", "fault"),
    [
        ([a_run(status="running")], GOOD[:2], "run r1 is running"),
        ([a_run(ended=2)], GOOD[:2], "run r1 ended 2 times"),
        ([a_run()], [], "run r1 never returned"),
        ([a_run()], TAKEN_OVER, "run r1 entered at fence 2 while run r1 owned the thread"),
        ([a_run()], GOOD[:1], "run r1 vanished at fence 1"),
        (
            [a_run(), a_run(2)],
            [*GOOD[4:], *said(("enters", 1, 4), ("returns", 1, 4))],
            "runs began in the order [2, 1]",
        ),
        (
            [a_run()],
            said(("enters", 1, 2), ("leaves", 1, 2), ("enters", 1, 2), ("returns", 1, 2)),
            "run r1 entered at fence 2, which is no higher than one before",
        ),
        (
            [a_run()],
            said(*[("enters", 1, 1), ("returns", 1, 1)], ("enters", 1, 2), ("returns", 1, 2)),
            "returned 2 times",
        ),
        ([a_run()], [*GOOD[:2], *said(("returns", 1, 9))], "run r1 ended at fence 9, which it had never entered"),
        ([], GOOD[:1], "nobody was told of run r1"),
        ([a_run(), a_run(2)], [*GOOD[:3], {**GOOD[3], "error": "LeaseLost"}, *GOOD[4:]], "r2 was refused 1 times"),
    ],
)
def test_each_broken_promise_is_found(accepted: list[Accepted], lines: list[dict[str, Any]], fault: str) -> None:
    assert fault in " · ".join(faults(accepted, lines))


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A stack without a worker."""
    monkeypatch.setenv("MAILBOX_EXTRA_APPS", "mailbox_app.devtools.workloads")
    with StackProcess("--without", "worker", "--without", "flower", settings=SETTINGS) as stack:
        yield Live(stack, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(0 if RUNS > 200 else 300)
def test_what_workers_wrote_down_keeps_every_promise_though_one_was_killed(live: Live) -> None:
    told = Round(live)
    with Worker(live, "steady", slots=4):
        for first in range(0, RUNS, 200):
            told.gate.unlink(missing_ok=True)
            killed = f"killed-{first}"
            with Worker(live, killed, slots=4) as worker:
                # One that is in the middle of its step when its worker is killed, whatever becomes of the others: as
                # many as both have slots for but one, so that each worker has some and goes on with the rest.
                gates = [f"gate {first} {number}" for number in range(5)]
                told.post(*({"thread_key": key, "options": told.options(gate_at=1)} for key in gates))
                wait_until(lambda: any(line["pid"] == worker.pid for line in told.gated()), SLACK_SECONDS)
                assert any(line["pid"] == worker.pid for line in told.gated()), told.lines
                before = told.count("returns")
                for start in range(first, min(first + 200, RUNS), BATCH):
                    numbers = range(start, min(start + BATCH, RUNS))
                    told.post(*({"thread_key": f"t{n % THREADS}", "options": told.options()} for n in numbers))
                wait_until(lambda before=before: told.count("returns") >= before + 20, SLACK_SECONDS)
                worker.send(signal.SIGKILL)
                worker.wait()
            # The same again, by its name; it has its share too, for the other has slots for all of these but one.
            with Worker(live, killed, slots=4) as worker:
                told.post(*({"thread_key": f"{key} again", "options": told.options(gate_at=1)} for key in gates))
                wait_until(lambda: any(line["pid"] == worker.pid for line in told.gated()), SLACK_SECONDS)
                told.gate.touch()
                wait_until(lambda: told.open_count() == 0, 2 * RECOVERED_SECONDS)
    accepted = told.accepted()
    assert faults(accepted, told.lines) == []
    assert sum(run.lost for run in accepted) >= 1, "nobody noticed that a worker was killed"
    assert len({line["pid"] for line in told.lines}) >= 3
