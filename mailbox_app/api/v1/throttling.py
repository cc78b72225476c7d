"""How much one caller may ask for in a minute. Off unless a setting says otherwise.

Counted in Django's default cache, by whole minutes of this server's clock: one that the web processes share (Redis,
Memcached, the database) counts for all of them, the local-memory cache for each process alone. A cache that does not
answer limits nobody.
"""

import logging
import time

from django.core.cache import cache
from rest_framework.exceptions import Throttled
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView

from mailbox_app.api.v1.permissions import principal_of
from mailbox_app.conf import conf
from mailbox_app.telemetry import observe

_WINDOW_SECONDS = 60


class RequestThrottle(BaseThrottle):
    """`throttle_requests_per_minute`, for every route that needs credentials."""

    def allow_request(self, request: Request, view: APIView) -> bool:
        """Count the request; False once there were too many."""
        return _is_within(conf.throttle_requests_per_minute, "requests", request, 1)

    def wait(self) -> float:
        """Seconds until the next minute begins."""
        return _rest_of_window()


def charge_submissions(request: Request, count: int) -> None:
    """Count runs that are about to be submitted. Raises Throttled when they are more than one minute may have."""
    if not _is_within(conf.throttle_submissions_per_minute, "submissions", request, count):
        raise Throttled(wait=_rest_of_window())


def _is_within(most: int, what: str, request: Request, count: int) -> bool:
    if not most:
        return True
    key = f"mailbox:throttle:{what}:{principal_of(request)[0]}:{int(time.time() // _WINDOW_SECONDS)}"
    try:
        cache.add(key, 0, 2 * _WINDOW_SECONDS)
        return bool(cache.incr(key, count) <= most)
    except Exception as error:  # each cache has errors of its own, and none of them is the caller's
        observe("throttle.failed", level=logging.WARNING, error=type(error).__name__)
        return True


def _rest_of_window() -> float:
    return _WINDOW_SECONDS - time.time() % _WINDOW_SECONDS
