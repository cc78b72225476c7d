"""Any order of the queue's verbs: each answers, and leaves behind, what a plain list in memory would."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from mailbox_app import channel
from tests.proof import dialogue, profiles
from tests.proof.conversing import Conversing
from tests.proof.limited import Limited
from tests.proof.machine import Queue
from tests.proof.oracle import MOST_LOST, MOST_TURNS
from tests.proof.stage import LATER_SECONDS

# Longer than any example: only a rule lets time pass.
CLOCKLESS = {"lease_seconds": LATER_SECONDS, "retry_delay_seconds": LATER_SECONDS}


@pytest.mark.timeout(0)  # a failure is made small first, and a long run is asked for
@pytest.mark.django_db(transaction=True)
def test_every_verb_does_what_the_oracle_does(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MAILBOX = {**settings.MAILBOX, **CLOCKLESS, "max_lost": MOST_LOST, "max_turns": MOST_TURNS}
    monkeypatch.setattr(channel.Breaker, "is_open", lambda self: True)
    run_state_machine_as_test(Queue, settings=_settings())


@pytest.mark.timeout(0)
@pytest.mark.django_db(transaction=True)
def test_limits_keep_what_they_should_and_nothing_else(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MAILBOX = {**settings.MAILBOX, **CLOCKLESS, "max_lost": 100}
    monkeypatch.setattr(channel.Breaker, "is_open", lambda self: True)
    run_state_machine_as_test(Limited, settings=_settings())


@pytest.mark.timeout(0)
@pytest.mark.django_db(transaction=True)
def test_a_conversation_goes_as_the_oracle_says_in_whatever_order(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = {"max_lost": dialogue.MOST_LOST, "max_turns": dialogue.MOST_TURNS, "max_attempts": dialogue.MOST_ATTEMPTS}
    settings.MAILBOX = {**settings.MAILBOX, **CLOCKLESS, **most}
    monkeypatch.setattr(channel.Breaker, "is_open", lambda self: True)
    run_state_machine_as_test(Conversing, settings=_settings())


def _settings() -> settings:
    return settings(**profiles.given(), suppress_health_check=list(HealthCheck))
