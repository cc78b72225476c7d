"""The state folder of a development stack: what is in it, who owns it, and how it is emptied."""

import contextlib
import json
import secrets
import shutil
from pathlib import Path
from typing import Any

from mailbox_app.devtools.files import write_private
from mailbox_app.devtools.processes import Ownership, owner_of
from mailbox_app.devtools.servers import destroy

_MARKER = "mailbox-state"


class NotOurs(RuntimeError):
    """The folder holds something else: name another one."""


class StateFolder:
    """`.mailbox/`: secrets and data stay between starts; `stack.json` and `environment.json` exist while it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.token_file = self.path / "demo-token"
        self.password_file = self.path / "demo-password"
        self._ownership = Ownership(self.path)

    @property
    def children_fd(self) -> int:
        """A lock for children to inherit: the next owner waits until all of them have let go of it."""
        return self._ownership.children_fd

    def acquire(self, *, reset: bool = False) -> None:
        """Take the folder, making or emptying it; FolderInUse when a stack runs from it, NotOurs when it is foreign."""
        if not self._is_ours():
            raise NotOurs(f"{self.path} is not empty and was not made by Mailbox: move it, or set MAILBOX_STATE_DIR")
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.path / _MARKER).write_text("State of a Mailbox development stack; `mailbox_dev --reset` empties it.\n")
        self._ownership.acquire()
        if reset:
            destroy(self.path)
            kept = {_MARKER, "owner.lock", "children.lock"}
            for entry in self.path.iterdir():
                if entry.name in kept:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        self.logs.mkdir(mode=0o700, exist_ok=True)
        self.forget()

    def _is_ours(self) -> bool:
        empty = not self.path.exists() or not any(self.path.iterdir())
        return empty or self.path.name == ".mailbox" or (self.path / _MARKER).exists()

    def release(self) -> None:
        self.forget()
        self._ownership.release()

    def forget(self) -> None:
        """Remove what is true of a running stack only."""
        for name in ("stack.json", "environment.json"):
            (self.path / name).unlink(missing_ok=True)

    def publish(self, *, stack: dict[str, Any], environment: dict[str, str]) -> None:
        write_private(self.path / "stack.json", json.dumps(stack, indent=2) + "\n")
        write_private(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")

    def running(self) -> dict[str, Any] | None:
        """stack.json of the live stack; {} when its owner has not written it yet; None when none runs."""
        if owner_of(self.path) is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((self.path / "stack.json").read_text()))
        return {}

    def secret(self, name: str) -> str:
        """A generated secret that stays the same as long as the folder lives."""
        path = self.path / "secrets.json"
        known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text())
        if name not in known:
            known[name] = secrets.token_urlsafe(24)
            write_private(path, json.dumps(known))
        return known[name]
