"""The list of behaviours names tests that exist, and says openly what none of them proves."""

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("behaviours.toml", "conversations.toml", "events.toml")
TABLES = [tomllib.loads((Path(__file__).with_name(name)).read_text()) for name in FILES]
LISTED = {group: rows for table in TABLES for group, rows in table.items()}
REASONS = ("open: ", "not ours: ")
BEHAVIOURS = [
    (f"{group}-{number}", sentence, proofs)
    for group, rows in LISTED.items()
    for number, (sentence, *proofs) in rows.items()
]


@cache
def names_in(path: str) -> set[str]:
    """The names of the test functions a file defines."""
    tree = ast.parse((ROOT / path).read_text())
    return {one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("sentence", "proofs"), [row[1:] for row in BEHAVIOURS], ids=[row[0] for row in BEHAVIOURS])
def test_each_behaviour_names_tests_there_are_or_says_why_not(sentence: str, proofs: list[str]) -> None:
    assert sentence.endswith("."), "a sentence"
    assert proofs, "a test, or the reason why there is none"
    if proofs[0].startswith(REASONS):
        assert len(proofs) == 1, "what is open has no tests"
        return
    for proof in proofs:
        path, _, name = proof.partition("::")
        assert (ROOT / path).is_file(), path
        found = names_in(path)
        assert name in found if name else any(one.startswith("test_") for one in found), proof


def test_no_group_stands_in_two_files() -> None:
    assert len(LISTED) == sum(len(table) for table in TABLES)


def test_numbers_have_no_gap_and_what_is_open_is_told() -> None:
    for group, rows in LISTED.items():
        assert list(rows) == [f"{number:02}" for number in range(1, len(rows) + 1)], group
    told = [f"{name}: {proofs[0]}" for name, _, proofs in BEHAVIOURS if proofs[0].startswith("open: ")]
    print(f"{len(told)} of {len(BEHAVIOURS)} behaviours are open:", *told, sep="\n  ")  # noqa: T201
