"""Where verbs meet: threads in a state in which several verbs have something to do, and the verbs, as they are called.

A stand is one thread, in the state its kind is named after. Every verb has somebody to meet on some kind of stand, and
there both have something to do: each when it comes first, or one of them after the other has.
"""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from mailbox_app.models import Dispatch, Event, Run, Thread
from mailbox_app.operations import cancel, claim, deliver, interrupt, limits, missing, prune, recover, settle, tick
from mailbox_app.operations.ownership import Claim
from mailbox_app.operations.submit import Receipt
from tests import given
from tests.operations import scene

_DAY = timedelta(days=1)


@dataclass(kw_only=True)
class Stand:
    """One thread, who holds what on it, and the run that the verbs are about."""

    thread_id: uuid.UUID
    run_id: uuid.UUID | None = None
    # What somebody was given, by token; it may have been lost since.
    claims: dict[uuid.UUID, Claim] = field(default_factory=dict)
    held: Claim | None = None
    # A claim of the same worker on another thread.
    aside: Claim | None = None
    # What the worker's keeper names: also a claim whose answer is not there yet.
    tokens: list[uuid.UUID] = field(default_factory=list)
    # Whether it backs off after its settle.
    wakes_later: bool = False
    settles: Callable[[Claim], Any] = lambda held: settle.complete(held, output="first answer")

    @property
    def thread_ids(self) -> list[uuid.UUID]:
        """Of the thread, and of the one aside."""
        return [self.thread_id] + ([] if self.aside is None else [self.aside.thread_id])

    def hold(self, taken: Claim) -> None:
        self.held, self.claims[taken.token] = taken, taken
        self.tokens.append(taken.token)


def _stand(verbs: Collection[str]) -> Stand:
    """A thread; with an old, finished run if somebody prunes, and with a message on its way to it if somebody delivers.

    What neither of them needs would only cost time.
    """
    stand = Stand(thread_id=given.thread().pk)
    if "gc" in verbs:
        _say(stand, "old")
        old = scene.taken()
        settle.complete(old, output="old answer")
        Dispatch.objects.filter(pk=old.dispatch_id).update(completed_at=Now() - 2 * _DAY)
        Event.objects.filter(thread_id=old.thread_id).update(created_at=Now() - 40 * _DAY)
    if "deliver" in verbs:
        sent = {"content": "sent", "role": "user", "agent": "echo", "metadata": {}, "sender": "echo"}
        payload = {**sent, "message_id": f"sent to {stand.thread_id}"}
        source = given.thread(next_order=2)
        given.outbox(source_thread=source, target_thread_id=stand.thread_id, order=1, payload=payload)
    return stand


def _say(stand: Stand, text: str, **given: Any) -> Any:
    return scene.post(text, thread_id=stand.thread_id, metadata={"label": text}, **given)


def _make_due(of: Claim | Receipt | Dispatch) -> None:
    """Age the row: the time it was queued for has come, and its thread was to wake just then."""
    came_at = scene.database_now() - timedelta(milliseconds=1)
    Dispatch.objects.filter(run_id=of.run_id).queued().update(available_at=came_at)
    Thread.objects.filter(pk=of.thread_id).update(wakes_at=came_at)


def executing(verbs: Collection[str]) -> Stand:
    """A worker executes the first run, its lease has run out, and the second is queued."""
    stand = _stand(verbs)
    stand.run_id = _say(stand, "first").run_id
    stand.hold(scene.taken())
    _say(stand, "second")
    assert stand.held is not None
    scene.expire_lease(stand.held)
    return stand


def failing(verbs: Collection[str]) -> Stand:
    """As `executing`, but the agent fails, and is to be tried again later."""
    stand = executing(verbs)
    stand.wakes_later = True
    stand.settles = lambda held: settle.nack(held, code="flaky", message="again", retry_after=3600)
    return stand


def suspending(verbs: Collection[str]) -> Stand:
    """As `executing`, but the agent waits for something."""
    stand = executing(verbs)
    stand.settles = lambda held: settle.suspend(held, scene.wait())
    return stand


def stopping(verbs: Collection[str]) -> Stand:
    """As `executing`, and somebody has long asked the worker to stop, which it is about to."""
    stand = executing(verbs)
    assert stand.held is not None
    scene.ask_to_cancel(stand.held)
    long_ago = Now() - timedelta(hours=1)
    Dispatch.objects.filter(pk=stand.held.dispatch_id).update(cancel_requested_at=long_ago)
    stand.settles = settle.stopped
    return stand


def dying(verbs: Collection[str]) -> Stand:
    """As `executing`, but the agent fails for good."""
    stand = executing(verbs)
    stand.settles = lambda held: settle.dead_letter(held, code="broken", message="never")
    return stand


def queued(verbs: Collection[str]) -> Stand:
    """The first run is due, and another was scheduled for a time that has come since."""
    stand = _stand(verbs)
    later = _say(stand, "scheduled", available_at=scene.database_now() + _DAY, priority=1)
    stand.run_id = _say(stand, "first").run_id
    _make_due(later)
    return stand


def unserved(verbs: Collection[str]) -> Stand:
    """As `queued`, but no worker has been there for the first run, for too long."""
    stand = queued(verbs)
    Dispatch.objects.filter(run_id=stand.run_id).update(unrunnable_since=Now() - 2 * _DAY)
    return stand


def waiting(verbs: Collection[str]) -> Stand:
    """The first run waits for something that has not come in time, and the second is queued behind it."""
    stand = executing(verbs)
    assert stand.held is not None
    settle.suspend(stand.held, scene.wait())
    Run.objects.filter(pk=stand.run_id).update(wait_until=Now() - timedelta(seconds=1))
    return stand


def backing_off(verbs: Collection[str]) -> Stand:
    """The first run has failed, its backoff is over; its worker goes on naming the claim, beside one of its own."""
    stand = executing(verbs)
    assert stand.held is not None
    settle.nack(stand.held, code="flaky", message="again", retry_after=3600)
    _make_due(stand.held)
    stand.aside = scene.posted_and_taken("aside", metadata={"label": "aside"})
    stand.claims[stand.aside.token] = stand.aside
    stand.tokens.append(stand.aside.token)
    return stand


def limited(verbs: Collection[str]) -> Stand:
    """The first run is due, but its scope may execute one at a time, and another thread's run has that permit."""
    limits.put(kind="scope", name=scene.SCOPE, most=1)
    stand = _stand(verbs)
    stand.aside = scene.posted_and_taken("aside", metadata={"label": "aside"})
    stand.hold(stand.aside)
    scene.expire_lease(stand.aside)
    stand.run_id = _say(stand, "first").run_id
    return stand


@dataclass(frozen=True)
class Kind:
    """A kind of stand: how it is made, and which verbs have something to do there, at once or after which others.

    `about`: the verbs that do here what they do nowhere else.
    """

    make: Callable[[Collection[str]], Stand]
    acts: frozenset[str]
    follows: dict[str, str]
    about: frozenset[str]

    def suits(self, *verbs: str) -> bool:
        """Whether each has something to do here."""
        return all(verb in self.acts or self._has_somebody_to_follow(verb, verbs) for verb in verbs)

    def _has_somebody_to_follow(self, verb: str, verbs: Collection[str]) -> bool:
        return any(other in self.follows.get(verb, "").split() for other in verbs)


def _kind(make: Callable[[Collection[str]], Stand], acts: str, *, about: str, **follows: str) -> Kind:
    return Kind(make, frozenset(acts.split()), follows, frozenset(about.split()))


_WITH_A_CLAIM = "submit renew settle cancel interrupt sweep deliver gc"
_WITHOUT = "submit cancel interrupt tick deliver gc"
# Two verbs meet on the first that suits them.
KINDS = {
    "executing": _kind(executing, _WITH_A_CLAIM, about="settle sweep", claim="settle sweep"),
    "queued": _kind(queued, f"{_WITHOUT} claim", about="claim tick", renew="claim"),
    "unserved": _kind(unserved, f"{_WITHOUT} claim sweep", about="sweep"),
    "failing": _kind(failing, _WITH_A_CLAIM, about="settle", tick="settle", claim="sweep"),
    "backing off": _kind(backing_off, f"{_WITHOUT} renew", about="tick", claim="tick"),
    "waiting": _kind(waiting, _WITHOUT, about="tick cancel", claim="tick cancel"),
    "suspending": _kind(suspending, _WITH_A_CLAIM, about="settle", claim="sweep"),
    "stopping": _kind(stopping, "submit renew settle sweep deliver gc", about="settle sweep", claim="settle sweep"),
    "dying": _kind(dying, _WITH_A_CLAIM, about="settle", claim="settle sweep"),
    "limited": _kind(limited, f"{_WITH_A_CLAIM} claim", about="claim"),
}


# The verbs: each is told where, and says whether it did anything.


def _submit(stand: Stand) -> bool:
    return bool(_say(stand, "posted"))


def _claim(stand: Stand) -> bool:
    token = uuid.uuid4()
    stand.tokens.append(token)
    found = claim.due(queue=scene.QUEUE, agents=("echo",), worker=scene.WORKER, tokens=[token])
    stand.claims.update({one.token: one for one in found.claims})
    is_kept = Thread.objects.filter(pk=stand.thread_id, blocked_reason="scope_limit").exists()
    return is_kept or any(one.thread_id == stand.thread_id for one in found.claims)


def _renew(stand: Stand) -> bool:
    tokens = list(stand.tokens)
    lost = claim.renew(tokens=tokens).lost
    renewed = Dispatch.objects.filter(claim_token__in=tokens, lease_until__gt=Now()).exclude(claim_token__in=lost)
    # Those it has taken keep a full lease from the claim on; the others, only what the renewal gave them.
    return renewed.exists()


def _settle(stand: Stand) -> bool:
    assert stand.held is not None
    stand.settles(stand.held)
    return True


def _cancel(stand: Stand) -> bool:
    assert stand.run_id is not None
    receipt = cancel.run(scope=scene.SCOPE, run_id=stand.run_id)
    if receipt.outcome == cancel.Outcome.CANCELLED:
        assert (receipt.status, receipt.termination) == ("done", {"type": "cancelled"})
    return receipt.outcome != cancel.Outcome.ALREADY_DONE


def _interrupt(stand: Stand) -> bool:
    met = interrupt.thread(scope=scene.SCOPE, thread_id=stand.thread_id)
    return bool(met.run_id or met.superseded_run_ids)


def _tick(stand: Stand) -> bool:
    return bool(tick.promote() + tick.expire_waits())


def _sweep(stand: Stand) -> bool:
    ended = recover.reclaim() + recover.finish_cancelled()
    assert recover.repair() == 0, "a flag was forgotten"
    missing.note()
    return bool(ended + missing.expire())


def _deliver(stand: Stand) -> bool:
    return bool(deliver.batch())


def _gc(stand: Stand) -> bool:
    return bool(prune.batch())


VERBS: dict[str, Callable[[Stand], bool]] = {
    "submit": _submit,
    "claim": _claim,
    "renew": _renew,
    "settle": _settle,
    "cancel": _cancel,
    "interrupt": _interrupt,
    "tick": _tick,
    "sweep": _sweep,
    "deliver": _deliver,
    "gc": _gc,
}


def await_the_time_of(stand: Stand, verb: str) -> None:
    """Age the row: what wakes later has come due when the clock's verb begins; unless somebody holds the thread."""
    if verb == "tick" and stand.wakes_later:
        with transaction.atomic():
            free = Thread.objects.select_for_update(no_key=True, skip_locked=True)
            if free.filter(pk=stand.thread_id, wakes_at__gt=Now()).exists():
                _make_due(Dispatch.objects.queued().get(run_id=stand.run_id))
