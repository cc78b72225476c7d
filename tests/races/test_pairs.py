"""Any two verbs meet on a thread, one of them stopped at each of its statements that matter: as if one came first.

`stands.py` says where they meet, `points.py` where they can be stopped, and `judge.py` whether all is well after it.
What comes of it must be what comes of the one, or the other, going first.
"""

import itertools
import os

import pytest

from tests.races import judge, meetings, points
from tests.races.points import actors
from tests.races.stands import KINDS, VERBS, Stand

pytestmark = pytest.mark.django_db(transaction=True)

PAIRS = list(itertools.combinations_with_replacement(VERBS, 2))


# MAILBOX_PAIRS=all stops them before every one of their statements, wherever both have something to do.
IS_THOROUGH = os.environ.get("MAILBOX_PAIRS") == "all"
# Else, of the places beside the first, so many take turns: a pair costs seconds.
_EVERY = 4


def places(*verbs: str) -> list[str]:
    """Where they can meet: on the first of these they do so in every run."""
    return [name for name, kind in KINDS.items() if kind.suits(*verbs)]


def elsewhere() -> list[tuple[tuple[str, str], str]]:
    """The pairs and the places at which this session has them meet once more."""
    every = [(pair, place) for pair in PAIRS for place in places(*pair)[1:]]
    return every if IS_THOROUGH else [one for one in every if KINDS[one[1]].about & set(one[0])][::_EVERY]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_two_verbs_that_meet_leave_what_one_after_the_other_leaves(pair: tuple[str, str]) -> None:
    meet(pair, places(*pair)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "place"),
    elsewhere(),
    ids=lambda one: one if isinstance(one, str) else " ".join(one),
)
def test_two_verbs_that_meet_elsewhere_do_so_too(pair: tuple[str, str], place: str) -> None:
    meet(pair, place)


def meet(pair: tuple[str, str], place: str) -> None:
    """Let one of the two be stopped wherever it can, for the other, and then the other for the one."""
    kind = KINDS[place]
    orders = list(dict.fromkeys([pair, pair[::-1]]))
    with actors(2) as crew, judge.alarms() as heard:
        has_acted: set[str] = set()
        steps: dict[tuple[str, str], list[str]] = {}
        serial: list[meetings.Meeting] = []
        met: list[Stand] = []
        for order in orders:
            met.append(stand := kind.make(pair))
            acted = meetings.alone(crew, stand, order)
            has_acted |= {verb for verb, did in acted if did}
            steps[order] = list(crew[0].steps)
            serial.append(meetings.drained(stand, acted))
        assert has_acted == set(pair), f"{place}: a verb had nothing to do"
        for order in orders:
            taken = steps[order]
            for stop in range(1, len(taken)) if IS_THOROUGH else points.stops(taken):
                met.append(stand := kind.make(pair))
                try:
                    acted = meetings.interleaved(crew, stand, order, [stop])
                    meetings.judged(stand, acted, serial, heard)
                except BaseException as error:
                    error.add_note(f"{place}: {order[0]} stopped {points.told(taken, stop)} for {order[1]}")
                    raise
        judge.examine(*met)


def test_every_two_verbs_have_a_place_to_meet() -> None:
    assert len(PAIRS) == len(VERBS) * (len(VERBS) + 1) // 2
    assert [pair for pair in PAIRS if not places(*pair)] == []
