"""Who talks, asks or answers is cut off before each statement and commit that matters: nothing is done by halves.

Its connection is ended by the server, as with its process; what it then does again does what it would have done first.
"""

import pytest
from django.db import InterfaceError, OperationalError

from tests.operations import scene
from tests.races import judge, meetings, points
from tests.races.actors import terminate
from tests.races.points import actors
from tests.races.zones import KINDS

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

# A verb, and where it has most to do.
CUTS = [
    ("post", "said"),
    ("post", "listening"),
    ("steer", "steered"),
    ("redirect", "steered"),
    ("edit", "said"),
    ("retract", "said"),
    ("retract", "fed"),
    ("reorder", "said"),
    ("release", "held"),
    ("reach", "steered"),
    ("ask", "asked"),
    ("settle", "asked"),
    ("settle", "tuning in"),
    ("decide", "waiting"),
    ("lapse", "waiting"),
    ("cancel", "waiting"),
    ("interrupt", "steered"),
]


@pytest.mark.parametrize(("verb", "place"), CUTS, ids=[f"{verb}-{place}" for verb, place in CUTS])
def test_a_verb_that_is_cut_off_has_done_nothing_and_does_it_when_it_comes_again(verb: str, place: str) -> None:
    make = KINDS[place].make
    with actors(1) as [actor]:
        stand = make([verb])
        assert meetings.alone([actor], stand, [verb]) == [(verb, True)]
        steps, undisturbed = list(actor.steps), judge.drained(stand)
    assert steps.count("commit") == 1, "it is one transaction"
    for stop in points.stops(steps):
        stand = make([verb])
        before = scene.tables()
        with actors(1) as [actor]:
            meetings.perform(actor, stand, verb, stop_at=stop)
            assert actor.rest() == "stopped", points.told(steps, stop)
            terminate(actor.pid)
            actor.go_on()
            with pytest.raises((OperationalError, InterfaceError)):
                actor.result()
        assert scene.tables() == before, f"cut off {points.told(steps, stop)}"
        with actors(1) as [actor]:
            assert meetings.alone([actor], stand, [verb]) == [(verb, True)]
        judge.examine(stand)
        assert judge.drained(stand) == undisturbed, f"cut off {points.told(steps, stop)}"
