"""Who says, after verbs have met, whether all is well: the doctor, and a drain to the end of all that was accepted."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.db.models.functions import Now

from mailbox_app import telemetry
from mailbox_app.doctor import examine as examination
from mailbox_app.doctor import flags, walk
from mailbox_app.doctor.findings import Report
from mailbox_app.models import Dispatch, Event, Message, Outbox, Run
from mailbox_app.operations import deliver, settle, tick
from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.races.stands import Stand, await_the_time_of

# What the app says when it has caught an error, or had to mend what no verb should have left.
_ALARMS = (".failed", ".flag_repaired", ".abandoned", ".left")
_MOST_ROUNDS = 20

_ALL_LOOKS = " UNION ALL ".join(
    f"SELECT '{look.code}' AS code FROM ({look.sql}) AS look_{number}" for number, look in enumerate(examination.LOOKS)
)

# What is left when everything has ended, without ids and times: comparable between two stands of a kind.
Outcome = dict[str, list[Any]]


@contextmanager
def alarms() -> Iterator[list[str]]:
    """What the app says meanwhile that it must not have to."""
    heard: list[str] = []

    def hear(name: str, fields: dict[str, Any], **_: Any) -> None:
        if name.endswith(_ALARMS):
            heard.append(f"{name} {fields}")

    telemetry.observed.connect(hear, weak=False)
    try:
        yield heard
    finally:
        telemetry.observed.disconnect(hear)


def examine(*stands: Stand) -> None:
    """The doctor finds nothing on their threads: one open run, one owner, the right flag, no gap, no half state.

    Its looks in one statement: they are asked after every single meeting.
    """
    threads = [pk for stand in stands for pk in stand.thread_ids]
    found = [row["code"] for row in walk.rows(_ALL_LOOKS, {"threads": threads, "grace": 30.0})]
    found += [one.code for one in flags.look(threads)]
    if found:
        report = examination.threads(Report(), scope=scene.SCOPE)
        raise AssertionError(str([one.sentence for one in report.findings] or found))
    for stand in stands:
        fences = [(one.thread_id, one.fence) for one in stand.claims.values()]
        assert len(set(fences)) == len(fences), "two claims were given the same fence token"


def drained(stand: Stand) -> Outcome:
    """Have workers, tick and delivery, but no sweep, end all that was accepted; what came of it."""
    for _ in range(_MOST_ROUNDS):
        for token in list(Dispatch.objects.claimed().values_list("claim_token", flat=True)):
            assert token is not None
            assert token in stand.claims, "a claim was made that nobody was given"
            _complete(stand.claims[token])
        while (taken := scene.take()) is not None:
            stand.claims[taken.token] = taken
            _complete(taken)
        await_the_time_of(stand, "tick")
        # Days go by: whatever somebody waits for has not come.
        Run.objects.filter(status="waiting").update(wait_until=Now() - timedelta(seconds=1))
        if not tick.promote() + tick.expire_waits() + deliver.batch():
            break
    left = list(Run.objects.not_done().values_list("status", "activation__metadata"))
    assert left == [], "not everything comes to an end"
    return outcome(stand)


def _complete(claim: Claim | None) -> None:
    """End its run, however many turns that takes."""
    while claim is not None:
        claim = settle.complete(claim, output="drained")


def outcome(stand: Stand) -> Outcome:
    """What stands on its threads, and what was sent to it."""
    mine = {"thread_id__in": stand.thread_ids}
    runs = Run.objects.filter(**mine).order_by("thread_id", "order", "created_at")
    fields = ("pk", "activation", "status", "termination", "error__code")
    found = {pk: (_name(activation), *rest) for pk, activation, *rest in runs.values_list(*fields)}
    names = {pk: name for pk, (name, *_) in found.items() if name != "old"}
    dispatches = Dispatch.objects.filter(**mine).values_list("run_id", "status", "attempt_count", "lost_count")
    messages = Message.objects.filter(**mine).order_by("thread_id", "position", "id")
    told = Event.objects.filter(**mine).order_by("thread_id", "cursor").values_list("run_id", "kind")
    return {
        "runs": list(found.values()),
        "dispatches": sorted((names[pk], *rest) for pk, *rest in dispatches if pk in names),
        "messages": list(messages.values_list("content", "state", "seq", "held", "retract_reason")),
        "events": [(kind, names[pk]) for pk, kind in told if pk in names],
        "sent": list(Outbox.objects.filter(target_thread_id=stand.thread_id).values_list("status", "attempt_count")),
    }


def _name(activation: dict[str, Any]) -> str:
    name: str = activation["metadata"].get("label", "sent")
    return name if activation["origin"] != "requeue" else f"{name}, requeued"
