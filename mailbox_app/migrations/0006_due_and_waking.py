"""A thread that is due may wake too."""

from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("mailbox", "0005_flow_control")]

    operations = [
        migrations.RemoveConstraint(model_name="thread", name="thread_due_flag_whole_or_absent"),
        migrations.AddConstraint(
            model_name="thread",
            constraint=models.CheckConstraint(
                condition=Q(
                    due_at__isnull=True,
                    due_priority__isnull=True,
                    due_queue__isnull=True,
                    due_agent__isnull=True,
                    due_version__isnull=True,
                )
                | Q(
                    due_at__isnull=False,
                    due_priority__isnull=False,
                    due_queue__isnull=False,
                    due_agent__isnull=False,
                    due_version__isnull=False,
                    active_run_id__isnull=True,
                    blocked_reason="",
                ),
                name="thread_due_flag_whole_or_absent",
            ),
        ),
    ]
