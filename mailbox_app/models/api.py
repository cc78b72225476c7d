"""Who may call the API, and what was already answered."""

import hashlib
import secrets
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from mailbox_app.models.base import not_blank, uuid7

_PREFIX = "mbx_"


def token_digest(secret: str) -> str:
    """What is stored of a token. A plain hash is enough: the secret has 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    def usable(self) -> "ApiTokenQuerySet":
        return self.filter(Q(expires_at=None) | Q(expires_at__gt=Now()), revoked_at=None)

    def issue(self, *, name: str, scope: str, user: Any = None, **fields: Any) -> "tuple[ApiToken, str]":
        """Create a token and return it with its secret, which is shown this once: only its hash is stored."""
        secret = _PREFIX + secrets.token_urlsafe(32)
        token = self.create(
            name=name, scope=scope, user=user, digest=token_digest(secret), hint=secret[: len(_PREFIX) + 4], **fields
        )
        return token, secret

    def revoke(self) -> int:
        """Refuse these tokens from now on."""
        return self.filter(revoked_at=None).update(revoked_at=Now())


class ApiToken(models.Model):
    """A bearer token. Requests made with it live in its scope (the tenant) and see nothing outside."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=200)
    scope = models.CharField(max_length=200)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.CASCADE, related_name="mailbox_tokens"
    )
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=20, blank=True, default="")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        verbose_name = "API token"
        constraints = [not_blank("api_token_names_not_blank", "name", "scope")]

    def __str__(self) -> str:
        return f"{self.name} ({self.hint}…)"


class IdempotencyKey(models.Model):
    """The answer once given to a creating POST, for a client that repeats it."""

    id = models.BigAutoField(primary_key=True)
    scope = models.CharField(max_length=200)
    key = models.CharField(max_length=200)
    # SHA-256 of method, path and body.
    request_hash = models.CharField(max_length=64)
    status_code = models.SmallIntegerField(default=0)
    headers = models.JSONField(default=dict, blank=True)
    response = models.JSONField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            not_blank("idempotency_key_names_not_blank", "scope", "key"),
            models.UniqueConstraint(fields=["scope", "key"], name="idempotency_key_unique_in_scope"),
        ]
        indexes = [models.Index(fields=["created_at", "id"], name="idempotency_key_age")]

    def __str__(self) -> str:
        return self.key
