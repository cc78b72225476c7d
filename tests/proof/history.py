"""Judge what workers wrote down of their own, one line each time an activation begins or ends, against the rows.

The log is one file that all append to: the order of its lines is the order of what happened. A line of an activation:
{"what": "enters" | "returns" | "leaves", "run", "fence", "pid", …}.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ENDS = ("returns", "leaves")


@dataclass(frozen=True)
class Accepted:
    """A run as it was accepted, and what the rows say of it now."""

    id: str
    thread: str
    place: int
    status: str
    ended: int
    lost: int
    handed_back: int = 0

    @property
    def given_up(self) -> int:
        """How often its worker ceased to own it though its code may have gone on."""
        return self.lost + self.handed_back


@dataclass
class _Activation:
    run: str
    fence: int
    is_over: bool = False


@dataclass
class _Thread:
    activations: list[_Activation] = field(default_factory=list)
    # Runs in the order in which they were begun.
    begun: list[str] = field(default_factory=list)


def faults(accepted: Sequence[Accepted], lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is wrong, one sentence each; [] if every promise was kept.

    Each accepted run has ended once and was executed; runs of a thread began in their order, one after the other; the
    fence rose; nobody entered while another owned the thread, nobody vanished and nobody was refused, but for a lease
    that the rows call lost or handed back.
    """
    runs = {run.id: run for run in accepted}
    found = [f"run {run.id} is {run.status}" for run in accepted if run.status != "done"]
    found += [f"run {run.id} ended {run.ended} times" for run in accepted if run.ended != 1]
    excused = Counter({run.id: run.given_up for run in accepted})
    threads: dict[str, _Thread] = defaultdict(_Thread)
    returned: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for line in lines:
        if line["what"] not in ("enters", *_ENDS):
            continue
        run = runs.get(line["run"])
        if run is None:
            found.append(f"nobody was told of run {line['run']}")
            continue
        thread = threads[run.thread]
        if line["what"] == "enters":
            found += _entered(thread, run, line["fence"], excused)
        else:
            found += _ended(thread, run, line, returned)
            refused[run.id] += line.get("error") == "LeaseLost"
    for thread in threads.values():
        found += _vanished(thread, excused)
        order = [runs[one].place for one in thread.begun]
        if order != sorted(order):
            found.append(f"runs began in the order {order}")
    found += [f"run {run.id} never returned" for run in accepted if not returned[run.id]]
    found += [
        f"run {run.id} returned {returned[run.id]} times, and lost its lease {run.given_up} times"
        for run in accepted
        if returned[run.id] > 1 + run.given_up
    ]
    found += [
        f"run {run.id} was refused {refused[run.id]} times, and lost its lease {run.given_up} times"
        for run in accepted
        if refused[run.id] > run.given_up
    ]
    return found


def _entered(thread: _Thread, run: Accepted, fence: int, excused: Counter[str]) -> list[str]:
    found = []
    for other in thread.activations:
        # Its end was looked for by whoever came next: it is nobody's to excuse twice.
        if not other.is_over:
            other.is_over = True
            if excused[other.run] < 1:
                found.append(f"run {run.id} entered at fence {fence} while run {other.run} owned the thread")
            excused[other.run] -= 1
    if thread.activations and fence <= max(one.fence for one in thread.activations):
        found.append(f"run {run.id} entered at fence {fence}, which is no higher than one before")
    thread.activations.append(_Activation(run.id, fence))
    if run.id not in thread.begun:
        thread.begun.append(run.id)
    return found


def _ended(thread: _Thread, run: Accepted, line: Mapping[str, Any], returned: Counter[str]) -> list[str]:
    mine = [one for one in thread.activations if (one.run, one.fence) == (run.id, line["fence"])]
    if len(mine) != 1:
        return [f"run {run.id} ended at fence {line['fence']}, which it had never entered"]
    mine[0].is_over = True
    returned[run.id] += line["what"] == "returns"
    return []


def _vanished(thread: _Thread, excused: Counter[str]) -> list[str]:
    found = []
    for one in thread.activations:
        if not one.is_over:
            if excused[one.run] < 1:
                found.append(f"run {one.run} vanished at fence {one.fence}")
            excused[one.run] -= 1
    return found
