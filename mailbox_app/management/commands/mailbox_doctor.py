"""`manage.py mailbox_doctor`: prove the promises on a live system, and say what to do where one does not hold."""

import json
import sys
import time
import uuid
from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import Error

from mailbox_app.doctor import examine
from mailbox_app.doctor.findings import Report

HEALTHY, FOUND, COULD_NOT_LOOK = 0, 1, 2

# A line of progress so often.
_PROGRESS_SECONDS = 2.0


class Command(BaseCommand):
    help = (
        "Look for what contradicts Mailbox's promises: rows, constraints, passes, workers, connections, settings. "
        "Writes nothing without --fix. Exit code: 0 healthy, 1 findings, 2 could not look."
    )
    # They are among what is looked at; one that fails must not keep the rest from being said.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        parser.add_argument(
            "--fix", action="store_true", help="rewrite wrong ready flags under the fence, send lost signals"
        )
        parser.add_argument("--scope", help="look at the rows of this scope's threads alone")
        parser.add_argument("--thread", type=_thread_id, help="look at the rows of this thread alone")
        parser.add_argument("--web-processes", type=int, default=1, help="for the connection formula")

    def handle(self, *args: Any, **options: Any) -> None:
        self._started = self._told = time.monotonic()
        self._is_quiet = options["json"] or options["verbosity"] == 0
        try:
            if options["scope"] or options["thread"]:
                report = examine.threads(
                    Report(),
                    fix=options["fix"],
                    scope=options["scope"],
                    thread_id=options["thread"],
                    progress=self._progress,
                )
            else:
                report = examine.everything(
                    fix=options["fix"], web_processes=options["web_processes"], progress=self._progress
                )
        except (Error, ImproperlyConfigured) as error:
            self._could_not_look(error, options["json"])
        seconds = time.monotonic() - self._started
        if options["json"]:
            self.stdout.write(json.dumps({**report.as_json(), "seconds": round(seconds, 3)}, indent=2))
        else:
            self._tell(report, seconds)
        if not report.is_healthy:
            sys.exit(FOUND)

    def _progress(self, threads: int) -> None:
        if not self._is_quiet and time.monotonic() - self._told >= _PROGRESS_SECONDS:
            self._told = time.monotonic()
            self.stderr.write(f"{threads:,} threads looked at")

    def _could_not_look(self, error: Exception, is_json: bool) -> None:
        message = f"{type(error).__name__}: {str(error).strip()}"
        if is_json:
            self.stdout.write(json.dumps({"healthy": None, "error": message}, indent=2))
            sys.exit(COULD_NOT_LOOK)
        raise CommandError(f"could not look: {message}", returncode=COULD_NOT_LOOK)

    def _tell(self, report: Report, seconds: float) -> None:
        for one in report.findings:
            fixed = " (fixed)" if one.is_fixed else ""
            self.stdout.write(f"{one.code}{fixed}: {one.sentence}")
            if not one.is_fixed:
                self.stdout.write(f"    {one.remedy}")
        for code, count in report.untold():
            self.stdout.write(f"{code}: and {count:,} more")
        for fact in report.facts:
            self.stdout.write(f"- {fact}")
        rows = ", ".join(f"{count:,} {name}" for name, count in report.looked_at.items())
        found, fixed_count = report.counts.total(), report.fixed.total()
        verdict = "healthy" if not found else f"{found:,} findings, {fixed_count:,} of them fixed"
        self.stdout.write(f"{verdict}; looked at {rows or 'no rows'} in {seconds:.1f} s")


def _thread_id(text: str) -> uuid.UUID:
    return uuid.UUID(text)
