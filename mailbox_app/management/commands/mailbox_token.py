"""`manage.py mailbox_token NAME --scope SCOPE`: issue an API token; its secret is printed this once."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db.models.functions import Now

from mailbox_app.errors import InvalidInput
from mailbox_app.models import ApiToken
from mailbox_app.operations import inputs


class Command(BaseCommand):
    help = "Issue an API token and print its secret, once: only its hash is stored. Revoke it in the admin."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="what the token is for, as the admin shows it")
        parser.add_argument("--scope", default="default", help="the tenant its requests live in (default: default)")
        parser.add_argument("--user", help="the user it acts for; it is refused when that user is not active")
        parser.add_argument("--days", type=float, help="how long it is good for; without it, until it is revoked")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            names = {"name": inputs.text("name", options["name"]), "scope": inputs.scope(options["scope"])}
        except InvalidInput as error:
            raise CommandError(error.message) from error
        days = options["days"]
        if days is not None and not 0 < days <= 36_500:
            raise CommandError(f"--days must be above 0 and at most 36500, not {days:g}")
        expires_at = None if days is None else Now() + timedelta(days=days)
        _, secret = ApiToken.objects.issue(**names, user=_user(options["user"]), expires_at=expires_at)
        self.stdout.write(secret)


def _user(name: str | None) -> Any:
    if name is None:
        return None
    model: Any = get_user_model()
    try:
        return model._default_manager.get_by_natural_key(name)
    except model.DoesNotExist as error:
        raise CommandError(f"there is no user named {name!r}") from error
