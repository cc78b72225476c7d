"""The admin as an operator meets it: addresses, pages, and somebody of the staff with just these permissions."""

from django.contrib.auth.models import Permission, User
from django.db import models
from django.test import Client
from django.urls import reverse


def listed(model: type[models.Model]) -> str:
    return reverse(f"admin:mailbox_{model._meta.model_name}_changelist")


def shown(row: models.Model) -> str:
    return reverse(f"admin:mailbox_{row._meta.model_name}_change", args=[row.pk])


def text(client: Client, url: str, **query: str) -> str:
    answer = client.get(url, query)
    assert answer.status_code == 200, (url, answer.status_code)
    return answer.content.decode()


def operator(*permissions: str) -> Client:
    """A client signed in as a staff user with these permissions on our models."""
    user = User.objects.create_user("operator", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="mailbox", codename__in=permissions))
    assert user.user_permissions.count() == len(permissions)
    client = Client()
    client.force_login(user)
    return client
