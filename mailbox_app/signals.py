"""Django signals for teams."""

from django.dispatch import Signal

# After each pass of gc (every `gc_seconds`), in the process that ran it, outside of any transaction: the moment for a
# team's own clean-up. No arguments. A receiver must be quick, and may be called by two processes at once; what it
# raises is logged, and keeps nobody else from being called.
gc_done = Signal()
