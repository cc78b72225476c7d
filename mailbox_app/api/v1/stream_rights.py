"""By what right a stream is open, and which of these rights still stand: asked for all streams of a process together.

A request shows its credentials once, and a stream may be open for an hour. A token that was revoked, has expired or
was deleted, a user who is not active any more or has another password, a session that has ended: their streams end,
too. Not seen are another scope that `scope_for_user` gives a user, and the end of sessions that are kept in no table.
"""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.utils import timezone
from rest_framework.request import Request

from mailbox_app.models import ApiToken


@dataclass(frozen=True, slots=True)
class Right:
    """What a request has shown: a token and the scope it is for, or a session and its user as they were then."""

    token_id: uuid.UUID | None
    scope: str
    user_id: Any
    session_key: str | None = None
    session_hash: str = ""


def of(request: Request) -> Right:
    """The right of a request that was let in."""
    if isinstance(request.auth, ApiToken):
        return Right(request.auth.pk, request.auth.scope, request.auth.user_id)
    plain: Any = request._request
    user = request.user if request.user.pk is not None else plain.user  # a page of the project's own has asked
    return Right(None, "", user.pk, getattr(getattr(plain, "session", None), "session_key", None), _hash_of(user))


def standing(rights: Collection[Right]) -> set[Right]:
    """Those of them that would still be let in; a statement each for tokens, users and sessions, if there are any."""
    tokens = {right.token_id for right in rights if right.token_id is not None}
    usable = set(ApiToken.objects.usable().filter(pk__in=tokens).values_list("pk", "scope")) if tokens else set()
    ids = {right.user_id for right in rights if right.user_id is not None}
    users = get_user_model()._default_manager.filter(pk__in=ids) if ids else ()
    active: dict[Any, Any] = {user.pk: user for user in users if user.is_active}
    open_sessions = _open_sessions({right.session_key for right in rights if right.session_key is not None})

    def stands(right: Right) -> bool:
        if right.user_id is not None and right.user_id not in active:
            return False
        if right.token_id is not None:
            return (right.token_id, right.scope) in usable
        return right.session_key in open_sessions and right.session_hash == _hash_of(active.get(right.user_id))

    return {right for right in rights if stands(right)}


def _open_sessions(keys: Collection[str]) -> Collection[str | None]:
    store: Any = import_module(settings.SESSION_ENGINE).SessionStore
    if not keys or not hasattr(store, "get_model_class"):
        return {None, *keys}
    rows = store.get_model_class().objects.filter(session_key__in=keys, expire_date__gt=timezone.now())
    return {None, *rows.values_list("session_key", flat=True)}


def _hash_of(user: Any) -> str:
    return str(user.get_session_auth_hash()) if hasattr(user, "get_session_auth_hash") else ""
