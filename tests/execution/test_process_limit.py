"""A worker process of its own (prefork) may be killed: its time limit holds also for code that never yields."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.operations import scene
from tests.races.actors import ROOT, database_url, until

pytestmark = pytest.mark.django_db(transaction=True)

CHILD = """
import sys, time, uuid
import django
django.setup()
from mailbox_app.execution import runner, agent
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.operations import claim
runner._HARD_LIMIT_GRACE_SECONDS = 0.5

@agent("echo_slowly", timeout_seconds=0.3)
def slowly(ctx):
    {body}

one = claim.due(queue="mailbox.default", agents=["echo_slowly"], worker="child", tokens=[uuid.uuid4()]).claims[0]
runner.run(one, keeper=LeaseKeeper(lambda tokens: claim.renew(tokens=tokens)), own_process=True)
print("survived")
"""


def run_child(body: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(body=body)],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": "mailbox_project.settings"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def posted(register: Any) -> Any:
    register(lambda ctx: None, name="echo_slowly", timeout_seconds=0.3)
    return scene.post(agent="echo_slowly")


def test_a_child_past_its_limit_settles_its_run_and_is_killed(posted: Any) -> None:
    child = run_child("time.sleep(30)")
    assert (child.returncode, "survived" in child.stdout) == (-signal.SIGKILL, False), child.stderr
    assert scene.dispatch(posted).last_error == "timed_out: ran past its limit of 0.3 s"
    assert scene.dispatch(posted).attempt_count == 1


def test_a_child_that_never_lets_python_run_again_is_ended_by_c_code(posted: Any) -> None:
    # The matcher keeps the interpreter's lock for ever: no thread of Python can settle or kill.
    child = run_child("import re; re.match('(a+)+$', 'a' * 60 + 'b')")
    assert child.returncode == 1, child.stderr
    assert "Timeout" in child.stderr
    until(lambda: scene.dispatch(posted).status == "claimed", "its lease runs out by itself")


def test_a_child_in_time_goes_on(posted: Any) -> None:
    child = run_child("return 'quick'")
    assert (child.returncode, child.stdout.strip()) == (0, "survived"), child.stderr
    assert scene.run(posted).final_output == "quick"
