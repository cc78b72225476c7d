"""Streams whose credentials are good no longer: they end, for whatever reason that is, and nobody else's does."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext

from mailbox_app.api.v1 import stream_rights
from mailbox_app.models import ApiToken
from tests import make
from tests.operations import scene
from tests.races.actors import until
from tests.streams.conftest import Open, emit
from tests.streams.served import Server, listening

pytestmark = pytest.mark.django_db(transaction=True)

REFUSED = ("error", {"code": "authentication_failed", "detail": "The credentials are good no longer."})


@pytest.fixture(autouse=True)
def _soon(settings: Any) -> None:
    settings.MAILBOX = {
        **settings.MAILBOX, "stream_rights_seconds": 0.1,
        "scope_for_user": "tests.api.test_dead_letters.scope_of_user",
    }  # fmt: skip


def revoke(token: ApiToken) -> None:
    ApiToken.objects.filter(pk=token.pk).revoke()


def expire(token: ApiToken) -> None:
    ApiToken.objects.filter(pk=token.pk).update(expires_at=Now())


def deactivate(token: ApiToken) -> None:
    User.objects.filter(pk=token.user_id).update(is_active=False)


def move(token: ApiToken) -> None:
    ApiToken.objects.filter(pk=token.pk).update(scope="elsewhere")


@pytest.mark.parametrize(
    "lose",
    [
        revoke,
        expire,
        ApiToken.delete,
        deactivate,
        move,
    ],
    ids=["revoked", "expired", "deleted", "its user is not active", "of another scope"],
)
def test_a_token_that_is_good_no_longer_ends_its_streams_and_no_others(
    opened: Open, lose: Callable[[ApiToken], Any]
) -> None:
    token, secret = make.token(scope=scene.SCOPE, user=User.objects.create_user("ann"))
    bearer = {"Authorization": f"Bearer {secret}"}
    taken = scene.posted_and_taken()
    paths = (f"/runs/{taken.run_id}/events/stream", f"/threads/{taken.thread_id}/events/stream")
    clients = [opened(path, headers=bearer) for path in paths]
    other = opened(paths[0])
    for client in (*clients, other):
        client.until_named("RunStarted")
    lose(token)
    for client in clients:
        last = client.to_the_end()[-1]
        assert (last.name, last.data, last.id) == (*REFUSED, None)
    emit(taken, "Later")
    other.until_named("Later")
    # Of another scope, the token is good, and the run is not there.
    assert opened(paths[0], headers=bearer).status == (404 if lose is move else 401)


def log_out(browser: Client, user: User) -> None:
    browser.logout()


def lock(browser: Client, user: User) -> None:
    User.objects.filter(pk=user.pk).update(is_active=False)


def change_password(browser: Client, user: User) -> None:
    user.set_password("another")
    user.save()


@pytest.mark.parametrize("lose", [log_out, lock, change_password, lambda browser, user: user.delete()])
def test_a_session_that_has_ended_ends_its_streams(server: Server, lose: Callable[[Client, User], Any]) -> None:
    taken = scene.posted_and_taken()
    user, browser = User.objects.create_user("ann", password="one"), Client()
    browser.force_login(user)
    cookie = {"Cookie": f"sessionid={browser.cookies['sessionid'].value}"}
    url = f"{server.url}/v1/threads/{taken.thread_id}/events/stream"
    with listening(url, headers=cookie) as client:
        client.until_named("RunStarted")
        lose(browser, user)
        last = client.to_the_end()[-1]
    assert (last.name, last.data) == REFUSED
    with listening(url, headers=cookie) as again:
        assert again.status == 401


def test_credentials_that_are_good_are_asked_for_again_and_again_and_end_nothing(
    opened: Open, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = scene.posted_and_taken()
    browser = Client()
    browser.force_login(User.objects.create_user("ann"))
    cookie = {"Cookie": f"sessionid={browser.cookies['sessionid'].value}"}
    asked: list[int] = []
    standing = stream_rights.standing

    def noted(rights: Any) -> Any:
        asked.append(len(rights))
        return standing(rights)

    monkeypatch.setattr(stream_rights, "standing", noted)
    path = f"/threads/{taken.thread_id}/events/stream"
    clients = [opened(path) for _ in range(5)]
    with listening(f"{server.url}/v1{path}", headers=cookie) as browsing:
        for client in (*clients, browsing):
            client.until_named("RunStarted")
        until(lambda: asked.count(2) >= 3, "both credentials have been asked for, each once for all its streams")
        assert not any(client.has_ended for client in (*clients, browsing))
        assert "error" not in [name for client in (*clients, browsing) for name in client.names()]


def test_however_many_streams_their_rights_take_three_statements() -> None:
    user = User.objects.create_user("ann")
    tokens = [make.token(scope=scene.SCOPE, user=user)[0] for _ in range(20)]
    rights = {stream_rights.Right(token.pk, token.scope, user.pk) for token in tokens}
    hash_of = user.get_session_auth_hash()
    rights |= {stream_rights.Right(None, "", user.pk, f"session {number}", hash_of) for number in range(20)}
    with CaptureQueriesContext(connection) as asked:
        assert stream_rights.standing(rights) == {right for right in rights if right.token_id}
    assert len(asked) == 3
    with CaptureQueriesContext(connection) as asked:
        assert stream_rights.standing(set()) == set()
    assert len(asked) == 0
