"""What most requests begin with, by statements composed once: Django would compose each for a millisecond or two."""

import uuid

from mailbox_app.models import Run, Thread, ask, columns, loader, read

_RUN = """
    SELECT {run}, {thread}
    FROM mailbox_run AS run JOIN mailbox_thread AS thread ON thread.id = run.thread_id
    WHERE run.id = %(run)s AND run.scope = %(scope)s
"""
_THREAD = "SELECT {thread} FROM mailbox_thread AS thread WHERE thread.id = %(thread)s AND thread.scope = %(scope)s"
_ATTEMPT = """
    SELECT 1 + attempt_count + lost_count FROM mailbox_dispatch
    WHERE run_id = %s ORDER BY created_at DESC, id DESC LIMIT 1
"""


def run_of(scope: str, run_id: uuid.UUID) -> Run | None:
    """The scope's run of this id, with its thread."""
    sql = _RUN.format(run=columns(Run, "run"), thread=columns(Thread, "thread"))
    for run, *of_thread in read(Run, sql, {"run": run_id, "scope": scope}):
        run.thread = loader(Thread)(of_thread)
        return run
    return None


def thread_of(scope: str, thread_id: uuid.UUID) -> Thread | None:
    """The scope's thread of this id."""
    sql = _THREAD.format(thread=columns(Thread, "thread"))
    return next((thread for (thread,) in read(Thread, sql, {"thread": thread_id, "scope": scope})), None)


def attempt_of(run_id: uuid.UUID) -> int:
    """The attempt that is being made of a run, or was the last."""
    return next((attempt for (attempt,) in ask(_ATTEMPT, [run_id])), 1)
