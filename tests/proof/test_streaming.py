"""Any order of events, clients and trouble: each client is told what the table has, in order, once, and no more."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from mailbox_app import channel
from mailbox_app.devtools.servers import Redis
from tests.proof.streaming import SETTINGS, machine

# MAILBOX_PROOF_STREAMS=<examples> runs so many, drawn anew each time. In the suite the same each time, and few.
WANTED = os.environ.get("MAILBOX_PROOF_STREAMS")
DRAWN: dict[str, Any] = {"max_examples": int(WANTED or 7), "stateful_step_count": 60 if WANTED else 30}


@pytest.mark.timeout(0)
@pytest.mark.django_db(transaction=True)
def test_each_client_is_told_what_the_table_has_over_all_its_connections(settings: Any, own_redis: Redis) -> None:
    settings.MAILBOX = {**settings.MAILBOX, **SETTINGS, "redis_url": own_redis.url}
    channel.forget_failures()
    run_state_machine_as_test(machine(own_redis), settings=_settings())
    channel.forget_failures()


def _settings() -> settings:
    brief = {} if WANTED else {"derandomize": True}
    # What is made small is a failure of the whole machine: a server may answer in another order the next time.
    phases = [Phase.generate] if os.environ.get("MAILBOX_PROOF_SHRINK") == "no" else list(Phase)
    return settings(
        **DRAWN,
        **brief,
        phases=phases,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
