"""Which process is ended by which signal at which point, and what must come of it: the table, as data.

`python -m tests.chaos.kills` prints it as it stands in `kills.md`. Each cell is one parameter of `test_kills.py`; a
round of the suite takes those that `in_round` names, MAILBOX_KILLS=all takes every one.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from tests.chaos.wire import Moment

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)


class Process(StrEnum):
    """What is signalled."""

    PARENT = "parent"
    CHILD = "child"
    THREADS = "threads"
    MAINTENANCE = "maintenance"
    BEAT = "beat"


WORKERS = (Process.PARENT, Process.CHILD, Process.THREADS)

# By what a transaction is known on the wire: words of what it sends.
CLAIM = (b'"kind": "RunStarted"',)
FINISH = (b'"kind": "RunFinished"',)
RECLAIM = (b'"expired_lease_reclaimed"',)
PROMOTE = (b'wakes_at" <=', b"UPDATE mailbox_thread AS kept")


def record(step: int) -> tuple[bytes, ...]:
    """The journal's record of a step."""
    return (b"INSERT INTO mailbox_journalentry", b'"verb": "step"', f'"name": "step-{step}"'.encode())


@dataclass(frozen=True)
class Point:
    """Where a process stands. `words` and `moment`: what its wire stops; without them the agent or nobody waits.

    `recorded`: how many of the two steps have a record by then; they are not done again.
    """

    name: str
    told: str
    words: tuple[bytes, ...] = ()
    moment: Moment = Moment.COMMIT
    recorded: int = 0
    is_settled: bool = False


RUN_POINTS = (
    Point("claimed", "the claim is committed, the agent has not started", CLAIM, Moment.ANSWER),
    Point("in-step", "in the agent, inside its second step", recorded=1),
    Point("recorded", "the first step's record is committed", record(1), Moment.ANSWER, recorded=1),
    Point("returned", "the agent has returned, nothing of its settle is sent", record(2), Moment.NEXT, recorded=2),
    Point("settling", "inside the settle's transaction, before its COMMIT", FINISH, recorded=2),
    Point("settled", "the settle is committed", FINISH, Moment.ANSWER, recorded=2, is_settled=True),
)
PASS_POINTS = (
    Point("idle", "between two passes, while a run backs off"),
    Point("promoting", "inside the due tick's transaction, before its COMMIT", PROMOTE),
    Point("promoted", "the due tick's transaction is committed, nobody was woken", PROMOTE, Moment.ANSWER),
    Point("reclaiming", "inside the sweep's transaction, before its COMMIT", RECLAIM),
    Point("reclaimed", "the sweep's transaction is committed, nobody was woken", RECLAIM, Moment.ANSWER),
)
BEAT_POINTS = (
    Point("backing-off", "a run waits for the due tick that beat asks for"),
    Point("lost", "a run waits for the sweep that beat asks for"),
)
POINTS: dict[Process, tuple[Point, ...]] = {
    **dict.fromkeys(WORKERS, RUN_POINTS),
    Process.MAINTENANCE: PASS_POINTS,
    Process.BEAT: BEAT_POINTS,
}

# What makes no cell, and why: (processes, signals, points).
NO_CELLS: tuple[tuple[tuple[Process, ...], tuple[signal.Signals, ...], tuple[Point, ...], str], ...] = (
    (WORKERS, SIGNALS, PASS_POINTS, "a worker's standby runs the passes' own code; maintenance stands for it"),
    (WORKERS, SIGNALS, BEAT_POINTS, "it asks nobody for a pass"),
    ((Process.MAINTENANCE,), SIGNALS, RUN_POINTS, "it executes no run"),
    ((Process.MAINTENANCE,), SIGNALS, BEAT_POINTS, "it is asked for passes, and does not ask"),
    ((Process.BEAT,), SIGNALS, (*RUN_POINTS, *PASS_POINTS), "it has no connection to PostgreSQL and no run"),
    ((Process.BEAT,), (signal.SIGQUIT,), BEAT_POINTS, "it does not catch it: the kernel ends it, as by KILL"),
)


@dataclass(frozen=True)
class Cell:
    """One signal to one process at one point."""

    process: Process
    number: signal.Signals
    point: Point

    @property
    def name(self) -> str:
        return f"{self.process}-{self.number.name[3:]}-{self.point.name}"

    @property
    def is_warm(self) -> bool:
        """Whether the process ends what it has begun, or goes on as if nothing had been said."""
        if self.process is Process.CHILD:
            return self.number is signal.SIGINT  # pool children ignore it
        return self.number in (signal.SIGTERM, signal.SIGINT)

    @property
    def lost(self) -> set[int]:
        """How many leases this may cost the run."""
        if self.is_warm or self.point.is_settled:
            return {0}
        # The kernel leaves it no time for anything; a process that is hurried may or may not come to an end of it.
        is_ended_at_once = self.number is signal.SIGKILL or self.process is Process.THREADS
        return {1} if is_ended_at_once else {0, 1}


def reason(process: Process, number: signal.Signals, point: Point) -> str:
    """Why this is no cell; "" for one that is."""
    return next(
        (why for ours, numbers, points, why in NO_CELLS if process in ours and number in numbers and point in points),
        "",
    )


def cells() -> Iterator[Cell]:
    """All there are, those of one process after the other."""
    every = dict.fromkeys(point for points in POINTS.values() for point in points)
    for process in Process:
        for point in every:
            for number in SIGNALS:
                if not reason(process, number, point):
                    yield Cell(process, number, point)


# Each costs the start of a worker. Its signal meets that process at another point, and another process at that one.
_LEFT_OUT = {
    *((Process.PARENT, name) for name in ("settling", "settled")),
    *((Process.CHILD, name) for name in ("claimed", "in-step")),
    *((Process.THREADS, name) for name in ("claimed", "in-step")),
    (Process.MAINTENANCE, "idle"),
}


def in_round(cell: Cell) -> bool:
    """Whether a round of the suite takes it: each signal to each process, at most of its points one each."""
    if (cell.process, cell.point.name) in _LEFT_OUT:
        return False
    points = POINTS[cell.process]
    numbers = [number for number in SIGNALS if not reason(cell.process, number, cell.point)]
    turn = points.index(cell.point) + list(Process).index(cell.process)
    if cell.process is Process.BEAT:
        # More signals than points.
        return (numbers.index(cell.number) + turn) % len(points) == 0
    return numbers[turn % len(numbers)] is cell.number


def takes_all() -> bool:
    """Whether this session takes every cell."""
    return os.environ.get("MAILBOX_KILLS") == "all"


def wanted() -> list[Cell]:
    """What this session takes."""
    return [cell for cell in cells() if takes_all() or in_round(cell)]


def table() -> str:
    """The matrix in Markdown, one table a kind of process."""
    lines = []
    for process, points in POINTS.items():
        lines += [
            "",
            f"## {process}",
            "",
            "| point | where it stands | TERM | INT | QUIT | KILL |",
            "|---|---|---|---|---|---|",
        ]
        for point in points:
            found = [Cell(process, number, point) for number in SIGNALS]
            lines.append(f"| `{point.name}` | {point.told} | {' | '.join(map(_shown, found))} |")
    lines += ["", "## No cells", "", "| process | signal | points | why |", "|---|---|---|---|"]
    for processes, numbers, points, why in NO_CELLS:
        names = "all" if numbers == SIGNALS else ", ".join(number.name[3:] for number in numbers)
        lines.append(f"| {', '.join(processes)} | {names} | {', '.join(point.name for point in points)} | {why} |")
    return "\n".join(lines) + "\n"


def _shown(cell: Cell) -> str:
    if reason(cell.process, cell.number, cell.point):
        return ""
    return f"**{cell.name}**" if in_round(cell) else cell.name


if __name__ == "__main__":
    print(table())  # noqa: T201
