"""EXPLAIN of the hot queries over 5,000 threads: each names its partial index and scans no table."""

import json
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import QuerySet
from django.db.models.functions import Now

from mailbox_app import gauges
from mailbox_app.api.v1.pagination import Newest
from mailbox_app.models import (
    Dispatch,
    Event,
    IdempotencyKey,
    JournalEntry,
    Message,
    Outbox,
    Run,
    Thread,
    Ticket,
    columns,
    ready,
)
from mailbox_app.models.writes import Writes
from mailbox_app.operations import (
    candidates,
    children,
    claim,
    deliver,
    freeze,
    heads,
    missing,
    ownership,
    permits,
    replay,
    room,
)
from mailbox_app.watching import rows

# A queue's due threads are few among many; some wake later, some are claimed, most are idle with finished work.
FILL = """
    INSERT INTO mailbox_thread (id, scope, title, metadata, epoch, last_seq, last_cursor, pruned_cursor, next_order,
        claim_count, pending_revision, due_at, due_priority, due_queue, due_agent, due_version, wakes_at,
        blocked_reason)
    SELECT ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, 'acme', '', '{}', 0, 0, 3, 0, 2, 0, 1,
        CASE WHEN n % 5 = 0 THEN now() END, CASE WHEN n % 5 = 0 THEN 128 END,
        CASE WHEN n % 5 = 0 THEN 'mailbox.default' END, CASE WHEN n % 5 = 0 THEN 'agent-' || n % 3 END,
        CASE WHEN n % 5 = 0 THEN '' END, CASE WHEN n % 5 = 1 THEN now() + n * interval '1 minute' END, ''
    FROM generate_series(1, 5000) AS n;

    INSERT INTO mailbox_run (id, scope, thread_id, agent, code_version, config_version, status, turn, "order", input,
        output, activation, state, resumes, steps, input_tokens, output_tokens, created_at, started_at, finished_at)
    SELECT id, 'acme', id, 'echo', '', '', CASE WHEN due_at IS NULL AND wakes_at IS NULL THEN 'done' ELSE 'created' END,
        1, 1, '{}', '{}', '{}', '{}', '[]', 0, 0, 0, now() - random() * interval '30 days',
        now(), CASE WHEN due_at IS NULL AND wakes_at IS NULL THEN now() END
    FROM mailbox_thread;

    UPDATE mailbox_run SET status = 'waiting', finished_at = NULL, waiting = '{}', wait_until = now() + interval '1 day'
    WHERE status = 'done' AND right(id::text, 1) = '2';
    UPDATE mailbox_run SET status = 'running', finished_at = NULL WHERE status = 'done' AND right(id::text, 1) = '3';

    INSERT INTO mailbox_dispatch (id, thread_id, run_id, agent, version_key, queue, priority, "order", epoch, status,
        available_at, attempt_count, lost_count, max_attempts, last_error, claimed_by, resolution, completed_at)
    SELECT id, id, id, coalesce(due_agent, 'echo'), '', 'mailbox.default', 128, 1, 0,
        CASE WHEN due_at IS NULL AND wakes_at IS NULL THEN 'acked' ELSE 'queued' END, coalesce(wakes_at, now()),
        0, 0, 5, '', '', '', CASE WHEN due_at IS NULL AND wakes_at IS NULL THEN now() END
    FROM mailbox_thread;

    INSERT INTO mailbox_outbox (id, source_thread_id, target_thread_id, kind, "order", payload, status, attempt_count,
        last_error, completed_at)
    SELECT id, id, id, 'message', 1, '{}', CASE WHEN due_at IS NULL THEN 'delivered' ELSE 'pending' END, 0, '',
        CASE WHEN due_at IS NULL THEN now() END
    FROM mailbox_thread;

    INSERT INTO mailbox_outbox (id, source_thread_id, target_thread_id, kind, "order", payload, status, attempt_count,
        last_error)
    SELECT gen_random_uuid(), id, id, 'wake', 2, '{}', 'pending', 0, '' FROM mailbox_thread WHERE due_at IS NOT NULL;

    INSERT INTO mailbox_event (thread_id, cursor, run_id, kind, payload, visibility, schema_version, correlation_id)
    SELECT id, cursor, id, 'RunQueued', '{}', 'public', 1, '' FROM mailbox_thread, generate_series(1, 3) AS cursor;

    INSERT INTO mailbox_message (id, scope, thread_id, run_id, state, seq, position, revision, held, retract_reason,
        read_turn, read_at, visibility, role, content, metadata, sender, boundary, granularity, barrier, fallback)
    SELECT id, 'acme', id, id, CASE WHEN due_at IS NULL AND wakes_at IS NULL THEN 'committed' ELSE 'pending' END,
        CASE WHEN due_at IS NULL AND wakes_at IS NULL THEN 1 END, 1, 1, false, '', 1, '', 'public', 'user', '"hello"',
        '{}', '', 'new_run', 'batch', false, ''
    FROM mailbox_thread;

    INSERT INTO mailbox_ticket (id, run_id, ticket_id, name, turn, entry, status, question, arguments, resume_mode,
        decision_id, answered_by, answered_at, expires_at)
    SELECT id, id, id::text, 'approve', 1, '{}', CASE WHEN due_at IS NULL THEN 'answered' ELSE 'open' END, '', '{}', '',
        '', '', CASE WHEN due_at IS NULL THEN now() END, now() + interval '1 day'
    FROM mailbox_thread;

    INSERT INTO mailbox_pause (id, kind, name, scope, note, paused_by)
    SELECT id, 'thread', id::text, 'acme', '', '' FROM mailbox_thread WHERE due_at IS NULL;
    INSERT INTO mailbox_pause (id, kind, name, scope, note, paused_by)
    SELECT gen_random_uuid(), kind, 'agent-' || n, '', '', ''
    FROM unnest(ARRAY['agent', 'queue']) AS kind, generate_series(1, 10, 9) AS n;

    INSERT INTO mailbox_limit (id, kind, name, most, is_settling, note, set_by)
    SELECT id, 'scope', 'scope-' || id, 2, false, '', '' FROM mailbox_thread;
    INSERT INTO mailbox_limit (id, kind, name, most, is_settling, note, set_by)
    SELECT gen_random_uuid(), 'agent', 'agent-' || n, 2, false, '', '' FROM generate_series(1, 500) AS n;
    INSERT INTO mailbox_permit (id, limit_id, is_retired)
    SELECT gen_random_uuid(), id, false FROM mailbox_limit, generate_series(1, 2);

    INSERT INTO mailbox_journalentry (run_id, turn, verb, name, key, n, arguments_hash)
    SELECT id, 1, 'step', 'look-up', '', n, '' FROM mailbox_thread, generate_series(1, 2) AS n;
"""


@pytest.fixture(scope="module")
def _filled(django_db_setup: Any, django_db_blocker: Any) -> Iterator[None]:
    """5,000 threads, many of them and an agent paused, seen by all tests of this file and by none after them."""
    with django_db_blocker.unblock():
        with connection.cursor() as cursor:
            cursor.execute(FILL)
            cursor.execute("ANALYZE")
        yield
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE mailbox_thread, mailbox_pause, mailbox_limit CASCADE")
            cursor.execute("ANALYZE")


pytestmark = [pytest.mark.usefixtures("_filled"), pytest.mark.django_db]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def explain(sql: str, params: Any) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", params)
        found = cursor.fetchone()[0]
    return list(nodes((json.loads(found) if isinstance(found, str) else found)[0]["Plan"]))


def assert_uses(index: str, rows: QuerySet[Any] | tuple[str, Any], *, sorts: bool = False) -> None:
    sql, params = rows if isinstance(rows, tuple) else rows.query.sql_with_params()
    plan = explain(sql, params)
    assert index in {node.get("Index Name") for node in plan}, plan
    assert "Seq Scan" not in {node["Node Type"] for node in plan}, plan
    if not sorts:
        assert not {"Sort", "Incremental Sort"} & {node["Node Type"] for node in plan}, plan


def a_thread() -> Thread:
    return Thread.objects.filter(due_at__isnull=False)[0]


def test_a_claim_looks_for_candidates_in_one_index_range_an_agent() -> None:
    params = candidates.lanes("mailbox.default", candidates.Runnable.of(["agent-0", "agent-1", "none"])) | {
        "limit": 1,
        "width": 8,
        "without": [],
    }
    sql = candidates.LOCK.replace("{columns}", "thread.id")
    # The sort is over at most `limit` rows an agent, not over the backlog.
    assert_uses("thread_due", (sql, params), sorts=True)
    plan = explain(sql, params)
    scans = [node for node in plan if node.get("Index Name") == "thread_due"]
    assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan"}
    assert all("due_agent" in node["Index Cond"] for node in scans)
    assert any("due_version = " in node["Index Cond"] for node in scans)
    kinds = [node["Node Type"] for node in plan]
    lane = kinds.index("CTE Scan")
    assert kinds[lane + 1 : lane + 3] == ["Limit", "Index Only Scan"], "each range comes in order"


def test_a_head_and_what_wakes_a_thread_are_one_probe_each() -> None:
    look = ready.HEADS, {"thread": a_thread().pk}
    plan = explain(*look)
    # With one queued dispatch a thread, either index leads to it.
    used = {node["Index Name"] for node in plan if "Index Name" in node}
    assert used <= {"dispatch_head", "dispatch_waking", "message_barrier"}, plan
    assert len([node for node in plan if node.get("Relation Name") == "mailbox_message"]) == 1, "one probe more"
    assert "dispatch_waking" in used, plan
    assert "Seq Scan" not in {node["Node Type"] for node in plan}, plan


def test_an_open_run_s_own_dispatch_is_found_by_its_run() -> None:
    assert_uses("dispatch_one_live_per_run", (ready.HEAD_OF_RUN, {"run": uuid.uuid4()}))


def test_a_claim_finds_head_and_run_by_index() -> None:
    sql = heads.HEADS.replace("{columns}", "dispatch.*, run.*")
    look = sql, {"threads": [a_thread().pk], "open": [None]}
    assert_uses("dispatch_head", look, sorts=True)
    assert_uses("dispatch_one_live_per_run", look, sorts=True)


def test_a_mailbox_s_queued_runs_are_counted_by_index_up_to_the_bound() -> None:
    params = {"thread": a_thread().pk, "open": None, "most": 20}
    plan = explain(room.QUEUED, params)
    assert {"dispatch_head", "dispatch_waking"} & {node.get("Index Name") for node in plan}, plan
    assert "Limit" in {node["Node Type"] for node in plan}


def test_a_worker_proves_its_claim_in_one_probe() -> None:
    sql = ownership._HELD.replace("{columns}", "dispatch.*, run.*")
    params = {"thread": a_thread().pk, "dispatch": uuid.uuid4(), "token": uuid.uuid4()}
    assert_uses("dispatch_one_claimed_per_thread", (sql, params))


def test_what_a_fence_writes_is_found_by_primary_key() -> None:
    sent = []

    def look(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        sent.append((sql, params))
        return execute(sql, params, many, context)

    for count in (1, 4, 16):
        writes = Writes()
        for thread in Thread.objects.filter(due_at__isnull=False)[:count]:
            writes.change(thread, {"last_seq": 1})
        with connection.execute_wrapper(look):
            writes.flush()
    for statement in sent:
        assert_uses("mailbox_thread_pkey", statement, sorts=True)


def test_the_tick_reads_what_wakes_by_now_in_order() -> None:
    assert_uses("thread_waking", Thread.objects.waking().order_by("wakes_at", "id")[:100])


def test_the_sweep_finds_expired_leases_among_claims_alone() -> None:
    rows = Dispatch.objects.expired().order_by("lease_until", "id").values_list("thread_id", flat=True)[:100]
    assert_uses("dispatch_one_claimed_per_thread", rows, sorts=True)


def test_a_worker_finds_its_claim_by_token_among_claims_alone() -> None:
    assert_uses("dispatch_one_claimed_per_thread", Dispatch.objects.held_by(uuid.uuid4()))


def test_a_renewal_looks_among_claims_alone() -> None:
    assert_uses(
        "dispatch_one_claimed_per_thread", (claim._RENEW, {"tokens": [uuid.uuid4()], "seconds": 30}), sorts=True
    )


def test_whether_a_queue_has_due_work_is_one_probe() -> None:
    assert_uses("thread_due", (candidates.HAS_DUE, {"queue": "mailbox.default"}))


def test_how_much_is_due_on_each_queue_is_counted_by_index() -> None:
    assert_uses("thread_due", (candidates.DUE_QUEUES, {"most": 8}), sorts=True)
    assert candidates.due_queues(most=8) == {"mailbox.default": 8}


def test_what_limits_it_is_a_probe_of_each_limit_and_its_permits() -> None:
    runnable = candidates.Runnable.of(["agent-0", "agent-1", "agent-2"])
    params = {**candidates.lanes("mailbox.default", runnable), "limit": 1, "width": 8, "without": []}
    for sql, given in (
        (candidates.LOCK.replace("{columns}", "thread.id"), params),
        (candidates.HAS_DUE, {"queue": "mailbox.default"}),
        (candidates.DUE_LANES, {}),
        (candidates.DUE_QUEUES, {"most": 8}),
        (permits._FREE, {"limits": [uuid.uuid4()], "numbers": [2]}),
        (permits._ROOM_OF_SCOPES, {"scopes": ["acme"], "limit": 100}),
    ):
        used = {node.get("Index Name") for node in explain(sql, given)}
        assert "permit_of_limit" in used, (sql, used)
        assert sql == permits._FREE or "limit_once" in used, (sql, used)
    sql = heads.HEADS.replace("{columns}", "dispatch.*")
    found = explain(sql, {"threads": [a_thread().pk], "open": [None]})
    assert [node["Index Name"] for node in found if node.get("Relation Name") == "mailbox_limit"] == ["limit_once"] * 2


def test_blocked_threads_are_found_by_scope_in_their_order() -> None:
    assert_uses("thread_over_scope_limit", (permits._FIRST_BLOCKED, {"scope": "acme", "limit": 2}))
    assert_uses("thread_over_scope_limit", (permits._SCOPES, {"after": "", "limit": 100}))


def test_whether_it_is_paused_is_one_probe_of_an_index_of_few() -> None:
    runnable = candidates.Runnable.of(["agent-0", "agent-1", "agent-2"])
    params = {**candidates.lanes("mailbox.default", runnable), "limit": 1, "width": 8, "without": []}
    for sql, given in (
        (candidates.LOCK.replace("{columns}", "thread.id"), params),
        (heads.HEADS.replace("{columns}", "dispatch.*"), {"threads": [a_thread().pk], "open": [None]}),
        (candidates.HAS_DUE, {"queue": "mailbox.default"}),
        (candidates.DUE_LANES, {}),
        (candidates.DUE_QUEUES, {"most": 8}),
    ):
        probes = [node for node in explain(sql, given) if node.get("Index Name") == "pause_once"]
        assert len(probes) == 2, (sql, probes)
        assert all("kind" in node["Index Cond"] for node in probes), sql
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {candidates.LOCK.replace('{columns}', 'thread.id')}", params)
        [lane] = [one for one in nodes(cursor.fetchone()[0][0]["Plan"]) if one.get("Subplan Name") == "CTE lane"]
    assert lane["Actual Rows"] == 4, "two agents, each with one version and the end of them; the paused one is no lane"
    assert sorted(candidates.due_lanes()) == [("mailbox.default", "agent-0"), ("mailbox.default", "agent-2")]


def test_which_agents_have_due_work_is_one_probe_each() -> None:
    assert_uses("thread_due", (candidates.DUE_LANES, ()))
    wanted = {"queue": "mailbox.default", "agent": "agent-0", "limit": 1000, **missing._START}
    assert_uses("thread_due", (missing.NEXT, wanted))
    [scan] = [node for node in explain(missing.NEXT, wanted) if node.get("Index Name") == "thread_due"]
    assert "ROW(due_priority, due_at, id) >" in scan["Index Cond"]


def test_the_sweep_finds_what_no_worker_can_run_among_what_is_stamped_alone() -> None:
    old = Dispatch.objects.queued().filter(unrunnable_since__lte=Now()).order_by("unrunnable_since", "id")
    assert_uses("dispatch_unrunnable", old[:100])


def test_a_run_s_pending_messages_are_read_in_order() -> None:
    sql = freeze._READABLE.replace("{columns}", "message.*")
    look = sql, {"threads": [a_thread().pk], "runs": [uuid.uuid4()]}
    assert_uses("message_pending", look, sorts=True)
    assert_uses("message_barrier", look, sorts=True)
    scans = [node for node in explain(*look) if node.get("Index Name") == "message_pending"]
    assert len(scans) == 2
    assert all("run_id" in node["Index Cond"] for node in scans), "whatever waits for other runs is not read"


def test_a_turn_s_input_is_read_in_order() -> None:
    assert_uses("message_of_run", Message.objects.read_in(uuid.uuid4(), 1), sorts=True)


def test_a_turn_s_journal_is_one_range() -> None:
    rows = JournalEntry.objects.of_turn(uuid.uuid4(), 1)
    assert_uses("journal_entry_once_per_use", rows, sorts=True)


def test_events_after_a_cursor_are_read_in_order() -> None:
    assert_uses("event_cursor_unique_in_thread", Event.objects.filter(thread=a_thread()).after(1)[:256], sorts=True)


def test_the_events_of_a_run_are_read_in_order() -> None:
    assert_uses("event_of_run", Event.objects.filter(run_id=uuid.uuid4()).after(0)[:256], sorts=True)


def test_what_is_to_be_delivered_is_found_among_what_is_pending() -> None:
    assert_uses("outbox_pending", (deliver.DUE, {"limit": 100}), sorts=True)
    assert_uses("outbox_in_order", (deliver.DUE, {"limit": 100}), sorts=True)
    thread = a_thread()
    sql = deliver.FIRST.replace("{columns}", "outbox.*")
    assert_uses("outbox_in_order", (sql, {"source": thread.pk, "target": thread.pk}))


def test_errands_are_found_among_those_that_are_pending() -> None:
    assert_uses("outbox_errands", (children.DUE, {"limit": 100}))
    sql = children.NEXT.replace("{columns}", "outbox.*")
    assert_uses("outbox_errands_to", (sql, {"target": a_thread().pk}))


def test_waits_that_are_over_are_found_among_what_waits() -> None:
    rows = Run.objects.overdue().order_by("wait_until", "id").values_list("thread_id", flat=True)[:100]
    assert_uses("run_waiting_until", rows)


def test_a_completion_looks_for_what_is_unread_by_index() -> None:
    sql = ownership._ENDING.replace("{columns}", "dispatch.*, run.*")
    params = {"threads": [a_thread().pk], "dispatches": [uuid.uuid4()], "tokens": [uuid.uuid4()]}
    assert_uses("message_pending", (sql, params), sorts=True)
    assert_uses("dispatch_one_claimed_per_thread", (sql, params), sorts=True)
    assert_uses("ticket_once_per_run", (sql, params), sorts=True)


def test_questions_that_are_over_are_found_among_what_is_open() -> None:
    rows = Ticket.objects.overdue().order_by("expires_at", "id").values_list("run_id", flat=True)[:100]
    assert_uses("ticket_open", rows)


def test_a_run_s_questions_are_found_by_its_id() -> None:
    assert_uses("ticket_once_per_run", Ticket.objects.of_run(uuid.uuid4()).open(), sorts=True)


def test_a_scope_s_waiting_runs_are_read_among_what_waits() -> None:
    rows = Newest("waits", by="created_at").after(Run.objects.in_scope("acme").waiting(), None)[:51]
    assert_uses("run_waiting_in_scope", rows)


def test_gc_finds_what_is_past_its_retention() -> None:
    old = Now() - timedelta(days=1)
    terminal = Dispatch.objects.terminal().filter(completed_at__lt=old).order_by("completed_at", "id")[:100]
    assert_uses("dispatch_terminal", terminal)
    outbox = Outbox.objects.filter(status="delivered", completed_at__lt=old).order_by("completed_at", "id")[:100]
    assert_uses("outbox_ended", outbox)
    assert_uses("event_age", Event.objects.filter(created_at__lt=old).order_by("created_at", "id")[:100])
    keys = IdempotencyKey.objects.filter(created_at__lt=old).order_by("created_at", "id")[:100]
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")  # the table is empty
    assert_uses("idempotency_key_age", keys, sorts=True)


def test_dead_letters_are_read_newest_first() -> None:
    assert_uses("dispatch_dead_letter", Dispatch.objects.dead_letters().order_by("-completed_at", "-id")[:50])


def test_a_dedupe_key_s_holder_is_one_probe() -> None:
    rows = Run.objects.in_scope("acme").filter(dedupe_key="k").not_done()
    assert_uses("run_dedupe_key_unique_while_not_done", rows, sorts=True)


def test_a_thread_s_key_is_one_probe() -> None:
    assert_uses("thread_key_unique_in_scope", Thread.objects.in_scope("acme").not_deleted().filter(key="k"))


def test_a_scope_s_runs_are_listed_newest_first() -> None:
    rows = Run.objects.in_scope("acme").filter(thread__deleted_at=None)
    early = Run.objects.order_by("-created_at", "-pk")[50]
    for cursor in (None, Newest("runs", by="created_at").at(early)):
        assert_uses("run_recent_in_scope", Newest("runs", by="created_at").after(rows, cursor)[:51], sorts=True)


def test_a_thread_s_runs_are_listed_newest_first() -> None:
    rows = Run.objects.filter(thread=a_thread())
    assert_uses("run_of_thread", Newest("runs", by="order").after(rows, None)[:51], sorts=True)


def test_the_dead_letters_of_a_scope_are_listed_latest_first() -> None:
    rows = Newest("dead", by="completed_at").after(replay.matching(scope="acme"), None)[:51]
    assert_uses("dispatch_dead_letter", rows, sorts=True)


def test_gc_finds_deleted_threads() -> None:
    old = Thread.objects.filter(deleted_at__lt=Now() - timedelta(days=7)).order_by("deleted_at", "id")[:100]
    assert_uses("thread_deleted", old, sorts=True)


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (gauges._CLAIMED, "dispatch_one_claimed_per_thread"),
        (gauges._OLDEST, "thread_due"),
        (gauges._UNRESOLVED, "dispatch_dead_letter"),
    ],
    ids=["claimed", "oldest due", "dead letters"],
)
def test_a_scrape_counts_through_partial_indexes(sql: str, index: str) -> None:
    plan = explain(sql, {"most": 20_000})
    assert index in {node.get("Index Name") for node in plan}, plan
    assert "Seq Scan" not in {node["Node Type"] for node in plan}, plan


def test_a_scrape_looks_at_no_more_queued_dispatches_than_it_may() -> None:
    [limit] = [node for node in explain(gauges._QUEUED, {"most": 100}) if node["Node Type"] == "Limit"]
    assert limit["Plan Rows"] <= 100


def test_who_follows_a_run_or_a_thread_looks_by_indexes_alone() -> None:
    thread = a_thread()
    params = {"thread": thread.pk, "run": thread.pk, "cursor": 1}
    for whose, index in {rows.OF_RUN: "event_of_run", rows.OF_THREAD: "event_cursor_unique_in_thread"}.items():
        sql = rows.LOOK.replace("{columns}", columns(Event, "event")).replace("{whose}", whose)
        assert_uses(index, (sql, params), sorts=True)
    assert_uses("journal_entry_once_per_use", (rows.MARK, {"run": thread.pk}), sorts=True)
