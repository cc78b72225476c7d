"""Races are not about signals: none is sent, so that nothing but the database decides them."""

from typing import Any

import pytest

from mailbox_app import channel


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hints may be lost at any time; here all of them are."""
    monkeypatch.setattr(channel.Breaker, "is_open", lambda self: True)
