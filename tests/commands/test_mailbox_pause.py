"""`manage.py mailbox_pause`: pause, list and resume from a shell."""

import io

import pytest
from django.core.management import CommandError, call_command

from mailbox_app.models import Pause
from tests import make
from tests.operations import scene

pytestmark = pytest.mark.django_db


def command(*arguments: str) -> list[str]:
    out = io.StringIO()
    call_command("mailbox_pause", *arguments, stdout=out)
    return out.getvalue().splitlines()


def test_it_pauses_lists_and_resumes() -> None:
    run = make.run()
    [line] = command("agent", "echo", "--note", "provider is down", "--by", "ann")
    row = Pause.objects.get()
    since = row.paused_at.isoformat(timespec="seconds")
    assert line == f"agent echo is paused since {since} by ann: provider is down"
    assert command("agent", "echo", "--note", "again") == [f"{line} (it was before)"]
    [other] = command("thread", str(run.thread_id))
    assert command() == [line, other]
    assert scene.take() is None
    assert command("agent", "echo", "--resume") == ["agent echo is resumed"]
    assert command("thread", str(run.thread_id), "--resume") == [f"thread {run.thread_id} is resumed"]
    assert command() == []
    assert scene.taken().run_id == run.pk


def test_without_a_name_it_says_who_asked() -> None:
    command("queue", "mailbox.default")
    assert Pause.objects.get().paused_by.startswith("command of ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("agent",), "name the agent"),
        (("thread", "x"), "invalid_input: name must be a UUID"),
        (("agent", "echo", "--resume"), "not_paused: agent echo is not paused"),
        (("run", "x"), "invalid choice"),
    ],
)
def test_what_it_cannot_do_it_says(arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(CommandError, match=says):
        command(*arguments)
    assert not Pause.objects.exists()
