"""The gauges of `/metrics`: sampled from the database when somebody asks, at a cost that a backlog does not raise.

Each statement reads a bounded number of rows through a partial index, whatever the table holds. Beyond `_MOST_COUNTED`
queued dispatches, the sample's shares of PostgreSQL's own estimate are shown instead, and a gauge says so.
"""

import logging
from collections.abc import Iterable
from typing import Any

from django.db import DatabaseError, InterfaceError, connection, transaction
from prometheus_client.metrics_core import Metric as Family

from mailbox_app import metrics
from mailbox_app.models import AgentRegistration, PauseKind
from mailbox_app.operations import candidates
from mailbox_app.telemetry import observe

# Rows one scrape looks at, at most: a tenth of a second on two cores, measured over 1,000,000 dispatches.
_MOST_COUNTED = 10_000
# Whoever scrapes gives up after ten seconds by default; a database in trouble should not be asked for longer.
_PATIENCE = "3s"

# The ORM has no count over a bounded sample with what it joins. The estimate is the index's, kept by vacuum.
_QUEUED = """
    SELECT d.queue, t.blocked_reason, count(*), count(DISTINCT t.id),
        (SELECT reltuples FROM pg_class WHERE oid = 'dispatch_head'::regclass)
    FROM (SELECT queue, thread_id FROM mailbox_dispatch WHERE status = 'queued' LIMIT %(most)s) AS d
    JOIN mailbox_thread AS t ON t.id = d.thread_id
    GROUP BY d.queue, t.blocked_reason
"""
_CLAIMED = """
    SELECT queue, count(*)
    FROM (SELECT queue FROM mailbox_dispatch WHERE status = 'claimed' LIMIT %(most)s) AS d
    GROUP BY queue
"""
# From one (queue, agent, priority) to the next through the index that claims use: the first of each is its oldest. What
# is paused is left out; a paused thread is not due.
_OLDEST = f"""
    WITH RECURSIVE head AS (
        (SELECT due_queue, due_agent, due_version, due_priority, due_at FROM mailbox_thread
         WHERE due_at IS NOT NULL ORDER BY due_queue, due_agent, due_version, due_priority, due_at LIMIT 1)
        UNION ALL
        SELECT following.* FROM head CROSS JOIN LATERAL (
            SELECT due_queue, due_agent, due_version, due_priority, due_at FROM mailbox_thread
            WHERE due_at IS NOT NULL
                AND (due_queue, due_agent, due_version, due_priority)
                    > (head.due_queue, head.due_agent, head.due_version, head.due_priority)
            ORDER BY due_queue, due_agent, due_version, due_priority, due_at LIMIT 1
        ) AS following
    )
    SELECT due_queue, greatest(0, extract(epoch FROM statement_timestamp() - min(due_at)))::float8
    FROM head WHERE {candidates.UNPAUSED.format(queue="due_queue", agent="due_agent")} GROUP BY due_queue
"""
# Threads can be paused by the thousand; agents and queues are few.
_PAUSES = """
    SELECT wanted.kind, count(found.one)
    FROM unnest(%(kinds)s::text[]) AS wanted (kind)
    LEFT JOIN LATERAL (SELECT 1 AS one FROM mailbox_pause WHERE kind = wanted.kind LIMIT %(most)s) AS found ON TRUE
    GROUP BY wanted.kind
"""
_UNRESOLVED = """
    SELECT count(*)
    FROM (SELECT FROM mailbox_dispatch WHERE status = 'dead_letter' AND resolution = '' LIMIT %(most)s) AS d
"""
_MAINTENANCE = """
    SELECT name, greatest(0, extract(epoch FROM statement_timestamp() - last_finished_at))::float8
    FROM mailbox_maintenance WHERE last_finished_at IS NOT NULL ORDER BY name
"""
# Of as many limits as have no more permits together than a scrape looks at.
_PERMITS = """
    SELECT bound.kind, bound.name, permits.held, permits.free
    FROM (
        SELECT id, kind, name, sum(most) OVER (ORDER BY kind, name) AS so_far
        FROM (
            SELECT id, kind, name, most FROM mailbox_limit WHERE most IS NOT NULL
            ORDER BY kind, name LIMIT %(limits)s
        ) AS first
    ) AS bound
    CROSS JOIN LATERAL (
        SELECT count(dispatch_id) AS held,
            count(*) FILTER (WHERE dispatch_id IS NULL AND NOT is_retired) AS free
        FROM mailbox_permit WHERE limit_id = bound.id
    ) AS permits
    WHERE bound.so_far <= %(most)s
"""
_MOST_LIMITS = 200


def sampled() -> Iterable[Family]:
    """What the rows say now; only that the database is not there when it is not."""
    is_up: Any = metrics.DATABASE_UP.family()
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [_PATIENCE])
            families = [*_depth(), *_waiting(), *_workers(), *_limits()]
    except (DatabaseError, InterfaceError) as error:
        observe("metrics.sample_failed", level=logging.WARNING, error=type(error).__name__)
        is_up.add_metric((), 0)
        return [is_up]
    is_up.add_metric((), 1)
    return [is_up, *families]


def _depth() -> list[Family]:
    dispatches: Any = metrics.DISPATCHES.family()
    blocked: Any = metrics.BLOCKED.family()
    is_estimated: Any = metrics.IS_ESTIMATED.family()
    rows = _rows(_QUEUED)
    counted = sum(row[2] for row in rows)
    # Never below what was seen: the estimate is as old as the last vacuum, and -1 before the first.
    scale = max(1.0, rows[0][4] / counted) if counted >= _MOST_COUNTED else 1.0
    for queue in sorted({row[0] for row in rows}):
        dispatches.add_metric((queue, "queued"), round(scale * sum(row[2] for row in rows if row[0] == queue)))
    for queue, claimed in sorted(_rows(_CLAIMED)):
        dispatches.add_metric((queue, "claimed"), claimed)
    for reason in sorted({row[1] for row in rows if row[1]}):
        blocked.add_metric((reason,), round(scale * sum(row[3] for row in rows if row[1] == reason)))
    is_estimated.add_metric((), int(counted >= _MOST_COUNTED))
    return [dispatches, blocked, is_estimated]


def _waiting() -> list[Family]:
    oldest: Any = metrics.OLDEST_DUE.family()
    for queue, seconds in sorted(_rows(_OLDEST)):
        oldest.add_metric((queue,), seconds)
    paused: Any = metrics.PAUSES.family()
    for kind, count in sorted(_rows(_PAUSES, kinds=PauseKind.values)):
        paused.add_metric((kind,), count)
    unresolved: Any = metrics.UNRESOLVED.family()
    unresolved.add_metric((), _rows(_UNRESOLVED)[0][0])
    maintenance: Any = metrics.MAINTENANCE_AGE.family()
    for name, seconds in _rows(_MAINTENANCE):
        maintenance.add_metric((name,), seconds)
    return [oldest, paused, unresolved, maintenance]


def _workers() -> list[Family]:
    workers: Any = metrics.WORKERS.family()
    slots: Any = metrics.SLOTS.family()
    for queue, (worker_count, slot_count) in sorted(AgentRegistration.objects.live().by_queue().items()):
        workers.add_metric((queue,), worker_count)
        slots.add_metric((queue,), slot_count)
    return [workers, slots]


def _limits() -> list[Family]:
    permits: Any = metrics.LIMIT_PERMITS.family()
    for kind, name, held, free in _rows(_PERMITS, limits=_MOST_LIMITS):
        permits.add_metric((kind, name, "held"), held)
        permits.add_metric((kind, name, "free"), free)
    return [permits]


def _rows(sql: str, **params: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, {"most": _MOST_COUNTED, **params})
        found: list[Any] = cursor.fetchall()
        return found
