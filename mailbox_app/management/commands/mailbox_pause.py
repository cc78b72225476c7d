"""`manage.py mailbox_pause KIND NAME`: start nothing more of an agent, a queue or a thread, or resume it."""

import getpass
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from mailbox_app.errors import MailboxError
from mailbox_app.models import Pause, PauseKind
from mailbox_app.operations import inputs, pauses


class Command(BaseCommand):
    help = (
        "Pause an agent, a queue or a thread: nothing of it starts until it is resumed, what runs goes on. "
        "Without arguments: list what is paused."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("kind", nargs="?", choices=PauseKind.values)
        parser.add_argument("name", nargs="?", help="the agent's or queue's name, or the thread's id")
        parser.add_argument("--note", default="", help="why, for all who see that the work does not start")
        parser.add_argument("--by", default="", help="who asks (default: the user of this system)")
        parser.add_argument("--resume", action="store_true", help="end the pause")

    def handle(self, *args: Any, **options: Any) -> None:
        kind, name, note = options["kind"], options["name"], options["note"]
        if kind is None:
            self._list()
            return
        if name is None:
            raise CommandError(f"name the {kind}")
        by = options["by"] or f"command of {getpass.getuser()}"[: inputs.MAX_NAME]
        try:
            if options["resume"]:
                ended = pauses.resume(kind=kind, name=name, by=by)
                self.stdout.write(f"{ended} is resumed")
                return
            done = pauses.pause(kind=kind, name=name, note=note, by=by)
        except MailboxError as error:
            raise CommandError(f"{error.code}: {error.message}") from error
        self.stdout.write(_line(done.pause) if done.changed else f"{_line(done.pause)} (it was before)")

    def _list(self) -> None:
        for one in Pause.objects.order_by("paused_at", "id"):
            self.stdout.write(_line(one))


def _line(pause: Pause) -> str:
    since = pause.paused_at.isoformat(timespec="seconds")
    words = f"{pause} is paused since {since} by {pause.paused_by}"
    return f"{words}: {pause.note}" if pause.note else words
