"""`manage.py mailbox_limit`: set, list and remove limits from a shell."""

import io

import pytest
from django.core.management import CommandError, call_command

from mailbox_app.models import Limit
from tests.operations import scene

pytestmark = pytest.mark.django_db


def command(*arguments: str) -> list[str]:
    out = io.StringIO()
    call_command("mailbox_limit", *arguments, stdout=out)
    return out.getvalue().splitlines()


def since(name: str) -> str:
    return Limit.objects.get(name=name).set_at.isoformat(timespec="seconds")


def test_it_sets_lists_replaces_and_removes() -> None:
    [first] = command("agent", "echo", "--most", "1", "--note", "a slow provider", "--by", "ann")
    assert first == f"agent echo: 1 at once (0 held), set {since('echo')} by ann: a slow provider"
    [second] = command("scope", "another", "--most", "4", "--by", "bob")
    assert second == f"scope another: 4 at once (0 held), set {since('another')} by bob"
    running, waiting = scene.posted_and_taken(), scene.post()
    assert running.run_id != waiting.run_id
    assert scene.take() is None
    assert command() == [first.replace("0 held", "1 held"), second]
    [again] = command("agent", "echo", "--most", "3", "--starts", "600", "--seconds", "60", "--by", "ann")
    assert again == f"agent echo: 3 at once, 600 starts in 60 s (1 held), set {since('echo')} by ann"
    assert scene.taken().run_id == waiting.run_id
    removed = command("agent", "echo", "--remove")
    assert removed == ["agent echo is limited no more; it had 3 at once, 600 starts in 60 s"]
    assert command() == [second]


def test_without_a_name_it_says_who_asked() -> None:
    command("agent", "echo", "--most", "1")
    assert Limit.objects.get().set_by.startswith("command of ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("agent",), "name the agent"),
        (("agent", "echo"), "invalid_input: most, or starts and seconds, is required"),
        (("agent", "echo", "--most", "0"), "invalid_input: most must be"),
        (("agent", "echo", "--starts", "1"), "invalid_input: starts and seconds are given together"),
        (("scope", "x", "--starts", "1", "--seconds", "1"), "invalid_input: starts are limited of agents only"),
        (("agent", "echo", "--remove"), "not_limited: agent echo has no limit"),
        (("agent", "echo", "--remove", "--most", "1"), "--remove takes no bounds"),
        (("queue", "x"), "invalid choice"),
    ],
)
def test_what_it_cannot_do_it_says(arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(CommandError, match=says):
        command(*arguments)
    assert not Limit.objects.exists()
