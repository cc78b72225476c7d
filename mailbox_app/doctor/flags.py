"""Ready flags that say what judging would not: queued work that no worker finds, or a thread looked at for nothing."""

import copy
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from mailbox_app import hints
from mailbox_app.doctor.findings import Check, Finding
from mailbox_app.doctor.walk import rows
from mailbox_app.errors import Gone, ThreadNotFound
from mailbox_app.models import Thread
from mailbox_app.models.ready import FLAG

_FIX = "Takes the thread's fence and leaves it, which judges the thread anew."
_REMEDY = (
    "`mailbox_doctor --fix` rewrites the flag. Nothing in Mailbox leaves it so: report it, and what ran before on the "
    "thread."
)

WAKE_UP_LOST = Check(
    "wake_up_lost",
    "Work is queued that could be claimed, now or later, and the thread's ready flag does not say so.",
    "thread {thread_id} has {queued} queued dispatches, the first for {first_at}, but is neither due nor waking "
    "nor blocked: its flag says {is_}, judged anew it says {should_be}",
    f"No worker finds it. The sweep repairs it if it runs. {_REMEDY}",
    fix=_FIX,
)
FLAG_WRONG = Check(
    "flag_wrong",
    "A thread's ready flag names what is not queued so, or a reason that is none.",
    "the flag of thread {thread_id} says {is_}, judged anew it says {should_be}",
    f"Workers look at the thread for nothing, at the wrong time or from the wrong queue. {_REMEDY}",
    fix=_FIX,
)
CHECKS = (WAKE_UP_LOST, FLAG_WRONG)

# The flag, compared with what is queued. A due flag may name another queued dispatch than the first: what was scheduled
# has come due since, and the tick or the claim looks for itself. So not the head is asked for, but one that is as the
# flag says.
_SUSPECTS = """
    SELECT t.id AS thread_id, q.queued, q.first_at,
        q.queued > 0 AND t.due_at IS NULL AND t.wakes_at IS NULL AND t.blocked_reason = '' AND t.active_run_id IS NULL
            AND t.deleted_at IS NULL AS is_lost
    FROM mailbox_thread AS t CROSS JOIN LATERAL (
        SELECT count(*) AS anybodys, count(*) FILTER (WHERE is_next) AS queued,
            min(available_at) FILTER (WHERE is_next) AS first_at,
            min(available_at) FILTER (WHERE is_next AND available_at > statement_timestamp()) AS next_at,
            bool_or(
                is_next AND available_at = t.due_at AND priority = t.due_priority AND queue = t.due_queue
                AND agent = t.due_agent AND version_key = t.due_version AND available_at <= statement_timestamp()
            ) AS is_named,
            bool_or(is_next AND available_at <= statement_timestamp()) AS is_due
        FROM (
            SELECT *, t.open_run_id IS NULL OR run_id = t.open_run_id AS is_next
            FROM mailbox_dispatch WHERE thread_id = t.id AND status = 'queued'
        ) AS dispatch
    ) AS q
    WHERE t.id = ANY(%(threads)s::uuid[]) AND NOT coalesce(CASE
        WHEN t.active_run_id IS NOT NULL OR t.deleted_at IS NOT NULL
            THEN t.due_at IS NULL AND t.wakes_at IS NULL AND t.blocked_reason = ''
        WHEN t.due_at IS NOT NULL THEN q.is_named AND t.blocked_reason = ''
            AND (t.wakes_at <= statement_timestamp() OR t.wakes_at IS NOT DISTINCT FROM q.next_at)
        WHEN t.blocked_reason = 'scope_limit' THEN q.is_due
        WHEN t.wakes_at IS NOT NULL THEN q.first_at = t.wakes_at AND t.blocked_reason = ''
        WHEN q.queued > 0 THEN FALSE
        WHEN t.open_run_id IS NOT NULL AND q.anybodys > 0 THEN t.blocked_reason = 'open_run'
        ELSE t.blocked_reason = ''
    END, FALSE)
"""


def look(threads: Sequence[uuid.UUID]) -> list[Finding]:
    """Flags of these threads that are wrong; in a snapshot.

    What the statement suspects is judged by `Thread.judge` itself, on a copy that is never saved: only what that would
    write otherwise is a finding.
    """
    suspects = {row["thread_id"]: row for row in rows(_SUSPECTS, {"threads": list(threads)})}
    found = []
    for thread in Thread.objects.filter(pk__in=suspects):
        judged = copy.copy(thread)
        judged.judge()
        if _flag(judged) == _flag(thread):
            continue
        suspect = suspects[thread.pk]
        check = WAKE_UP_LOST if suspect["is_lost"] else FLAG_WRONG
        said = {"is_": _told(thread), "should_be": _told(judged)}
        found.append(
            check.found(thread_id=thread.pk, queued=suspect["queued"], first_at=_at(suspect["first_at"]), **said)
        )
    return found


def fix(finding: Finding) -> None:
    """Have the fence judge the thread, which writes nothing but its flag; outside of any snapshot.

    A deleted thread cannot be fenced, and is left as it is.
    """
    thread_id = uuid.UUID(finding.ids["thread_id"])
    try:
        with Thread.objects.fence(thread_id) as thread:
            pass  # leaving it judges the thread
    except (Gone, ThreadNotFound):
        return
    hints.tell(thread)
    finding.is_fixed = True


def _flag(thread: Thread) -> dict[str, Any]:
    return {name: getattr(thread, name) for name in FLAG}


def _told(thread: Thread) -> str:
    """The flag in a few words."""
    if thread.due_at is not None:
        return (
            f"due since {_at(thread.due_at)} (queue {thread.due_queue!r}, agent {thread.due_agent!r}, "
            f"priority {thread.due_priority})"
            + (f", wakes at {_at(thread.wakes_at)}" if thread.wakes_at else "")
            + (f", blocked: {thread.blocked_reason}" if thread.blocked_reason else "")
        )
    words = [f"wakes at {_at(thread.wakes_at)}"] if thread.wakes_at else []
    words += [f"blocked: {thread.blocked_reason}"] if thread.blocked_reason else []
    return ", ".join(words) or "nothing"


def _at(when: datetime | None) -> str:
    return "never" if when is None else when.isoformat(timespec="milliseconds")
