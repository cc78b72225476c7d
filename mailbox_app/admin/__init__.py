"""The operator's view of every row, read-only. Only API tokens are made and revoked here.

`base.py` is what every page shares, `sections.py` the tables below a row; one module a family of nouns.
"""

from mailbox_app.admin import access, dispatches, events, messages, runs, threads, workers

__all__ = ["access", "dispatches", "events", "messages", "runs", "threads", "workers"]
