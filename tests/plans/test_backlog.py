"""What a look costs with a backlog of 100,000 threads."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now

from mailbox_app.models import Dispatch
from mailbox_app.operations import candidates, missing

# Due threads of two agents that no worker has, each with its run and dispatch.
FILL = (
    """
    INSERT INTO mailbox_thread (id, scope, title, metadata, epoch, last_seq, last_cursor, pruned_cursor, next_order,
        claim_count, pending_revision, due_at, due_priority, due_queue, due_agent, due_version, blocked_reason)
    SELECT ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, 'acme', '', '{}', 0, 0, 0, 0, 2, 0, 1,
        now() - n * interval '1 second', 128, 'mailbox.default', 'gone-' || n % 2, '', ''
    FROM generate_series(1, 100000) AS n
    """,
    """
    INSERT INTO mailbox_run (id, scope, thread_id, agent, code_version, config_version, status, turn, "order", input,
        output, activation, state, resumes, steps, input_tokens, output_tokens)
    SELECT id, 'acme', id, due_agent, '', '', 'created', 1, 1, '{}', '{}', '{}', '{}', '[]', 0, 0, 0
    FROM mailbox_thread
    """,
    """
    INSERT INTO mailbox_dispatch (id, thread_id, run_id, agent, version_key, queue, priority, "order", epoch, status,
        available_at, attempt_count, lost_count, max_attempts, last_error, claimed_by, resolution)
    SELECT id, id, id, due_agent, '', 'mailbox.default', 128, 1, 0, 'queued', due_at, 0, 0, 5, '', '', ''
    FROM mailbox_thread
    """,
)


@pytest.fixture(scope="module")
def _filled(django_db_setup: Any, django_db_blocker: Any) -> Iterator[None]:
    """100,000 threads, seen by all tests of this file and by none after them."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        for statement in FILL:
            cursor.execute(statement)
            # Each in a transaction of its own: the next one's foreign keys are checked with statistics at hand.
            cursor.execute("ANALYZE")
        yield
        cursor.execute("TRUNCATE mailbox_thread CASCADE")
        cursor.execute("ANALYZE")


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_filled"), pytest.mark.django_db]


@pytest.fixture(autouse=True)
def _fresh_places() -> Iterator[None]:
    missing._places.clear()
    missing._stamped_after.clear()
    yield
    missing._places.clear()
    missing._stamped_after.clear()


def test_a_look_at_missing_agents_costs_a_window_of_each() -> None:
    assert missing.note() == 2 * missing._WINDOW
    Dispatch.objects.update(unrunnable_since=Now())
    assert missing.note() == 0
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + candidates.DUE_LANES)
        plan = cursor.fetchone()[0][0]["Plan"]
    assert plan["Actual Rows"] == 2
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100
