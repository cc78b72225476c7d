"""A page of events, of a thread or of a run, costs the same wherever in a history it is, and however long that is.

The statements are those the API and the streams send; each is one range of an index, in its order.
"""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from mailbox_app.api.v1 import stream_rows
from mailbox_app.models import Event, columns
from tests import make

# One thread with 60,000 events of three runs, one in fifty of them internal, among 600 with 100 each.
FILL = """
    SET LOCAL session_replication_role = replica;

    INSERT INTO mailbox_thread (id, scope, title, metadata, epoch, last_seq, last_cursor, pruned_cursor, next_order,
        claim_count, pending_revision, blocked_reason)
    SELECT ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, 'acme', '', '{}', 0, 0,
        CASE WHEN n = 0 THEN 60000 ELSE 100 END, 0, 2, 0, 1, ''
    FROM generate_series(0, 600) AS n;

    INSERT INTO mailbox_run (id, scope, thread_id, agent, code_version, config_version, status, turn, "order", input,
        output, activation, state, resumes, steps, input_tokens, output_tokens, finished_at)
    SELECT ('00000000-0000-0000-0001-' || lpad(n::text, 12, '0'))::uuid, 'acme',
        '00000000-0000-0000-0000-000000000000', 'echo', '', '', 'done', 1, n, '{}', '{}', '{}', '{}', '[]', 0, 0, 0,
        now()
    FROM generate_series(0, 2) AS n;

    INSERT INTO mailbox_event (thread_id, cursor, run_id, kind, payload, visibility, schema_version, correlation_id)
    SELECT thread.id, n, ('00000000-0000-0000-0001-' || lpad((n % 3)::text, 12, '0'))::uuid, 'Step',
        '{"number": 1}', CASE WHEN n % 50 = 0 THEN 'internal' ELSE 'public' END, 1, ''
    FROM mailbox_thread AS thread, generate_series(1, thread.last_cursor) AS n
    ORDER BY n, thread.id;
"""
LAST = 60_000
THREAD = uuid.UUID(int=0)
RUN = uuid.UUID("00000000-0000-0000-0001-000000000001")
PAGE = 100
# One more than is shown, and what is internal between them.
MOST_ROWS = PAGE * 51 // 50 + 2
# Each event of the thread lies in a page of its own, where others were written between them; and the index above.
MOST_PAGES = MOST_ROWS + 20


@pytest.fixture(scope="module", autouse=True)
def _filled(django_db_setup: Any, django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock():
        with connection.cursor() as cursor:
            with transaction.atomic():
                cursor.execute(FILL)
            cursor.execute("VACUUM (ANALYZE)")
        yield
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE mailbox_thread CASCADE")
            cursor.execute("ANALYZE")


pytestmark = pytest.mark.django_db


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def assert_is_one_range(index: str, sql: str, params: Any = None) -> None:
    """Of this index, in its order, and no longer than what is shown; a rest that is no page may be sorted instead."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params)
        found = cursor.fetchone()[0]
    plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    parts = list(nodes(plan))
    assert index in {node.get("Index Name") for node in parts}, plan
    [reading] = [node for node in parts if node.get("Relation Name") == "mailbox_event"]
    assert "Index Name" in reading or reading["Actual Rows"] < PAGE, plan
    assert reading["Actual Rows"] + reading.get("Rows Removed by Filter", 0) <= MOST_ROWS, "more than what is internal"
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= MOST_PAGES


@pytest.mark.parametrize("cursor", [0, LAST // 2, LAST - 50, LAST])
@pytest.mark.parametrize(
    ("path", "index"),
    [(f"/threads/{THREAD}/events", "event_cursor_unique_in_thread"), (f"/runs/{RUN}/events", "event_of_run")],
    ids=["thread", "run"],
)
def test_a_page_of_the_api_is_one_range(path: str, index: str, cursor: int) -> None:
    api = make.api(scope="acme")
    api.get(path)
    with CaptureQueriesContext(
        connection,
    ) as sent:
        page = api.get(path, cursor=cursor, limit=PAGE).json()
    assert len(sent) <= 4, "whatever it holds"
    assert all(item["cursor"] > cursor for item in page["items"])
    [reading] = [one["sql"] for one in sent if 'FROM "mailbox_event"' in (one["sql"] or "")]
    assert " ORDER BY " in reading
    assert_is_one_range(index, reading)


@pytest.mark.parametrize("cursor", [0, LAST // 2, LAST - 50, LAST])
def test_a_reading_of_a_stream_is_one_range(cursor: int) -> None:
    of_threads = stream_rows._OF_THREADS.replace("{columns}", columns(Event, "event"))
    wanted = {"threads": [THREAD], "cursors": [cursor]}
    assert_is_one_range("event_cursor_unique_in_thread", of_threads, wanted)
    of_run = stream_rows._OF_RUN.replace("{columns}", columns(Event, "event"))
    of = {"thread": THREAD, "run": RUN, "cursor": cursor}
    assert_is_one_range("event_of_run", of_run, of)
