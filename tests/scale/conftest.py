"""Rows by the million, made once for all tests of this folder."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction

# 30 days of 1,000,000 dispatches: 250,000 runs of four activations each on 50,000 threads. 20,000 old ones are queued,
# no newer ones are, as if one agent's workers were gone; some are claimed or wait; one in a thousand died, nine in
# ten of those were dealt with; one message a run, an event for every other dispatch. Ids are version 7: ordered by the
# time they were made. Written as a replica does it: every foreign key is right by construction.
FILL = """
    SET LOCAL session_replication_role = replica;

    CREATE FUNCTION pg_temp.made(nth numeric, of numeric) RETURNS timestamptz LANGUAGE sql AS $$
        SELECT statement_timestamp() - interval '30 days' * (1 - nth / of)::float8
    $$;
    CREATE FUNCTION pg_temp.id(kind int, nth bigint, of bigint) RETURNS uuid LANGUAGE sql AS $$
        SELECT (lpad(to_hex((extract(epoch FROM pg_temp.made(nth, of)) * 1000)::bigint), 12, '0')
            || '7' || lpad(to_hex(kind), 3, '0') || 'a' || lpad(to_hex(nth), 15, '0'))::uuid
    $$;

    INSERT INTO mailbox_thread (id, scope, key, title, metadata, epoch, last_seq, last_cursor, pruned_cursor,
        next_order, claim_count, pending_revision, blocked_reason, created_at, updated_at)
    SELECT pg_temp.id(1, n, 50000), 'scope-' || n % 50, 'customer-' || n, '', '{}', 0, 10, 20, 0, 11, 10, 1, '',
        pg_temp.made(n, 50000), pg_temp.made(n, 50000)
    FROM generate_series(1, 50000) AS n;

    CREATE TEMPORARY TABLE threads ON COMMIT DROP AS
        SELECT id AS thread_id, row_number() OVER (ORDER BY id) AS nth FROM mailbox_thread;

    INSERT INTO mailbox_run (id, scope, thread_id, agent, code_version, config_version, status, turn, "order", input,
        output, activation, state, resumes, steps, input_tokens, output_tokens, created_at, updated_at, started_at,
        waiting, wait_until, finished_at)
    SELECT pg_temp.id(2, n, 250000), 'scope-' || (1 + n % 50000) % 50, thread_id, 'agent-' || n % 7, '1', '', status,
        1, n, '{}', '{}', '{"version": 1, "origin": "rest"}', '{}', '[]', 2, 100, 50,
        pg_temp.made(n, 250000), pg_temp.made(n, 250000), CASE WHEN status <> 'created' THEN now() END,
        CASE WHEN status = 'waiting' THEN '{"reason": "user_input"}'::jsonb END,
        CASE WHEN status = 'waiting' THEN now() + interval '1 day' END, CASE WHEN status = 'done' THEN now() END
    FROM (
        SELECT n, CASE WHEN n BETWEEN 100001 AND 120000 THEN 'created' WHEN n > 249900 THEN 'running'
            WHEN n BETWEEN 220001 AND 221000 THEN 'waiting' ELSE 'done' END AS status
        FROM generate_series(1, 250000) AS n
    ) AS runs JOIN threads ON nth = 1 + n % 50000;

    CREATE TEMPORARY TABLE runs ON COMMIT DROP AS
        SELECT id, thread_id, agent, status, row_number() OVER (ORDER BY id) AS nth FROM mailbox_run;

    INSERT INTO mailbox_dispatch (id, thread_id, run_id, agent, version_key, queue, priority, "order", epoch, status,
        available_at, attempt_count, lost_count, max_attempts, last_error, claim_token, claimed_by, lease_until,
        resolution, resolved_at, created_at, updated_at, completed_at)
    SELECT pg_temp.id(3, n, 1000000), thread_id, run_id, agent, '', 'mailbox.default', 128, n, 0, status,
        pg_temp.made(n, 1000000), 0, 0, 5, CASE WHEN status = 'dead_letter' THEN 'permanent: no' ELSE '' END,
        CASE WHEN status = 'claimed' THEN gen_random_uuid() END,
        CASE WHEN status = 'claimed' THEN 'worker@a' ELSE '' END, CASE WHEN status = 'claimed' THEN now() END,
        CASE WHEN status = 'dead_letter' AND n % 10000 <> 0 THEN 'discarded' ELSE '' END,
        CASE WHEN status = 'dead_letter' AND n % 10000 <> 0 THEN now() END, pg_temp.made(n, 1000000),
        pg_temp.made(n, 1000000), CASE WHEN status NOT IN ('queued', 'claimed') THEN pg_temp.made(n, 1000000) END
    FROM (
        SELECT n, thread_id, runs.id AS run_id, agent, CASE WHEN runs.status = 'created' AND n % 4 = 0 THEN 'queued'
            WHEN runs.status = 'running' AND n % 4 = 0 THEN 'claimed' WHEN n % 1000 = 0 THEN 'dead_letter'
            ELSE 'acked' END AS status
        FROM generate_series(1, 1000000) AS n JOIN runs ON nth = (n + 3) / 4
    ) AS dispatches;

    INSERT INTO mailbox_event (thread_id, cursor, run_id, kind, payload, visibility, schema_version, correlation_id,
        created_at)
    SELECT thread_id, n, id, 'RunQueued', '{"attempt_count": 0}', 'public', 1, '', pg_temp.made(n, 500000)
    FROM generate_series(1, 500000) AS n JOIN runs ON nth = (n + 1) / 2;

    INSERT INTO mailbox_message (id, scope, thread_id, run_id, state, seq, position, revision, held, retract_reason,
        read_turn, read_at, visibility, role, content, metadata, sender, boundary, granularity, barrier, fallback,
        created_at, updated_at)
    SELECT pg_temp.id(4, nth, 250000), 'acme', thread_id, id, 'committed', nth, nth, 1, false, '', 1, 'start',
        'public', 'user', '"hello"', '{}', '', 'new_run', 'batch', false, '', pg_temp.made(nth, 250000),
        pg_temp.made(nth, 250000)
    FROM runs;

    INSERT INTO mailbox_journalentry (run_id, turn, verb, name, key, n, arguments_hash, result)
    SELECT id, 1, 'step', 'look-up', '', 1, '', '[1]' FROM runs WHERE nth % 4 = 0;
"""


@pytest.fixture(scope="package")
def a_million(django_db_setup: Any, django_db_blocker: Any) -> Iterator[None]:
    """A million dispatches and what goes with them, seen by the tests of this folder and by none after them."""
    with django_db_blocker.unblock():
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(FILL)
        with connection.cursor() as cursor:
            # As autovacuum leaves them: with statistics, and with pages known to be visible.
            cursor.execute("VACUUM (ANALYZE)")
        yield
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE mailbox_thread, mailbox_limit CASCADE")
            cursor.execute("ANALYZE")
