"""Who talks meets who talks, and who reads: each stopped at its statements that matter, as if one came first.

As `test_pairs.py`, on the stands of `zones.py`.
"""

import itertools

import pytest

from tests.races import judge, meetings, points
from tests.races.points import actors
from tests.races.stands import Stand
from tests.races.test_pairs import IS_THOROUGH
from tests.races.zones import KINDS, VERBS

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

WITH = ("claim", "settle", "sweep", "cancel", "interrupt", "tick")
# A pair of which at least one talks, at each place where both have something to do.
MEETINGS = [
    (pair, place)
    for pair in itertools.combinations_with_replacement([*VERBS, *WITH], 2)
    if set(pair) & set(VERBS)
    for place, kind in KINDS.items()
    if kind.suits(*pair)
]
# So many take turns: a meeting costs a second.
_EVERY = 7


@pytest.mark.parametrize(
    ("pair", "place"),
    MEETINGS if IS_THOROUGH else MEETINGS[::_EVERY],
    ids=lambda one: one if isinstance(one, str) else " ".join(one),
)
def test_who_talks_meets_whoever_as_if_one_came_first(pair: tuple[str, str], place: str) -> None:
    kind = KINDS[place]
    orders = list(dict.fromkeys([pair, pair[::-1]]))
    with actors(2) as crew, judge.alarms() as heard:
        steps: dict[tuple[str, str], list[str]] = {}
        serial: list[meetings.Meeting] = []
        met: list[Stand] = []
        for order in orders:
            met.append(stand := kind.make(pair))
            acted = meetings.alone(crew, stand, order)
            steps[order] = list(crew[0].steps)
            serial.append(meetings.drained(stand, acted))
        for order in orders:
            for stop in range(1, len(steps[order])) if IS_THOROUGH else points.stops(steps[order]):
                met.append(stand := kind.make(pair))
                try:
                    acted = meetings.interleaved(crew, stand, order, [stop])
                    meetings.judged(stand, acted, serial, heard)
                except BaseException as error:
                    error.add_note(f"{place}: {order[0]} stopped {points.told(steps[order], stop)} for {order[1]}")
                    raise
        judge.examine(*met)


def test_each_verb_of_those_who_talk_meets_each_other_one_somewhere_or_has_nothing_to_do_with_it() -> None:
    met = {frozenset(pair) for pair, _ in MEETINGS}
    apart = [pair for pair in itertools.combinations(VERBS, 2) if frozenset(pair) not in met]
    # Of these, one is of a thread that somebody works on, or that waits, and the other of one where nobody does.
    assert {"release", "decide", "lapse", "ask", "reach"} & set.intersection(
        *[set(pair) | {"release"} for pair in apart]
    )
