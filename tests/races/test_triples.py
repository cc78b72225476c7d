"""Three verbs meet on a thread, the first and the second stopped for the third: as if one went after the other."""

import itertools

import pytest

from tests.races import judge, meetings
from tests.races.points import actors
from tests.races.stands import KINDS, Stand

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

# Where they meet, and who.
TRIPLES = {
    "settle sweep cancel": "executing",
    "settle sweep claim": "executing",
    "settle deliver cancel": "executing",
    "settle tick submit": "failing",
    "sweep sweep settle": "executing",
    "renew sweep settle": "failing",
    "settle cancel sweep": "suspending",
    "claim cancel interrupt": "queued",
    "submit claim gc": "queued",
    "tick cancel claim": "waiting",
}
# Where the first and the second are stopped, whatever they do before: while they hold nothing, and when all is written.
STOPS = list(itertools.product(("lock", "commit"), repeat=2))


@pytest.mark.parametrize("verbs", TRIPLES)
def test_three_verbs_that_meet_leave_what_one_after_the_other_leaves(verbs: str) -> None:
    orders = list(dict.fromkeys(itertools.permutations(verbs.split())))
    kind = KINDS[TRIPLES[verbs]]
    with actors(3) as crew, judge.alarms() as heard:
        has_acted: set[str] = set()
        serial: list[meetings.Meeting] = []
        met: list[Stand] = []
        for order in orders:
            met.append(stand := kind.make(order))
            acted = meetings.alone(crew, stand, order)
            has_acted |= {verb for verb, did in acted if did}
            serial.append(meetings.drained(stand, acted))
        assert has_acted == set(verbs.split()), "a verb had nothing to do"
        for order, stops in itertools.product(orders, STOPS):
            met.append(stand := kind.make(order))
            try:
                acted = meetings.interleaved(crew, stand, order, stops)
                meetings.judged(stand, acted, serial, heard)
            except BaseException as error:
                first, second, third = order
                error.add_note(f"{first} stopped before its {stops[0]}, {second} before its {stops[1]}, for {third}")
                raise
        judge.examine(*met)
