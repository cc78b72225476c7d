"""Limits of agents and scopes, and their permits."""

import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models

import mailbox_app.models.base


class Migration(migrations.Migration):
    dependencies = [
        ("mailbox", "0006_due_and_waking"),
    ]

    operations = [
        migrations.CreateModel(
            name="Limit",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=mailbox_app.models.base.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("kind", models.CharField(choices=[("agent", "Agent"), ("scope", "Scope")], max_length=10)),
                ("name", models.CharField(max_length=200)),
                ("most", models.IntegerField(blank=True, null=True)),
                ("starts", models.IntegerField(blank=True, null=True)),
                ("seconds", models.FloatField(blank=True, null=True)),
                ("full_at", models.DateTimeField(blank=True, null=True)),
                ("is_settling", models.BooleanField(default=False)),
                ("note", models.CharField(blank=True, default="", max_length=500)),
                ("set_by", models.CharField(blank=True, default="", max_length=200)),
                ("set_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
        ),
        migrations.CreateModel(
            name="Permit",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=mailbox_app.models.base.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("dispatch_id", models.UUIDField(blank=True, null=True)),
                ("is_retired", models.BooleanField(default=False)),
            ],
        ),
        migrations.AddField(
            model_name="dispatch",
            name="permit_ids",
            field=models.JSONField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="thread",
            name="blocked_priority",
            field=models.SmallIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="thread",
            name="blocked_since",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddIndex(
            model_name="thread",
            index=models.Index(
                condition=models.Q(("blocked_reason", "scope_limit")),
                fields=["scope", "blocked_priority", "blocked_since", "id"],
                name="thread_over_scope_limit",
            ),
        ),
        migrations.AddConstraint(
            model_name="dispatch",
            constraint=models.CheckConstraint(
                condition=models.Q(("status", "claimed"), ("permit_ids__isnull", True), _connector="OR"),
                name="dispatch_permits_only_claimed",
            ),
        ),
        migrations.AddConstraint(
            model_name="thread",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("active_run_id__isnull", True),
                        ("blocked_reason", "scope_limit"),
                        ("blocked_priority__isnull", False),
                        ("blocked_since__isnull", False),
                    ),
                    models.Q(
                        models.Q(("blocked_reason", "scope_limit"), _negated=True),
                        ("blocked_priority__isnull", True),
                        ("blocked_since__isnull", True),
                    ),
                    _connector="OR",
                ),
                name="thread_blocked_place_iff_scope_limit",
            ),
        ),
        migrations.AddIndex(
            model_name="limit",
            index=models.Index(condition=models.Q(("is_settling", True)), fields=["id"], name="limit_settling"),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(condition=models.Q(("name__regex", "\\S")), name="limit_name_not_blank"),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["agent", "scope"])), name="limit_kind_known"
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("most__isnull", True), models.Q(("most__gte", 1), ("most__lte", 1000)), _connector="OR"),
                    models.Q(
                        ("starts__isnull", True), models.Q(("starts__gte", 1), ("starts__lte", 100000)), _connector="OR"
                    ),
                    models.Q(
                        ("seconds__isnull", True),
                        models.Q(("seconds__gte", 1), ("seconds__lte", 86400.0)),
                        _connector="OR",
                    ),
                ),
                name="limit_numbers_in_range",
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("starts__isnull", True), ("seconds__isnull", True)),
                    models.Q(
                        models.Q(("starts__isnull", True), _negated=True),
                        models.Q(("seconds__isnull", True), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="limit_rate_whole_or_absent",
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(
                condition=models.Q(("starts__isnull", True), ("kind", "agent"), _connector="OR"),
                name="limit_rate_only_of_agent",
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(
                condition=models.Q(("full_at__isnull", True), ("starts__isnull", False), _connector="OR"),
                name="limit_bucket_only_with_rate",
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.UniqueConstraint(fields=("kind", "name"), name="limit_once"),
        ),
        migrations.AddField(
            model_name="permit",
            name="limit",
            field=models.ForeignKey(
                db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name="permits", to="mailbox.limit"
            ),
        ),
        migrations.AddIndex(
            model_name="permit",
            index=models.Index(fields=["limit", "is_retired", "dispatch_id"], name="permit_of_limit"),
        ),
        migrations.AddConstraint(
            model_name="permit",
            constraint=models.UniqueConstraint(
                condition=models.Q(("dispatch_id__isnull", False)),
                fields=("dispatch_id", "limit"),
                name="permit_once_per_dispatch",
            ),
        ),
    ]
