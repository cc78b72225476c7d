"""A web process of the test's own, which can be killed and comes back at its address."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from mailbox_app.devtools.files import open_private, read
from mailbox_app.devtools.processes import end, free_port, spawn, wait_until
from tests.races.actors import ROOT, database_url
from tests.streams.served import PATIENCE_SECONDS


class Web:
    """uvicorn on the test's database and Redis, as docs/streaming.md says to start it."""

    def __init__(self, folder: Path, *, settings: str = "{}") -> None:
        self.port, self._log = free_port(), folder / "web.log"
        self._command = [
            *(sys.executable, "-m", "uvicorn", "tests.streams.counted:application", "--host", "127.0.0.1"),
            *("--port", str(self.port), "--timeout-graceful-shutdown", "1", "--log-level", "warning"),
        ]
        self._environment = {
            **os.environ, "DATABASE_URL": database_url(), "DATABASE_POOL_SIZE": "20", "MAILBOX_SETTINGS": settings,
            "DJANGO_SETTINGS_MODULE": "mailbox_project.settings", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; it answers when this returns."""
        with open_private(self._log) as output:
            self._process = spawn(self._command, env=self._environment, cwd=ROOT, output=output)
        assert wait_until(self._answers, PATIENCE_SECONDS), read(self._log)

    def kill(self) -> None:
        """Let it die without a word: the kernel closes its connections."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def replace(self) -> None:
        """Stop it as a deployment does, and start it again."""
        assert self._process is not None
        end(self._process, (signal.SIGTERM, PATIENCE_SECONDS))
        self.start()

    def stop(self) -> None:
        """End it if it runs."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def counted(self) -> dict[str, int]:
        """How many statements it has sent, by their beginning."""
        found: dict[str, int] = httpx.get(f"{self.url}/counted").json()
        return found

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/counted").status_code == 200
        return False


@contextlib.contextmanager
def web_process(folder: Path, **given: Any) -> Iterator[Web]:
    """A web process, ready when the block begins and gone after it."""
    web = Web(folder, **given)
    try:
        web.start()
        yield web
    finally:
        web.stop()
