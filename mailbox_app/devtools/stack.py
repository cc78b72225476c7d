"""The whole stack from one process: servers, migrations, web, beat, Flower and the workers.

stack = Stack(StateFolder(Path(".mailbox")), Options(), say=print)
with stack:                      # everything answers when this returns
    while True:
        stack.tick(0.5)
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from django.conf import settings

from mailbox_app.devtools.client import request
from mailbox_app.devtools.files import open_private, read, tail
from mailbox_app.devtools.processes import end, free_port, spawn
from mailbox_app.devtools.servers import Server, ServerFailed, Servers
from mailbox_app.devtools.state import StateFolder
from mailbox_app.devtools.supervise import Child, ChildFailed, Supervisor

# Children end in this order: no new work, no new ticks, then the workers finish what they hold, then the servers.
STOPPING = (("web",), ("beat", "flower", "worker", "maintenance"))
NAMES = ("web", "beat", "flower", "worker", "maintenance")
READY_SECONDS = 90.0
_PASSED_ON = ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", "DJANGO_SECRET_KEY", "MAILBOX_SETTINGS")


class StackFailed(RuntimeError):
    """The stack cannot start; the message says why."""


@dataclass(frozen=True)
class Options:
    """What the caller chose; ports are where the search for a free one begins."""

    port: int = 8000
    flower_port: int = 5555
    pool: str = "prefork"
    concurrency: int = 2
    # Worker processes that run agents, each with `concurrency` slots.
    workers: int = 1
    without: frozenset[str] = field(default_factory=frozenset)
    durable: bool = True


class Stack:
    """One stack in one state folder. Use it from the main thread: children end with the thread that started them."""

    def __init__(
        self, state: StateFolder, options: Options, *, say: Callable[[str], None], echo: TextIO | None = None
    ) -> None:
        self.state, self.options = state, options
        self._say, self._echo = say, echo
        self._servers: Servers | None = None
        self._supervisor: Supervisor | None = None
        self._urls: dict[str, str] = {}
        self._env: dict[str, str] = {}
        self._started_at = time.time()
        self._is_ready = False
        self._server_due_at = 0.0
        self.is_hurried = False
        self._root = Path(getattr(settings, "BASE_DIR", Path.cwd()))

    # Start and stop

    def start(self, *, reset: bool = False) -> None:
        """Start everything and wait until it answers; on any failure everything that was started is ended again.

        1. own the state folder  2. the servers  3. migrations, demo user, token  4. the children
        """
        external = self._external()
        self.state.acquire(reset=reset)
        try:
            own = {"MAILBOX_STATE_DIR": str(self.state.path), "PYTHONUNBUFFERED": "1"}
            own["DJANGO_SETTINGS_MODULE"] = str(settings.SETTINGS_MODULE)
            own["DJANGO_SECRET_KEY"] = os.environ.get("DJANGO_SECRET_KEY") or self.state.secret("django")
            if not external:
                self._say("PostgreSQL and Redis (Valkey)")
                self._servers = Servers(self.state.path, durable=self.options.durable)
                self._servers.start()
                own |= self._servers.environment
            self._env = {**os.environ, **own}
            self._publish()
            static = Path(getattr(settings, "STATIC_ROOT", None) or "/")
            if self.state.path in static.absolute().parents:
                static.mkdir(exist_ok=True)  # WhiteNoise warns about a folder that is not there
            self._say("migrations, demo user, API token")
            self._prepare()
            self._say("web, workers, beat, Flower")
            self._start_children()
            assert self._supervisor is not None
            self._supervisor.wait_ready(READY_SECONDS)
            self._is_ready = True
            self._publish()
        except BaseException as error:
            self.stop()
            if isinstance(error, (ChildFailed, ServerFailed)):
                raise StackFailed(str(error)) from error
            raise

    def tick(self, seconds: float) -> None:
        """Look after the children and the servers for this long."""
        assert self._supervisor is not None
        self._supervisor.tick(seconds)
        for server in self._server_list():
            if not server.is_running and time.monotonic() >= self._server_due_at:
                self._server_due_at = time.monotonic() + 2.0
                self._supervisor.show("stack", f"{server.name} has ended; starting it again")
                with contextlib.suppress(ServerFailed):  # told in its log; tried again
                    server.start()
                self._publish()

    def stop(self) -> None:
        """End everything in order, within bounded time; at once when `is_hurried` is set meanwhile."""
        self._is_ready = False
        if self._supervisor:
            more = tuple(_worker_name(number) for number in range(2, self.options.workers + 1))
            for names in (STOPPING[0], (*STOPPING[1], *more)):
                self._supervisor.stop(names, is_hurried=lambda: self.is_hurried)
        if self._servers:
            self._servers.stop()
        self._supervisor = self._servers = None
        self.state.release()

    def __enter__(self) -> "Stack":
        if self._supervisor is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # What runs

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to work on this stack's servers."""
        return dict(self._env)

    @property
    def is_started(self) -> bool:
        return self._supervisor is not None

    @property
    def facts(self) -> dict[str, Any]:
        """What stack.json says."""
        children = self._supervisor.children if self._supervisor else []
        processes: dict[str, Any] = {
            child.name: {
                "pid": child.pid,
                "is_ready": child.is_ready,
                "restarts": child.restarts,
                "log": str(self.state.logs / f"{child.name}.log"),
            }
            for child in children
        }
        servers = self._server_list()
        processes |= {
            server.name: {"pid": server.pid, "is_ready": server.is_running, "log": str(server.log)}
            for server in servers
        }
        return {
            "pid": os.getpid(),
            "started_at": self._started_at,
            "is_ready": self._is_ready,
            "state_dir": str(self.state.path),
            "urls": self._urls,
            "ports": {
                **{name: int(self._urls[name].rpartition(":")[2]) for name in ("web", "flower") if name in self._urls},
                **{server.name: server.port for server in servers},
            },
            "processes": processes,
            "token_file": str(self.state.token_file),
            "demo": {"user": "demo", "password": read(self.state.password_file)},
            "flower": {"user": "demo", "password": self.state.secret("flower")},
        }

    def _publish(self) -> None:
        names = [name for name in _PASSED_ON if name in self._env]
        self.state.publish(stack=self.facts, environment={name: self._env[name] for name in names})

    def _server_list(self) -> list[Server]:
        return [self._servers.postgres, self._servers.redis] if self._servers else []

    @staticmethod
    def _external() -> bool:
        database = bool(os.environ.get("DATABASE_URL"))
        broker = bool(os.environ.get("CELERY_BROKER_URL") or os.environ.get("REDIS_URL"))
        if database != broker:
            raise StackFailed("set DATABASE_URL and one of CELERY_BROKER_URL and REDIS_URL together, or none of them")
        return database

    def _prepare(self) -> None:
        log = self.state.logs / "prepare.log"
        with open_private(log, "wb") as output:
            command = [sys.executable, "-m", "mailbox_app.devtools.prepare", str(self.state.path)]
            process = spawn(command, env=self._env, cwd=self._root, output=output, inherit=[self.state.children_fd])
        try:
            code = process.wait(300)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
        if code != 0:
            raise StackFailed(f"the database could not be prepared; {log} ends:\n{tail(log, 20)}")

    def _start_children(self) -> None:
        self._supervisor = Supervisor(
            env=self._env,
            cwd=self._root,
            logs=self.state.logs,
            inherit=[self.state.children_fd],
            echo=self._echo,
            on_change=self._publish,
        )
        for child in self._children():
            if child.name not in self.options.without:
                (self.state.logs / f"{child.name}.log").unlink(missing_ok=True)
                self._supervisor.add(child)

    def _children(self) -> list[Child]:
        options = self.options
        web, flower = free_port(options.port), free_port(options.flower_port)
        for name, wanted, port in (("web", options.port, web), ("flower", options.flower_port, flower)):
            if port != wanted and name not in options.without:
                self._say(f"port {wanted} is taken: {name} moves to {port}")
        base = f"http://127.0.0.1:{web}"
        if "web" not in options.without:
            self._urls |= {"web": base, "docs": f"{base}/v1/docs", "admin": f"{base}/admin/"}
            # Further pages of the project, for who is signed in.
            pages: dict[str, str] = getattr(settings, "MAILBOX_DEV_PAGES", {})
            self._urls |= {name: f"{base}/{path}" for name, path in pages.items()}
        if "flower" not in options.without:
            self._urls["flower"] = f"http://127.0.0.1:{flower}"
        module, _, attribute = settings.ASGI_APPLICATION.rpartition(".")
        uvicorn = [sys.executable, "-m", "uvicorn", f"{module}:{attribute}", "--host", "127.0.0.1", "--port", str(web)]
        package = self._env["DJANGO_SETTINGS_MODULE"].partition(".")[0]
        # Celery advises against root; the stack runs as whoever started it, and says so nowhere else.
        quiet = ["-W", "ignore:You're running the worker with superuser privileges"]
        celery = [sys.executable, *quiet, "-m", "celery", "-q", "-A", getattr(settings, "MAILBOX_CELERY_APP", package)]
        worker = [*celery, "worker", "-E", "--loglevel", "INFO", "--without-mingle", "--without-gossip"]
        queues = getattr(settings, "MAILBOX", {})
        default = queues.get("default_queue", "mailbox.default")
        maintenance = queues.get("maintenance_queue", "mailbox.maintenance")
        started = re.compile(r"\S+@\S+ ready\.")
        size = str(options.concurrency)
        schedule = str(self.state.path / "beat-schedule")
        flower_address = ["--address=127.0.0.1", f"--port={flower}", "--purge_offline_workers=60"]
        return [
            *(
                Child(
                    name,
                    [*worker, "-n", f"{name}@%h", "-Q", default, "-P", options.pool, "-c", size],
                    started,
                    10.0,
                )
                for name in map(_worker_name, range(1, options.workers + 1))
            ),
            Child(
                "maintenance",
                [*worker, "-n", "maintenance@%h", "-Q", maintenance, "-P", "threads", "-c", "2"],
                started,
                10.0,
            ),
            Child(
                "beat",
                [*celery, "beat", "--loglevel", "INFO", "-s", schedule, "--pidfile="],
                re.compile(r"beat: Starting"),
            ),
            Child(
                "web",
                [*uvicorn, "--timeout-graceful-shutdown", "3", "--no-server-header"],
                # A project that mounts no health routes answers 404, which shows as well that it serves.
                lambda: _answers(f"{base}/health/ready", {200, 404}),
                env={"DATABASE_POOL_SIZE": "20"},
            ),
            Child(
                "flower",
                [*celery, "flower", *flower_address],
                lambda: _answers(f"http://127.0.0.1:{flower}/healthcheck", {200, 401}),
                # Not on the command line, where everyone could read it.
                env={"FLOWER_BASIC_AUTH": f"demo:{self.state.secret('flower')}"},
            ),
        ]


def _worker_name(number: int) -> str:
    return "worker" if number == 1 else f"worker-{number}"


def _answers(url: str, expected: set[int]) -> bool:
    try:
        return request("GET", url, seconds=2).status in expected
    except OSError:
        return False
