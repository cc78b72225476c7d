"""`manage.py mailbox_token`: the secret is printed once, and works."""

import io
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from mailbox_app.models import ApiToken
from tests import make
from tests.operations import scene

pytestmark = pytest.mark.django_db


def issue(*arguments: str) -> str:
    """What the command prints on standard output."""
    output = io.StringIO()
    call_command("mailbox_token", *arguments, stdout=output)
    return output.getvalue()


def test_the_secret_alone_is_printed_and_opens_its_scope() -> None:
    printed = issue("ci", "--scope", "acme")
    secret = printed.strip()
    assert printed == f"{secret}\n", "TOKEN=$(manage.py mailbox_token …) must work"
    token = ApiToken.objects.get()
    assert (token.name, token.scope, token.user, token.expires_at) == ("ci", "acme", None, None)
    assert secret not in str(ApiToken.objects.values().get())
    mine, other = make.run(scope="acme"), make.run(scope="other")
    api = make.api(secret=secret)
    assert api.get(f"/runs/{mine.pk}").status_code == 200
    assert api.get(f"/runs/{other.pk}").status_code == 404


def test_without_a_scope_it_lives_where_users_do() -> None:
    issue("ci")
    assert ApiToken.objects.get().scope == "default"


def test_a_token_of_a_user_is_refused_once_the_user_is_not_active() -> None:
    user = get_user_model().objects.create_user("ada")
    secret = issue("hers", "--user", "ada").strip()
    assert make.api(secret=secret).get("/threads").status_code == 200
    get_user_model().objects.filter(pk=user.pk).update(is_active=False)
    assert make.api(secret=secret).get("/threads").status_code == 401


def test_a_token_for_some_days_ends() -> None:
    before = scene.database_now()
    secret = issue("short", "--days", "1.5").strip()
    token = ApiToken.objects.get()
    assert token.expires_at is not None
    assert timedelta(days=1.5) <= token.expires_at - before < timedelta(days=1.5, minutes=1)
    assert make.api(secret=secret).get("/threads").status_code == 200
    ApiToken.objects.update(expires_at=before)
    assert make.api(secret=secret).get("/threads").status_code == 401


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([" "], "name must not be blank"),
        (["ci", "--scope", ""], "scope must not be blank"),
        (["x" * 201], "name has 201 characters, at most 200 are allowed"),
        (["ci", "--user", "nobody"], "there is no user named 'nobody'"),
        (["ci", "--days", "0"], "--days must be above 0 and at most 36500, not 0"),
        (["ci", "--days", "nan"], "--days must be above 0 and at most 36500, not nan"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], message: str) -> None:
    given: Any = arguments
    with pytest.raises(CommandError, match=f"^{message}$"):
        issue(*given)
    assert not ApiToken.objects.exists()
