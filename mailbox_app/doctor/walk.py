"""How the doctor looks: at one batch of threads after the other, each in one snapshot that nothing moves in."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import connection, transaction

from mailbox_app.conf import conf
from mailbox_app.doctor.findings import Check, Finding

# Threads a snapshot looks at: enough that the statements cost more than their round trips, few enough that no snapshot
# is held for long, which would stop vacuum.
BATCH = 500

# In the order of the key: what is made meanwhile comes later (its id is younger) or is left to the next examination. A
# deleted thread past its retention is being pruned, a batch of rows at a time: it has nothing to be right about.
_NEXT = """
    SELECT id FROM mailbox_thread
    WHERE id > %(after)s::uuid
        AND (deleted_at IS NULL OR deleted_at > statement_timestamp() - %(kept)s * '1 s'::interval)
        AND (%(scope)s::text IS NULL OR scope = %(scope)s) AND (%(thread)s::uuid IS NULL OR id = %(thread)s)
    ORDER BY id LIMIT %(limit)s
"""


@dataclass(frozen=True)
class Look(Check):
    """A check of rows: `sql` finds what is wrong with the threads `%(threads)s`; its columns fill in the sentence.

    It may name `%(grace)s`: seconds after which what should have been done by now is late.
    """

    sql: str = field(default="", kw_only=True)

    def at(self, threads: Sequence[uuid.UUID]) -> list[Finding]:
        """What is wrong with these threads."""
        return [self.found(**row) for row in rows(self.sql, {"threads": list(threads), "grace": grace_seconds()})]


@contextmanager
def snapshot() -> Iterator[None]:
    """Look at what was committed at one moment, and write nothing: REPEATABLE READ READ ONLY.

    Whatever a verb moves, it moves in one transaction; so of anything that is in motion a snapshot sees the state
    before or the state after, and a half state in it is a half state in the table. One snapshot a batch, not one for
    all: an old one stops vacuum, and with it the queue. It takes no lock but ACCESS SHARE.

    Inside a transaction of the caller's it looks through that one.
    """
    if connection.in_atomic_block:
        yield
        return
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            # A batch is a small part of its table: for each of them the planner would rather read all of a table that
            # it takes for small, on several cores, which are the workers'.
            cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL max_parallel_workers_per_gather = 0")
        yield


def following(
    after: uuid.UUID, *, scope: str | None = None, thread_id: uuid.UUID | None = None, size: int = BATCH
) -> list[uuid.UUID]:
    """The next threads: all of them, one scope's, or one alone."""
    wanted = {"kept": conf.deleted_thread_retention_seconds, "scope": scope, "thread": thread_id, "limit": size}
    return [row["id"] for row in rows(_NEXT, {"after": after, **wanted})]


def rows(sql: str, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The rows of a statement, by column name."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, found, strict=True)) for found in cursor.fetchall()]


def grace_seconds() -> float:
    """After so long, what a tick or sweep should have done is late: six sweeps, half a minute at least."""
    return float(max(6 * conf.sweep_seconds, 6 * conf.due_tick_seconds, 30.0))
