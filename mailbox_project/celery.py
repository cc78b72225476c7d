"""The reference project's Celery app."""

import os

from celery import Celery

from mailbox_app import celeryconf

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mailbox_project.settings")

app = Celery("mailbox_project")
app.config_from_object("django.conf:settings", namespace="CELERY")
celeryconf.configure(app)
app.autodiscover_tasks()
