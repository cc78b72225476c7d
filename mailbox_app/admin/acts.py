"""What an operator may do: each act calls one verb, in the verb's own transaction, and says what came of it."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mailbox_app.models import Dispatch, Limit, Pause, PauseKind, Run
from mailbox_app.operations import cancel, limits, pauses, replay, tick
from mailbox_app.states import DispatchStatus


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it, in a sentence. `did`: something has changed; `run_id`: the run to look at next."""

    text: str
    did: bool = True
    run_id: uuid.UUID | None = None


@dataclass(frozen=True, kw_only=True)
class Act:
    """One thing an operator may do to a row: with a permission of its own, and a question before it where it hurts.

    `do` is called with the row, who asks and why, and raises what its verb raises. `applies` says whether a row's page
    offers it; the verb alone decides.
    """

    name: str
    label: str
    permission: str
    do: Callable[[Any, str, str], Result]
    applies: Callable[[Any], bool]
    # What the confirmation says; blank: done without asking.
    warning: str = ""
    takes_reason: bool = False


def _replay(dead: Any, by: str, reason: str) -> Result:
    return _replayed(replay.one(dispatch_id=dead.pk, by=by))


def _replay_fresh(dead: Any, by: str, reason: str) -> Result:
    return _replayed(replay.one(dispatch_id=dead.pk, by=by, fresh=True))


def _replayed(made: replay.Replayed) -> Result:
    return Result(text=f"Replayed as run {made.run_id}.", run_id=made.run_id)


def _discard(dead: Any, by: str, reason: str) -> Result:
    replay.discard(dispatch_id=dead.pk, by=by, reason=reason)
    return Result(text=f"Discarded: {reason}" if reason else "Discarded.")


def _cancel(row: Any, by: str, reason: str) -> Result:
    run = row if isinstance(row, Run) else row.run
    receipt = cancel.run(scope=run.scope, run_id=run.pk, reason=reason)
    match receipt.outcome:
        case cancel.Outcome.CANCELLED:
            return Result(text=f"Cancelled: {reason}" if reason else "Cancelled.")
        case cancel.Outcome.REQUESTED:
            return Result(text="The worker that executes it is asked to stop.")
    return Result(text="The run is done; nothing was cancelled.", did=False)


def _run_now(row: Any, by: str, reason: str) -> Result:
    made = tick.run_now(run_id=_run_id(row), by=by)
    return Result(text="May start now.") if made.changed else Result(text="Could start already.", did=False)


def _pause_thread(thread: Any, by: str, reason: str) -> Result:
    done = pauses.pause(kind=PauseKind.THREAD, name=str(thread.pk), note=reason, by=by)
    if not done.changed:
        return Result(text="Was paused already.", did=False)
    return Result(text=f"Paused: {reason}" if reason else "Paused.")


def _resume(row: Any, by: str, reason: str) -> Result:
    kind, name = (row.kind, row.name) if isinstance(row, Pause) else (PauseKind.THREAD, str(row.pk))
    ended = pauses.resume(kind=kind, name=name, by=by)
    return Result(text=f"Resumed: {ended} may go on.")


def _remove(limit: Limit, by: str, reason: str) -> Result:
    was = limits.remove(kind=limit.kind, name=limit.name, by=by)
    return Result(text=f"Removed: {was} had {was.bounds}.")


def _run_id(row: Any) -> uuid.UUID:
    found: uuid.UUID = row.pk if isinstance(row, Run) else row.run_id
    return found


def _is_dead_letter(row: Dispatch) -> bool:
    return row.status == DispatchStatus.DEAD_LETTER and not row.resolution


def _is_live(row: Any) -> bool:
    return (row.finished_at if isinstance(row, Run) else row.completed_at) is None


def _is_queued(row: Any) -> bool:
    return Dispatch.objects.of_run(_run_id(row)).queued().exists()


REPLAY = Act(
    name="replay",
    label="Replay",
    permission="mailbox.replay_deadletter",
    do=_replay,
    applies=_is_dead_letter,
)
REPLAY_FRESH = Act(
    name="replay_fresh",
    label="Replay fresh",
    permission="mailbox.replay_fresh_deadletter",
    do=_replay_fresh,
    applies=_is_dead_letter,
    warning="The new run starts without the journal: what the dead one had done is done again, effects included.",
)
DISCARD = Act(
    name="discard",
    label="Discard",
    permission="mailbox.discard_deadletter",
    do=_discard,
    applies=_is_dead_letter,
    warning="It leaves this list, can no longer be replayed, and is pruned like any other dispatch.",
    takes_reason=True,
)
CANCEL = Act(
    name="cancel",
    label="Cancel",
    permission="mailbox.cancel_run",
    do=_cancel,
    applies=_is_live,
    warning="The run ends without a result; what waits unread for it is retracted, its open questions are closed.",
    takes_reason=True,
)
RUN_NOW = Act(
    name="run_now",
    label="Run now",
    permission="mailbox.run_now_run",
    do=_run_now,
    applies=_is_queued,
)
PAUSE = Act(
    name="pause",
    label="Pause",
    permission="mailbox.add_pause",
    do=_pause_thread,
    applies=lambda thread: thread.deleted_at is None and not thread.is_paused,
    warning="Nothing of it starts until it is resumed; what runs goes on.",
    takes_reason=True,
)
RESUME = Act(
    name="resume",
    label="Resume",
    permission="mailbox.delete_pause",
    do=_resume,
    applies=lambda row: isinstance(row, Pause) or row.is_paused,
)
REMOVE = Act(
    name="remove",
    label="Remove",
    permission="mailbox.delete_limit",
    do=_remove,
    applies=lambda limit: not limit.is_over,
    warning="Nothing limits it any more: what it keeps starts at once, as far as there are workers.",
)
