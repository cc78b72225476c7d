"""Answer once something has come true, holding neither a transaction nor a database connection meanwhile.

Under ASGI a request that waits is a coroutine that looks now and then. Under WSGI it keeps its worker's thread: keep
`wait_seconds` short there.
"""

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework.response import Response

from mailbox_app.api.v1 import errors
from mailbox_app.api.v1.base import MailboxView
from mailbox_app.conf import conf
from mailbox_app.errors import MailboxError

# The first look comes soon: most of what is waited for has nearly happened. The pause doubles up to a setting.
_FIRST_PAUSE_SECONDS = 0.02


class Later(Response):
    """`answer()` (data, status) once `until()` is true, or after so many seconds, as things stand then."""

    def __init__(
        self, *, until: Callable[[], bool], seconds: float, answer: Callable[[], tuple[Any, int]], **options: Any
    ) -> None:
        super().__init__(**options)
        self._until, self._seconds, self._answer = until, seconds, answer

    async def ripen(self) -> None:
        """Wait, and take the answer's form."""
        look, give_up_at, pause = sync_to_async(self._look), time.monotonic() + self._seconds, _FIRST_PAUSE_SECONDS
        while not await look():
            left = give_up_at - time.monotonic()
            if left <= 0:
                break
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, conf.wait_poll_seconds)
        await sync_to_async(self._settle)()

    def _look(self) -> bool:
        try:
            return self._until()
        finally:
            _release()

    def _settle(self) -> None:
        try:
            self.data, self.status_code = self._answer()
        except MailboxError as error:
            refusal = errors.answer(error, {})
            self.data, self.status_code, self.content_type = refusal.data, refusal.status_code, refusal.content_type
        finally:
            _release()


class WaitingView(MailboxView):
    """A route whose methods may answer `Later`."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """The view as a coroutine function, whichever server calls it."""
        now = super().as_view(**initkwargs)

        @functools.wraps(now)
        async def view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            response: HttpResponseBase = await sync_to_async(now)(request, *args, **kwargs)
            if isinstance(response, Later):
                await response.ripen()
            return response

        return transaction.non_atomic_requests(view)


def _release() -> None:
    """Give the thread's connection back (to its pool): the next look takes one again."""
    if not connection.in_atomic_block:  # else the transaction is not ours: that of a test
        connection.close()
