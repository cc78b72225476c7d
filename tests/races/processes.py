"""What the other processes of a race do: `python -m tests.races.processes <function> <arguments>`; JSON lines out."""

import json
import sys
import time
import uuid
from typing import Any

import django


def say(value: Any) -> None:
    sys.stdout.write(json.dumps(value, default=str) + "\n")
    sys.stdout.flush()


def submit_many(*, key: str, name: str, count: int) -> None:
    """Post to one thread, made if it is missing, `count` times; prints the run of each in the order of acceptance."""
    from mailbox_app.operations import submit

    for number in range(count):
        say(str(submit.run(scope="acme", agent="echo", messages=[f"{name} {number}"], thread_key=key).run_id))


def drain(*, worker: str, runs: int) -> None:
    """Claim and complete until so many runs are done on the whole; prints (run, fence, start, end) of its own.

    Instants are CLOCK_MONOTONIC, which all processes of a machine share.
    """
    from mailbox_app.models import Run
    from mailbox_app.operations import claim, settle

    stop_at = time.monotonic() + 60
    while time.monotonic() < stop_at:
        taken = claim.due(queue="mailbox.default", agents=["echo"], worker=worker, tokens=[uuid.uuid4()])
        for one in taken.claims:
            started = time.monotonic()
            text = one.messages[0].text
            ended = time.monotonic()
            settle.complete(one, output=text)
            say([str(one.run_id), one.fence, started, ended])
        if not taken.claims:
            if Run.objects.done().count() >= runs:
                return
            time.sleep(0.01)
    raise SystemExit(f"{worker}: not all runs were done within 60 s")


def sleep_past_the_lease(*, worker: str) -> None:
    """Claim, tell, and wait for a word; then try to complete, and print what came of it."""
    from mailbox_app.errors import LeaseLost
    from mailbox_app.operations import claim, settle

    one = claim.due(queue="mailbox.default", agents=["echo"], worker=worker, tokens=[uuid.uuid4()]).claims[0]
    say(str(one.token))
    sys.stdin.readline()
    try:
        settle.complete(one, output="from the dead")
    except LeaseLost:
        say("lease lost")
    else:
        say("completed")


def main() -> None:
    django.setup()
    from django.db import connection

    function, arguments = globals()[sys.argv[1]], json.loads(sys.argv[2])
    connection.ensure_connection()
    say("ready")
    sys.stdin.readline()
    function(**arguments)


if __name__ == "__main__":
    main()
