"""Drives the team's own code. What a team imports: `from mailbox_app.execution import agent, Context`."""

from mailbox_app.execution.context import Context
from mailbox_app.execution.registry import agent

__all__ = ["Context", "agent"]
