"""How long the state machine is run: briefly in the suite, for as long as you like by one command."""

import os
from datetime import timedelta
from typing import Any

# In the suite the same examples each time: a red suite is about the change it was run for.
BRIEF = {"max_examples": 25, "stateful_step_count": 40, "derandomize": True}


def given() -> dict[str, Any]:
    """MAILBOX_PROOF=<examples> runs so many, drawn anew each time."""
    wanted = os.environ.get("MAILBOX_PROOF")
    drawn = BRIEF if wanted is None else {"max_examples": int(wanted), "stateful_step_count": 80}
    return {**drawn, "deadline": timedelta(seconds=30), "database": None, "print_blob": True}
