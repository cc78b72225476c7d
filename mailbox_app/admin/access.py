"""Who may call the API: tokens, which are issued and revoked here, and answers kept for repeated requests."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.auth import get_permission_codename
from django.http import HttpRequest
from django.utils.html import format_html

from mailbox_app.admin.base import ReadOnlyAdmin
from mailbox_app.models import ApiToken, IdempotencyKey


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    """Tokens: whoever may add one sees its secret once, whoever may change one can revoke it."""

    list_display = ("name", "hint", "scope", "user", "created_at", "expires_at", "revoked_at", "last_used_at")
    list_select_related = ("user",)
    search_fields = ()
    raw_id_fields = ("user",)
    actions = ("revoke",)
    hidden = ("digest",)
    _given = ("name", "scope", "user", "expires_at")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Django's own permission: the one model an operator adds to."""
        return self._may(request, "add")

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Revoking is the one change there is."""
        return self._may(request, "change")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """What a new token is given; all but the digest of one that exists."""
        if obj is None:
            return [(None, {"fields": self._given, "description": "The secret is shown once, after saving."})]
        return super().get_fieldsets(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Nothing of a new token; everything of one that exists."""
        return () if obj is None else super().get_readonly_fields(request, obj)

    def save_model(self, request: HttpRequest, obj: ApiToken, form: Any, change: bool) -> None:
        """Issue the token and show its secret, which is stored nowhere."""
        given = {name: form.cleaned_data[name] for name in self._given}
        _, secret = ApiToken.objects.issue(id=obj.pk, **given)
        obj.refresh_from_db()
        self.message_user(
            request,
            format_html("Copy the secret now, it is not shown again: <code>{}</code>", secret),
            messages.WARNING,
        )

    @admin.action(description="Revoke selected tokens", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: Any) -> None:
        """Refuse requests made with these tokens from now on."""
        usable = list(queryset.filter(revoked_at=None))
        revoked = ApiToken.objects.filter(pk__in=[token.pk for token in usable]).revoke()
        for token in usable:
            self.log_change(request, token, "Revoked.")
        self.message_user(request, f"{revoked} tokens were revoked.", messages.SUCCESS)

    def _may(self, request: HttpRequest, action: str) -> bool:
        codename = get_permission_codename(action, self.opts)
        return bool(request.user.has_perm(f"{self.opts.app_label}.{codename}"))


@admin.register(IdempotencyKey)
class IdempotencyKeyAdmin(ReadOnlyAdmin):
    """The answer once given to a creating request."""

    list_display = ("key", "scope", "status_code", "created_at")
    search_fields = ()
