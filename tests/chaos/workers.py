"""A worker process of the test's own, beside a stack that has none: it can be signalled, and its end looked at."""

import os
import subprocess
import sys
import uuid
from pathlib import Path
from types import TracebackType

from mailbox_app.devtools.files import read
from mailbox_app.devtools.processes import end, spawn, wait_until
from tests.chaos.live import SLACK_SECONDS, Live

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """`celery worker` on the stack's database and broker; ready inside the block, gone after it."""

    # What it says when it is.
    READY = " ready."

    def __init__(
        self,
        live: Live,
        name: str,
        *,
        pool: str = "threads",
        slots: int = 2,
        queue: str = "mailbox.default",
        **environment: str,
    ) -> None:
        # One that is started again under its name has a log of its own.
        self.name, self.log = name, live.folder / f"{name}-{uuid.uuid4().hex[:8]}.log"
        self._command = [
            *(sys.executable, "-m", "celery", "-q", "-A", "mailbox_project", "worker", "-E", "--loglevel", "INFO"),
            *("--without-mingle", "--without-gossip", "-n", f"{name}@%h", "-Q", queue),
            *("-P", pool, "-c", str(slots)),
        ]
        self._environment = {**os.environ, **live.stack.environment, **environment}
        self.process: subprocess.Popen[bytes]

    @property
    def output(self) -> str:
        return read(self.log)

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: int) -> None:
        """Signal the worker."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 2 * SLACK_SECONDS) -> int:
        """Wait for its end; the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended:\n{self.output[-3000:]}") from None

    def wait_output(self, text: str, seconds: float = 2 * SLACK_SECONDS) -> None:
        """Wait until it has said this."""
        wait_until(lambda: text in self.output or self.process.poll() is not None, seconds)
        assert text in self.output, self.output[-3000:]

    def __enter__(self) -> "Worker":
        with self.log.open("wb") as output:
            self.process = spawn(self._command, env=self._environment, cwd=ROOT, output=output)
        try:
            self.wait_output(self.READY, 60)
        except BaseException:
            end(self.process)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        end(self.process)
