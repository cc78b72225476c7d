"""What a waiting run waits for, and what has come for it: the shapes of `Run.waiting` and `Run.resumes`."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mailbox_app.errors import Conflict
from mailbox_app.models import Dispatch, JournalEntry, Run, Thread
from mailbox_app.outcomes import Suspended

RATE_LIMIT = "rate_limit"
# For answers to questions: their tickets end it.
TOOL_PERMISSION = "tool_permission"
# What a resume ends.
REASONS = ("external_event", RATE_LIMIT, "manual_pause")
# For runs that were spawned: the end of the last of them ends it.
BACKGROUND_TASKS = "background_tasks"
# What a message ends.
USER_INPUT = "user_input"
# What `ctx.suspend` waits for.
SUSPENDS = (*REASONS, USER_INPUT)

# The columns of a wait, as whoever ends it leaves them.
NOT_WAITING: dict[str, Any] = {"waiting": None, "wait_until": None, "resume_at": None}

# Of each kind, those not taken yet and those that were: whoever sends more has lost sight of the run.
_MOST_KEPT = 100


def described(wait: Suspended, *, since: datetime) -> dict[str, Any]:
    """`Run.waiting`: {"reason", "message", "name", "entry", "since"}, and what it waits for where that has ids.

    Those are "ticket_ids", or "child_run_ids". `entry` is what its record is called in the journal.
    """
    shown: dict[str, Any] = {"reason": wait.reason, "message": wait.message, "name": wait.name}
    shown |= {"entry": dict(wait.entry), "since": since.isoformat()}
    if wait.reason == TOOL_PERMISSION:
        shown["ticket_ids"] = list(wait.ticket_ids)
    if wait.reason == BACKGROUND_TASKS:
        shown["child_run_ids"] = list(wait.child_run_ids)
    return shown


def digest(name: str, payload: Any) -> str:
    """What tells a resume sent again from another one with its id."""
    return hashlib.sha256(json.dumps([name, payload], sort_keys=True).encode()).hexdigest()


def stored(run: Run, name: str) -> dict[str, Any] | None:
    """The first resume of this name that no wait has taken."""
    return next((one for one in run.resumes if not one["taken"] and one["name"] == name), None)


def sent_before(run: Run, resume_id: str) -> dict[str, Any] | None:
    """The resume that came with this id, if it still is remembered."""
    return next((one for one in run.resumes if one["resume_id"] == resume_id), None)


def with_stored(run: Run, one: dict[str, Any]) -> list[dict[str, Any]]:
    """The run's resumes and this one. Raises Conflict when too many wait to be taken."""
    if sum(not kept["taken"] for kept in run.resumes) >= _MOST_KEPT:
        raise Conflict(f"run {run.pk} has {_MOST_KEPT} resumes that no wait has taken", run_id=run.pk)
    return [*run.resumes, one]


def with_taken(run: Run, one: dict[str, Any]) -> list[dict[str, Any]]:
    """The run's resumes after this one, new or stored, was taken: of those with an id, the answer is kept."""
    others = [kept for kept in run.resumes if kept is not one]
    remembered = [{**one, "taken": True, "payload": None}] if one["resume_id"] is not None else []
    taken = [*(kept for kept in others if kept["taken"]), *remembered][-_MOST_KEPT:]
    return [*(kept for kept in others if not kept["taken"]), *taken]


def record(thread: Thread, run: Run, entry: Mapping[str, Any], payload: Any, *, verb: str = "suspend") -> None:
    """Journal the end of a wait: the replayed agent gets the payload back; under the fence."""
    thread.insert(JournalEntry(run=run, turn=run.turn, verb=verb, result=payload, **entry))


def change_record(thread: Thread, run: Run, entry: Mapping[str, Any], payload: Any) -> None:
    """Give the record of a wait that would have ended by itself this payload: nobody has read it yet."""
    slot = {name: entry[name] for name in ("name", "key", "n")}
    found = JournalEntry.objects.of_turn(run.pk, run.turn).get(verb="suspend", **slot)
    thread.change(found, result=payload)


def erase_record(run: Run) -> None:
    """Forget that the wait of a waiting run has ended: nobody has read it, and it goes on."""
    entry = (run.waiting or {})["entry"]
    slot = {name: entry[name] for name in ("name", "key", "n")}
    JournalEntry.objects.of_turn(run.pk, run.turn).filter(verb="suspend", **slot).delete()


def last_dispatch(run: Run) -> Dispatch:
    """The activation that ended in the run's wait."""
    found = Dispatch.objects.of_run(run.pk).order_by("created_at", "id").last()
    assert found is not None, "a run that waits was claimed, and what is not done is not pruned"
    found.run = run
    return found
