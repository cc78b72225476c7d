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
from pathlib import Path

from tests.proof.mutants import BROKEN_ROWS, EVERYWHERE, MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
# A test that waits for a lock nobody gives back, the first one's making of the database included; a file without end.
TEST_SECONDS, FILE_SECONDS = 180, 900
# Of a test's name: some say all of a row.
_WIDTH = 110

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
