"""What the reference project asks of its connections."""

import pytest
from django.db import connection


@pytest.mark.django_db
def test_a_server_that_vanishes_without_a_word_is_given_up_within_a_minute() -> None:
    connection.ensure_connection()
    wire = connection.connection.info.get_parameters()
    idle, interval, count = (int(wire[f"keepalives_{name}"]) for name in ("idle", "interval", "count"))
    assert 0 < idle + interval * count <= 60
    assert 0 < int(wire["tcp_user_timeout"]) <= 60_000
