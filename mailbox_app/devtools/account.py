"""Who the embedded servers run as, and where that account can work.

PostgreSQL refuses to run as root. As root both servers run as `nobody`, and what `nobody` cannot reach (a checkout in
root's private home) is kept under /var/tmp instead: no account is made and no folder of anyone else is opened up.
"""

import hashlib
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

SHARED = Path("/var/tmp")


@dataclass(frozen=True)
class Account:
    """A user and group id that a server runs under."""

    uid: int
    gid: int

    @classmethod
    def for_servers(cls) -> "Account | None":
        """The account to drop to: nobody for root, None (stay who we are) for everyone else."""
        if os.geteuid() != 0:
            return None
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid)

    def can_reach(self, path: Path) -> bool:
        """Tell whether every folder on the way, and the path itself, may be entered or executed."""
        return all(self._may_enter(step.stat()) for step in (path.resolve(), *path.resolve().parents))

    def _may_enter(self, found: os.stat_result) -> bool:
        if found.st_uid == self.uid:
            return bool(found.st_mode & stat.S_IXUSR)
        if found.st_gid == self.gid:
            return bool(found.st_mode & stat.S_IXGRP)
        return bool(found.st_mode & stat.S_IXOTH)


def working_folder(wanted: Path, account: Account | None) -> Path:
    """Make the folder the servers work in: the wanted one, or one under /var/tmp where the account cannot reach it."""
    wanted.mkdir(mode=0o700, exist_ok=True)
    if account is None:
        return wanted
    for own in (wanted.parent, wanted):
        own.chmod(0o711)
    if account.can_reach(wanted):
        return wanted
    return own_folder(elsewhere(wanted))


def elsewhere(wanted: Path) -> Path:
    """Where a folder's data is kept instead when the servers' account cannot reach it."""
    return SHARED / f"mailbox-{hashlib.sha256(os.fsencode(wanted.resolve())).hexdigest()[:16]}"


def own_folder(path: Path) -> Path:
    """Make a folder in a place that anyone can write to, refusing one that somebody else has put there."""
    path.mkdir(mode=0o711, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path} is not a private folder of this user; remove it and try again")
    path.chmod(0o711)
    return path
