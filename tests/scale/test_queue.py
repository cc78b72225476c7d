"""What the queue reads of its tables does not grow with them: pages of PostgreSQL, counted, whatever waits or is over.

Beside a million finished dispatches: 100,000 due threads of agents nobody runs, 100,000 threads scheduled for later,
100,000 dispatches behind one busy thread, 100,000 threads that the limit of their scope has blocked. Each look is
counted twice: with the statistics from before these rows came,
and with those of now.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import redis
from django.db import connection, transaction
from django.db.models.functions import Now

from mailbox_app import channel, hints
from mailbox_app.conf import conf
from mailbox_app.models import Dispatch, Permit, Thread
from mailbox_app.operations import (
    candidates,
    claim,
    deliver,
    limits,
    missing,
    permits,
    prune,
    recover,
    settle,
    submit,
    tick,
)
from mailbox_app.operations.settle import Finishing
from tests import given
from tests.operations import scene

# In front of everything a worker could run: by priority, and by time.
FILL = """
    SET LOCAL session_replication_role = replica;

    UPDATE mailbox_thread AS thread SET active_run_id = run_id, open_run_id = run_id
    FROM mailbox_dispatch WHERE thread_id = thread.id AND status = 'claimed';
    UPDATE mailbox_thread AS thread SET open_run_id = run.id
    FROM mailbox_run AS run WHERE run.thread_id = thread.id AND run.status = 'waiting' AND active_run_id IS NULL;
    UPDATE mailbox_thread AS thread SET blocked_reason = 'open_run'
    WHERE active_run_id IS NULL AND open_run_id IS NOT NULL
        AND EXISTS (SELECT FROM mailbox_dispatch WHERE thread_id = thread.id AND status = 'queued');
    UPDATE mailbox_thread AS thread
    SET due_at = available_at, due_priority = priority, due_queue = queue, due_agent = agent, due_version = ''
    FROM mailbox_dispatch
    WHERE thread_id = thread.id AND status = 'queued' AND active_run_id IS NULL AND open_run_id IS NULL;

    UPDATE mailbox_dispatch SET unrunnable_since = now() WHERE status = 'queued';
    UPDATE mailbox_event SET created_at = now() WHERE created_at < now() - interval '6 days';

    CREATE TEMPORARY TABLE added ON COMMIT DROP AS
    SELECT n, pg_temp.big_id(1, n) AS thread_id, pg_temp.big_id(2, n) AS id,
        CASE WHEN n <= 200000 THEN 'gone-' || n % 2 ELSE 'echo' END AS agent,
        now() - interval '40 days' + n * interval '1 second' + CASE WHEN n > 100000 THEN interval '80 days'
            ELSE interval '0' END AS at
    FROM generate_series(1, 200000) AS n
    UNION ALL SELECT n, pg_temp.big_id(1, 300000), pg_temp.big_id(2, n), 'echo', now() - interval '1 hour'
    FROM generate_series(200001, 300000) AS n
    UNION ALL SELECT n, pg_temp.big_id(1, n), pg_temp.big_id(2, n), 'echo',
        now() - interval '40 days' + n * interval '1 second'
    FROM generate_series(300001, 400000) AS n;

    INSERT INTO mailbox_limit (id, kind, name, most, is_settling, note, set_by)
    SELECT pg_temp.big_id(3, n), 'scope', 'scope ' || n, 2, false, '', '' FROM generate_series(1, 1000) AS n
    UNION ALL SELECT pg_temp.big_id(3, 2000), 'scope', 'crowd', 2, false, '', '';
    INSERT INTO mailbox_permit (id, limit_id, is_retired, dispatch_id)
    SELECT gen_random_uuid(), id, false, CASE WHEN name = 'crowd' THEN gen_random_uuid() END
    FROM mailbox_limit, generate_series(1, 2);

    INSERT INTO mailbox_thread (id, scope, title, metadata, epoch, last_seq, last_cursor, pruned_cursor, next_order,
        claim_count, pending_revision, active_run_id, open_run_id, due_at, due_priority, due_queue, due_agent,
        due_version, wakes_at, blocked_reason, blocked_priority, blocked_since)
    SELECT DISTINCT ON (thread_id) thread_id, pg_temp.big_scope(n), '', '{}', 0, 0, 0, 0, 300001, 0, 1,
        CASE WHEN n BETWEEN 200001 AND 300000 THEN id END, CASE WHEN n BETWEEN 200001 AND 300000 THEN id END,
        CASE WHEN n <= 100000 THEN at END, CASE WHEN n <= 100000 THEN 0 END,
        CASE WHEN n <= 100000 THEN 'mailbox.default' END, CASE WHEN n <= 100000 THEN agent END,
        CASE WHEN n <= 100000 THEN '' END, CASE WHEN n BETWEEN 100001 AND 200000 THEN at END,
        CASE WHEN n > 300000 THEN 'scope_limit' ELSE '' END, CASE WHEN n > 300000 THEN 0 END,
        CASE WHEN n > 300000 THEN at END
    FROM added ORDER BY thread_id, n;

    INSERT INTO mailbox_run (id, scope, thread_id, agent, code_version, config_version, status, turn, "order", input,
        output, activation, state, resumes, steps, input_tokens, output_tokens, started_at)
    SELECT id, pg_temp.big_scope(n), thread_id, agent, '', '',
        CASE WHEN n = 200001 THEN 'running' ELSE 'created' END, 1, n, '{}',
        '{}', '{}', '{}', '[]', 0, 0, 0, CASE WHEN n = 200001 THEN now() END
    FROM added;

    INSERT INTO mailbox_dispatch (id, thread_id, run_id, agent, version_key, queue, priority, "order", epoch, status,
        available_at, attempt_count, lost_count, max_attempts, last_error, claimed_by, resolution, unrunnable_since,
        claim_token, instance_id, claimed_at, lease_until)
    SELECT id, thread_id, id, agent, '', 'mailbox.default', 0, n, 0,
        CASE WHEN n = 200001 THEN 'claimed' ELSE 'queued' END, at, 0, 0, 5, '',
        CASE WHEN n = 200001 THEN 'worker@busy:1' ELSE '' END, '', CASE WHEN n <= 100000 THEN now() END,
        CASE WHEN n = 200001 THEN id END, CASE WHEN n = 200001 THEN id END,
        CASE WHEN n = 200001 THEN now() END, CASE WHEN n = 200001 THEN now() + interval '1 day' END
    FROM added;

    INSERT INTO mailbox_message (id, scope, thread_id, run_id, state, position, revision, held, retract_reason,
        read_turn, read_at, visibility, role, content, metadata, sender, boundary, granularity, barrier, fallback)
    SELECT id, pg_temp.big_scope(n), thread_id, id, 'pending', n, 1, false, '', NULL, '', 'public', 'user', '"hello"',
        '{}', '', 'new_run', 'batch', false, ''
    FROM added WHERE n <> 200001;
"""
NAMES = """
    CREATE OR REPLACE FUNCTION pg_temp.big_id(kind int, n int) RETURNS uuid LANGUAGE sql AS $$
        SELECT ('0000000' || kind || '-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid
    $$;
    CREATE OR REPLACE FUNCTION pg_temp.big_scope(n int) RETURNS text LANGUAGE sql AS $$
        SELECT CASE WHEN n > 300000 THEN 'crowd' ELSE 'big' END
    $$;
"""
BUSY = uuid.UUID("00000001-0000-7000-8000-000000300000")

pytestmark = [pytest.mark.slow, pytest.mark.django_db, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=["statistics of before", "statistics of now"], autouse=True)
def _backlogs(request: pytest.FixtureRequest, a_million: None, django_db_blocker: Any) -> None:
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        if request.param == "statistics of now":
            cursor.execute("ANALYZE")
            return
        cursor.execute(NAMES)
        with transaction.atomic():
            cursor.execute(FILL)


@pytest.fixture(autouse=True)
def _fresh_places() -> Iterator[None]:
    missing._places.clear()
    missing._stamped_after.clear()
    yield
    missing._places.clear()
    missing._stamped_after.clear()


@dataclass
class Pages:
    """How many pages of our tables and their indexes this transaction has asked for, in a block."""

    count: int = 0


@contextmanager
def counted() -> Iterator[Pages]:
    pages = Pages()
    before = _fetched()
    yield pages
    pages.count = _fetched() - before


def _fetched() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class WHERE relname ~ '^(mailbox_|[a-z_]+$)' "
            "AND relnamespace = 'public'::regnamespace"
        )
        return int(cursor.fetchone()[0])


def least(act: Callable[[], Any]) -> tuple[int, list[Any]]:
    """The pages of the cheapest of three, and what came of each: now and then a write tidies a page of an index, for
    many that come after it."""
    counts, results = [], []
    for _ in range(3):
        with counted() as pages:
            results.append(act())
        counts.append(pages.count)
    return min(counts), results


def test_a_claim_and_its_end() -> None:
    for _ in range(20):
        scene.post(priority=200)
    count, alone = least(scene.taken)
    assert count < 400
    tokens = [uuid.uuid4() for _ in range(16)]
    with counted() as pages:
        claims = claim.due(queue=scene.QUEUE, agents=["echo"], worker=scene.WORKER, tokens=tokens).claims
    assert len(claims) == 16
    assert pages.count < 16 * 200
    count, _ = least(lambda: settle.complete(alone.pop(), output="done"))
    assert count < 400
    with counted() as pages:
        settle.complete_some([Finishing(claim=one, output="done") for one in claims])
    assert pages.count < 16 * 200


def test_a_submit_to_a_new_thread_and_to_the_busy_one() -> None:
    with counted() as pages:
        scene.post()
    assert pages.count < 400
    with counted() as pages:
        scene.post(thread_id=BUSY, scope="big")
    assert pages.count < 400


def test_an_empty_look_for_work() -> None:
    with counted() as pages:
        assert scene.take() is None
    assert pages.count < 200


def test_a_renewal_of_a_hundred() -> None:
    tokens = list(Dispatch.objects.claimed().values_list("claim_token", flat=True)[:100])
    with counted() as pages:
        assert not claim.renew(tokens=tokens).lost
    assert pages.count < 100 * 60


def test_the_busy_thread_ends_its_run_and_begins_the_next() -> None:
    run = Dispatch.objects.claimed().select_related("run").get(thread_id=BUSY)
    with counted() as pages:
        assert settle.hand_back(tokens=[run.claim_token]) == 1
        following = scene.taken()
    assert (following.thread_id, pages.count < 2_000) == (BUSY, True)


@pytest.fixture
def _reached() -> None:
    """The agents of the 100,000 due threads are limited, and nothing more of them may start."""
    for name in ("gone-0", "gone-1"):
        limits.put(kind="agent", name=name, most=1)
    Permit.objects.filter(limit__kind="agent").update(dispatch_id=uuid.uuid4())


@pytest.mark.usefixtures("_reached")
def test_a_claim_beside_all_that_limits_keep() -> None:
    agents = ("echo", "gone-0", "gone-1")
    with counted() as pages:
        assert scene.take(agents=agents) is None
    assert pages.count < 200
    scene.post(priority=200)
    with counted() as pages:
        assert scene.taken(agents=agents).agent == "echo"
    assert pages.count < 400
    with counted() as pages:
        assert candidates.has_due(scene.QUEUE), "of other agents"
        assert "gone-0" not in {agent for _, agent in candidates.due_lanes()}
    assert pages.count < 400


def test_a_claim_that_is_the_first_to_meet_a_reached_limit() -> None:
    limits.put(kind="scope", name="big", most=1)
    Permit.objects.filter(limit__name="big").update(dispatch_id=uuid.uuid4())
    with counted() as pages:
        assert scene.take(agents=("gone-0", "gone-1")) is None
    assert Thread.objects.filter(scope="big", blocked_reason="scope_limit").count() == 513
    assert pages.count < 513 * 60


def test_a_permit_that_comes_back_makes_one_of_them_due() -> None:
    Permit.objects.filter(pk__in=Permit.objects.filter(limit__name="crowd").values("pk")[:1]).update(dispatch_id=None)
    with counted() as pages:
        assert permits.unblock(["crowd"]) == 1
    assert pages.count < 400
    with counted() as pages:
        assert scene.taken().scope == "crowd"
    assert pages.count < 400


def test_no_more_signals_wait_than_there_are_slots_however_often_somebody_is_woken() -> None:
    given.registration(agent="gone-0", slots=3, queues=[scene.QUEUE])
    broker = redis.Redis.from_url(conf.redis_url)
    broker.delete(scene.QUEUE)
    channel.forget_failures()
    try:
        for _ in range(4):
            recover.signal()
            channel.lower_flag(scene.QUEUE)
            hints.wake(scene.QUEUE)
        assert broker.llen(scene.QUEUE) == 3
    finally:
        broker.delete(scene.QUEUE)


PASSES: dict[str, Callable[[], object]] = {
    one.__module__.rpartition(".")[2] + "." + one.__name__: one
    for one in (
        *(tick.promote, tick.expire_waits),
        *(permits.release_some, permits.unblock_some, permits.refill, limits.settle),
        *(recover.reclaim, recover.repair, recover.signal, deliver.batch, missing.note, missing.expire),
        prune.batch,
    )
}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_of_the_maintenance_tasks_with_nothing_to_do(name: str) -> None:
    Dispatch.objects.filter(status="claimed").update(lease_until=Now() + timedelta(days=1))
    with counted() as pages:
        PASSES[name]()
    assert pages.count < 20_000, "bounded by a batch, not by what waits"


def test_a_tick_with_a_batch_to_promote() -> None:
    later = Thread.objects.filter(wakes_at__isnull=False).order_by("wakes_at")[:100]
    Dispatch.objects.filter(thread__in=list(later)).update(available_at=Now())
    Thread.objects.filter(pk__in=[thread.pk for thread in later]).update(wakes_at=Now())
    with counted() as pages:
        assert tick.promote() == 100
    assert pages.count < 100 * 60


def test_a_hundred_leases_are_taken_back() -> None:
    Dispatch.objects.filter(status="claimed").exclude(thread_id=BUSY).update(lease_until=Now() - timedelta(seconds=1))
    with counted() as pages:
        assert recover.reclaim() == 100
    assert pages.count < 100 * 200


def test_what_a_client_says_to_an_idle_thread_of_many() -> None:
    thread = Thread.objects.filter(due_at=None, wakes_at=None, blocked_reason="", scope="scope-7").first()
    assert thread is not None
    with counted() as pages:
        submit.run(scope=thread.scope, agent="echo", messages=["hello"], thread_id=thread.pk)
    assert pages.count < 400
