"""`mailbox_dev`: one stack a folder, restarted where it dies, gone when it is stopped or killed."""

import base64
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from mailbox_app.devtools.client import request
from mailbox_app.devtools.probes import StackProcess, command_lines, descendants, living
from mailbox_app.devtools.processes import wait_until
from mailbox_app.devtools.servers import Servers
from mailbox_app.devtools.state import NotOurs, StateFolder

pytestmark = pytest.mark.slow
CHILDREN = ("web", "worker", "maintenance", "beat", "flower")
ONLY_WEB = [word for name in CHILDREN if name != "web" for word in ("--without", name)]


@pytest.fixture(scope="module")
def stack() -> Iterator[StackProcess]:
    with StackProcess() as running:
        yield running


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_stack_json_names_everything_that_runs(stack: StackProcess) -> None:
    facts = stack.facts
    assert stack.process is not None
    assert facts["pid"] == stack.process.pid
    assert set(facts["processes"]) == {*CHILDREN, "postgres", "redis"}
    assert living({process["pid"] for process in facts["processes"].values()}) == {
        process["pid"] for process in facts["processes"].values()
    }
    assert set(facts["ports"]) == {"web", "flower", "postgres", "redis"}
    assert request("GET", facts["urls"]["web"] + "/admin/login/").status == 200


def test_secrets_are_in_files_of_their_owner_only(stack: StackProcess) -> None:
    private = ["stack.json", "environment.json", "secrets.json", "demo-token", "demo-password"]
    modes = {name: stat.S_IMODE((stack.state_dir / name).stat().st_mode) for name in private}
    assert modes == dict.fromkeys(private, 0o600)
    listed = command_lines()
    assert "uvicorn" in listed
    for secret in (stack.token, stack.facts["flower"]["password"], stack.facts["demo"]["password"]):
        assert len(secret) >= 16
        assert secret not in listed


def test_flower_wants_its_login(stack: StackProcess) -> None:
    url = stack.facts["urls"]["flower"]
    assert request("GET", f"{url}/workers").status == 401
    login = base64.b64encode("{user}:{password}".format(**stack.facts["flower"]).encode()).decode()
    headers = {"Authorization": f"Basic {login}"}
    shown = wait_until(lambda: "maintenance@" in request("GET", f"{url}/workers?json=1", headers=headers).text, 20)
    assert shown, request("GET", f"{url}/workers?json=1", headers=headers).text


def test_output_is_labelled_and_kept(stack: StackProcess) -> None:
    assert re.search(r"^worker +\| .*ready\.$", stack.output, re.MULTILINE)
    assert "ready." in stack.log("maintenance")


def test_other_commands_find_the_running_stack(stack: StackProcess) -> None:
    with psycopg.connect(stack.environment["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT count(*) FROM auth_user WHERE username = 'demo'").fetchone() == (1,)


def test_a_second_start_says_who_is_running(stack: StackProcess) -> None:
    second = stack.again()
    assert second.returncode == 1
    assert f"process {stack.facts['pid']}" in second.stderr
    assert stack.facts["urls"]["web"] in second.stderr
    assert "Traceback" not in second.stderr
    reset = stack.again("--reset")
    assert reset.returncode == 1
    assert stack.token  # nothing was emptied


def kill_and_await(stack: StackProcess, name: str) -> None:
    pool = descendants(stack.pid(name) or 0)
    before = stack.kill(name)
    came_back = wait_until(lambda: stack.pid(name) not in (None, before), 20)
    assert came_back, f"{name} was not started again:\n{stack.output[-3000:]}"
    assert wait_until(lambda: not living(pool), 10), f"{name} left a process behind"


def test_every_child_and_server_that_is_killed_comes_back(stack: StackProcess) -> None:
    for name in (*CHILDREN, "redis", "postgres"):
        kill_and_await(stack, name)
    ready = wait_until(lambda: all(process["is_ready"] for process in stack.facts["processes"].values()), 60)
    assert ready, stack.facts
    assert [stack.facts["processes"][name]["restarts"] for name in CHILDREN] == [1] * len(CHILDREN)
    assert request("GET", stack.facts["urls"]["web"] + "/admin/login/").status == 200


def test_ctrl_c_ends_everything_in_order() -> None:
    with StackProcess("--pool", "threads") as stack:
        facts, family = stack.facts, descendants(stack.facts["pid"])
        assert stack.stop(signal.SIGINT) == 0, stack.output
        assert stack.output.splitlines()[-1].endswith("| stopped")
        assert not living(family)
        assert [port for port in facts["ports"].values() if not is_free(port)] == []
        assert not (stack.state_dir / "stack.json").exists()
        assert not (stack.state_dir / "environment.json").exists()
        assert "Traceback" not in stack.output


def test_a_second_start_after_kill_finds_everything_free_and_keeps_the_data() -> None:
    with StackProcess() as stack:
        facts, token, family = stack.facts, stack.token, descendants(stack.facts["pid"])
        # Pool children of the worker, PostgreSQL's processes, the watcher: more than the direct children.
        assert len(family) > 12
        stack.send_signal(signal.SIGKILL)
        stack.start("--without", "flower", "--without", "beat")  # at once
        assert not living(family), subprocess.getoutput("ps -ef")
        assert {name: stack.facts["ports"][name] for name in ("postgres", "redis")} == {
            name: facts["ports"][name] for name in ("postgres", "redis")
        }
        assert stack.token == token
        assert stack.stop(signal.SIGTERM) == 0, stack.output


def test_a_taken_port_moves_and_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with StackProcess("--without", "flower", "--without", "beat", "--without", "worker", web_port=port) as stack:
            assert stack.facts["ports"]["web"] != port
            assert f"port {port} is taken: web moves to {stack.facts['ports']['web']}" in stack.output
            assert set(stack.facts["processes"]) == {"web", "maintenance", "postgres", "redis"}


def test_servers_of_the_environment_are_used(servers: Servers) -> None:
    with StackProcess(*ONLY_WEB, environment=servers.environment) as stack:
        assert set(stack.facts["processes"]) == {"web"}
        assert stack.environment["DATABASE_URL"] == servers.postgres.url
        assert not (stack.state_dir / "servers").exists()
    half = StackProcess(environment={"DATABASE_URL": servers.postgres.url})
    try:
        assert half.launch().process is not None
        assert half.stop(0) == 1
        assert "set DATABASE_URL and one of CELERY_BROKER_URL and REDIS_URL together" in half.output
    finally:
        half.close()


def test_a_child_that_cannot_start_ends_the_stack_with_its_words() -> None:
    broken = StackProcess("--without", "flower", environment={"MAILBOX_SETTINGS": '{"no_such_setting": 1}'})
    try:
        broken.launch()
        assert broken.stop(0, seconds=90) == 1
        assert "no_such_setting" in broken.output
        assert broken.output.count("Traceback") <= broken.output.count("| Traceback") + 1
        assert not (broken.state_dir / "stack.json").exists()
    finally:
        broken.close()


def test_a_folder_that_is_not_ours_is_neither_used_nor_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for reset in (False, True):
        with pytest.raises(NotOurs, match="was not made by Mailbox"):
            StateFolder(tmp_path).acquire(reset=reset)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_reset_empties_the_folder_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    state = StateFolder(tmp_path / "state")
    state.acquire()
    (state.path / "link").symlink_to(outside)
    secret = state.secret("django")
    assert state.secret("django") == secret
    state.release()
    state.acquire(reset=True)
    assert sorted(os.listdir(state.path)) == ["children.lock", "logs", "mailbox-state", "owner.lock"]
    assert (outside / "precious").exists()
    assert state.secret("django") != secret
    state.release()
