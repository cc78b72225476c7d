"""Questions: what tickets are called, the permission to answer them, and the runs of a scope that wait."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("mailbox", "0007_limits"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="ticket",
            options={"permissions": [("answer_ticket", "Can answer a question of a run")]},
        ),
        migrations.AddField(
            model_name="ticket",
            name="entry",
            field=models.JSONField(blank=True, default=dict),
        ),
        migrations.AddField(
            model_name="ticket",
            name="name",
            field=models.CharField(blank=True, default="", max_length=200),
        ),
        migrations.AddField(
            model_name="ticket",
            name="turn",
            field=models.IntegerField(default=1),
        ),
        migrations.AddIndex(
            model_name="run",
            index=models.Index(
                condition=models.Q(("status", "waiting")),
                fields=["scope", "-created_at", "-id"],
                name="run_waiting_in_scope",
            ),
        ),
    ]
