"""Who is calling, and the scope (the tenant) they live in."""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.db.models import Case, Q, Value, When
from django.db.models.fields import BooleanField
from django.db.models.functions import Now
from django.utils.module_loading import import_string
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput
from mailbox_app.models import ApiToken, token_digest
from mailbox_app.operations import inputs

# A token's last use is written at most this often: one UPDATE a request would make every request a write.
_TOUCH = timedelta(minutes=1)
_STALE = Q(last_used_at=None) | Q(last_used_at__lt=Now() - _TOUCH)


class BearerAuthentication(BaseAuthentication):
    """`Authorization: Bearer <secret of an ApiToken>`. Another scheme is left to the next authentication."""

    def authenticate(self, request: Request) -> tuple[Any, ApiToken] | None:
        """The token's user (None if it has none) and the token."""
        scheme, _, secret = request.headers.get("Authorization", "").strip().partition(" ")
        if scheme.lower() != "bearer":
            return None
        tokens = ApiToken.objects.usable().select_related("user").filter(digest=token_digest(secret.strip()))
        token = tokens.annotate(
            is_stale=Case(When(_STALE, then=Value(True)), default=Value(False), output_field=BooleanField())
        ).first()
        if token is None:
            raise AuthenticationFailed("The token is unknown, expired or revoked.")
        if token.user is not None and not token.user.is_active:
            raise AuthenticationFailed("The token's user is not active.")
        if token.is_stale:  # type: ignore[attr-defined]
            ApiToken.objects.filter(_STALE, pk=token.pk).update(last_used_at=Now())
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        """The challenge of every 401: a session is nothing a client could be asked for."""
        return 'Bearer realm="mailbox"'


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


def scope_of(request: Request) -> str:
    """The scope the request lives in: its token's, else what `scope_for_user` says of its user."""
    if isinstance(request.auth, ApiToken):
        return request.auth.scope
    try:
        return inputs.text("scope", _resolver(conf.scope_for_user)(request.user))
    except InvalidInput as error:
        raise AuthenticationFailed("The user belongs to no scope.") from error


def default_scope(user: Any) -> str:
    """One scope for all users; name a function of your own in `scope_for_user` to give each tenant its own."""
    return "default"


@functools.cache
def _resolver(dotted: str) -> Callable[[Any], Any]:
    found: Callable[[Any], Any] = import_string(dotted)
    return found


AUTHENTICATION = (BearerAuthentication, SessionAuthentication)
