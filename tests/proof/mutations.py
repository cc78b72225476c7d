"""Take the guards of the queue away, one at a time, and tell which suites notice. By hand: it takes a while.

    python -m tests.proof.mutations [name …]

Each mutation is made in a copy of the tree; the suites run there, each up to its first failure. A guard whose absence
only one suite notices hangs on that suite; one that nobody notices ends this with exit code 1.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUITES = {
    "machine": ["tests/proof/test_machine.py"],
    "operations": ["tests/operations"],
    "races": ["tests/races", "--ignore=tests/races/test_pairs.py", "--ignore=tests/races/test_triples.py"],
    "pairs": ["tests/races/test_pairs.py"],
}
OPERATIONS, MODELS = "mailbox_app/operations", "mailbox_app/models"


@dataclass(frozen=True)
class Mutation:
    """Texts to replace in one file, or the name of an index that the test database is to lack."""

    name: str
    path: str = ""
    changes: tuple[tuple[str, str], ...] = ()
    index: str = ""


MUTATIONS = (
    Mutation(
        "the token of a claim",
        f"{OPERATIONS}/ownership.py",
        (
            ("AND dispatch.claim_token = %(token)s", "AND %(token)s::uuid IS NOT NULL"),
            ("AND dispatch.claim_token = wanted.token", ""),
        ),
    ),
    Mutation("the turn of a claim", f"{OPERATIONS}/settle.py", ((" or dispatch.run.turn != claim.turn", ""),)),
    Mutation("SKIP LOCKED of a claim", f"{OPERATIONS}/candidates.py", ((" SKIP LOCKED", ""),)),
    Mutation("SKIP LOCKED of a renewal", f"{OPERATIONS}/claim.py", (("NO KEY UPDATE SKIP LOCKED", "NO KEY UPDATE"),)),
    Mutation("SKIP LOCKED of a group", f"{MODELS}/thread.py", (("NO KEY UPDATE SKIP LOCKED", "NO KEY UPDATE"),)),
    Mutation("the lock of the fence", f"{MODELS}/thread.py", (("ORDER BY id FOR NO KEY UPDATE", "ORDER BY id"),)),
    Mutation("the rewrite of the flag", f"{MODELS}/thread.py", (("        thread.judge()\n", "        pass\n"),)),
    Mutation(
        "the flag of a submission",
        f"{OPERATIONS}/submit.py",
        (("thread.consider(queued.dispatch)", "thread._is_judged = True"),),
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
    ),
    Mutation(
        "the second look of a sweep",
        f"{OPERATIONS}/recover.py",
        (("Dispatch.objects.filter(thread=thread).expired()", "Dispatch.objects.filter(thread=thread).claimed()"),),
    ),
    *(
        Mutation(f"the index {name}", index=name)
        for name in (
            "dispatch_one_claimed_per_thread",
            "dispatch_one_live_per_run",
            "run_one_open_per_thread",
            "run_dedupe_key_unique_while_not_done",
            "message_client_id_unique_in_scope",
            "message_seq_unique_in_thread",
            "event_cursor_unique_in_thread",
            "thread_key_unique_in_scope",
        )
    ),
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


def main(wanted: list[str]) -> int:
    """Print one line a mutation; 1 if nobody noticed one of them."""
    unnoticed = []
    for mutation in MUTATIONS:
        if wanted and mutation.name not in wanted:
            continue
        noticed = dict(_tried(mutation))
        print(
            f"without {mutation.name}: " + ", ".join(f"{suite} {said}" for suite, said in noticed.items()), flush=True
        )
        if set(noticed.values()) == {"passes"}:
            unnoticed.append(mutation.name)
    print("Nobody noticed: " + ", ".join(unnoticed) if unnoticed else "Each was noticed.")
    return bool(unnoticed)


def _tried(mutation: Mutation) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory(prefix="mailbox-mutation-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(
            ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", ".mailbox")
        )
        _mutate(tree, mutation)
        for suite, paths in SUITES.items():
            yield suite, _said(tree, paths)


def _mutate(tree: Path, mutation: Mutation) -> None:
    if mutation.index:
        with (tree / "tests/conftest.py").open("a") as conftest:
            conftest.write(WITHOUT_INDEX.replace("{index}", mutation.index))
    for before, after in mutation.changes:
        path = tree / mutation.path
        text = path.read_text()
        if before not in text:
            raise SystemExit(f"{mutation.path} has changed: {before!r} is not in it; mend tests/proof/mutations.py")
        path.write_text(text.replace(before, after))


def _said(tree: Path, paths: list[str]) -> str:
    """How the suite ended: passes, fails with its first failure, or does not end."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=60", *paths]
    # A package of the tree that the interpreter has installed must not go before the copy.
    environment = {**os.environ, "PYTHONPATH": str(tree), "MAILBOX_PROOF_SHRINK": "no"}
    try:
        ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return "does not end"
    if ended.returncode == 0:
        return "passes"
    failed = [line.split()[1].rpartition("::")[2] for line in ended.stdout.splitlines() if line.startswith("FAILED")]
    return f"fails ({', '.join(failed) or ended.stdout.strip().splitlines()[-1]})"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
