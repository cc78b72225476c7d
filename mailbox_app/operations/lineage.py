"""What a run is to the runs it has spawned: it waits for how they end, and they end with it when it is cancelled."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from mailbox_app.models import OutboxKind, Run, Thread
from mailbox_app.operations import waits
from mailbox_app.operations.submission import Parent
from mailbox_app.states import RunStatus

# What its wait is called in the journal.
WAIT = "wait_for_children"
# A child that was spawned to go on also when its parent is cancelled says so in its activation.
DETACHED = "detached"
# How many runs are above it.
DEPTH = "depth"

# What stands for the end of a child whose row was deleted, with its thread, before it was heard of.
_DELETED = {"status": "deleted", "termination": None, "output": None, "error": None, "agent": None, "thread_id": None}


def described(parent: Parent) -> dict[str, Any]:
    """What the activation of a child says of its parent."""
    return {DEPTH: parent.depth, **({DETACHED: True} if parent.is_detached else {})}


def outcomes(run_ids: Sequence[str]) -> list[dict[str, Any]] | None:
    """How these runs have ended, in this order; None while one of them is not done.

    Each is {"run_id", "thread_id", "agent", "status", "termination", "output", "error"}. Nobody changes what is done.
    """
    if Run.objects.filter(pk__in=list(run_ids)).not_done().exists():
        return None
    found = {str(run.pk): run for run in Run.objects.filter(pk__in=list(run_ids))}
    return [_outcome(run_id, found.get(run_id)) for run_id in run_ids]


def cancel(thread: Thread, run: Run) -> None:
    """Have the children of a run that ends cancelled be cancelled too, but for the detached; under the fence."""
    if run.status == RunStatus.CREATED:
        return  # it has none
    children = Run.objects.filter(parent_run_id=run.pk).not_done().order_by("created_at", "id")
    for child_id, target_id, activation in children.values_list("pk", "thread_id", "activation"):
        if not activation.get(DETACHED):
            thread.send(OutboxKind.CANCEL, target_id, {"run_id": str(child_id), "parent_run_id": str(run.pk)})


def _outcome(run_id: str, run: Run | None) -> dict[str, Any]:
    if run is None:
        return {"run_id": run_id, **_DELETED}
    return {
        "run_id": run_id,
        "thread_id": str(run.thread_id),
        "agent": run.agent,
        "status": str(run.status),
        "termination": run.termination,
        "output": run.final_output,
        "error": run.error,
    }


def record(thread: Thread, run: Run, entry: Mapping[str, Any], ended: Sequence[Mapping[str, Any]]) -> None:
    """Journal how the children ended: what `ctx.wait_for_children` returns at every replay; under the fence."""
    waits.record(thread, run, entry, list(ended), verb=WAIT)


def strangers(thread_id: uuid.UUID, run_ids: Sequence[str]) -> list[str]:
    """Those of these runs whose end nobody would tell to this thread: no run of it has spawned them."""
    known = Run.objects.filter(pk__in=list(run_ids), parent_run__thread_id=thread_id)
    spawned = {str(pk) for pk in known.values_list("pk", flat=True)}
    return [run_id for run_id in run_ids if run_id not in spawned]


def waits_for(run: Run, child_id: uuid.UUID | str) -> bool:
    """Whether the run waits for the end of this child, among others or alone."""
    waiting = run.waiting or {}
    return run.status == RunStatus.WAITING and str(child_id) in waiting.get("child_run_ids", ())
