"""What tests need to run a stack of their own, ask it things and break it."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from mailbox_app.devtools.client import Answer, request
from mailbox_app.devtools.files import open_private, read, tail
from mailbox_app.devtools.processes import end, spawn, wait_until
from mailbox_app.devtools.servers import destroy
from mailbox_app.devtools.stack import READY_SECONDS

ROOT = Path(__file__).resolve().parents[2]
_NOT_PASSED_ON = ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", "DJANGO_SECRET_KEY", "MAILBOX_SETTINGS")


class StackProcess:
    """`manage.py mailbox_dev` as a child of the test, in a state folder of its own that is deleted at the end.

    `settings` become MAILBOX_SETTINGS; with `environment=servers.environment` the stack uses servers of the test's
    instead of its own. As a context manager it is ready inside the block and gone after it.
    """

    _command: tuple[str, ...] = (sys.executable, "-m", "django", "mailbox_dev")

    def __init__(
        self,
        *arguments: str,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        web_port: int = 0,
    ) -> None:
        self.state_dir = Path(tempfile.mkdtemp(prefix="mailbox-test-"))
        self.output_file = self.state_dir.with_name(f"{self.state_dir.name}.log")
        self._arguments = arguments
        self._web_port = web_port
        self._env = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        self._env |= {"MAILBOX_STATE_DIR": str(self.state_dir), "MAILBOX_SETTINGS": json.dumps(dict(settings or {}))}
        self._env |= {"DJANGO_SETTINGS_MODULE": os.environ.get("DJANGO_SETTINGS_MODULE", "mailbox_project.settings")}
        self._env |= {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
        self._env |= {"PYTHONUNBUFFERED": "1", **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    # The process

    def launch(self, *more: str) -> "StackProcess":
        """Start it without waiting."""
        # A range of its own for each stack: two that start together do not look for the same free port.
        web = self._web_port or 20_000 + 20 * secrets.randbelow(250)
        flower = 25_000 + 20 * secrets.randbelow(250)
        command = [*self._command, *self._arguments, *more, "--port", str(web), "--flower-port", str(flower)]
        with open_private(self.output_file) as output:
            self.process = spawn(command, env=self._env, cwd=Path.cwd(), output=output, death_signal=signal.SIGKILL)
        return self

    def again(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Start a second one in the same folder and return how that ended."""
        command = [*self._command, *self._arguments, *more]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=60)

    def start(self, *more: str) -> "StackProcess":
        """Start it and wait until it is ready; AssertionError with its output when it fails."""
        self.launch(*more)
        assert self.process is not None
        process = self.process
        wait_until(lambda: self.is_ready or process.poll() is not None, READY_SECONDS + 30)
        assert self.is_ready, f"the stack did not start:\n{tail(self.output_file, 60)}"
        return self

    def send_signal(self, number: int) -> None:
        """Signal the stack itself."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGINT, seconds: float = 40) -> int:
        """Stop it by a signal and return its exit code; TimeoutExpired when it does not end."""
        assert self.process is not None
        if self.process.poll() is None:
            self.send_signal(number)
        self.process.wait(seconds)
        return end(self.process)

    def close(self) -> None:
        """End it if it still runs, and delete its state."""
        try:
            if self.process is not None and self.process.poll() is None:
                self.stop()
        finally:
            if self.process is not None:
                end(self.process)
            destroy(self.state_dir)
            shutil.rmtree(self.state_dir, ignore_errors=True)
            self.output_file.unlink(missing_ok=True)

    def __enter__(self) -> "StackProcess":
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # What it says

    @property
    def output(self) -> str:
        return read(self.output_file)

    @property
    def facts(self) -> dict[str, Any]:
        """stack.json, {} while there is none."""
        return dict(json.loads(read(self.state_dir / "stack.json") or "{}"))

    @property
    def is_ready(self) -> bool:
        facts = self.facts  # may still be those of a stack that was killed
        return self.process is not None and facts.get("pid") == self.process.pid and bool(facts.get("is_ready"))

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which another process finds the same database and broker."""
        return dict(json.loads(read(self.state_dir / "environment.json") or "{}"))

    @property
    def token(self) -> str:
        return read(Path(self.facts["token_file"]))

    def pid(self, name: str) -> int | None:
        """The pid of a child or server now; None while it is down."""
        pid = self.facts.get("processes", {}).get(name, {}).get("pid")
        return int(pid) if pid else None

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Signal one child or server and return the pid it had."""
        pid = self.pid(name)
        assert pid is not None, f"{name} is not running"
        os.kill(pid, number)
        return pid

    def log(self, name: str) -> str:
        return read(Path(self.facts["processes"][name]["log"]))

    def request(self, method: str, path: str, *, body: Any = None, token: str | None = None, **more: Any) -> Answer:
        """Send a request to the web process, with the demo token unless another one is given."""
        url = self.facts["urls"]["web"] + path
        return request(method, url, token=self.token if token is None else token, body=body, **more)


def descendants(pid: int) -> set[int]:
    """The pids of a process and of everything it started, directly or not."""
    try:
        return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    except psutil.NoSuchProcess:
        return {pid}


def living(pids: set[int]) -> set[int]:
    """Those of the pids that still run; one that has ended and was not yet collected by its parent does not."""
    return {pid for pid in pids if _state(pid) not in (None, psutil.STATUS_ZOMBIE)}


def command_lines() -> str:
    """What everyone on this machine can read of the processes that run."""
    return "\n".join(" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))


def _state(pid: int) -> str | None:
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return None
