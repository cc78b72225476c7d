"""The operator's view of every row, and what operators may do about runs and dead letters (`acts.py`).

`base.py` is what every page shares, `acting.py` what pages with acts do, `sections.py` the tables below a row,
`standing.py` the sentences above them; one module a family of nouns.
"""

from mailbox_app.admin import access, dispatches, events, limits, messages, pauses, runs, threads, workers

__all__ = ["access", "dispatches", "events", "limits", "messages", "pauses", "runs", "threads", "workers"]
