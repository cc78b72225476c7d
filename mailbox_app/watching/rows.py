"""What an operator who follows a run or a thread reads of the database: one statement a look, of all visibilities."""

import uuid
from dataclasses import dataclass, field
from typing import Any

from mailbox_app.models import Event, Run, Thread, ask, columns, loader
from mailbox_app.states import RunStatus

# Events of one look.
PAGE = 100
# Entries of a run's journal that a mark counts at most: what is recorded past them shows with the next event.
_MOST_COUNTED = 1_000

_FACTS = """
    thread.last_cursor, thread.pruned_cursor, thread.claim_count, thread.open_run_id, thread.deleted_at IS NOT NULL,
    opened.turn, run.status, run.termination ->> 'type'
"""
_FACTS_WIDTH = 8
# One snapshot: with fewer than a page there are no more events up to the last cursor.
LOOK = f"""
    SELECT {_FACTS}, {{columns}}
    FROM mailbox_thread AS thread
    LEFT JOIN mailbox_run AS opened ON opened.id = thread.open_run_id
    LEFT JOIN mailbox_run AS run ON run.id = %(run)s
    LEFT JOIN LATERAL (
        SELECT * FROM mailbox_event WHERE {{whose}} AND cursor > %(cursor)s ORDER BY cursor LIMIT {PAGE}
    ) AS event ON TRUE
    WHERE thread.id = %(thread)s
    ORDER BY event.cursor
"""
OF_RUN, OF_THREAD = "run_id = %(run)s", "thread_id = %(thread)s"

# A row's version has a transaction and a place, and no other version of it has both: nothing needs to be written for
# somebody who watches, and whatever changes is noticed.
MARK = f"""
    SELECT
        concat_ws(
            ' ', thread.xmin, thread.ctid, run.xmin, run.ctid, dispatch.xmin, dispatch.ctid, journal.entries
        ),
        thread.claim_count, thread.open_run_id = run.id
    FROM mailbox_run AS run
    JOIN mailbox_thread AS thread ON thread.id = run.thread_id
    LEFT JOIN LATERAL (
        SELECT xmin, ctid FROM mailbox_dispatch WHERE run_id = run.id ORDER BY created_at DESC, id DESC LIMIT 1
    ) AS dispatch ON TRUE
    CROSS JOIN LATERAL (
        SELECT count(*) AS entries
        FROM (SELECT FROM mailbox_journalentry WHERE run_id = run.id LIMIT {_MOST_COUNTED}) AS recorded
    ) AS journal
    WHERE run.id = %(run)s
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is followed: a thread, or one run on it."""

    thread_id: uuid.UUID
    run_id: uuid.UUID | None = None

    def __str__(self) -> str:
        return f"thread {self.thread_id}" if self.run_id is None else f"run {self.run_id}"


@dataclass(kw_only=True)
class Look:
    """What one look found: the next events, all up to the cursor `head`, and how thread and run stood then."""

    head: int
    pruned: int
    fence: int
    open_run_id: uuid.UUID | None
    # The turn of the open run; None without one.
    turn: int | None
    is_deleted: bool
    # Of the run that is followed: its status and how it ended; None without one.
    status: str | None
    ended: str | None
    events: list[Event] = field(default_factory=list)

    @property
    def has_more(self) -> bool:
        """Whether the look was full."""
        return len(self.events) >= PAGE

    @property
    def is_done(self) -> bool:
        """Whether the run that is followed says nothing more."""
        return self.status == RunStatus.DONE


@dataclass(frozen=True, kw_only=True)
class Mark:
    """By which one sees whether anything of a run has changed. `fence`: of whoever executes it; None: nobody does."""

    text: str
    fence: int | None


def find(given: uuid.UUID) -> Target | None:
    """The run, or else the thread, with this id; one that was deleted too, while its rows are there."""
    run = Run.objects.filter(pk=given).values_list("thread_id", flat=True).first()
    if run is not None:
        return Target(thread_id=run, run_id=given)
    return Target(thread_id=given) if Thread.objects.filter(pk=given).exists() else None


def find_key(scope: str, key: str) -> Target | None:
    """The scope's thread with this key."""
    found = Thread.objects.not_deleted().filter(scope=scope, key=key).values_list("pk", flat=True).first()
    return None if found is None else Target(thread_id=found)


def look(target: Target, cursor: int) -> Look | None:
    """The next events past the cursor; None when the thread is not there any more, or the run."""
    whose = OF_THREAD if target.run_id is None else OF_RUN
    sql = LOOK.replace("{columns}", columns(Event, "event")).replace("{whose}", whose)
    rows = ask(sql, {"thread": target.thread_id, "run": target.run_id, "cursor": cursor})
    if not rows:
        return None
    load = loader(Event)
    last, pruned, fence, open_run_id, is_deleted, turn, status, ended = rows[0][:_FACTS_WIDTH]
    if target.run_id is not None and status is None:
        return None
    facts: dict[str, Any] = {"pruned": pruned, "fence": fence, "open_run_id": open_run_id, "is_deleted": is_deleted}
    found = Look(head=last, turn=turn, status=status, ended=ended, **facts)
    events = [load(row[_FACTS_WIDTH:]) for row in rows]
    found.events = [event for event in events if event.pk is not None]
    if found.has_more:
        found.head = found.events[-1].cursor
    return found


def mark(run_id: uuid.UUID) -> Mark | None:
    """The run's mark: another one once its row, its thread's, its latest activation's or its journal have changed."""
    for text, fence, is_open in ask(MARK, {"run": run_id}):
        return Mark(text=text, fence=fence if is_open else None)
    return None
