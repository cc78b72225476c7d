"""Hold every row against what the oracle says, and each ready flag against a fresh look at the rows."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.db import connection

from mailbox_app.models import Dispatch, Event, Message, Run, Thread
from mailbox_app.models.event import TERMINAL_KINDS
from tests.operations import scene
from tests.proof.oracle import Intent, Talk


@contextmanager
def nothing_changes() -> Iterator[None]:
    """`scene.nothing_changes` in one statement: a machine asks it at every other step."""
    before = _digest()
    yield
    assert _digest() == before, "a refused call changed something"


def _digest() -> list[tuple[Any, ...]]:
    models = [model for model in apps.get_app_config("mailbox").get_models() if not model._meta.proxy]
    tables = [model._meta.db_table for model in models]
    parts = [
        f"SELECT '{name}', md5(string_agg(one::text, '|' ORDER BY one::text)) FROM {name} AS one" for name in tables
    ]
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(parts))
        return sorted(cursor.fetchall())


def check(talks: Collection[Talk]) -> None:
    """Raise AssertionError unless the tables say exactly what the oracle does."""
    now = scene.database_now()
    threads = {thread.pk: thread for thread in Thread.objects.all()}
    assert set(threads) == {talk.id for talk in talks}
    runs: dict[Any, dict[int, Run]] = defaultdict(dict)
    for run in Run.objects.all():
        assert run.order not in runs[run.thread_id], "two runs in one place"
        runs[run.thread_id][run.order] = run
    entries: dict[Any, list[Dispatch]] = defaultdict(list)
    for dispatch in Dispatch.objects.order_by("created_at", "id"):
        entries[dispatch.run_id].append(dispatch)
    said: dict[Any, list[Message]] = defaultdict(list)
    for message in Message.objects.order_by("position"):
        said[message.thread_id].append(message)
    events: dict[Any, list[tuple[int, str, Any]]] = defaultdict(list)
    for thread_id, cursor, kind, run_id in Event.objects.order_by("cursor").values_list(
        "thread_id", "cursor", "kind", "run_id"
    ):
        events[thread_id].append((cursor, kind, run_id))
    for talk in talks:
        thread = threads[talk.id]
        found = runs[talk.id]
        assert sorted(found) == sorted(run.order for run in talk.runs)
        for run in talk.runs:
            _check_run(run, found[run.order], entries[found[run.order].pk])
        _check_thread(talk, thread)
        _check_messages(talk, said[talk.id])
        _check_events(talk, thread, events[talk.id])
        _check_flag(talk, thread, now, [one for run in talk.runs for one in entries[run.id]])


def _check_run(run: Intent, row: Run, rows: list[Dispatch]) -> None:
    run.id = row.pk
    ending = (row.termination or {}).get("type")
    assert (row.status, row.turn, row.agent, row.dedupe_key) == (run.status, run.turn, run.agent, run.key)
    assert ending == run.ending or (run.status, ending) == ("waiting", "suspended") or run.status == "running"
    assert (row.status == "done") == (row.finished_at is not None)
    waiting = row.waiting and (row.waiting["reason"], row.waiting["name"])
    assert waiting == run.wait
    assert (row.resume_at is not None) == run.goes_on_by_itself
    kept = [(one["name"], one["resume_id"], one["taken"]) for one in row.resumes]
    wanted = [(one.name, one.id, one.taken) for one in run.resumes if not one.taken or one.id is not None]
    assert sorted(kept, key=repr) == sorted(wanted, key=repr)
    assert len(rows) == len(run.entries), "a dispatch too many, or one too few"
    for entry, dispatch in zip(run.entries, rows, strict=True):
        entry.id = dispatch.pk
        assert (dispatch.status, dispatch.attempt_count, dispatch.lost_count, dispatch.claim_token) == (
            entry.status,
            entry.attempts,
            entry.lost,
            entry.token,
        )
        assert (dispatch.fence, dispatch.priority, dispatch.order) == (entry.fence, run.priority, run.order)
        assert (dispatch.cancel_requested_at is not None) == entry.asked_to_stop
        assert bool(dispatch.resolution) == entry.resolved


def _check_thread(talk: Talk, thread: Thread) -> None:
    open_id = None if talk.open is None else talk.open.id
    assert (thread.open_run_id, thread.active_run_id) == (open_id, open_id if talk.is_active else None)
    counters = (thread.last_seq, thread.claim_count, thread.next_order)
    assert counters == (talk.last_seq, talk.fence, talk.next_order)


def _check_messages(talk: Talk, rows: list[Message]) -> None:
    log = sorted(talk.log, key=lambda one: one.position)
    owners = [None if one.owner is None else one.owner.id for one in log]
    assert [(row.position, row.state, row.seq) for row in rows] == [(one.position, one.state, one.seq) for one in log]
    assert [row.run_id for row in rows] == owners
    assert sorted(row.seq for row in rows if row.seq) == list(range(1, talk.last_seq + 1)), "the log has a gap"


def _check_events(talk: Talk, thread: Thread, found: list[tuple[int, str, Any]]) -> None:
    cursors = [cursor for cursor, _, _ in found]
    assert cursors == list(range(thread.pruned_cursor + 1, thread.last_cursor + 1)), "the events have a gap"
    ended = Counter(run_id for _, kind, run_id in found if kind in TERMINAL_KINDS)
    if thread.pruned_cursor == 0:
        assert ended == {run.id: 1 for run in talk.runs if run.status == "done"}, "a run ends once"


def _check_flag(talk: Talk, thread: Thread, now: Any, rows: list[Dispatch]) -> None:
    """Exactly what a fresh look says; where time has passed since, something that finds the head all the same."""
    by_id = {row.pk: row for row in rows}
    head = talk.head()
    flag = (thread.due_at, thread.due_priority, thread.due_queue, thread.due_agent, thread.due_version, thread.wakes_at)
    later = [
        by_id[run.queued.id].available_at
        for run in talk.may_start()
        if run.queued and by_id[run.queued.id].available_at > now
    ]
    wanted: tuple[Any, ...] = (None, None, None, None, None)
    if head is not None:
        assert head.queued is not None
        row = by_id[head.queued.id]
        wanted = (row.available_at, row.priority, row.queue, row.agent, row.version_key)
    if flag != (*wanted, min(later, default=None)):
        assert talk.is_stale
        assert head is not None
        assert thread.wakes_at is not None
        assert thread.wakes_at <= now, "whoever ticks finds it"
        return
    assert thread.blocked_reason == ("open_run" if talk.is_blocked() else "")
