"""PostgreSQL and a Redis-compatible server from the wheels, for development and tests.

    with Servers(Path(".mailbox")) as servers:
        subprocess.run(command, env={**os.environ, **servers.environment})

Both listen on loopback only and want a generated password. They end with the process that started them, however that
ends; a folder has one owner at a time. PostgreSQL has no socket file, so nothing depends on the length of a path.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import psycopg

from mailbox_app.devtools.account import Account, elsewhere, working_folder
from mailbox_app.devtools.binaries import Binaries, clean_environment
from mailbox_app.devtools.files import open_private, tail, write_private
from mailbox_app.devtools.processes import Ownership, end, free_port, owner_of, spawn, wait_until

# Recovery after a crash on a slow disk is the slowest start there is.
START_SECONDS = 60.0
# No test run is that old.
_LEFT_BEHIND_SECONDS = 6 * 3_600.0


class ServerFailed(RuntimeError):
    """A server did not start; the message ends with the last lines of its log."""


class Server:
    """One server process: started, watched and stopped again on the same port with the same data."""

    name: ClassVar[str]
    stop_steps: ClassVar[tuple[tuple[int, float], ...]]

    def __init__(self, folder: Path, *, password: str, port: int = 0, durable: bool = True, inherit: int = -1) -> None:
        self.account = Account.for_servers()
        self.binaries = Binaries.locate(self.account)
        self.folder = folder
        self.data = folder / self.name
        self.log = folder / f"{self.name}.log"
        self.password = password
        self.port = port
        self.durable = durable
        self.process: subprocess.Popen[bytes] | None = None
        self._inherit = (inherit,) if inherit >= 0 else ()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.is_running else None

    def start(self, *, may_move: bool = False) -> None:
        """Start and wait until it answers; `may_move` takes another port when the wanted one is in use."""
        if not self.is_running:
            self._prepare()
            self._launch(may_move)

    def _launch(self, may_move: bool) -> None:
        for _ in range(5):
            if may_move:
                self.port = free_port(self.port)
            with open_private(self.log) as log:
                self.process = spawn(
                    self._command(),
                    env=clean_environment(),
                    output=log,
                    account=self.account,
                    death_signal=self.stop_steps[0][0],
                    inherit=self._inherit,
                )
            wait_until(lambda: self._is_up() or not self.is_running, START_SECONDS)
            if self._is_up():
                return
            self.stop()
            if not may_move or free_port(self.port) == self.port:
                break
        raise ServerFailed(f"{self.name} did not start on port {self.port}; {self.log} ends:\n{tail(self.log)}")

    def stop(self) -> None:
        """Shut it down in order, within seconds."""
        if self.process is not None:
            end(self.process, *self.stop_steps)
        self.process = None

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None:
            end(self.process)
        self.process = None

    def _is_up(self) -> bool:
        return self.is_running and self._answers()

    def _prepare(self) -> None:
        raise NotImplementedError

    def _command(self) -> list[str | Path]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _give(self, path: Path) -> Path:
        if self.account:
            os.chown(path, self.account.uid, self.account.gid)
        return path


class Postgres(Server):
    """PostgreSQL 17 or newer, over TCP only, with a database `mailbox` owned by a superuser of that name."""

    name = "postgres"
    stop_steps = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0))  # fast shutdown, then immediate

    @property
    def url(self) -> str:
        return f"postgresql://mailbox:{self.password}@127.0.0.1:{self.port}/mailbox"

    def start(self, *, may_move: bool = False) -> None:
        super().start(may_move=may_move)
        with psycopg.connect(self.url.removesuffix("mailbox") + "postgres", autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'mailbox'").fetchone():
                connection.execute("CREATE DATABASE mailbox")

    def _prepare(self) -> None:
        if self.data.exists():
            return
        # Made beside its place and renamed: an interrupted initdb never looks finished.
        building = self._give(Path(tempfile.mkdtemp(prefix="initdb-", dir=self.folder)))
        password = building.with_suffix(".password")
        try:
            with open_private(password) as file:
                file.write(self.password.encode())
            self._give(password)
            options = ["-U", "mailbox", "-A", "scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-sync"]
            locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
            who: dict[str, Any] = {}
            if self.account:
                who = {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
            done = subprocess.run(
                [self.binaries.initdb, "-D", building, *options, *locale],
                env=clean_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=START_SECONDS * 2,
                **who,
            )
            if done.returncode:
                raise ServerFailed(f"initdb failed in {self.folder}:\n{done.stderr.strip()}")
            building.rename(self.data)
        finally:
            password.unlink(missing_ok=True)
            shutil.rmtree(building, ignore_errors=True)

    def _command(self) -> list[str | Path]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "timezone": "UTC",
            "log_timezone": "UTC",
            "wal_level": "minimal",
            "max_wal_senders": 0,
        }
        if next(self.binaries.postgres.parents[1].glob("lib/**/pg_stat_statements.*"), None):
            settings["shared_preload_libraries"] = "pg_stat_statements"
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [self.binaries.postgres, "-D", self.data, *options]

    def _answers(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready"


class Redis(Server):
    """Valkey from the wheel, or any Redis >= 7.2 on PATH. As a context manager: a server of its own for a test."""

    name = "redis"
    stop_steps = ((signal.SIGTERM, 8.0),)

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def __enter__(self) -> "Redis":
        self.start(may_move=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _prepare(self) -> None:
        if not self.data.exists():
            self.data.mkdir(mode=0o700)
            self._give(self.data)

    def _command(self) -> list[str | Path]:
        # In a file, not on the command line: a password there would show in `ps`.
        settings = self.data / "redis.conf"
        with open_private(settings, "wb") as file:
            keep = "appendonly yes\nappendfsync everysec" if self.durable else "appendonly no"
            lines = ("bind 127.0.0.1", f"port {self.port}", f"requirepass {self.password}", 'save ""', keep)
            file.write("\n".join(lines).encode())
        self._give(settings)
        return [self.binaries.redis, settings, "--dir", self.data]

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
            received = b""
            while piece := connection.recv(200):
                received += piece
                if received.count(b"\n") >= 2:
                    return received.startswith(b"+OK\r\n+PONG")
        return False


class Servers:
    """Both servers of one state folder, with their passwords and ports kept there for the next start."""

    def __init__(self, state_dir: Path, *, durable: bool = True) -> None:
        self.state_dir = state_dir.absolute()
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._wanted = self.state_dir / "servers"
        self._folder = working_folder(self._wanted, Account.for_servers())
        self._ownership = Ownership(self._folder)
        self._durable = durable
        self.postgres: Postgres
        self.redis: Redis

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which settings find the servers."""
        redis = self.redis.url
        return {"DATABASE_URL": self.postgres.url, "REDIS_URL": redis, "CELERY_BROKER_URL": redis}

    def start(self) -> None:
        """Start both; FolderInUse when another live process runs servers from this folder."""
        self._ownership.acquire()
        try:
            known = self._known()
            common: dict[str, Any] = {"durable": self._durable, "inherit": self._ownership.children_fd}
            self.postgres = Postgres(self._folder, password=known["postgres_password"], **common)
            self.redis = Redis(self._folder, password=known["redis_password"], **common)
            for server in (self.postgres, self.redis):
                server.port = known[f"{server.name}_port"]
                server.start(may_move=True)
                known[f"{server.name}_port"] = server.port
            self._remember(known)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for name in ("redis", "postgres"):
            if hasattr(self, name):
                getattr(self, name).stop()
        self._ownership.release()

    def __enter__(self) -> "Servers":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _known(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((self._folder / "servers.json").read_text()))
        known: dict[str, Any] = {}
        for kind in (Postgres, Redis):
            known |= {f"{kind.name}_password": secrets.token_urlsafe(24), f"{kind.name}_port": 0}
        self._remember(known)  # before initdb: a cluster's password must not be lost
        return known

    def _remember(self, known: dict[str, Any]) -> None:
        write_private(self._folder / "servers.json", json.dumps(known))


def destroy(state_dir: Path) -> None:
    """Delete the servers' data of a state folder, wherever it is kept; the caller makes sure that nobody runs it."""
    wanted = state_dir.absolute() / "servers"
    for folder in (wanted, elsewhere(wanted)):
        if folder.exists() and folder.lstat().st_uid == os.geteuid():
            shutil.rmtree(folder)


def _sweep_temporary() -> None:
    """Delete what test runs that were killed have left behind."""
    for left in Path(tempfile.gettempdir()).glob("mailbox-test-*/"):
        with contextlib.suppress(OSError):
            found = left.lstat()
            is_old = stat.S_ISDIR(found.st_mode) and found.st_mtime < time.time() - _LEFT_BEHIND_SECONDS
            if is_old and found.st_uid == os.geteuid() and not owner_of(left) and not owner_of(left / "servers"):
                destroy(left)
                shutil.rmtree(left)


@contextlib.contextmanager
def temporary_servers() -> Iterator[Servers]:
    """Run fast, forgetful servers in a folder of their own that is deleted afterwards."""
    _sweep_temporary()
    state_dir = Path(tempfile.mkdtemp(prefix="mailbox-test-"))
    try:
        with Servers(state_dir, durable=False) as servers:
            yield servers
    finally:
        destroy(state_dir)
        shutil.rmtree(state_dir, ignore_errors=True)
