"""Django's entry: registers the system checks and imports every installed app's `agents.py`."""

from django.apps import AppConfig


class MailboxConfig(AppConfig):
    name = "mailbox_app"
    label = "mailbox"
    verbose_name = "Mailbox"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from mailbox_app import checks
        from mailbox_app.execution import registry

        assert checks.CHECKS  # imported for its registrations
        registry.autodiscover()
