"""ASGI entry point of the reference project."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mailbox_project.settings")

application = get_asgi_application()
