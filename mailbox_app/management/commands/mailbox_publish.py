"""`manage.py mailbox_publish`: publish a configuration of an agent."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from mailbox_app.errors import Refused
from mailbox_app.operations import publish


class Command(BaseCommand):
    help = (
        "Publish a version of an agent's configuration (ctx.config): runs submitted from now on are bound to it. "
        "A published version never changes; publishing the same again does nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("agent")
        parser.add_argument("version")
        parser.add_argument("--config", required=True, metavar="FILE", help="a JSON object; - reads standard input")
        parser.add_argument("--note", default="", help="what is new in it")

    def handle(self, *args: Any, **options: Any) -> None:
        source = options["config"]
        try:
            text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
            configuration = json.loads(text)
        except OSError as error:
            raise CommandError(f"{source} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CommandError(f"{source} is not JSON in UTF-8: {error}") from error
        try:
            published = publish.version(
                agent=options["agent"], version=options["version"], configuration=configuration, note=options["note"]
            )
        except Refused as error:
            raise CommandError(f"{error.code}: {error.message}") from error
        self.stdout.write(f"{published} is published since {published.published_at.isoformat(timespec='seconds')}")
