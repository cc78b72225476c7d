"""The plugin that `mailbox_app` gives to teams, as its README says to load it."""

import pytest

from mailbox_app.execution import emitting

pytest_plugins = ["mailbox_app.testing"]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """What a killed agent has emitted may be being recorded just now: the end of the test empties the tables."""
    emitting.rest()
