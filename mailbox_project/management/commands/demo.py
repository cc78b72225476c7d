"""`manage.py demo`: start the stack, send it a real message, show what happens, say where everything is."""

import contextlib
import json
import re
import shlex
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from mailbox_app.devtools.client import Answer, request
from mailbox_app.devtools.files import read
from mailbox_app.devtools.stack import READY_SECONDS, Options, Stack
from mailbox_app.devtools.state import StateFolder
from mailbox_app.devtools.supervise import is_terminal
from mailbox_app.management.commands.mailbox_dev import Interruptible, start, state_dir

TABLE = Path(__file__).resolve().parents[2] / "examples" / "orders.csv"
ANSWER_SECONDS = 120.0
POLL_SECONDS = 0.1


class Command(BaseCommand):
    help = "Start the stack, let an agent answer a real message over HTTP, and stay until Ctrl-C."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", help="stop after the answer; exit code 1 when there is none")
        parser.add_argument("--verbose", action="store_true", help="show the output of every process")
        parser.add_argument("--port", type=int, default=8000, help="web port; the next free one when it is taken")
        parser.add_argument("--flower-port", type=int, default=5555)
        parser.add_argument("--reset", action="store_true", help="empty the state folder first")

    def handle(self, *args: Any, **options: Any) -> None:
        self.is_coloured = is_terminal(sys.stdout)
        state = StateFolder(state_dir())
        self._line(f"\n  {self._paint('1', 'Mailbox')} · durable runs for AI agents on Django\n")
        running = None if options["reset"] else state.running()
        if running is not None:
            self._visit(state, options["once"])
            return
        steps = Steps(self)
        choice = Options(port=options["port"], flower_port=options["flower_port"])
        stack = Stack(state, choice, say=steps.begin, echo=sys.stdout if options["verbose"] else None)
        answered = False
        with Interruptible(stack):
            try:
                start(stack, reset=options["reset"])
                steps.finish()
                self._ask(stack.facts, stack.tick)
                answered = True
                if not options["once"]:
                    self._show_around(stack.facts, "Ctrl-C stops everything.")
                    while True:
                        stack.tick(0.5)
            finally:
                if stack.is_started:
                    steps.begin("stopping everything")
                    stack.stop()
                    steps.finish()
        if not answered:
            raise CommandError("interrupted before the answer was there", returncode=130)

    def _visit(self, state: StateFolder, once: bool) -> None:
        """Use the stack that another process runs from the same folder."""
        until = time.monotonic() + READY_SECONDS
        while not (facts := state.running() or {}).get("is_ready"):
            if state.running() is None or time.monotonic() > until:
                raise CommandError(f"the stack of {state.path} did not become ready; see its logs in {state.logs}")
            time.sleep(POLL_SECONDS)
        self._line(f"  using the stack of process {facts['pid']}\n")
        self._ask(facts, time.sleep)
        if not once:
            self._show_around(facts, f"The stack goes on running in process {facts['pid']}.")

    def _ask(self, facts: dict[str, Any], wait: Callable[[float], None]) -> None:
        """Submit the table, follow the run's events, print its answer; CommandError when it does not succeed."""
        base, token = facts["urls"]["web"], read(Path(facts["token_file"]))
        table = TABLE.read_text()
        body = {"agent": "analyst", "messages": [{"role": "user", "content": table}]}
        shown = json.dumps(body).replace(json.dumps(table), f"<{TABLE.name}: {len(table.splitlines()) - 1} orders>")
        self._line(f"\n  {self._paint('1', 'POST /v1/runs')} {shown}")
        begun = time.monotonic()
        answer = request("POST", f"{base}/v1/runs", token=token, body=body)
        run_id = self._checked(answer, 202)["run_id"]
        self._line(f"  {self._paint('32', '202 Accepted')}  run {run_id}\n")
        cursor, first = 0, None
        while True:
            run = self._checked(request("GET", f"{base}/v1/runs/{run_id}", token=token), 200)
            # Read after the run: once it is done, this page is the last one.
            for event in self._events(f"{base}/v1/runs/{run_id}/events", token, cursor):
                cursor, at = event["cursor"], datetime.fromisoformat(event["created_at"])
                first = first or at
                since, kind = f"{(at - first).total_seconds():.2f} s", self._paint("36", event["kind"].ljust(17))
                self._line(f"  {cursor:>4}  {self._paint('2', since)}  {kind} {_brief(event['payload'])}".rstrip())
            if run["status"] == "done":
                break
            if time.monotonic() - begun > ANSWER_SECONDS:
                raise CommandError(f"no answer after {ANSWER_SECONDS:.0f} s; the run is {run['status']}")
            wait(POLL_SECONDS)
        if run["termination"]["type"] != "natural_end":
            raise CommandError(f"the run ended with {run['termination']}: {run.get('error')}")
        self._line(
            f"\n  {self._paint('32', 'done')} after {time.monotonic() - begun:.1f} s, and the agent's answer is\n"
        )
        for line in _aligned(str(run["final_output"]).splitlines()):
            self._line(f"    {line}".rstrip())
        self._line()

    def _events(self, url: str, token: str, cursor: int) -> Iterator[dict[str, Any]]:
        while True:
            page = self._checked(request("GET", f"{url}?cursor={cursor}", token=token), 200)
            yield from page["items"]
            if not page["items"] or page["next_cursor"] in (None, cursor):
                return
            cursor = page["next_cursor"]

    @staticmethod
    def _checked(answer: Answer, status: int) -> Any:
        if answer.status != status:
            raise CommandError(f"the server answered {answer.status} instead of {status}: {answer.text[:2000]}")
        return answer.json

    def _show_around(self, facts: dict[str, Any], ending: str) -> None:
        urls, demo, flower = facts["urls"], facts["demo"], facts["flower"]
        account = f"{demo['user']} / {demo['password']}"
        places = [
            ("Chat", urls["chat"], account),
            ("API docs", urls["docs"], ""),
            ("Admin", urls["admin"], account),
            ("Flower", urls["flower"], f"{flower['user']} / {flower['password']}") if "flower" in urls else None,
            ("Token", facts["token_file"], ""),
            ("Logs", str(Path(facts["state_dir"]) / "logs"), ""),
        ]
        for name, where, extra in filter(None, places):
            self._line(f"  {self._paint('1', name.ljust(9))} {where}  {self._paint('2', extra)}".rstrip())
        message = json.dumps({"agent": "echo", "messages": [{"role": "user", "content": "Hello, Mailbox!"}]})
        token = f"$(cat {shlex.quote(facts['token_file'])})"
        self._line(f"\n  {self._paint('1', 'Try it')}\n")
        self._line(f'  curl -s {urls["web"]}/v1/runs -H "Authorization: Bearer {token}" \\')
        self._line(f"    -H 'Content-Type: application/json' -d '{message}'")
        self._line(f"\n  {ending}\n")

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.is_coloured and text else text

    def _line(self, text: str = "") -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stdout.write(text + "\n", ending="")
            self.stdout.flush()


class Steps:
    """One line per step: what is being done, then a tick and how long it took."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._text = ""
        self._begun = 0.0

    def begin(self, text: str) -> None:
        self.finish()
        self._text, self._begun = text, time.monotonic()
        if self._command.is_coloured:
            self._command.stdout.write(f"  · {text} …", ending="")
            self._command.stdout.flush()

    def finish(self) -> None:
        if not self._text:
            return
        start_of_line = "\r\033[K" if self._command.is_coloured else ""
        mark, took = self._command._paint("32", "✓"), f"{time.monotonic() - self._begun:.1f} s"
        self._command._line(f"{start_of_line}  {mark} {self._text.ljust(44)} {self._command._paint('2', took)}")
        self._text = ""


def _brief(payload: Any) -> str:
    """What a payload says in a few words: no ids, which are the same on every line, no zeros, nothing long."""
    if not isinstance(payload, dict):
        return ""
    told = {name: value for name, value in payload.items() if name != "id" and not name.endswith("_id")}
    words = [f"{name}={value}" for name, value in told.items() if value and isinstance(value, str | int | float)]
    return " ".join(word for word in words if len(word) <= 40 and "\n" not in word)


def _aligned(lines: list[str]) -> list[str]:
    """Markdown with the columns of its tables padded to the same width, which changes nothing for a Markdown reader."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] if line.startswith("|") else None for line in lines]
    table = [[cell.strip() for cell in row] for row in rows if row]
    widths = [max(map(len, column)) for column in zip(*table, strict=False)]
    right = {place for row in table for place, cell in enumerate(row) if re.fullmatch("-+:", cell)}
    aligned = []
    for line, row in zip(lines, rows, strict=True):
        cells = []
        for place, (cell, width) in enumerate(zip(map(str.strip, row or []), widths, strict=False)):
            if re.fullmatch(":?-+:?", cell):
                cell = cell.replace("-", "-" * (width - len(cell) + 1), 1)
            cells.append(cell.rjust(width) if place in right else cell.ljust(width))
        aligned.append(f"| {' | '.join(cells)} |" if row else line)
    return aligned
