"""`manage.py mailbox_dev`: the whole stack in one terminal."""

import contextlib
import os
import signal
import sys
from argparse import ArgumentParser
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from mailbox_app.devtools.processes import FolderInUse
from mailbox_app.devtools.stack import NAMES, Options, Stack, StackFailed
from mailbox_app.devtools.state import NotOurs, StateFolder


class Command(BaseCommand):
    help = (
        "Run web, workers, beat and Flower, with PostgreSQL and Redis (Valkey) of their own unless DATABASE_URL and "
        "CELERY_BROKER_URL or REDIS_URL are set."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, default=8000, help="web port; the next free one when it is taken")
        parser.add_argument("--flower-port", type=int, default=5555)
        parser.add_argument("--pool", choices=("prefork", "threads"), default="prefork")
        parser.add_argument("--concurrency", type=int, default=2, help="slots of the worker")
        parser.add_argument("--without", action="append", choices=NAMES, default=[], help="leave this child out")
        parser.add_argument("--reset", action="store_true", help="empty the state folder first")

    def handle(self, *args: Any, **options: Any) -> None:
        state = StateFolder(state_dir())
        stack = Stack(
            state,
            Options(
                port=options["port"],
                flower_port=options["flower_port"],
                pool=options["pool"],
                concurrency=options["concurrency"],
                without=frozenset(options["without"]),
            ),
            say=self._say,
            echo=sys.stdout,
        )
        with Interruptible(stack):
            try:
                start(stack, reset=options["reset"])
                self._introduce(stack.facts)
                while True:
                    stack.tick(0.5)
            finally:
                if stack.is_started:  # else it was never ours, or a failed start has ended it
                    self._say("stopping")
                    stack.stop()
        self._say("stopped")

    def _say(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stdout.write(f"{'stack':<12}| {text}")
            self.stdout.flush()

    def _introduce(self, facts: dict[str, Any]) -> None:
        urls = facts["urls"]
        lines = [f"ready: {urls['web']}"] if "web" in urls else ["ready"]
        if "web" in urls:
            lines += [f"  API docs  {urls['docs']}", f"  admin     {urls['admin']}  {login(facts['demo'])}"]
            pages = [name for name in getattr(settings, "MAILBOX_DEV_PAGES", {}) if name in urls]
            lines += [f"  {name.ljust(9)} {urls[name]}  {login(facts['demo'])}" for name in pages]
        if "flower" in urls:
            lines.append(f"  Flower    {urls['flower']}  {login(facts['flower'])}")
        lines += [f"  token in  {facts['token_file']}", "  Ctrl-C stops everything"]
        for line in lines:
            self._say(line)


def state_dir() -> Path:
    """Where the stack's state is: the project's STATE_DIR, else MAILBOX_STATE_DIR, else `.mailbox` here."""
    return Path(getattr(settings, "STATE_DIR", None) or os.environ.get("MAILBOX_STATE_DIR") or ".mailbox")


def login(account: dict[str, str]) -> str:
    """A login in parentheses, as it is printed beside an address."""
    return f"({account['user']} / {account['password']})"


def start(stack: Stack, *, reset: bool = False) -> None:
    """Start the stack; CommandError says who is running, or what is wrong."""
    try:
        stack.start(reset=reset)
    except FolderInUse as error:
        running = stack.state.running() or {}
        where = running.get("urls", {}).get("web", "no address yet")
        raise CommandError(
            f"a stack is already running from {stack.state.path}: process {error.pid or 'unknown'}, {where}. "
            f"Use it, stop it (Ctrl-C there, or kill {error.pid or 'PID'}), or set MAILBOX_STATE_DIR to another folder."
        ) from error
    except (StackFailed, NotOurs) as error:
        raise CommandError(str(error)) from error


class Interruptible:
    """Turn SIGINT, SIGTERM and SIGHUP into one orderly end of the block, and a second one into a hurried one."""

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._seen = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruptible":
        self._before = {number: signal.signal(number, self._stop) for number in self._NUMBERS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return isinstance(error, KeyboardInterrupt)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._seen += 1
        if self._seen == 1:
            raise KeyboardInterrupt
        self._stack.is_hurried = True
