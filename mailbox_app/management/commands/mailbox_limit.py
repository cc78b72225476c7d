"""`manage.py mailbox_limit KIND NAME`: limit how many runs of an agent or a scope execute at once, or remove that."""

import getpass
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from mailbox_app.errors import MailboxError
from mailbox_app.models import Limit, LimitKind
from mailbox_app.operations import inputs, limits


class Command(BaseCommand):
    help = (
        "Limit how many runs of an agent or a scope execute at once, or how often an agent starts: in place of the "
        "limit it has; what runs goes on, and counts. Without arguments: list what is limited."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("kind", nargs="?", choices=LimitKind.values)
        parser.add_argument("name", nargs="?", help="the agent's or the scope's")
        parser.add_argument("--most", type=int, help="runs that execute at once")
        parser.add_argument("--starts", type=int, help="of an agent: how often one starts within --seconds")
        parser.add_argument("--seconds", type=float, help="with --starts")
        parser.add_argument("--note", default="", help="why, for all who see that the work does not start")
        parser.add_argument("--by", default="", help="who asks (default: the user of this system)")
        parser.add_argument("--remove", action="store_true", help="limit it no more")

    def handle(self, *args: Any, **options: Any) -> None:
        kind, name = options["kind"], options["name"]
        bounds = {name: options[name] for name in ("most", "starts", "seconds")}
        if kind is None:
            self._list()
            return
        if name is None:
            raise CommandError(f"name the {kind}")
        if options["remove"] and any(value is not None for value in bounds.values()):
            raise CommandError("a limit is removed as a whole: --remove takes no bounds")
        by = options["by"] or f"command of {getpass.getuser()}"[: inputs.MAX_NAME]
        try:
            if options["remove"]:
                was = limits.remove(kind=kind, name=name, by=by)
                self.stdout.write(f"{was} is limited no more; it had {was.bounds}")
                return
            done = limits.put(kind=kind, name=name, **bounds, note=options["note"], by=by)
        except MailboxError as error:
            raise CommandError(f"{error.code}: {error.message}") from error
        self.stdout.write(_line(Limit.objects.with_held().get(pk=done.limit.pk)))

    def _list(self) -> None:
        for one in Limit.objects.in_force().with_held().order_by("kind", "name").iterator():
            self.stdout.write(_line(one))


def _line(limit: Any) -> str:
    since = limit.set_at.isoformat(timespec="seconds")
    used = "" if limit.most is None else f" ({limit.held} held)"
    words = f"{limit}: {limit.bounds}{used}, set {since} by {limit.set_by or 'somebody'}"
    return f"{words}: {limit.note}" if limit.note else words
