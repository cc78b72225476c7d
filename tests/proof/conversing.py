"""Conversations in any order against the oracle: who reads what, when, and what becomes of what nobody has read.

People say things, change, withdraw, order, hold and release them; agents read, ask and wait; workers are lost and time
passes. As in `machine.py` an example is one transaction that is rolled back.
"""

import sys

from django.db import connection, transaction
from hypothesis.stateful import invariant

from mailbox_app.models import Message, Ticket
from mailbox_app.operations import pending, recover, settle
from tests.operations import scene
from tests.proof import heard
from tests.proof.scripted import Scripted


class Conversing(Scripted):
    """All that people, agents and the clock may do."""

    @invariant()
    def the_rows_say_what_the_oracle_says(self) -> None:
        heard.check(self.talks)
        assert recover.repair() == 0

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self._everything_ends()
                with connection.cursor() as cursor:
                    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        finally:
            transaction.set_rollback(True)
            self._example.__exit__(None, None, None)

    def _everything_ends(self) -> None:
        """Nobody answers any more, and all that is held is released: every run ends, and everything has been read."""
        for talk in self.talks:
            pending.release(scope=scene.SCOPE, thread_id=talk.id)
            talk.release(None)
        heard.check(self.talks)
        for _ in range(100):
            if all(run.status == "done" for _, run in self.readers):
                break
            self.hours_pass()
            for place, (_, run) in enumerate(self.readers):
                if run.status == "waiting":
                    self.patience_ends(place)
            self.tick()
            heard.check(self.talks)
            self.claim_all()
            for talk, run in self.holders:
                read = settle.complete(self.held[run])
                following = talk.finish(run)
                self._hand_over(following)
                if read is not None:
                    self.held[run] = read
            heard.check(self.talks)
        else:
            raise AssertionError("not everything comes to an end")
        assert not Message.objects.pending().exists(), "something was never read"
        assert not Ticket.objects.open().exists(), "something was never answered"
