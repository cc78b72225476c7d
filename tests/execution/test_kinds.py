"""An agent's own events are called like none of the system's, and are told apart from those."""

from typing import Any

import pytest

from mailbox_app.errors import InvalidInput
from mailbox_app.execution import Context
from mailbox_app.kinds import Kind
from mailbox_app.operations import interrupt, settle
from mailbox_app.testing import assert_events
from tests.execution.conftest import Perform
from tests.operations import scene

pytestmark = pytest.mark.django_db


def test_an_agent_can_name_no_event_of_its_own_like_one_of_the_systems(perform: Perform) -> None:
    refused: list[tuple[str, Any]] = []

    def agent(ctx: Context) -> None:
        for kind in Kind.values:
            with pytest.raises(InvalidInput) as error:
                ctx.emit(kind, {"by": "nobody"})
            refused.append((kind, error.value.errors))

    claim = perform(agent)
    assert [kind for kind, _ in refused] == Kind.values
    assert all(errors[0]["code"] == "reserved" for _, errors in refused)
    assert scene.kinds(claim) == ["ThreadCreated", "RunQueued", "RunStarted", "RunFinished"]


def test_what_people_did_is_none_of_the_agents_own_events() -> None:
    claim = scene.posted_and_taken()
    interrupt.thread(scope=scene.SCOPE, thread_id=claim.thread_id)
    settle.stopped(claim)
    assert "ThreadInterrupted" in scene.kinds(claim)
    assert_events(claim.thread_id, [], own_only=True)
