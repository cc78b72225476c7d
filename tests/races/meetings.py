"""How verbs meet: one is stopped, others come, end or wait, and all go on to their end."""

from collections.abc import Sequence
from typing import Any

from mailbox_app.errors import LeaseLost
from tests.races import judge, points, stands, zones
from tests.races.points import Actor
from tests.races.stands import Stand

VERBS = {**stands.VERBS, **zones.VERBS}

# What a verb may be told for having met another one: it came too late. Nothing else is refused.
REFUSALS: dict[tuple[str, str], type[Exception]] = {
    ("settle", "sweep"): LeaseLost,
}
# What workers and keepers do again and again.
PASSES = ("claim", "renew", "tick", "lapse", "sweep", "deliver", "gc")
# Of these, several at once may share what is to be done.
_SHARED = ("tick", "sweep", "deliver", "gc")

# What the verbs answered, and what came of it.
Meeting = tuple[list[tuple[str, bool]], judge.Outcome]


def perform(actor: Actor, stand: Stand, verb: str, *, stop_at: int | str | None = None) -> Actor:
    """Have the actor begin the verb."""
    stands.await_the_time_of(stand, verb)
    return actor.begin(lambda: VERBS[verb](stand), stop_at=stop_at)


def answer(actor: Actor, verb: str, met: Sequence[str]) -> bool:
    """Whether the verb did anything, once it has ended; one that may be refused for whom it has met did nothing."""
    others = list(met)
    others.remove(verb)
    refused = tuple(REFUSALS[verb, other] for other in others if (verb, other) in REFUSALS)
    try:
        return bool(actor.result())
    except refused:
        return False
    finally:
        assert actor.trouble == [], "it was in a deadlock"


def alone(crew: Sequence[Actor], stand: Stand, order: Sequence[str]) -> list[tuple[str, bool]]:
    """One after the other; which of them did anything."""
    return [(verb, answer(perform(actor, stand, verb), verb, order)) for actor, verb in zip(crew, order, strict=True)]


def interleaved(
    crew: Sequence[Actor], stand: Stand, order: Sequence[str], stops: Sequence[int | str]
) -> list[tuple[str, bool]]:
    """Each goes to its stop, to its end, or to a lock that one before it holds; the last has no stop.

    Then each goes on, in the same order; which of them did anything.
    """
    for place, (actor, verb) in enumerate(zip(crew, order, strict=True)):
        perform(actor, stand, verb, stop_at=stops[place] if place < len(stops) else None)
        if actor.rest() == "waits":
            assert set(points.blockers(actor.pid)) <= {one.pid for one in crew[:place]}
    for actor in crew:
        actor.go_on()
        actor.rest()
    acted = []
    for actor, verb in zip(crew, order, strict=True):
        did = answer(actor, verb, order)
        if not did and verb in PASSES:
            # Whoever passes over what somebody holds comes again.
            did = answer(perform(actor, stand, verb), verb, order)
        acted.append((verb, did))
    return acted


def drained(stand: Stand, acted: Sequence[tuple[str, bool]]) -> Meeting:
    """What the verbs answered, and what came of it in the end."""
    return sorted((verb, did) for verb, did in acted if verb not in _SHARED), judge.drained(stand)


def judged(stand: Stand, acted: Sequence[tuple[str, bool]], serial: Sequence[Meeting], heard: Sequence[str]) -> None:
    """All is well now, and the answers and what comes of it are those of one of the orders."""
    assert list(heard) == []
    judge.examine(stand)
    came = drained(stand, acted)
    assert came in serial, _difference(came, serial)


def _difference(came: Meeting, serial: Sequence[Meeting]) -> str:
    lines = ["no order alone leaves this:"]
    orders = [{"answers": answers, **outcome} for answers, outcome in serial]
    for name, rows in {"answers": came[0], **came[1]}.items():
        wanted: list[Any] = [one[name] for one in orders]
        lines.append(f"  {name}: {rows}" + ("" if rows in wanted else f"\n    instead of {wanted}"))
    return "\n".join(lines)
