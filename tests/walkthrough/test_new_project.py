"""A new project of a team's own: the wheel in a fresh environment, and the README's words, taken from the README.

Nothing of this checkout is on its path. Only addresses differ from the README: where PostgreSQL is (libpq's variables),
where Redis is, and the web server's port.
"""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from mailbox_app.devtools.client import request
from mailbox_app.devtools.files import open_private
from mailbox_app.devtools.probes import descendants, living
from mailbox_app.devtools.processes import end, free_port, spawn, wait_until
from mailbox_app.devtools.servers import Servers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ANSWER_SECONDS = 60.0
# The environment of the tests themselves must not lead a new project back here.
_OURS = re.compile("PYTHONPATH|VIRTUAL_ENV|DATABASE_.*|REDIS_URL|CELERY_.*|DJANGO_.*|MAILBOX_.*|PYTEST_.*")


def blocks() -> list[str]:
    """The README's code for a project of one's own, block by block."""
    section = README.partition("## In your Django project\n")[2].partition("\n## ")[0]
    return re.findall(r"^```\w*\n(.*?)^```$", section, re.M | re.S)


def files(block: str) -> dict[str, str]:
    """The files a block of Python is made of, each below its name."""
    parts = re.split(r"^# (\S+\.py)\n", block, flags=re.M)
    assert parts[0] == "", "the first line names the first file"
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def is_server(command: str) -> bool:
    return command.startswith("celery ") or " runserver" in command


@dataclass
class Project:
    """A project in a folder, with an environment of its own."""

    folder: Path
    env: dict[str, str]
    port: int
    children: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def run(self, command: str) -> str:
        """Run a line of shell to its end; what it prints on standard output."""
        done = subprocess.run(
            ["bash", "-ec", command], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def serve(self, command: str) -> None:
        """Start what goes on."""
        with open_private(self.log(command)) as output:
            words = ["bash", "-c", f"exec {command}"]
            self.children[command] = spawn(words, env=self.env, cwd=self.folder, output=output)

    def log(self, command: str) -> Path:
        return self.folder / f"{re.sub('[^a-z]+', '-', command.lower())}.log"

    @property
    def logs(self) -> str:
        return "\n".join(f"== {command}\n{self.log(command).read_text()}" for command in self.children)

    def here(self, text: str) -> str:
        """The README's text with this machine's port."""
        return text.replace("localhost:8000", f"127.0.0.1:{self.port}").replace(
            " runserver", f" runserver 127.0.0.1:{self.port}"
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.iterdir()
    return found


def test_the_wheel_holds_the_app_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if not re.match(r"django_mailbox_queue-[\d.]+\.dist-info/", name)}
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "mailbox_app").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == sources
    assert {
        "mailbox_app/py.typed",
        "mailbox_app/testing/__init__.py",
        "mailbox_app/migrations/0001_initial.py",
    } <= inside
    assert any(name.endswith("/licenses/LICENSE") for name in names)


@pytest.fixture
def project(wheel: Path, tmp_path: Path, servers: Servers) -> Iterator[Project]:
    """A folder with an environment that has the wheel and what it depends on, and a database of its own."""
    environment = tmp_path / "environment"
    base = str(getattr(sys, "_base_executable", sys.executable))
    _checked([base, "-m", "venv", "--without-pip", str(environment)])
    python = str(environment / "bin" / "python")
    options = ["--no-input", "--disable-pip-version-check", "--quiet", "--only-binary=:all:"]
    _checked([base, "-m", "pip", "--python", python, "install", *options, str(wheel)])
    with psycopg.connect(servers.postgres.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS yourproject WITH (FORCE)")
        connection.execute("CREATE DATABASE yourproject")
    env = {name: value for name, value in os.environ.items() if not _OURS.fullmatch(name)}
    env |= {"PATH": f"{environment}/bin:{env['PATH']}", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"PGHOST": "127.0.0.1", "PGPORT": str(servers.postgres.port)}
    env |= {"PGUSER": "mailbox", "PGPASSWORD": servers.postgres.password}
    folder = tmp_path / "project"
    folder.mkdir()
    made = Project(folder, env, free_port(28_000))
    try:
        yield made
    finally:
        for child in made.children.values():
            end(child)


def test_the_readme_leads_from_an_empty_folder_to_an_answer(project: Project, servers: Servers) -> None:
    install, code, commands, ask, *_ = blocks()
    assert install.strip() == "pip install django-mailbox-queue"

    project.run("django-admin startproject yourproject . && python manage.py startapp yourapp")
    redis = servers.redis.url.removesuffix("/0") + "/5"
    for name, text in files(code).items():
        with (project.folder / name).open("a") as file:
            file.write("\n" + text.replace("redis://localhost:6379/0", redis))
    assert redis in (project.folder / "yourproject/settings.py").read_text()

    lines = [line.partition("  #")[0].strip() for line in commands.splitlines()]
    for command in (line for line in lines if not is_server(line)):
        printed = project.run(command)
        if " check " in command:
            assert printed == "System check identified no issues (0 silenced).\n"
    # What Django says of a project that was begun just now is the project's business; nothing of ours is found.
    deploy = project.run("python manage.py check --deploy --database default 2>&1 || true")
    assert "System check identified" in deploy
    assert set(re.findall(r"\((\w+)\.\w\d+\)", deploy)) <= {"security", "mail"}, deploy

    for command in (line for line in lines if is_server(line)):
        project.serve(project.here(command))
    assert len(project.children) == 4
    web = f"http://127.0.0.1:{project.port}"
    assert wait_until(lambda: _answers(f"{web}/health/ready"), ANSWER_SECONDS), project.logs

    told = json.loads(project.run(project.here(ask)))
    token = project.run(f"{ask.splitlines()[0]}\necho $TOKEN").strip()

    def run() -> dict[str, object]:
        return dict(request("GET", f"{web}/v1/runs/{told['run_id']}", token=token).json)

    assert wait_until(lambda: run()["status"] == "done", ANSWER_SECONDS), (run(), project.logs)
    assert run()["final_output"] == "Hello, world!"
    assert request("GET", f"{web}/v1/docs", token=token).status == 200

    families = {command: descendants(child.pid) for command, child in project.children.items()}
    for command, child in project.children.items():
        end(child, (signal.SIGTERM, 20.0))
        assert not living(families[command]), command
    assert "Traceback" not in project.logs
    assert "Error" not in project.logs


def _checked(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def _answers(url: str) -> bool:
    try:
        return request("GET", url, seconds=2).status == 200
    except OSError:
        return False
