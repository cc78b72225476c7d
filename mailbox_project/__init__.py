"""The reference project: runs `mailbox_app` whole."""

from mailbox_project.celery import app as celery_app

__all__ = ["celery_app"]
