"""publish: a configuration that never changes, and the runs that are bound to it."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection

from mailbox_app.errors import AlreadyExists, Immutable, InvalidInput
from mailbox_app.models import AgentVersion
from mailbox_app.operations import publish, settle, tick
from tests.operations import scene
from tests.races.actors import crew

pytestmark = pytest.mark.django_db


def publish_one(version: str = "v1", **given: Any) -> AgentVersion:
    return publish.version(**{"agent": "echo", "version": version, "configuration": {"prompt": "Be kind."}, **given})


def test_a_version_is_published_with_who_did_it_and_why() -> None:
    somebody = User.objects.create_user("ada")
    before = scene.database_now()
    published = publish_one(note="kinder", published_by=somebody)
    row = AgentVersion.objects.get()
    assert row.pk == published.pk
    assert (row.agent, row.version, row.configuration) == ("echo", "v1", {"prompt": "Be kind."})
    assert (row.note, row.published_by, row.published_at >= before) == ("kinder", somebody, True)


def test_the_same_content_again_is_the_same_answer() -> None:
    first = publish_one(note="first", configuration={"a": 1, "b": [1, 2]})
    with scene.nothing_changes():
        again = publish_one(note="another", configuration={"b": (1, 2), "a": 1})
    assert (again.pk, again.note) == (first.pk, "first")


def test_a_version_with_other_content_is_refused() -> None:
    publish_one()
    with scene.nothing_changes(), pytest.raises(AlreadyExists, match="'v1' of agent 'echo'"):
        publish_one(configuration={"prompt": "Be brief."})


def test_what_is_published_is_never_changed() -> None:
    published = publish_one()
    published.configuration = {}
    for change in (published.save, lambda: AgentVersion.objects.update(configuration={})):
        with scene.nothing_changes(), pytest.raises(Immutable):
            change()


WRONG = {
    "agent": {"agent": " "},
    "version": {"version": "v" * 101},
    "note": {"note": "n" * 501},
    "configuration": {"configuration": ["no object"]},
    "configuration.prompt": {"configuration": {"prompt": "nul \x00"}},
}


@pytest.mark.parametrize(("field", "given"), WRONG.items(), ids=WRONG.keys())
def test_what_cannot_be_stored_is_refused_by_its_name(field: str, given: dict[str, Any]) -> None:
    with scene.nothing_changes(), pytest.raises(InvalidInput) as refused:
        publish_one(**given)
    assert refused.value.errors[0]["field"] == field


def test_a_configuration_too_large_is_refused(settings: Any) -> None:
    settings.MAILBOX = {**settings.MAILBOX, "max_content_bytes": 100}
    with pytest.raises(InvalidInput, match="configuration"):
        publish_one(configuration={"prompt": "x" * 100})


def test_a_run_has_the_configuration_that_was_the_latest_when_it_was_submitted() -> None:
    unbound = scene.post()
    publish_one("v1", configuration={"n": 1})
    first = scene.post()
    publish_one("v2", configuration={"n": 2})
    latest, named = scene.post(), scene.post(config_version="v1")
    found = {claim.run_id: claim.config for claim in (scene.taken() for _ in range(4))}
    assert found == {unbound.run_id: {}, first.run_id: {"n": 1}, latest.run_id: {"n": 2}, named.run_id: {"n": 1}}


def test_a_run_keeps_its_configuration_over_attempts() -> None:
    publish_one("v1", configuration={"n": 1})
    scene.post()
    claim = scene.taken()
    publish_one("v2", configuration={"n": 2})
    settle.nack(claim, code="transient", message="later", retry_after=0)
    scene.make_available(claim)
    tick.promote()
    assert scene.taken().config == {"n": 1}


@pytest.mark.django_db(transaction=True)
def test_of_many_who_publish_at_once_one_wins_and_the_others_are_told() -> None:
    with crew(8) as together:

        def attempt(n: int) -> str:
            try:
                return str(publish_one(configuration={"n": n % 2}).pk)
            except AlreadyExists:
                return "refused"

        results = together(*(lambda n=n: attempt(n) for n in range(8)))  # type: ignore[misc]
    [row] = AgentVersion.objects.all()
    assert sorted(results) == [str(row.pk)] * 4 + ["refused"] * 4
    connection.close()
