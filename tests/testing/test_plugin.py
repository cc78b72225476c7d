"""The plugin in a test suite of its own, as a team's: a root conftest.py with one line, pytest as its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mailbox_app.devtools.servers import Servers

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]

CONFTEST = 'pytest_plugins = ["mailbox_app.testing"]\n'
TESTS = """
import pytest
from django.db import connection
from mailbox_app import testing


def test_in_a_transaction(mailbox, registered_agent):
    assert connection.in_atomic_block
    registered_agent(lambda ctx: ctx.messages[-1].text.upper(), name="shout")
    run = mailbox.submit("hello", agent="shout")
    mailbox.run_until_idle()
    testing.assert_run_finished(run, output="HELLO")


@pytest.mark.django_db(transaction=True)
def test_without_one_by_mark(mailbox):
    assert not connection.in_atomic_block


def test_without_one_by_fixture(transactional_db, mailbox):
    assert not connection.in_atomic_block


def test_a_failure_says_what_happened(mailbox, registered_agent):
    registered_agent(lambda ctx: 1 / 0, max_attempts=1)
    run = mailbox.submit("hello", agent="probe")
    mailbox.run_until_idle()
    testing.assert_run_finished(run, output="HELLO")
"""


def test_one_line_in_the_root_conftest_gives_the_fixtures(tmp_path: Path, servers: Servers) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_mine.py").write_text(TESTS)
    own = {"DATABASE_URL": servers.postgres.url.rpartition("/")[0] + "/plugin", "PYTHONPATH": str(ROOT)}
    own["DJANGO_SETTINGS_MODULE"] = "mailbox_project.settings"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:valkey", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, timeout=120)
    assert "1 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    assert "AssertionError: the run has not finished: run " in done.stdout
    assert "last_error 'ZeroDivisionError: ZeroDivisionError: division by zero'" in done.stdout
