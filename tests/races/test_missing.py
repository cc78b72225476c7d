"""The look for work nobody can run meets a row that somebody holds: it leaves that alone, and waits for nobody."""

from collections.abc import Iterator

import pytest
from django.db import transaction

from mailbox_app.models import Dispatch
from mailbox_app.operations import missing
from tests import given
from tests.operations import scene
from tests.races.actors import start

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _fresh_places() -> Iterator[None]:
    missing._places.clear()
    missing._stamped_after.clear()
    yield
    missing._places.clear()
    missing._stamped_after.clear()


@pytest.mark.parametrize("is_served_again", [False, True], ids=["stamping", "clearing"])
def test_a_row_somebody_holds_is_left_as_it_is_and_the_others_are_not(is_served_again: bool) -> None:
    held, free = scene.post(), scene.post()
    if is_served_again:
        assert missing.note() == 2
        given.registration()
    before = scene.dispatch(held).unrunnable_since
    with transaction.atomic():
        Dispatch.objects.select_for_update(no_key=True).get(pk=held.dispatch_id)
        assert start(missing.note).result(20) == 1
    assert scene.dispatch(held).unrunnable_since == before
    assert (scene.dispatch(free).unrunnable_since is None) is is_served_again
