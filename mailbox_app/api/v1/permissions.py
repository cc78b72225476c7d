"""Who is calling, and the scope (the tenant) they live in."""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.db.models.functions import Now
from django.utils.module_loading import import_string
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput
from mailbox_app.models import ApiToken, columns, read, token_digest
from mailbox_app.operations import inputs

# A token's last use is written at most this often: one UPDATE a request would make every request a write.
_TOUCH = timedelta(minutes=1)
# As `usable()` says it, composed once: every request asks this.
_USABLE = """
    SELECT {columns}, coalesce(last_used_at < statement_timestamp() - make_interval(secs => %(seconds)s), TRUE)
    FROM mailbox_apitoken AS token
    WHERE digest = %(digest)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > statement_timestamp())
"""
_STALE = Q(last_used_at=None) | Q(last_used_at__lt=Now() - _TOUCH)


class BearerAuthentication(BaseAuthentication):
    """`Authorization: Bearer <secret of an ApiToken>`. Another scheme is left to the next authentication."""

    def authenticate(self, request: Request) -> tuple[Any, ApiToken] | None:
        """The token's user (None if it has none) and the token."""
        scheme, _, secret = request.headers.get("Authorization", "").strip().partition(" ")
        if scheme.lower() != "bearer":
            return None
        sql = _USABLE.replace("{columns}", columns(ApiToken, "token"))
        found = read(ApiToken, sql, {"digest": token_digest(secret.strip()), "seconds": _TOUCH.total_seconds()})
        if not found:
            raise AuthenticationFailed("The token is unknown, expired or revoked.")
        [(token, is_stale)] = found
        if token.user is not None and not token.user.is_active:
            raise AuthenticationFailed("The token's user is not active.")
        if is_stale:
            ApiToken.objects.filter(_STALE, pk=token.pk).update(last_used_at=Now())
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        """The challenge of every 401: a session is nothing a client could be asked for."""
        return 'Bearer realm="mailbox"'


class LoginAuthentication(SessionAuthentication):
    """Django's session, with its CSRF token in the header: no token is looked for in a body of JSON.

    The framework's own would have the body parsed for it, and again when it answers that the body is not JSON.
    """

    def enforce_csrf(self, request: Request) -> None:
        """Refuse a request that another site made."""
        plain: Any = request._request
        super().enforce_csrf(plain)


class HasScope(BasePermission):
    """Whoever has a token, or is logged in."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Tell whether the request has a principal."""
        return isinstance(request.auth, ApiToken) or bool(getattr(request.user, "is_authenticated", False))


class IsStaff(BasePermission):
    """Somebody of the staff, logged in: no token does what these routes do."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Tell whether the session's user is on the staff."""
        return is_staff(request)


def is_staff(request: Request) -> bool:
    """Whether the request comes from a session of somebody on the staff."""
    return not isinstance(request.auth, ApiToken) and bool(getattr(request.user, "is_staff", False))


def principal_of(request: Request) -> tuple[str, str]:
    """Who is calling: a key that is theirs alone, and a name for people to read."""
    if isinstance(request.auth, ApiToken):
        return f"token:{request.auth.pk}", f"token {request.auth.name}"[: inputs.MAX_NAME]
    return f"user:{request.user.pk}", f"user {request.user.get_username()}"[: inputs.MAX_NAME]


def scope_of(request: Request) -> str:
    """The scope the request lives in: its token's, else what `scope_for_user` says of its user."""
    if isinstance(request.auth, ApiToken):
        return request.auth.scope
    try:
        return inputs.scope(_resolver(conf.scope_for_user)(request.user))
    except InvalidInput as error:
        raise AuthenticationFailed("The user belongs to no scope.") from error


def default_scope(user: Any) -> str:
    """One scope for all users; name a function of your own in `scope_for_user` to give each tenant its own."""
    return "default"


@functools.cache
def _resolver(dotted: str) -> Callable[[Any], Any]:
    found: Callable[[Any], Any] = import_string(dotted)
    return found


AUTHENTICATION = (BearerAuthentication, LoginAuthentication)
