"""The embedded servers: locked, loopback only, owned by one process, gone when it is."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mailbox_app.devtools import account, binaries
from mailbox_app.devtools.probes import command_lines, descendants, living
from mailbox_app.devtools.processes import FolderInUse, Ownership, free_port, owner_of, wait_until
from mailbox_app.devtools.servers import Redis, Servers, destroy, temporary_servers

OWNER = """
import sys, time
from pathlib import Path
from mailbox_app.devtools.servers import Servers

with Servers(Path(sys.argv[1]), durable=False) as servers:
    print(servers.postgres.port, servers.redis.port, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mailbox-test-") as name:
        yield Path(name)
        destroy(Path(name))


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with tempfile.TemporaryDirectory(prefix="mailbox-test-") as name:
        with Servers(Path(name), durable=False) as servers:
            yield servers
        destroy(Path(name))


def test_postgresql_answers_with_the_generated_password_only(running: Servers) -> None:
    with psycopg.connect(running.postgres.url) as connection:
        method = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'mailbox'").fetchone()
    assert method is not None
    assert method[0].startswith("SCRAM-SHA-256$")
    for wrong in ("wrong", ""):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(running.postgres.url.replace(running.postgres.password, wrong), passfile=os.devnull)


def test_redis_answers_with_the_generated_password_only(running: Servers) -> None:
    assert redis.Redis.from_url(running.redis.url).ping()
    for wrong in (None, "wrong"):
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=running.redis.port, password=wrong, retry=Retry(NoBackoff(), 0)).ping()


def test_both_listen_on_loopback_only(running: Servers) -> None:
    with psycopg.connect(running.postgres.url) as connection:
        shown = [
            connection.execute(f"SHOW {name}").fetchone() for name in ("listen_addresses", "unix_socket_directories")
        ]
    assert shown == [("127.0.0.1",), ("",)]
    assert redis.Redis.from_url(running.redis.url).config_get("bind") == {"bind": "127.0.0.1"}


def test_passwords_are_in_private_files_and_on_no_command_line(running: Servers) -> None:
    listed = command_lines()
    assert "postgres" in listed
    known = running.postgres.folder / "servers.json"
    assert stat.S_IMODE(known.stat().st_mode) == 0o600
    assert stat.S_IMODE((running.redis.data / "redis.conf").stat().st_mode) == 0o600
    for server in (running.postgres, running.redis):
        assert server.password in known.read_text()
        assert server.password not in listed
        assert stat.S_IMODE(server.data.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops its rights")
def test_root_runs_the_servers_as_nobody(running: Servers) -> None:
    pids = [running.postgres.pid, running.redis.pid]
    assert [psutil.Process(pid).username() for pid in pids] == ["nobody", "nobody"]


def test_a_second_owner_of_the_folder_is_refused(running: Servers) -> None:
    with pytest.raises(FolderInUse) as refused:
        Servers(running.state_dir, durable=False).start()
    assert refused.value.pid == os.getpid()
    with psycopg.connect(running.postgres.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_restart_keeps_ports_passwords_and_data(state_dir: Path) -> None:
    with Servers(state_dir) as servers:
        first = servers.environment
        with psycopg.connect(servers.postgres.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        redis.Redis.from_url(servers.redis.url).set("kept", "42")
        servers.redis.stop()
        with pytest.raises(redis.ConnectionError):
            redis.Redis.from_url(servers.redis.url, retry=Retry(NoBackoff(), 0)).ping()
        servers.redis.start()
        assert redis.Redis.from_url(servers.redis.url).get("kept") == b"42"
    assert owner_of(state_dir / "servers") is None
    with Servers(state_dir) as servers:
        assert servers.environment == first
        assert redis.Redis.from_url(servers.redis.url).get("kept") == b"42"
        with psycopg.connect(servers.postgres.url) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_a_taken_port_is_left_to_its_holder(state_dir: Path) -> None:
    with Servers(state_dir, durable=False) as servers:
        before = servers.postgres.port
    with socket.create_server(("127.0.0.1", before)), Servers(state_dir, durable=False) as servers:
        assert servers.postgres.port != before
        with psycopg.connect(servers.postgres.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_free_port_passes_over_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert free_port(taken.getsockname()[1]) != taken.getsockname()[1]


def test_kill_of_the_owner_leaves_no_server_and_no_obstacle(state_dir: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(state_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        ports = [int(port) for port in owner.stdout.readline().split()]
        assert len(ports) == 2
        family = descendants(owner.pid) - {owner.pid}
        assert len(family) > 3
        owner.send_signal(signal.SIGKILL)
    # The next start is at once: it waits for what is still ending and finds the same ports free.
    with Servers(state_dir, durable=False) as servers:
        assert [servers.postgres.port, servers.redis.port] == ports
        assert wait_until(lambda: not living(family), 10), subprocess.getoutput("ps -ef")


def test_what_a_killed_test_run_left_is_swept_and_nothing_else(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(state_dir))
    for name in ("mailbox-test-old", "mailbox-test-new", "mailbox-test-owned", "other-old"):
        (state_dir / name).mkdir()
    owned = Ownership(state_dir / "mailbox-test-owned")
    owned.acquire()
    for name in ("mailbox-test-old", "mailbox-test-owned", "other-old"):
        os.utime(state_dir / name, (0, 0))
    with temporary_servers() as servers:
        left = set(os.listdir(state_dir)) - {servers.state_dir.name}
    owned.release()
    assert left == {"mailbox-test-new", "mailbox-test-owned", "other-old"}


def test_a_redis_of_a_test_of_its_own_starts_and_stops_at_will(own_redis: Redis) -> None:
    port = own_redis.port
    own_redis.kill()
    assert not own_redis.is_running
    own_redis.start()
    assert own_redis.port == port
    assert redis.Redis.from_url(own_redis.url).ping()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops its rights")
def test_data_that_nobody_cannot_reach_is_kept_elsewhere(state_dir: Path) -> None:
    closed = state_dir / "closed"
    closed.mkdir(mode=0o700)
    with Servers(closed / "state", durable=False) as servers:
        assert servers.postgres.folder == account.elsewhere(closed / "state" / "servers")
        assert servers.postgres.folder.parent == Path("/var/tmp")
        with psycopg.connect(servers.postgres.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    destroy(closed / "state")
    assert not account.elsewhere(closed / "state" / "servers").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a folder of somebody else")
def test_a_folder_that_somebody_else_has_put_there_is_refused(state_dir: Path) -> None:
    planted = state_dir / "planted"
    planted.mkdir()
    os.chown(planted, 65534, 65534)
    with pytest.raises(PermissionError, match="not a private folder"):
        account.own_folder(planted)
    (state_dir / "link").symlink_to("/")
    with pytest.raises(PermissionError, match="not a private folder"):
        account.own_folder(state_dir / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops its rights")
def test_programs_that_nobody_cannot_reach_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path(tempfile.mkdtemp(prefix="mailbox-test-"))
    nobody = account.Account.for_servers()
    assert nobody is not None
    original = binaries.Binaries.locate(None)
    monkeypatch.setattr(binaries, "SHARED", shared)
    monkeypatch.setattr(account.Account, "can_reach", lambda self, path: False)
    try:
        shared.chmod(0o711)
        copied = binaries.Binaries.locate(nobody)
        assert binaries.Binaries.locate(nobody) == copied != original
        assert len(list(shared.iterdir())) == 1
        for program in (copied.initdb, copied.postgres, copied.redis):
            done = subprocess.run([program, "--version"], user=nobody.uid, group=nobody.gid, cwd="/", env={})
            assert done.returncode == 0
    finally:
        shutil.rmtree(shared)


def test_programs_that_are_nowhere_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(binaries.MissingServer, match="initdb was not found"):
        binaries.Binaries.locate(None)
