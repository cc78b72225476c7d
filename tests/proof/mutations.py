"""Take the guards of the queue away, one at a time, and tell which tests notice. By hand: it takes a while.

    python -m tests.proof.mutations [--everywhere] [name …]

Each mutation is made in a copy of the tree. The files it names run there, the likeliest first, each up to its first
failure; `--everywhere` runs the whole suites instead. A guard whose absence only one file notices hangs on that file;
one that nobody notices ends this with exit code 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MACHINE = "tests/proof/test_machine.py"
CONVERSATION = f"{MACHINE}::test_a_conversation_goes_as_the_oracle_says_in_whatever_order"
BROKEN_ROWS = "tests/states/test_constraints.py::test_a_row_that_breaks_a_constraint_is_refused_under_its_name"
EVERYWHERE = ("tests/states", MACHINE, "tests/operations", "tests/races")
OPERATIONS, MODELS, EXECUTION = "mailbox_app/operations", "mailbox_app/models", "mailbox_app/execution"
KILLS = "tests/chaos/test_kills.py"
TALK = "tests/proof/test_talk.py"
# A test that waits for a lock nobody gives back, the first one's making of the database included; a file without end.
TEST_SECONDS, FILE_SECONDS = 180, 900
# Of a test's name: some say all of a row.
_WIDTH = 110


@dataclass(frozen=True)
class Mutation:
    """Texts to replace in one file, or the name of a unique index that the test database is to lack."""

    name: str
    path: str = ""
    changes: tuple[tuple[str, str], ...] = ()
    index: str = ""
    noticed_by: tuple[str, ...] = ()


def _index(name: str, *noticed_by: str) -> Mutation:
    return Mutation(f"the index {name}", index=name, noticed_by=(BROKEN_ROWS, *noticed_by))


MUTATIONS = (
    Mutation(
        "the token of a claim",
        f"{OPERATIONS}/ownership.py",
        (
            ("AND dispatch.claim_token = %(token)s", "AND %(token)s::uuid IS NOT NULL"),
            ("AND dispatch.claim_token = wanted.token", ""),
        ),
        noticed_by=("tests/operations/test_fencing.py", "tests/races/test_lock_then_look.py", MACHINE),
    ),
    Mutation(
        "the turn of a claim",
        f"{OPERATIONS}/settle.py",
        ((" or dispatch.run.turn != claim.turn", ""),),
        noticed_by=("tests/operations/test_turns.py", MACHINE),
    ),
    Mutation(
        "SKIP LOCKED of a claim",
        f"{OPERATIONS}/candidates.py",
        ((" SKIP LOCKED", ""),),
        noticed_by=("tests/races/test_claim.py", "tests/operations/test_claim_isolation.py"),
    ),
    Mutation(
        "SKIP LOCKED of a renewal",
        f"{OPERATIONS}/claim.py",
        (("NO KEY UPDATE SKIP LOCKED", "NO KEY UPDATE"),),
        noticed_by=("tests/races/test_leases.py",),
    ),
    Mutation(
        "SKIP LOCKED of a group",
        f"{MODELS}/thread.py",
        (("NO KEY UPDATE SKIP LOCKED", "NO KEY UPDATE"),),
        noticed_by=("tests/races/test_claim.py", "tests/operations/test_complete_some.py"),
    ),
    Mutation(
        "SKIP LOCKED of a pass",
        f"{MODELS}/thread.py",
        (("skip_locked=True", "skip_locked=False"),),
        noticed_by=("tests/races/test_leases.py", "tests/races/test_turns_waits_deliveries.py"),
    ),
    Mutation(
        "SKIP LOCKED of a stamp",
        f"{OPERATIONS}/missing.py",
        (("NO KEY UPDATE SKIP LOCKED", "NO KEY UPDATE"),),
        noticed_by=("tests/races/test_missing.py",),
    ),
    Mutation(
        "the lock of the fence",
        f"{MODELS}/thread.py",
        (("ORDER BY id FOR NO KEY UPDATE", "ORDER BY id"),),
        noticed_by=("tests/races/test_lock_then_look.py", "tests/races/test_claim.py"),
    ),
    Mutation(
        "the rewrite of the flag",
        f"{MODELS}/thread.py",
        (("        thread.judge()\n", "        pass\n"),),
        noticed_by=("tests/operations/test_settle.py", "tests/races/test_lock_then_look.py", MACHINE),
    ),
    Mutation(
        "the flag of a submission",
        f"{OPERATIONS}/accept.py",
        (("thread.consider(queued.dispatch)", "thread._is_judged = True"),),
        noticed_by=("tests/operations/test_submit.py", "tests/races/test_claim.py", MACHINE),
    ),
    Mutation(
        "lock before look",
        f"{OPERATIONS}/settle.py",
        (
            (
                "    with Thread.objects.fence(claim.thread_id) as thread:\n"
                "        found = find_endings([claim]).get(claim.token)\n",
                "    found = find_endings([claim]).get(claim.token)\n"
                "    with Thread.objects.fence(claim.thread_id) as thread:\n",
            ),
        ),
        noticed_by=("tests/races/test_lock_then_look.py", "tests/races/test_leases.py"),
    ),
    Mutation(
        "the second look of a sweep",
        f"{OPERATIONS}/recover.py",
        (("Dispatch.objects.filter(thread=thread).expired()", "Dispatch.objects.filter(thread=thread).claimed()"),),
        noticed_by=("tests/races/test_leases.py", "tests/operations/test_recover.py"),
    ),
    Mutation(
        "the permit that comes back",
        f"{MODELS}/thread.py",
        (("            self._give_back(held)\n", "            pass\n"),),
        noticed_by=("tests/operations/test_permits.py",),
    ),
    Mutation(
        "SKIP LOCKED of a permit",
        f"{OPERATIONS}/permits.py",
        (("        FOR NO KEY UPDATE SKIP LOCKED\n    ) AS permit", "    ) AS permit"),),
        noticed_by=("tests/races/test_limits.py",),
    ),
    Mutation(
        "the lock of a bucket",
        f"{OPERATIONS}/permits.py",
        (('.order_by("pk").select_for_update(no_key=True)', '.order_by("pk")'),),
        noticed_by=("tests/races/test_limits.py",),
    ),
    Mutation(
        "the look after a block",
        f"{OPERATIONS}/claim.py",
        (("after_commit(permits.unblock, exhausted)", "pass"),),
        noticed_by=("tests/races/test_limits.py",),
    ),
    Mutation(
        "the gate of a limit",
        f"{OPERATIONS}/limits.py",
        (("        gate.close()\n", "        pass\n"),),
        noticed_by=("tests/races/test_limits.py",),
    ),
    # What only a connection that is cut, or a process that is ended, asks for.
    Mutation(
        "the hand-back of a claim that was not answered",
        f"{EXECUTION}/executor.py",
        (("        settle.hand_back(tokens=tokens)\n        raise\n", "        raise\n"),),
        noticed_by=(KILLS,),
    ),
    Mutation(
        "the look of a settle for its own end",
        f"{OPERATIONS}/settle.py",
        (("if dispatch is None and has_ended(", "if False and has_ended("),),
        noticed_by=(KILLS,),
    ),
    Mutation(
        "the look for a record that was not answered",
        f"{EXECUTION}/journal.py",
        (("self._records, self._must_look = None, True", "pass"),),
        noticed_by=(KILLS,),
    ),
    Mutation(
        "the count of lost leases",
        f"{OPERATIONS}/recover.py",
        (("            dispatch.lost_count += 1\n", ""),),
        noticed_by=("tests/operations/test_recover.py", KILLS),
    ),
    Mutation(
        "the look of a wait for answers that came first",
        f"{OPERATIONS}/settle.py",
        (("is_answered = not unanswered", "is_answered = False"),),
        noticed_by=("tests/operations/test_decide.py", "tests/races/test_decide.py"),
    ),
    Mutation(
        "the look of an answer under the fence",
        f"{OPERATIONS}/decide.py",
        (
            (
                "        asked = _find(found_id, ticket_id)\n        if asked.status == TicketStatus.OPEN:\n",
                "        if asked.status == TicketStatus.OPEN:\n",
            ),
        ),
        noticed_by=("tests/races/test_decide.py",),
    ),
    Mutation(
        "the look for other questions",
        f"{OPERATIONS}/tickets.py",
        (("if any(ticket.pk not in now_answered for ticket in", "if False and any(ticket.pk for ticket in"),),
        noticed_by=("tests/operations/test_decide.py", "tests/execution/test_ask.py"),
    ),
    Mutation(
        "the second look of a tick for what has lapsed",
        f"{OPERATIONS}/tick.py",
        (("Ticket.objects.overdue().filter(run__thread=thread)", "Ticket.objects.filter(run__thread=thread)"),),
        noticed_by=("tests/races/test_decide.py", "tests/operations/test_decide.py"),
    ),
    Mutation(
        "the end of an answer's time",
        f"{OPERATIONS}/decide.py",
        (("if asked.expires_at is not None and asked.expires_at <= thread.locked_at:", "if False:"),),
        noticed_by=("tests/operations/test_decide.py", "tests/races/test_decide.py"),
    ),
    Mutation(
        "the closing of what a run has asked",
        f"{OPERATIONS}/ending.py",
        (("Ticket.objects.of_run(run.pk).open().move(CLOSE)", "pass"),),
        noticed_by=("tests/operations/test_decide.py", "tests/races/test_decide.py"),
    ),
    # What only somebody who talks notices.
    Mutation(
        "the guard of a message",
        f"{OPERATIONS}/zone.py",
        (("if revision not in (None, message.revision):", "if False:"),),
        noticed_by=(CONVERSATION, "tests/operations/test_pending.py"),
    ),
    Mutation(
        "the guard of an order",
        f"{OPERATIONS}/zone.py",
        (("if pending_revision not in (None, thread.pending_revision):", "if False:"),),
        noticed_by=(CONVERSATION, "tests/operations/test_pending.py"),
    ),
    Mutation(
        "the message that is read alone",
        f"{OPERATIONS}/freeze.py",
        (("        if is_alone and taken:\n            break\n", ""),),
        noticed_by=(CONVERSATION, "tests/operations/test_freeze.py"),
    ),
    Mutation(
        "the barrier that ends a batch",
        f"{OPERATIONS}/freeze.py",
        (("if is_alone or message.barrier:", "if is_alone:"),),
        noticed_by=(CONVERSATION, "tests/operations/test_barriers.py"),
    ),
    Mutation(
        "the head behind a barrier",
        f"{OPERATIONS}/heads.py",
        (("if any(message.barrier for message in unread.get(thread.pk, ()))", "if False"),),
        noticed_by=(CONVERSATION, "tests/operations/test_barriers.py"),
    ),
    Mutation(
        "the end of a run that has nothing left to read",
        f"{OPERATIONS}/pending.py",
        (("and not _is_wanted(thread, run, message):", "and False:"),),
        noticed_by=(CONVERSATION, "tests/operations/test_pending.py"),
    ),
    Mutation(
        "the resume that has nothing left to bring",
        f"{OPERATIONS}/pending.py",
        (("        if withdrawn is not None:\n", "        if False:\n"),),
        noticed_by=(CONVERSATION, "tests/operations/test_pending.py"),
    ),
    Mutation(
        "the runs that move with an order",
        f"{OPERATIONS}/pending.py",
        (("run_ids = _move_runs(thread, rows, last)", "run_ids = []"),),
        noticed_by=(CONVERSATION, "tests/operations/test_pending.py"),
    ),
    Mutation(
        "whom a message may join",
        f"{OPERATIONS}/joining.py",
        ((" or not _is_alike(last.run, spec)", ""),),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "what others have said to a run that is cancelled",
        f"{OPERATIONS}/joining.py",
        (("if message.run_id == run.pk and str(message.pk) not in said[by]", "if False"),),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "the look of a wait for input that was there",
        f"{OPERATIONS}/settle.py",
        (("wait.reason == waits.USER_INPUT and feed.gather(thread, run)", "False"),),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "the end of the run whose messages a wait has taken",
        f"{OPERATIONS}/feed.py",
        (("    joined = _unstarted(thread, run)\n", "    joined = None\n"),),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "the one resume of input that comes twice",
        f"{OPERATIONS}/feed.py",
        (
            (
                "    if Dispatch.objects.of_run(run.pk).queued().exists():\n        return",
                "    if False:\n        return",
            ),
        ),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "the retraction of what was for a run that ended",
        f"{OPERATIONS}/ending.py",
        (("    _retract_targeted(thread, run, unread)\n", ""),),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "the readers of what an interrupt has stopped",
        f"{OPERATIONS}/accept.py",
        (("    interrupt.pass_on(thread, stopped.unread, queued)\n", ""),),
        noticed_by=(CONVERSATION, "tests/operations/test_interrupt.py"),
    ),
    # What is said, who reads it, and who is told.
    Mutation(
        "whose message it is",
        f"{OPERATIONS}/freeze.py",
        (("    if message.run_id not in (None, run.pk):\n        return False\n", ""),),
        noticed_by=("tests/operations/test_freeze.py", "tests/operations/test_barriers.py"),
    ),
    Mutation(
        "the barrier behind what was skipped",
        f"{OPERATIONS}/freeze.py",
        (("if message.barrier and (has_skipped or _is_behind_another(message, run)):", "if False:"),),
        noticed_by=("tests/operations/test_freeze.py", "tests/operations/test_barriers.py"),
    ),
    Mutation(
        "the end of what was for one run alone",
        f"{OPERATIONS}/ending.py",
        (('            thread.move(message, RETRACT, retract_reason="target_ended")\n', "            continue\n"),),
        noticed_by=("tests/operations/test_turns.py", "tests/operations/test_messages.py", TALK),
    ),
    Mutation(
        "the run for what is left unread",
        f"{OPERATIONS}/ending.py",
        (
            (
                "    enqueue.unread(thread=thread, ended=run, dispatch=dispatch, messages=unread)\n",
                "    pass\n",
            ),
        ),
        noticed_by=("tests/operations/test_turns.py", "tests/races/test_turns_waits_deliveries.py", TALK),
    ),
    Mutation(
        "the place of what is left unread",
        f"{OPERATIONS}/enqueue.py",
        (
            (
                "_created(thread, spec, left[0].position, _requeued(ended))",
                "_created(thread, spec, thread.take_order(), _requeued(ended))",
            ),
        ),
        noticed_by=("tests/operations/test_turns.py", "tests/operations/test_interrupt.py"),
    ),
    Mutation(
        "the new reader of what an interrupt stopped",
        f"{OPERATIONS}/interrupt.py",
        (("        thread.change(message, run_id=queued.run.pk)\n", "        pass\n"),),
        noticed_by=("tests/operations/test_interrupt.py", "tests/races/test_messages.py", TALK),
    ),
    Mutation(
        "the guard of a revision",
        f"{OPERATIONS}/zone.py",
        (("if revision not in (None, message.revision):", "if False:"),),
        noticed_by=("tests/operations/test_pending.py", "tests/races/test_pending.py"),
    ),
    Mutation(
        "the first answer",
        f"{OPERATIONS}/decide.py",
        (("    if decision_id != asked.decision_id:\n", "    if False:\n"),),
        noticed_by=("tests/operations/test_decide.py", "tests/races/test_decide.py"),
    ),
    Mutation(
        "whose thread it is",
        "mailbox_app/api/v1/threads.py",
        (("Thread.objects.in_scope(scope).filter(pk=thread_id)", "Thread.objects.filter(pk=thread_id)"),),
        noticed_by=("tests/api/test_scopes.py", "tests/api/test_authentication.py"),
    ),
    _index("dispatch_one_claimed_per_thread"),
    _index("dispatch_one_live_per_run"),
    _index("run_one_open_per_thread"),
    _index(
        "run_dedupe_key_unique_while_not_done", "tests/operations/test_submit.py", "tests/races/test_unique_keys.py"
    ),
    _index("run_client_id_unique_in_scope"),
    _index("message_client_id_unique_in_scope", "tests/operations/test_submit.py", "tests/races/test_unique_keys.py"),
    _index("message_seq_unique_in_thread"),
    _index("event_cursor_unique_in_thread"),
    _index("event_key_unique_in_thread"),
    _index("journal_entry_once_per_use", "tests/races/test_lock_then_look.py"),
    _index("ticket_once_per_run"),
    _index("outbox_order_unique_per_pair"),
    _index("thread_key_unique_in_scope", "tests/races/test_many_submits.py"),
    _index("idempotency_key_unique_in_scope", "tests/api/test_idempotency.py"),
    _index("pause_once"),
    _index("limit_once"),
    _index("permit_once_per_dispatch"),
    _index("agent_version_once"),
    _index("agent_registration_once_per_worker"),
)

WITHOUT_INDEX = """

import pytest as _pytest


@_pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker):
    from django.db import connection

    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT conrelid::regclass::text FROM pg_constraint WHERE conname = %s", ["{index}"]
        )
        owner = cursor.fetchone()
        if owner:
            cursor.execute('ALTER TABLE ' + owner[0] + ' DROP CONSTRAINT "{index}"')
        else:
            cursor.execute('DROP INDEX "{index}"')
"""


def main(arguments: list[str]) -> int:
    """Print one line a file and mutation; 1 if nobody noticed one of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.mutations")
    parser.add_argument("names", nargs="*", metavar="name", help="of a mutation; all without")
    parser.add_argument("--everywhere", action="store_true", help="run the whole suites, not the likely files alone")
    wanted = parser.parse_args(arguments)
    unknown = set(wanted.names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        parser.error(f"there is no mutation {', '.join(sorted(unknown))}")
    unnoticed = []
    for mutation in MUTATIONS:
        if wanted.names and mutation.name not in wanted.names:
            continue
        print(f"without {mutation.name}:", flush=True)
        is_noticed = False
        for path, failed, seconds in _tried(mutation, EVERYWHERE if wanted.everywhere else mutation.noticed_by):
            is_noticed = is_noticed or bool(failed)
            said = "could not be run" if failed is None else f"fails at {failed[:_WIDTH]}" if failed else "passes"
            print(f"  {path.partition('::')[0]}: {said} ({seconds:.0f} s)", flush=True)
        if not is_noticed:
            unnoticed.append(mutation.name)
    print("Nobody noticed: " + ", ".join(unnoticed) if unnoticed else "Each was noticed.")
    return bool(unnoticed)


def _tried(mutation: Mutation, paths: tuple[str, ...]) -> Iterator[tuple[str, str | None, float]]:
    with tempfile.TemporaryDirectory(prefix="mailbox-mutation-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(
            ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", ".mailbox")
        )
        _mutate(tree, mutation)
        for path in paths:
            begun = time.monotonic()
            failed = _first_failure(tree, path, only=mutation.index if path == BROKEN_ROWS else "")
            yield path, failed, time.monotonic() - begun


def _mutate(tree: Path, mutation: Mutation) -> None:
    if mutation.index:
        with (tree / "tests/conftest.py").open("a") as conftest:
            conftest.write(WITHOUT_INDEX.replace("{index}", mutation.index))
    for before, after in mutation.changes:
        path = tree / mutation.path
        path.write_text(path.read_text().replace(before, after))


def _first_failure(tree: Path, path: str, *, only: str) -> str | None:
    """The first test that fails, blank if all pass; None, and why on stderr, if they could not be run."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_SECONDS}", path]
    command += ["-k", only] if only else []
    # A package of the tree that the interpreter has installed must not go before the copy.
    environment = {**os.environ, "PYTHONPATH": str(tree), "MAILBOX_PROOF_SHRINK": "no"}
    try:
        ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=FILE_SECONDS)
    except subprocess.TimeoutExpired:
        return "its end, which it does not reach"
    if ended.returncode == 0:
        return ""
    failed = [line for line in ended.stdout.splitlines() if line.startswith("FAILED")]
    if not failed:
        print(ended.stdout[-3000:], ended.stderr[-1000:], file=sys.stderr)
        return None
    return failed[0].removeprefix("FAILED ").partition(" - ")[0].partition("::")[2]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
