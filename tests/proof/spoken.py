"""Judge a conversation of many by what clients were told, what agents wrote down, and the rows that are left of it.

A client's line: {"what": "said", "thread", "messages": [[id, text], …]} · {"what": "edited", "message", "text",
"revision"} · {"what": "withdrawn" | "consumed", "message"} · {"what": "answered", "run", "ticket", "decision",
"action", "payload"} · {"what": "ordered", "thread"} · {"what": "stopped", "thread"} for a cancellation or an interrupt.

An agent's line: {"what": "enters" | "reads" | "hears", "run", "thread", "turn", "fence", …}: "reads" has the messages
[[id, text], …] it was just handed, "hears" an answer {"decision", "action", "payload", "expired"}.
"""

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The rows, each a dict, when all has ended. A message has "requeued": whether another run was to read it first."""

    messages: Sequence[Line]
    runs: Sequence[Line]
    tickets: Sequence[Line]


def faults(told: Iterable[Line], lines: Iterable[Line], stored: Stored) -> list[str]:
    """What is wrong, one sentence each; [] if every promise was kept."""
    told, lines = list(told), list(lines)
    return [
        *_lost(told, stored),
        *_edits(told, stored),
        *_read(lines, stored),
        *_order(told, stored),
        *_runs(lines, stored),
        *_answers(told, lines, stored),
    ]


def _of(lines: Iterable[Line], *whats: str) -> list[Line]:
    return [line for line in lines if line["what"] in whats]


def _lost(told: Sequence[Line], stored: Stored) -> Iterator[str]:
    """Nothing that was accepted is lost, and what was withdrawn stays so."""
    rows = {row["id"]: row for row in stored.messages}
    withdrawn = {line["message"] for line in _of(told, "withdrawn")}
    stopped = {line["thread"] for line in _of(told, "stopped")}
    for line in _of(told, "said"):
        for pk, _ in line["messages"]:
            row = rows.get(pk)
            if row is None:
                yield f"message {pk} is gone"
            elif row["state"] == "pending":
                yield f"message {pk} was never read"
            elif row["state"] == "retracted" and pk not in withdrawn and not _is_asked_for(row, stopped):
                yield f"message {pk} was retracted ({row['reason']}), and nobody asked for it"
    for pk in withdrawn:
        if pk in rows and rows[pk]["state"] != "retracted":
            yield f"message {pk} was withdrawn, and is {rows[pk]['state']}"
    for line in _of(told, "consumed"):
        if rows[line["message"]]["state"] != "committed":
            yield f"message {line['message']} was called read, and is {rows[line['message']]['state']}"


def _is_asked_for(row: Line, stopped: Container[str]) -> bool:
    """Whether it may have been retracted with its run: that was cancelled, or was the only one it was for."""
    return row["reason"] == "target_ended" or (row["reason"] == "run_cancelled" and row["thread"] in stopped)


def _edits(told: Sequence[Line], stored: Stored) -> Iterator[str]:
    """A message says what its last edit has made of it."""
    rows = {row["id"]: row for row in stored.messages}
    texts: dict[str, tuple[int, str]] = {pk: (1, text) for line in _of(told, "said") for pk, text in line["messages"]}
    for line in _of(told, "edited"):
        if line["revision"] >= texts[line["message"]][0]:
            texts[line["message"]] = line["revision"], line["text"]
    for pk, (_, text) in texts.items():
        if pk in rows and rows[pk]["text"] != text:
            yield f"message {pk} says {rows[pk]['text']!r}, and its last edit was {text!r}"


def _read(lines: Sequence[Line], stored: Stored) -> Iterator[str]:
    """Each agent was handed what the rows say its turn has read, whole and in order, and nobody else was."""
    rows = {row["id"]: row for row in stored.messages}
    handed: dict[tuple[str, int], dict[str, None]] = defaultdict(dict)
    readers: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for line in _of(lines, "reads"):
        turn = line["run"], line["turn"]
        numbers = []
        for pk, text in line["messages"]:
            row = rows.get(pk)
            if row is None or row["state"] != "committed":
                yield f"message {pk} was read, and is {'gone' if row is None else row['state']}"
                continue
            if text != row["text"]:
                yield f"message {pk} was read as {text!r}, and says {row['text']!r}"
            numbers.append(row["seq"])
            readers[pk].add(turn)
            handed[turn].setdefault(pk)
        if numbers != sorted(set(numbers)):
            yield f"run {line['run']} was handed the numbers {numbers}"
    for pk, turns in readers.items():
        if len(turns) > 1:
            yield f"message {pk} was read twice: {sorted(turns)}"
        elif (rows[pk]["run"], rows[pk]["turn"]) not in turns:
            yield f"message {pk} was read by {sorted(turns)}, and the rows say by {rows[pk]['run']}"
    ended_well = {run["id"] for run in stored.runs if run["ending"] == "natural_end"}
    for row in stored.messages:
        is_read = row["state"] == "committed" and row["run"] in ended_well
        if is_read and row["id"] not in handed[row["run"], row["turn"]]:
            yield f"message {row['id']} was never handed to run {row['run']}, which has read it"


def _order(told: Sequence[Line], stored: Stored) -> Iterator[str]:
    """On a thread nobody has put in another order, what waits for a run of its own is read as it was said."""
    ordered = {line["thread"] for line in _of(told, "ordered")}
    threads: dict[str, list[Line]] = defaultdict(list)
    for row in stored.messages:
        is_plain = row["boundary"] == "new_run" and not row["requeued"]
        if row["state"] == "committed" and is_plain and row["thread"] not in ordered:
            threads[row["thread"]].append(row)
    for thread, rows in threads.items():
        numbers = [row["seq"] for row in sorted(rows, key=lambda row: row["position"])]
        if numbers != sorted(numbers):
            yield f"thread {thread} was read in the order {numbers}"


def _runs(lines: Sequence[Line], stored: Stored) -> Iterator[str]:
    """Each run has ended, once; and each entered its thread with a higher fence than whoever came before."""
    runs = {run["id"]: run for run in stored.runs}
    for run in stored.runs:
        if run["status"] != "done" or run["ended"] != 1:
            yield f"run {run['id']} is {run['status']}, and ended {run['ended']} times"
    highest: dict[str, tuple[int, str]] = {}
    for line in _of(lines, "enters"):
        if line["run"] not in runs:
            yield f"nobody knows of run {line['run']}"
            continue
        before = highest.get(line["thread"], (0, ""))
        now = line["fence"], line["run"]
        if (now[0] < before[0] and not runs[line["run"]]["lost"]) or (now[0] == before[0] and now != before):
            yield f"run {line['run']} entered at fence {now[0]} after run {before[1]} had at {before[0]}"
        highest[line["thread"]] = max(before, now)


def _answers(told: Sequence[Line], lines: Sequence[Line], stored: Stored) -> Iterator[str]:
    """Each question has one answer for good: that which its client was told counts, and which its agent heard."""
    accepted = Counter((line["run"], line["ticket"]) for line in _of(told, "answered"))
    yield from (
        f"ticket {ticket} of run {run} was answered {times} times"
        for (run, ticket), times in accepted.items()
        if times > 1
    )
    rows = {(row["run"], row["ticket"]): row for row in stored.tickets}
    for line in _of(told, "answered"):
        row = rows[line["run"], line["ticket"]]
        answer = row["answer"] or {}
        found = (row["status"], row["decision"], answer.get("action"), answer.get("payload"))
        if found != ("answered", line["decision"], line["action"], line["payload"]):
            yield f"ticket {line['ticket']} was answered by {line['decision']}, and the rows say {found}"
    for row in stored.tickets:
        if row["status"] == "open":
            yield f"ticket {row['ticket']} is open, and its run has ended"
    heard: dict[tuple[str, int, str], Line] = {}
    known = {(row["run"], row["turn"], row["name"]): row for row in stored.tickets}
    for line in _of(lines, "hears"):
        use = line["run"], line["turn"], line["name"]
        said = {name: line[name] for name in ("decision", "action", "payload", "expired")}
        if heard.setdefault(use, said) != said:
            yield f"run {line['run']} heard {heard[use]}, and then {said}"
        row = known[use]
        answer = row["answer"] or {}
        stands = {"decision": row["decision"], **{name: answer.get(name) for name in ("action", "payload", "expired")}}
        if said != stands:
            yield f"run {line['run']} heard {said}, and the rows say {stands}"
