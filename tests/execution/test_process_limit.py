"""A worker process of its own (prefork) may be killed: its time limit holds also for code that never yields."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mailbox_app.models import Thread
from tests.operations import scene
from tests.races.actors import ROOT, await_waiting, database_url, until

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
print("claimed", flush=True)
sys.stdin.readline()
runner.run(one, keeper=LeaseKeeper(lambda tokens: claim.renew(tokens=tokens)), own_process=True)
print("survived")
"""


@contextmanager
def child(body: str) -> "Iterator[subprocess.Popen[str]]":
    """A process that has claimed, and executes once it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(body=body)],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": "mailbox_project.settings"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "claimed\n":
            raise AssertionError(process.communicate()[1])
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run_child(body: str) -> "subprocess.CompletedProcess[str]":
    with child(body) as process:
        out, err = process.communicate("go\n", timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def posted(register: Any) -> Any:
    register(lambda ctx: None, name="echo_slowly", timeout_seconds=0.3)
    return scene.post(agent="echo_slowly")


def test_a_child_past_its_limit_settles_its_run_and_is_killed(posted: Any) -> None:
    ended = run_child("time.sleep(30)")
    assert (ended.returncode, "survived" in ended.stdout) == (-signal.SIGKILL, False), ended.stderr
    assert scene.dispatch(posted).last_error == "timed_out: ran past its limit of 0.3 s"
    assert scene.dispatch(posted).attempt_count == 1


def test_a_child_that_never_lets_python_run_again_is_ended_by_c_code(posted: Any) -> None:
    # The matcher keeps the interpreter's lock for ever: no thread of Python can settle or kill.
    ended = run_child("import re; re.match('(a+)+$', 'a' * 60 + 'b')")
    assert ended.returncode == 1, ended.stderr
    assert "Timeout" in ended.stderr
    until(lambda: scene.dispatch(posted).status == "claimed", "its lease runs out by itself")


def test_a_child_in_time_goes_on(posted: Any) -> None:
    ended = run_child("return 'quick'")
    assert (ended.returncode, ended.stdout.strip()) == (0, "survived"), ended.stderr
    assert scene.run(posted).final_output == "quick"


def test_a_child_whose_agent_kept_its_limit_is_not_killed_while_others_hold_its_thread(posted: Any) -> None:
    with child("return 'quick'") as process:
        with Thread.objects.fence(posted.thread_id):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            await_waiting()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.2)  # longer than its limit and the grace
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (0, "survived"), err
    assert (scene.run(posted).final_output, scene.dispatch(posted).attempt_count) == ("quick", 0)
