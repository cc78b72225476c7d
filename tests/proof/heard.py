"""Hold every row of a conversation against what its oracle says, and against what is promised whatever that says."""

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

from mailbox_app.doctor import examine, flags, walk
from mailbox_app.models import Dispatch, Event, Kind, Message, Run, Thread, Ticket
from mailbox_app.models.event import TERMINAL_KINDS
from tests.proof.dialogue import Reader, Said
from tests.proof.replies import Talk

_LOOKS = " UNION ALL ".join(
    f"SELECT '{look.code}' AS code FROM ({look.sql}) AS look_{number}" for number, look in enumerate(examine.LOOKS)
)
_TOLD = ("MessageRetracted", "MessageRequeued", Kind.MESSAGE_EDITED)


class Rows:
    """All that is stored, by thread and by run."""

    def __init__(self) -> None:
        self.threads = {thread.pk: thread for thread in Thread.objects.all()}
        self.runs: dict[Any, Run] = {run.pk: run for run in Run.objects.all()}
        self.messages: dict[Any, list[Message]] = defaultdict(list)
        for message in Message.objects.filter(producer_run_id=None).order_by("position"):
            self.messages[message.thread_id].append(message)
        self.activations: dict[Any, list[Dispatch]] = defaultdict(list)
        for dispatch in Dispatch.objects.order_by("created_at", "id"):
            self.activations[dispatch.run_id].append(dispatch)
        self.tickets: dict[Any, list[Ticket]] = defaultdict(list)
        for ticket in Ticket.objects.all():
            self.tickets[ticket.run_id].append(ticket)
        self.events: dict[Any, list[Event]] = defaultdict(list)
        for event in Event.objects.order_by("cursor"):
            self.events[event.thread_id].append(event)


def check(talks: Collection[Talk]) -> None:
    """Raise AssertionError unless the tables say exactly what the oracle does."""
    rows = Rows()
    for talk in talks:
        _know(talk, rows)
        _check_messages(talk, rows)
        assert {run.id for run in talk.readers} == {pk for pk, run in rows.runs.items() if run.thread_id == talk.id}
        for run in talk.readers:
            _check_run(run, rows)
        waiting = sorted(talk.queued(), key=lambda run: rows.runs[run.id].order)
        assert waiting == talk.queued(), "unstarted runs stand in another order"
        _check_thread(talk, rows.threads[talk.id])
        _check_events(talk, rows)
        _check_promises(talk, rows)
    ids = [talk.id for talk in talks]
    found = [row["code"] for row in walk.rows(_LOOKS, {"threads": ids, "grace": 30.0})]
    assert found + [one.code for one in flags.look(ids)] == []


def _know(talk: Talk, rows: Rows) -> None:
    """Learn the ids of what nobody was told of: runs that were made for what another had not read."""
    by_id = {one.id: one for one in talk.said}
    for row in rows.messages[talk.id]:
        one = by_id.get(row.pk)
        assert one is not None, f"nobody has said {row.content!r}"
        if one.owner is not None and one.owner.id is None:
            one.owner.id = row.run_id


def _check_messages(talk: Talk, rows: Rows) -> None:
    def wanted(one: Said) -> tuple[Any, ...]:
        return (
            *(one.position, one.id, one.text, one.state, one.seq, one.owner and one.owner.id, one.held, one.revision),
            *(one.read_turn, one.read_at, one.reason, one.boundary, "one" if one.alone else "batch", one.barrier),
            *(one.target and one.target.id, "new_run" if one.falls_back else ""),
        )

    def found(row: Message) -> tuple[Any, ...]:
        return (
            *(row.position, row.pk, row.content, row.state, row.seq, row.run_id, row.held, row.revision),
            *(row.read_turn, row.read_at, row.retract_reason, row.boundary, row.granularity, row.barrier),
            *(row.target_run_id, row.fallback),
        )

    expected = [wanted(one) for one in sorted(talk.said, key=lambda one: one.position)]
    for row, one in zip([found(row) for row in rows.messages[talk.id]], expected, strict=True):
        _same(row, one, "a message")


def _check_run(run: Reader, rows: Rows) -> None:
    row = rows.runs[run.id]
    waits = (row.waiting or {}).get("reason", "")
    _same((row.status, row.turn, row.agent, waits), (run.status, run.turn, run.agent, run.waits), "a run")
    if run.status == "done":
        assert row.termination is not None
        detail = row.termination.get("detail", "")
        _same((row.termination["type"], detail), run.ending, "the end of a run")
    activations = rows.activations[run.id]
    _same([one.status for one in activations], run.activations, "activations")
    last = activations[-1]
    assert bool(last.cancel_requested_at) == run.is_to_stop
    if run.live:
        _same((last.attempt_count, last.lost_count), (run.failures, run.losses), "failures")
    tickets = sorted((one.ticket_id, one.status, one.decision_id) for one in rows.tickets[run.id])
    asked = [(one.ticket_id, one.status, one.decision[0] if one.decision else "") for one in run.asked]
    _same(tickets, sorted(asked), "tickets")


def _check_thread(talk: Talk, thread: Thread) -> None:
    open_id = None if talk.open is None else talk.open.id
    active_id = open_id if talk.open is not None and talk.open.live == "claimed" else None
    _same((thread.open_run_id, thread.active_run_id), (open_id, active_id), "who has the thread")
    counted = (thread.next_order, thread.last_seq, thread.epoch, thread.pending_revision)
    _same(counted, (talk.next_order, talk.last_seq, talk.epoch, talk.revision), "a thread's counters")
    head = talk.head()
    flag = (thread.due_at is not None, thread.due_agent, thread.blocked_reason)
    _same(flag, (head is not None, head and head.agent, talk.blocked()), "the flag")


def _check_events(talk: Talk, rows: Rows) -> None:
    found = rows.events[talk.id]
    assert [event.cursor for event in found] == list(range(1, len(found) + 1)), "the events have a gap"
    ended = Counter(event.run_id for event in found if event.kind in TERMINAL_KINDS)
    assert ended == {run.id: 1 for run in talk.readers if run.status == "done"}, "a run ends once"
    told = Counter((event.kind, event.payload["message_id"]) for event in found if event.kind in _TOLD)
    _same(told, Counter({(kind, str(one.id)): times for (kind, one), times in talk.told.items()}), "what was told")


def _check_promises(talk: Talk, rows: Rows) -> None:
    """What is promised of any row, whatever the oracle says."""
    read = [row for row in rows.messages[talk.id] if row.state == "committed"]
    numbers = sorted(row.seq for row in read if row.seq is not None)
    assert len(set(numbers)) == len(numbers)
    for row in rows.messages[talk.id]:
        if row.state != "pending" or row.held:
            continue
        reader = rows.runs.get(row.run_id)
        assert reader is None or reader.status != "done", f"nobody will read {row.content!r}"
        assert reader or rows.threads[talk.id].open_run_id, f"nobody will read {row.content!r}"
    for run in talk.readers:
        row = rows.runs[run.id]
        if row.status == "waiting":
            assert row.wait_until is not None, "a wait has an end"


def _same(found: Any, wanted: Any, what: str) -> None:
    assert found == wanted, f"{what}: found {found}, not {wanted}"
