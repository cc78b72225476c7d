"""Errands between threads: the wakes and cancels that are pending."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("mailbox", "0008_tickets"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="outbox",
            index=models.Index(
                condition=models.Q(("kind__in", ("wake", "cancel")), ("status", "pending")),
                fields=["available_at", "id"],
                name="outbox_errands",
            ),
        ),
        migrations.AddIndex(
            model_name="outbox",
            index=models.Index(
                condition=models.Q(("kind__in", ("wake", "cancel")), ("status", "pending")),
                fields=["target_thread_id", "available_at", "id"],
                name="outbox_errands_to",
            ),
        ),
    ]
