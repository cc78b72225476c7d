"""Drives the team's own code. What a team imports: `from mailbox_app.execution import agent, Context`."""

from mailbox_app.execution.asking import Answer, Question
from mailbox_app.execution.async_context import AsyncContext
from mailbox_app.execution.context import Context
from mailbox_app.execution.registry import agent
from mailbox_app.execution.verdict import classify

__all__ = ["Answer", "AsyncContext", "Context", "Question", "agent", "classify"]
