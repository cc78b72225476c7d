"""Keep a list of child processes running: labelled output, log files, readiness, restarts, an orderly end.

Everything happens inside `tick()`, on the caller's thread, so that a command can do its own work in between.
"""

import codecs
import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TextIO

from mailbox_app.devtools.files import open_private, tail
from mailbox_app.devtools.processes import bury, end, spawn

# A child that lived this long starts its restarts from the shortest pause again.
STEADY_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
# While the stack starts, a child that ends this often is broken, not unlucky.
STARTING_FAILURES = 3
LOG_BYTES = 10_000_000
COLOURS = ("36", "33", "32", "35", "34", "96", "93")


class ChildFailed(RuntimeError):
    """A child does not come up: the message ends with what it said last."""


@dataclass
class Child:
    """What to run, how to know that it is ready, and how to end it."""

    name: str
    command: Sequence[str]
    # A line of its output that says so, or a question asked until it is true.
    ready: re.Pattern[str] | Callable[[], bool]
    stop_seconds: float = 5.0
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    is_ready: bool = False
    restarts: int = 0
    started_at: float = 0.0
    due_at: float = 0.0
    failures: int = 0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None


class Supervisor:
    """The children of one stack."""

    def __init__(
        self,
        *,
        env: Mapping[str, str],
        cwd: Path,
        logs: Path,
        inherit: Sequence[int],
        echo: TextIO | None,
        on_change: Callable[[], None],
    ) -> None:
        self.children: list[Child] = []
        self._env, self._cwd, self._logs = env, cwd, logs
        self._inherit, self._echo, self._on_change = inherit, echo, on_change
        self._selector = selectors.DefaultSelector()
        self._asked_at = 0.0
        self._colourful = echo is not None and is_terminal(echo)

    def add(self, child: Child) -> None:
        self.children.append(child)
        self._start(child)

    @property
    def is_ready(self) -> bool:
        return all(child.is_ready for child in self.children)

    def tick(self, seconds: float) -> None:
        """For this long: pass output on, ask for readiness, restart what has ended."""
        until = time.monotonic() + seconds
        while True:
            for key, _ in self._selector.select(max(0.0, min(0.1, until - time.monotonic()))):
                key.data()
            for child in self.children:
                self._look_after(child)
            self._ask_for_readiness()
            if time.monotonic() >= until:
                return

    def wait_ready(self, seconds: float) -> None:
        """Tick until every child is ready; ChildFailed when one keeps ending, or at the end of the time."""
        until = time.monotonic() + seconds
        while not self.is_ready:
            self.tick(0.1)
            for child in self.children:
                if not child.is_ready and (child.failures >= STARTING_FAILURES or time.monotonic() > until):
                    what = "keeps ending" if child.failures else f"is not ready after {seconds:.0f} s"
                    raise ChildFailed(f"{child.name} {what}; {self.log_of(child)} ends:\n{self._last_words(child)}")

    def stop(self, names: Sequence[str], *, is_hurried: Callable[[], bool]) -> None:
        """Tell these children to end, in this order, wait for all of them, and end by force what takes too long."""
        leaving = [child for child in self.children if child.name in names and child.process]
        for child in sorted(leaving, key=lambda child: names.index(child.name)):
            if child.process and child.process.poll() is None:
                child.process.terminate()
        until = time.monotonic() + max((child.stop_seconds for child in leaving), default=0)
        while any(child.process and child.process.poll() is None for child in leaving):
            if time.monotonic() > until or is_hurried():
                break
            for key, _ in self._selector.select(0.05):
                key.data()
        for child in leaving:
            if child.process:
                end(child.process)
                self._drain(child)
            child.process = None
        self.children = [child for child in self.children if child.name not in names]

    def log_of(self, child: Child) -> Path:
        return self._logs / f"{child.name}.log"

    def _start(self, child: Child) -> None:
        child.process = spawn(
            child.command,
            env={**self._env, **child.env},
            cwd=self._cwd,
            output=subprocess.PIPE,
            inherit=self._inherit,
        )
        assert child.process.stdout is not None
        os.set_blocking(child.process.stdout.fileno(), False)
        child.is_ready, child.started_at = False, time.monotonic()
        self._selector.register(child.process.stdout, selectors.EVENT_READ, _Reader(self, child))
        self._on_change()

    def _look_after(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.due_at:
                child.restarts += 1
                self._start(child)
        elif child.process.poll() is not None:
            code = bury(child.process)
            self._drain(child)
            child.failures = 1 if now - child.started_at > STEADY_SECONDS else child.failures + 1
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (child.failures - 1), LONGEST_PAUSE_SECONDS)
            child.process, child.is_ready, child.due_at = None, False, now + pause
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            self.show("stack", f"{child.name} {how}; starting it again in {pause:g} s")
            self._on_change()

    def _ask_for_readiness(self) -> None:
        if time.monotonic() - self._asked_at < 0.1:
            return
        for child in self.children:
            if child.process and not child.is_ready and not isinstance(child.ready, re.Pattern) and child.ready():
                self._note_ready(child)
        self._asked_at = time.monotonic()

    def _note_ready(self, child: Child) -> None:
        child.is_ready = True
        self._on_change()

    def forget(self, stream: IO[bytes]) -> None:
        """Listen to this stream no more."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(stream)

    def heard(self, child: Child, line: str) -> None:
        path = self.log_of(child)
        with open_private(path) as log:
            log.write(line.encode() + b"\n")
            if log.tell() > LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
        if isinstance(child.ready, re.Pattern) and not child.is_ready and child.ready.search(line):
            self._note_ready(child)
        self.show(child.name, line)

    def show(self, name: str, line: str) -> None:
        """Print one labelled line, when this supervisor prints at all."""
        if self._echo is None:
            return
        label = f"{name:<12}|"
        if self._colourful:
            place = [child.name for child in self.children].index(name) if name != "stack" else -1
            label = f"\033[{COLOURS[place % len(COLOURS)] if place >= 0 else '1'}m{label}\033[0m"
        try:
            self._echo.write(f"{label} {line}\n")
            self._echo.flush()
        except BrokenPipeError:
            self._echo = None  # whoever read the output has gone; the stack goes on

    def _drain(self, child: Child) -> None:
        if child.process and child.process.stdout:
            if key := self._selector.get_map().get(child.process.stdout):
                key.data(at_end=True)
                self.forget(child.process.stdout)
            child.process.stdout.close()

    def _last_words(self, child: Child) -> str:
        return tail(self.log_of(child), 20)


class _Reader:
    """Cuts one child's output into lines."""

    def __init__(self, supervisor: Supervisor, child: Child) -> None:
        self._supervisor, self._child = supervisor, child
        assert child.process is not None
        assert child.process.stdout is not None
        self._stream = child.process.stdout
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def __call__(self, *, at_end: bool = False) -> None:
        while True:
            try:
                piece = os.read(self._stream.fileno(), 65_536)
            except BlockingIOError:
                break
            if not piece:
                at_end = True
                self._supervisor.forget(self._stream)
                break
            self._rest += self._decoder.decode(piece)
            if not at_end:
                break
        *lines, self._rest = self._rest.split("\n")
        if at_end and self._rest:
            lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            self._supervisor.heard(self._child, line.rstrip("\r"))


def is_terminal(stream: TextIO = sys.stdout) -> bool:
    """Tell whether colours are welcome there."""
    return stream.isatty() and "NO_COLOR" not in os.environ
