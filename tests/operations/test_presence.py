"""Workers that live, that are gone, and that said so; and whose slots count."""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from mailbox_app.models import AgentRegistration
from mailbox_app.operations import recover
from tests import given
from tests.operations import scene

pytestmark = pytest.mark.django_db


def ago(seconds: float) -> Any:
    return Now() - timedelta(seconds=seconds)


@pytest.mark.parametrize(("seconds", "is_live"), [(0, True), (89, True), (91, False)])
def test_a_worker_is_live_while_it_was_seen_within_three_intervals(seconds: float, is_live: bool) -> None:
    given.registration(seen_at=ago(seconds))
    assert AgentRegistration.objects.live().exists() == is_live


@pytest.mark.parametrize(("seconds", "is_written"), [(26, False), (28, True)])
def test_a_worker_is_written_down_as_seen_once_an_interval(seconds: float, is_written: bool) -> None:
    row = given.registration(seen_at=ago(seconds))
    other = given.registration(seen_at=ago(60))
    assert AgentRegistration.objects.of_worker(row.worker).touch() == int(is_written)
    assert AgentRegistration.objects.filter(pk=row.pk, seen_at__gt=ago(5)).exists() == is_written
    assert not AgentRegistration.objects.filter(pk=other.pk, seen_at__gt=ago(5)).exists()


def test_a_worker_that_leaves_is_not_live_and_is_remembered() -> None:
    row = given.registration(worker="one@here", seen_at=Now())
    given.registration(worker="one@here", agent="analyst", seen_at=Now())
    stays = given.registration(worker="two@here")
    assert AgentRegistration.objects.of_worker(row.worker).leave() == 2
    assert list(AgentRegistration.objects.live()) == [stays]
    assert AgentRegistration.objects.of_worker(row.worker).remembered(3600).count() == 2


def test_leaving_makes_nobody_look_younger() -> None:
    row = given.registration(seen_at=ago(86_400))
    assert AgentRegistration.objects.of_worker(row.worker).leave() == 1
    left = AgentRegistration.objects.get(pk=row.pk)
    assert left.gone_at is not None
    assert left.seen_at < scene.database_now() - timedelta(seconds=86_000)
    assert AgentRegistration.objects.of_worker(row.worker).leave() == 0, "it has left already"


def test_slots_of_workers_that_are_gone_send_no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    monkeypatch.setattr(recover.hints, "fill", lambda queue, signals: woken.append(signals) or signals)
    given.registration(slots=64, seen_at=ago(120))
    given.registration(slots=2)
    for _ in range(5):
        scene.post()
    assert recover.signal() == 2
    assert woken == [2]
