"""The queue's verbs in any order against the oracle, on a real database.

An example is one transaction that is rolled back: emptying two dozen tables costs more than the example itself, and
each verb's own transaction is a savepoint in it. What that leaves out, other connections, is what `tests/races` is
about. Time is a rule: rows are aged.
"""

import sys

from django.db import connection, transaction
from hypothesis.stateful import invariant, precondition, rule

from mailbox_app.operations import cancel, recover, settle
from tests.operations import scene
from tests.proof import compare
from tests.proof.clients import Clients
from tests.proof.keepers import Keepers
from tests.proof.stage import AGENTS, PICK
from tests.proof.workers import Workers


class Queue(Clients, Workers, Keepers):
    """Any order of what clients, workers, operators and the clock may do."""

    @invariant()
    def the_rows_say_what_the_oracle_says(self) -> None:
        compare.check(self.talks)

    @invariant()
    def no_flag_was_forgotten(self) -> None:
        assert recover.repair() == 0

    @precondition(lambda self: any(talk.is_active for talk in self.talks))
    @rule(pick=PICK)
    def a_lease_is_lost_and_the_run_claimed_again(self, pick: int) -> None:
        """By whoever comes first: the stale worker is worst when its run has an owner."""
        self.a_worker_dies(pick)
        self.sweep()
        self._claim(AGENTS, 4)

    def teardown(self) -> None:
        try:
            # After a failure it is the failure that is to be told.
            if sys.exc_info()[0] is None:
                self._everything_ends()
                with connection.cursor() as cursor:
                    # What a COMMIT would check.
                    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        finally:
            transaction.set_rollback(True)
            self._example.__exit__(None, None, None)

    def _everything_ends(self) -> None:
        """Whatever was accepted comes to its end, in a bounded number of rounds, and only then."""
        for _ in range(200):
            open_runs = [run for run in self.runs if run.status != "done"]
            if not open_runs:
                return
            for place in range(len(self.talks)):
                self.hours_pass(place)
            self.tick()
            self._claim(AGENTS, 4)
            compare.check(self.talks)
            for held in [one for one in self.held if one.is_owner]:
                if held.is_owner:
                    self._finished(held, settle.complete(held.claim, output="end"), "end")
            compare.check(self.talks)
            for run in self.runs:
                if run.status == "waiting" and run.live is None and run.id is not None:
                    cancel.run(scope=scene.SCOPE, run_id=run.id)
                    run.talk.cancel(run)
            compare.check(self.talks)
        raise AssertionError("not everything comes to an end")
