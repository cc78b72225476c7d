"""Who may call the API: tokens, which are issued and revoked here, and answers kept for repeated requests."""

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest
from django.utils.html import format_html

from mailbox_app.admin.base import AddOnlyAdmin, ReadOnlyAdmin
from mailbox_app.models import ApiToken, IdempotencyKey


@admin.register(ApiToken)
class ApiTokenAdmin(AddOnlyAdmin):
    """Tokens: whoever may add one sees its secret once, whoever may change one can revoke it."""

    list_display = ("name", "hint", "scope", "user", "created_at", "expires_at", "revoked_at", "last_used_at")
    list_select_related = ("user",)
    search_fields = ()
    raw_id_fields = ("user",)
    actions = ("revoke",)
    hidden = ("digest",)
    given = ("name", "scope", "user", "expires_at")
    advice = "The secret is shown once, after saving."

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Revoking is the one change there is."""
        return self.may(request, "change")

    def save_model(self, request: HttpRequest, obj: ApiToken, form: Any, change: bool) -> None:
        """Issue the token and show its secret, which is stored nowhere."""
        given = {name: form.cleaned_data[name] for name in self.given}
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


@admin.register(IdempotencyKey)
class IdempotencyKeyAdmin(ReadOnlyAdmin):
    """The answer once given to a creating request."""

    list_display = ("key", "scope", "status_code", "created_at")
    search_fields = ()
