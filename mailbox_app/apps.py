"""Django's entry: registers the system checks and imports every installed app's `agents.py`."""

from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured


class MailboxConfig(AppConfig):
    name = "mailbox_app"
    label = "mailbox"
    verbose_name = "Mailbox"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from mailbox_app import checks, metrics, tracing
        from mailbox_app.execution import registry

        # Workers and web servers run no system checks, or ignore what they find; this one no process may ignore.
        for finding in checks.check_settings():
            if finding.is_serious():
                raise ImproperlyConfigured(f"{finding.id}: {finding.msg} {finding.hint}")
        metrics.connect()
        tracing.connect()
        registry.autodiscover()
