"""Settings of the reference project. The environment is read here and nowhere else.

Without DATABASE_URL the project runs on the embedded servers of `manage.py mailbox_dev`: whoever starts them
(`mailbox_dev`, `demo`, the tests) sets the variables below for its children, and any other command finds the running
stack through its state file.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

BASE_DIR = Path(__file__).resolve().parent.parent
STATE_DIR = Path(os.environ.get("MAILBOX_STATE_DIR", BASE_DIR / ".mailbox"))


def _running_stack() -> dict[str, Any]:
    """Environment of the stack that runs from STATE_DIR, or {} (file written by mailbox_app.devtools.stack)."""
    try:
        return dict(json.loads((STATE_DIR / "environment.json").read_text()))
    except (OSError, ValueError):
        return {}


_ENV: dict[str, Any] = {**_running_stack(), **os.environ}


def _flag(name: str) -> bool:
    return str(_ENV.get(name, "")).lower() in {"1", "true", "yes", "on"}


def _names(name: str) -> list[str]:
    return [part.strip() for part in str(_ENV.get(name, "")).split(",") if part.strip()]


def _database(url: str) -> dict[str, Any]:
    """Django's DATABASES entry for a libpq URL; query parameters become driver options."""
    parts = conninfo_to_dict(url)
    known = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    entry: dict[str, Any] = {name: str(parts.pop(key)) for key, name in known.items() if key in parts}
    options = {key: value for key, value in parts.items() if value is not None}
    pool_size = int(_ENV.get("DATABASE_POOL_SIZE") or 0)
    return {
        "ENGINE": "django.db.backends.postgresql",
        **entry,
        # Under ASGI each request has a thread of its own, and a connection kept for that thread would be left behind;
        # a web process draws from a pool (DATABASE_POOL_SIZE, set for it alone). Workers keep theirs by
        # CELERY_DB_REUSE_MAX.
        "CONN_MAX_AGE": 0,
        "OPTIONS": {
            "connect_timeout": 5,
            # A server that has vanished without a word, as in a failover, is given up within a minute, not a quarter of
            # an hour.
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 60_000,
            # The queue's own statements are planned once a connection. A pooler that gives each transaction another one
            # must know protocol-level prepared statements (PgBouncer 1.21, max_prepared_statements), or this is "off".
            "prepare_threshold": None if _ENV.get("DATABASE_PREPARE") == "off" else 0,
            **options,
            **({"pool": {"min_size": 1, "max_size": pool_size, "timeout": 10}} if pool_size else {}),
        },
    }


DEBUG = _flag("DJANGO_DEBUG")
# Only mailbox_dev, demo and the tests run without a key of their own; they make one per state folder.
SECRET_KEY = str(_ENV.get("DJANGO_SECRET_KEY", ""))
if not SECRET_KEY:
    import secrets

    SECRET_KEY = secrets.token_urlsafe(50)
ALLOWED_HOSTS = _names("DJANGO_ALLOWED_HOSTS") or ["localhost", "127.0.0.1", "[::1]"]
CSRF_TRUSTED_ORIGINS = _names("DJANGO_CSRF_TRUSTED_ORIGINS")

DATABASES = {
    "default": _database(str(_ENV.get("DATABASE_URL") or "postgresql://mailbox@127.0.0.1:5432/mailbox")),
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "mailbox_app",
    "mailbox_project",
    # Further apps with agents: chaos runs and benchmarks bring theirs.
    *_names("MAILBOX_EXTRA_APPS"),
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "mailbox_project.urls"
ASGI_APPLICATION = "mailbox_project.asgi.application"
WSGI_APPLICATION = "mailbox_project.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = STATE_DIR / "static"
# Serves the apps' static files without a collectstatic step; a deployment that collects them sets this off.
WHITENOISE_USE_FINDERS = True
LOGIN_URL = "admin:login"
# Pages that `mailbox_dev` and `demo` name beside the admin: what to call them, and where they are.
MAILBOX_DEV_PAGES = {"chat": "chat/"}

REST_FRAMEWORK = {"DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema"}
SPECTACULAR_SETTINGS = {
    "TITLE": "Mailbox",
    "DESCRIPTION": "Durable runs for AI agents and other long jobs.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
}

# The broker carries wake-up signals only: losing all of it delays work and loses none.
CELERY_BROKER_URL = str(_ENV.get("CELERY_BROKER_URL") or _ENV.get("REDIS_URL") or "redis://127.0.0.1:6379/0")
# Celery would close a worker's connection around every task, and each signal would wait for another one.
CELERY_DB_REUSE_MAX = 1_000
MAILBOX: dict[str, Any] = {
    "redis_url": str(
        _ENV.get("REDIS_URL") or (CELERY_BROKER_URL if CELERY_BROKER_URL.startswith(("redis://", "rediss://")) else "")
    ),
    # All processes of this stack count together; /metrics of any of them shows all.
    "metrics_folder": str(STATE_DIR / "metrics") if STATE_DIR.is_dir() else "",
    "metrics_token": str(_ENV.get("MAILBOX_METRICS_TOKEN", "")),
    # "MAILBOX_SETTINGS" is a JSON object with any key of mailbox_app.conf, for trying out other values.
    **json.loads(str(_ENV.get("MAILBOX_SETTINGS") or "{}")),
}

# What the example agent `chat` talks to: any OpenAI-compatible endpoint, up to where /chat/completions begins.
MAILBOX_CHAT_BASE_URL = str(_ENV.get("MAILBOX_CHAT_BASE_URL", ""))
MAILBOX_CHAT_API_KEY = str(_ENV.get("MAILBOX_CHAT_API_KEY", ""))
MAILBOX_CHAT_MODEL = str(_ENV.get("MAILBOX_CHAT_MODEL", ""))
# How long the endpoint may be silent, at the beginning or in mid-answer.
MAILBOX_CHAT_TIMEOUT_SECONDS = float(_ENV.get("MAILBOX_CHAT_TIMEOUT_SECONDS") or 60)

# The pace at which the example agent `support` speaks.
MAILBOX_SUPPORT_WORD_SECONDS = float(_ENV.get("MAILBOX_SUPPORT_WORD_SECONDS") or 0.07)


def _is_no_tick(record: logging.LogRecord) -> bool:
    """Beat tells of each task it sends, one a second; the table of maintenance passes says when they last ran."""
    return not str(record.msg).startswith("Scheduler: Sending due task")


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    # Celery would tell of each signal and tick; what happens to a run is told by the logger "mailbox".
    "loggers": {"celery.app.trace": {"level": "WARNING"}, "celery.worker.strategy": {"level": "WARNING"}},
    "formatters": {
        "line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"},
        "json": {"()": "mailbox_app.telemetry.JsonFormatter"},
    },
    "filters": {
        "no_ticks": {"()": "django.utils.log.CallbackFilter", "callback": _is_no_tick},
        "run": {"()": "mailbox_app.telemetry.RunFilter"},
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "json" if _ENV.get("MAILBOX_LOG_FORMAT") == "json" else "line",
            "filters": ["no_ticks", "run"],
        }
    },
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
