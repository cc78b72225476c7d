"""`observe(name, **fields)`: one structured log line and one in-process signal. Nothing else in the app logs.

Fields are ids, counts, codes and seconds, never a payload. Receivers of `observed` get `name` and `fields` and must be
quick; what they raise is logged, not passed on.
"""

import json
import logging
from typing import Any

from django.dispatch import Signal

observed = Signal()
_logger = logging.getLogger("mailbox")


def observe(name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Tell that something happened: `observe("dispatch.claimed", dispatch_id=…, worker=…)`."""
    if _logger.isEnabledFor(level):
        _logger.log(level, "%s %s", name, json.dumps(fields, default=str, sort_keys=True), extra={"mailbox": fields})
    for receiver, answer in observed.send_robust(sender=None, name=name, fields=fields):
        if isinstance(answer, Exception):
            _logger.error("telemetry receiver %r failed on %s: %r", receiver, name, answer)
