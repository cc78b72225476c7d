"""The reference project as it is served, with a page that says how many statements the process has sent."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from django.db.backends.signals import connection_created

from mailbox_project.asgi import application as project

# Enough of a statement to tell it from the others.
_TOLD_CHARACTERS = 300
_counts: Counter[str] = Counter()


def _count(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
    _counts[" ".join(sql.split())[:_TOLD_CHARACTERS]] += 1
    return execute(sql, params, many, context)


def _watch(connection: Any, **_: Any) -> None:
    if _count not in connection.execute_wrappers:
        connection.execute_wrappers.append(_count)


connection_created.connect(_watch)


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer `/counted`, and leave the rest to the project."""
    if scope["type"] != "http" or scope["path"] != "/counted":
        await project(scope, receive, send)
        return
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(_counts).encode()})
