"""What tests of child runs share: a child, a parent that waits for it."""

from typing import Any

from mailbox_app.models import Run
from mailbox_app.operations import children, lineage, settle
from mailbox_app.operations.inputs import NewMessage
from mailbox_app.operations.ownership import Claim
from mailbox_app.outcomes import Suspended
from tests.operations import scene


def spawn(claim: Claim, text: str = "help", *, n: int = 1, **given: Any) -> Run:
    """As `ctx.spawn` does it."""
    options = {"agent": "echo", "options": {}, "metadata": {}, "priority": None, "is_detached": False, **given}
    made = children.spawn(
        claim, scene.entry("echo", verb="spawn", n=n), message=NewMessage(content=text, sender="echo"), **options
    )
    return Run.objects.get(pk=made["run_id"])


def wait(claim: Claim, *spawned: Run) -> None:
    """As `ctx.wait_for_children` ends an activation."""
    slot = {"name": lineage.WAIT, "key": "", "n": 1, "arguments_hash": "0" * 64}
    ids = [str(run.pk) for run in spawned]
    settle.suspend(claim, Suspended(reason="background_tasks", entry=slot, child_run_ids=ids))


def with_child(**given: Any) -> tuple[Claim, Run]:
    """A parent that waits for the one child it has."""
    parent = scene.posted_and_taken("parent")
    child = spawn(parent, **given)
    wait(parent, child)
    return parent, child
