"""Examine a live system: all that the promises rest on, without writing a row. `--fix` mends what has a verb for it."""

import uuid
from collections.abc import Callable, Sequence

from mailbox_app.doctor import children, flags, history, late, permits, running, schema, server, standing, walk
from mailbox_app.doctor.findings import Check, Report

LOOKS: tuple[walk.Look, ...] = (*standing.LOOKS, *history.LOOKS, *late.LOOKS, *permits.LOOKS, *children.LOOKS)
# In the order in which they are looked for. The system checks have a list of their own.
CHECKS: tuple[Check, ...] = (*schema.CHECKS, *LOOKS, *flags.CHECKS, *permits.CHECKS, *running.CHECKS, *server.CHECKS)

_COUNTED = """
    SELECT (SELECT count(*) FROM mailbox_run WHERE thread_id = ANY(%(threads)s::uuid[])) AS runs,
        (SELECT count(*) FROM mailbox_dispatch WHERE thread_id = ANY(%(threads)s::uuid[])) AS dispatches,
        (SELECT count(*) FROM mailbox_message WHERE thread_id = ANY(%(threads)s::uuid[])) AS messages,
        (SELECT count(*) FROM mailbox_event WHERE thread_id = ANY(%(threads)s::uuid[])) AS events
"""

Progress = Callable[[int], None]


def everything(*, fix: bool = False, web_processes: int = 1, progress: Progress = lambda threads: None) -> Report:
    """Look at the project, the server, the tables, what runs, and then every thread."""
    report = Report()
    if pending := schema.migrations():
        report.add(pending)
        return report
    seen = server.look(web_processes=web_processes)
    report.add(seen.findings)
    report.facts += seen.facts
    report.add(schema.look())
    alive = running.look()
    if fix:
        running.fix(alive)
    report.add(alive)
    report.add(permits.look(fix=fix))
    threads(report, fix=fix, progress=progress)
    return report


def threads(
    report: Report,
    *,
    fix: bool = False,
    scope: str | None = None,
    thread_id: uuid.UUID | None = None,
    progress: Progress = lambda threads: None,
    size: int = walk.BATCH,
) -> Report:
    """Look at the rows of every thread, or of one scope's, or of one: a batch a snapshot. Mend between two of them."""
    after = uuid.UUID(int=0)
    while True:
        with walk.snapshot():
            ids = walk.following(after, scope=scope, thread_id=thread_id, size=size)
            for look in LOOKS:
                report.add(look.at(ids))
            wrong_flags = flags.look(ids)
            _count(report, ids)
        if fix:
            for one in wrong_flags:
                flags.fix(one)
        report.add(wrong_flags)
        progress(report.looked_at["threads"])
        if len(ids) < size:
            return report
        after = ids[-1]


def reference() -> str:
    """The checks as a Markdown table."""
    lines = ["| code | what was found | what to do | `--fix` |", "|---|---|---|---|"]
    lines += [f"| `{check.code}` | {check.finding} | {check.remedy} | {check.fix} |" for check in CHECKS]
    return "\n".join(lines) + "\n"


def _count(report: Report, threads: Sequence[uuid.UUID]) -> None:
    report.looked_at["threads"] += len(threads)
    (counted,) = walk.rows(_COUNTED, {"threads": list(threads)})
    report.looked_at.update(counted)
