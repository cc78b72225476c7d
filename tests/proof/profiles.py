"""How long the state machine is run: briefly in the suite, for as long as you like by one command."""

import os
from datetime import timedelta
from typing import Any

from hypothesis import Phase

# In the suite the same examples each time: a red suite is about the change it was run for.
BRIEF = {"max_examples": 20, "stateful_step_count": 30, "derandomize": True}


def given() -> dict[str, Any]:
    """MAILBOX_PROOF=<examples> runs so many, drawn anew each time; MAILBOX_PROOF_SHRINK=no makes no failure small."""
    wanted = os.environ.get("MAILBOX_PROOF")
    drawn = BRIEF if wanted is None else {"max_examples": int(wanted), "stateful_step_count": 80}
    if os.environ.get("MAILBOX_PROOF_SHRINK") == "no":
        drawn = {**drawn, "phases": [Phase.generate]}
    return {**drawn, "deadline": timedelta(seconds=30), "database": None, "print_blob": True}
