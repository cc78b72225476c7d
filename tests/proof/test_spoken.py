"""What judges a conversation finds each broken promise, and nothing in a good one."""

from copy import deepcopy
from typing import Any

import pytest

from tests.proof.spoken import Stored, faults


def a_message(pk: str, **given: Any) -> dict[str, Any]:
    row = {"thread": "t", "run": "r1", "state": "committed", "seq": int(pk[1:]), "position": int(pk[1:]), "text": pk}
    more = {"reason": "", "turn": 1, "boundary": "new_run", "requeued": False}
    return {"id": pk, **row, **more, **given}


def said(*ids: str) -> dict[str, Any]:
    return {"what": "said", "thread": "t", "messages": [[pk, pk] for pk in ids]}


def of_agent(what: str, run: str = "r1", fence: int = 1, **given: Any) -> dict[str, Any]:
    return {"what": what, "run": run, "thread": "t", "turn": 1, "fence": fence, **given}


def reads(*messages: str, run: str = "r1", **given: Any) -> dict[str, Any]:
    return of_agent("reads", run, messages=[[pk, pk] for pk in messages], **given)


ANSWER = {"decision": "d", "action": "resume", "payload": 1}
HEARD = of_agent("hears", name="first", expired=False, **ANSWER)
RUN = {"status": "done", "ended": 1, "lost": 0, "ending": "natural_end"}


class Good:
    """A conversation as it should be; each test spoils one thing of it."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = [
            said("m1", "m2"),
            said("m3"),
            said("m9"),
            {"what": "withdrawn", "message": "m9"},
            {"what": "consumed", "message": "m1"},
            {"what": "edited", "message": "m3", "text": "m3", "revision": 2},
            {"what": "answered", "run": "r1", "ticket": "k", **ANSWER},
        ]
        self.lines = [
            *(of_agent("enters"), reads("m1", "m2"), HEARD),
            *(of_agent("enters", fence=2), reads("m1", "m2"), HEARD),
            *(of_agent("enters", "r2", 3), reads("m3", run="r2", fence=3)),
        ]
        self.messages = {
            **{pk: a_message(pk) for pk in ("m1", "m2")},
            "m3": a_message("m3", run="r2"),
            "m9": a_message("m9", state="retracted", seq=None, reason="withdrawn"),
        }
        self.runs = {"r1": {"id": "r1", **RUN, "lost": 1}, "r2": {"id": "r2", **RUN}}
        answer = {"action": "resume", "payload": 1, "expired": False}
        asked = {"run": "r1", "ticket": "k", "name": "first", "turn": 1}
        self.ticket = {**asked, "status": "answered", "decision": "d", "answer": answer}

    @property
    def faults(self) -> list[str]:
        rows = {"messages": list(self.messages.values()), "runs": list(self.runs.values()), "tickets": [self.ticket]}
        return faults(self.told, self.lines, Stored(**rows))


def test_a_good_conversation_has_no_faults() -> None:
    assert Good().faults == []


def spoil(good: Good, how: str) -> None:
    messages, runs = good.messages, good.runs
    match how:
        case "m2 is gone":
            del messages["m2"]
        case "m2 was never read":
            messages["m2"] |= {"state": "pending", "seq": None}
        case "m2 was retracted (run_cancelled), and nobody asked for it":
            messages["m2"] |= {"state": "retracted", "reason": "run_cancelled"}
        case "m9 was withdrawn, and is committed":
            messages["m9"] |= {"state": "committed", "seq": 4}
        case "m9 was read, and is retracted":
            good.lines.append(reads("m9"))
        case "m1 was called read, and is retracted":
            messages["m1"] |= {"state": "retracted", "reason": "withdrawn"}
        case "m3 says 'old', and its last edit was 'm3'":
            messages["m3"]["text"] = "old"
        case "m2 was read as 'm2', and says 'other'":
            messages["m2"]["text"] = "other"
        case "m3 was read twice":
            good.lines.append(reads("m3"))
        case "m3 was read by [('r2', 1)], and the rows say by r1":
            messages["m3"]["run"] = "r1"
        case "m3 was never handed to run r2":
            good.lines.pop()
        case "r1 was handed the numbers [2, 1]":
            good.lines.append(reads("m2", "m1"))
        case "t was read in the order [1, 3, 2]":
            messages["m2"]["seq"], messages["m3"]["seq"] = 3, 2
        case "r2 is waiting, and ended 0 times":
            runs["r2"] |= {"status": "waiting", "ended": 0}
        case "r2 entered at fence 1 after run r1 had at 2":
            good.lines[-2] = of_agent("enters", "r2", 1)
        case "r2 entered at fence 2 after run r1 had at 2":
            good.lines[-2] = of_agent("enters", "r2", 2)
        case "nobody knows of run r3":
            good.lines.append(of_agent("enters", "r3", 4))
        case "k of run r1 was answered 2 times":
            good.told.append(good.told[-1])
        case "k was answered by d, and the rows say":
            good.ticket |= {"decision": "other"}
        case "k is open":
            good.ticket |= {"status": "open"}
        case "r1 heard" | _:
            good.lines[2] = {**HEARD, "payload": 2}


@pytest.mark.parametrize(
    "fault",
    [
        "m2 is gone",
        "m2 was never read",
        "m2 was retracted (run_cancelled), and nobody asked for it",
        "m9 was withdrawn, and is committed",
        "m9 was read, and is retracted",
        "m1 was called read, and is retracted",
        "m3 says 'old', and its last edit was 'm3'",
        "m2 was read as 'm2', and says 'other'",
        "m3 was read twice",
        "m3 was read by [('r2', 1)], and the rows say by r1",
        "m3 was never handed to run r2",
        "r1 was handed the numbers [2, 1]",
        "t was read in the order [1, 3, 2]",
        "r2 is waiting, and ended 0 times",
        "r2 entered at fence 1 after run r1 had at 2",
        "r2 entered at fence 2 after run r1 had at 2",
        "nobody knows of run r3",
        "k of run r1 was answered 2 times",
        "k was answered by d, and the rows say",
        "k is open",
        "r1 heard",
    ],
)
def test_each_broken_promise_of_a_conversation_is_found(fault: str) -> None:
    good = Good()
    spoil(good, fault)
    assert fault in " · ".join(good.faults)


def test_what_is_excused_is_no_fault() -> None:
    """Another order that somebody asked for, a run that was cancelled with what it was to read, a lost lease."""
    good = Good()
    good.told += [{"what": "ordered", "thread": "t"}, {"what": "stopped", "thread": "t"}]
    good.messages["m4"] = a_message("m4", state="retracted", seq=None, reason="run_cancelled")
    good.told.append(said("m4"))
    good.messages["m2"] |= {"position": 7}
    late = deepcopy(good.lines[:2])
    good.lines += [{**late[0], "fence": 2}, late[1]]
    assert good.faults == []
