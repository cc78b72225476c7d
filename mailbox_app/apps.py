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
        from mailbox_app.models import outbox_written
        from mailbox_app.operations import children, deliver

        # Workers and web servers run no system checks, or ignore what they find; this one no process may ignore.
        for finding in checks.check_settings():
            if finding.is_serious():
                raise ImproperlyConfigured(f"{finding.id}: {finding.msg} {finding.hint}")
        metrics.connect()
        tracing.connect()
        outbox_written.connect(deliver.at_once)
        outbox_written.connect(children.at_once)
        registry.autodiscover()
