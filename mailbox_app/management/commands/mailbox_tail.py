"""`manage.py mailbox_tail`: follow a run or a thread on the terminal."""

import os
import sys
import uuid
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error

from mailbox_app.watching import rows
from mailbox_app.watching.follow import End, follow
from mailbox_app.watching.terminal import JsonLines, Lines

# As a shell says of what was ended by SIGINT.
INTERRUPTED = 130


class Command(BaseCommand):
    help = (
        "Print the events of a run or a thread, internal ones too, and what its agent says live; follow a run until it "
        "is done, a thread until Ctrl-C. Exit code: 0 nothing more to come, 1 it could not be followed, 130 Ctrl-C."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("id", help="of a run or a thread; with --scope, a thread's key")
        parser.add_argument("--scope", help="the scope of the thread with this key")
        parser.add_argument(
            "--from", dest="cursor", type=int, default=0, metavar="N", help="begin after the event with this cursor"
        )
        parser.add_argument("--no-follow", action="store_true", help="print what is there, and end")
        parser.add_argument("--json", action="store_true", help="print one JSON object a line, payloads whole")

    def handle(self, *args: Any, **options: Any) -> None:
        shows = JsonLines(self.stdout, self.stderr) if options["json"] else Lines(self.stdout, self.stderr, self.style)
        try:
            target = self._found(options["id"], options["scope"])
            for one in follow(target, cursor=max(0, options["cursor"]), is_live=not options["no_follow"]):
                shows.show(one)
                if isinstance(one, End) and one.status == "gone":
                    sys.exit(1)
            shows.close()
        except KeyboardInterrupt:
            shows.close()
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # Whoever read it has left; Python would say so once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Error as error:
            raise CommandError(f"the database did not answer: {type(error).__name__}: {str(error).strip()}") from error

    def _found(self, given: str, scope: str | None) -> rows.Target:
        if scope is not None:
            target = rows.find_key(scope, given)
            if target is None:
                raise CommandError(f"scope {scope} has no thread with the key {given}")
            return target
        try:
            target = rows.find(uuid.UUID(given))
        except ValueError:
            raise CommandError(f"{given} is no id; a thread's key needs --scope") from None
        if target is None:
            raise CommandError(f"there is no run or thread {given}")
        return target
