"""What all actors of the machine share."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from mailbox_app.operations.ownership import Claim
from tests.operations import scene
from tests.proof import compare
from tests.proof.oracle import Entry, Intent, Talk

AGENTS = ("echo", "analyst")
PICK = st.integers(0, 11)
CLAIMED_BY = {"queue": scene.QUEUE, "worker": scene.WORKER}
# Far enough that it never comes while an example runs.
LATER_SECONDS = 3600.0


class Held:
    """A claim somebody was given; it may have been lost since."""

    def __init__(self, claim: Claim, run: Intent, entry: Entry) -> None:
        self.claim, self.run, self.entry, self.turn = claim, run, entry, run.turn

    @property
    def is_owner(self) -> bool:
        return self.entry.token == self.claim.token and self.run.turn == self.turn

    def has_ended(self, *statuses: str, left_run: str | None = None) -> bool:
        """Whether this very claim has ended so."""
        entry = self.entry
        is_so = entry.ended_by == self.claim.token and entry.status in statuses and entry.id is not None
        return is_so and left_run in (None, entry.left_run)


class Stage(RuleBasedStateMachine):
    """The oracle, who was given a claim, and how the actors choose."""

    def __init__(self) -> None:
        super().__init__()
        self.talks: list[Talk] = []
        self.held: list[Held] = []
        self.durable: dict[tuple[int, int], tuple[uuid.UUID, str]] = {}
        self.number = 0
        self._example = transaction.atomic()
        # As in a TestCase: the transaction around all is not an agent's.
        self._example._from_testcase = True  # type: ignore[attr-defined]
        self._example.__enter__()

    # What is there to choose from.

    @property
    def runs(self) -> list[Intent]:
        return [run for talk in self.talks for run in talk.runs]

    def _run(self, pick: int) -> Intent:
        """Mostly one that is not done."""
        going = [run for run in self.runs if run.status != "done"]
        chosen = going if going and pick < 9 else self.runs
        return chosen[-1 - pick % len(chosen)]

    def _talk(self, pick: int) -> Talk:
        return self.talks[pick % len(self.talks)]

    def _is_taken(self, key: str | None) -> bool:
        return key is not None and any(run.key == key and run.status != "done" for run in self.runs)

    def _unchanged(self, talk: Talk, call: Callable[[], Any]) -> Any:
        """What is told again changes nothing; but a fence brings a flag that time has overtaken up to date."""
        if talk.is_stale:
            talk.is_stale = False
            return call()
        with compare.nothing_changes():
            return call()

    def _refused(self, error: type[BaseException], call: Callable[[], Any]) -> None:
        with compare.nothing_changes(), pytest.raises(error):
            call()
