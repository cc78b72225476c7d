"""Where those meet who talk, and who reads: threads on which something was said that nobody has read, and the verbs.

As `stands.py`; but what comes too late is refused to a person, and so a verb that was refused has done nothing.
"""

import uuid
from collections.abc import Callable, Collection
from typing import Any

from django.db.models.functions import Now

from mailbox_app.errors import Cancelled, LeaseLost, Refused
from mailbox_app.models import Message, Run, Ticket
from mailbox_app.operations import checkpoint, decide, interrupt, pending, post, settle, tick
from tests import given
from tests.operations import asking, scene
from tests.races.stands import Stand, _kind

Verb = Callable[[Stand], Any]


def _said(stand: Stand, *texts: str, **how: Any) -> Any:
    """As people say it: it may be joined."""
    return post.to_thread(
        scope=scene.SCOPE, thread_id=stand.thread_id, messages=list(texts), agent="echo", **{"by": "ann", **how}
    )


def said(verbs: Collection[str]) -> Stand:
    """Two messages wait for one run, a third, said to be read alone, for another."""
    stand = Stand(thread_id=given.thread().pk)
    stand.run_id = _said(stand, "first", "second").run_id
    _said(stand, "third", delivery={"granularity": "one"})
    return stand


def steered(verbs: Collection[str]) -> Stand:
    """A worker executes a run that was told more, its lease has run out, and something waits behind it."""
    stand = Stand(thread_id=given.thread().pk)
    stand.run_id = _said(stand, "at work").run_id
    stand.hold(scene.taken())
    for text in ("first", "second"):
        _said(stand, text, if_active="steer")
    _said(stand, "third")
    assert stand.held is not None
    scene.expire_lease(stand.held)
    return stand


def held(verbs: Collection[str]) -> Stand:
    """What was said is held by an interrupt."""
    stand = said(verbs)
    interrupt.thread(scope=scene.SCOPE, thread_id=stand.thread_id)
    return stand


def listening(verbs: Collection[str]) -> Stand:
    """A run waits for input, in vain so far, and something of another agent's waits behind it."""
    stand = Stand(thread_id=given.thread().pk)
    stand.run_id = _said(stand, "at work").run_id
    taken = scene.taken()
    stand.claims[taken.token] = taken
    settle.suspend(taken, scene.wait("user_input"))
    Run.objects.filter(pk=stand.run_id).update(wait_until=Now())
    return stand


def fed(verbs: Collection[str]) -> Stand:
    """The same, and it was told something by which it is about to go on."""
    stand = listening(verbs)
    _said(stand, "first")
    return stand


def tuning_in(verbs: Collection[str]) -> Stand:
    """A worker's run is about to wait for input, and there is some, of which nobody knows whose it will be."""
    stand = steered(verbs)
    stand.settles = lambda claim: settle.suspend(claim, scene.wait("user_input"))
    return stand


def asked(verbs: Collection[str]) -> Stand:
    """A run that has asked is about to wait for the answer, for which it is late."""
    stand = Stand(thread_id=given.thread().pk)
    stand.run_id = _said(stand, "at work").run_id
    stand.hold(scene.taken())
    assert stand.held is not None
    [ticket] = checkpoint.ask(stand.held, [asking.question(stand.held, expires_in=3600.0)])
    stand.settles = lambda claim: asking.suspend(claim, [ticket.ticket_id])
    if "lapse" in verbs:
        asking.overdue(ticket.ticket_id)
    scene.expire_lease(stand.held)
    return stand


def waiting(verbs: Collection[str]) -> Stand:
    """The same, and it waits for it."""
    stand = asked(verbs)
    assert stand.held is not None
    stand.settles(stand.held)
    return stand


def _message(stand: Stand, text: str) -> uuid.UUID:
    # By its place: what was edited says something else.
    place = ("first", "second", "third").index(text)
    rows = Message.objects.filter(thread_id=stand.thread_id).exclude(content="at work").order_by("created_at", "id")
    return rows.values_list("pk", flat=True)[place]


def _refusable(verb: Verb) -> Verb:
    def call(stand: Stand) -> bool:
        try:
            return bool(verb(stand))
        except (Refused, LeaseLost, Cancelled):
            return False

    return call


def _named(stand: Stand, text: str) -> dict[str, Any]:
    return {"scope": scene.SCOPE, "thread_id": stand.thread_id, "message_id": _message(stand, text)}


def _edit(stand: Stand) -> bool:
    return bool(pending.edit(**_named(stand, "first"), content="first, edited"))


def _retract(stand: Stand) -> bool:
    return bool(pending.retract(**_named(stand, "first")))


def _reorder(stand: Stand) -> bool:
    ids = [_message(stand, text) for text in ("third", "second")]
    return bool(pending.reorder(scope=scene.SCOPE, thread_id=stand.thread_id, message_ids=ids).message_ids)


def _release(stand: Stand) -> bool:
    return bool(pending.release(scope=scene.SCOPE, thread_id=stand.thread_id).message_ids)


def _post(stand: Stand) -> bool:
    return bool(_said(stand, "posted", by="ben"))


def _steer(stand: Stand) -> bool:
    return bool(_said(stand, "steering", if_active="steer", expected_run_id=stand.run_id))


def _redirect(stand: Stand) -> bool:
    return bool(_said(stand, "instead", if_active="interrupt"))


def _decide(stand: Stand) -> bool:
    ticket_id = Ticket.objects.values_list("ticket_id", flat=True).get(run_id=stand.run_id, name="approve")
    given = {"scope": scene.SCOPE, "run_id": stand.run_id, "ticket_id": ticket_id, "action": "resume"}
    return bool(decide.ticket(**given))  # type: ignore[arg-type]


def _lapse(stand: Stand) -> bool:
    return bool(tick.expire_tickets())


def _ask(stand: Stand) -> bool:
    assert stand.held is not None
    return bool(checkpoint.ask(stand.held, [asking.question(stand.held, "also")]))


def _reach(stand: Stand) -> bool:
    assert stand.held is not None
    return bool(checkpoint.reach(stand.held))


VERBS: dict[str, Verb] = {
    name: _refusable(verb)
    for name, verb in {
        "edit": _edit,
        "retract": _retract,
        "reorder": _reorder,
        "release": _release,
        "post": _post,
        "steer": _steer,
        "redirect": _redirect,
        "decide": _decide,
        "lapse": _lapse,
        "ask": _ask,
        "reach": _reach,
    }.items()
}

_ALWAYS = "post redirect interrupt cancel"
# Two verbs meet on the first that suits them.
KINDS = {
    "said": _kind(said, f"{_ALWAYS} edit retract reorder claim", about="claim"),
    "steered": _kind(steered, f"{_ALWAYS} edit retract reorder steer reach ask settle sweep", about="reach settle"),
    "held": _kind(held, "post redirect edit retract reorder release", about="release"),
    "fed": _kind(fed, f"{_ALWAYS} steer edit retract claim", about="retract"),
    "tuning in": _kind(tuning_in, f"{_ALWAYS} steer retract settle sweep", about="settle"),
    "listening": _kind(listening, f"{_ALWAYS} steer tick", about="post steer"),
    "asked": _kind(asked, f"{_ALWAYS} steer decide lapse ask reach settle sweep", about="settle"),
    "waiting": _kind(waiting, f"{_ALWAYS} steer decide lapse", about="decide lapse", claim="decide lapse"),
}
