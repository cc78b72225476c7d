"""Make a database ready for a development stack: migrations, the demo user, its API token.

Run as `python -m mailbox_app.devtools.prepare STATE_DIR`, in a process of its own: the settings of the supervising
process were read before the servers had an address.
"""

import secrets
import sys
from pathlib import Path
from typing import Any

import django

from mailbox_app.devtools.files import read, write_private

DEMO = "demo"
SCOPE = "default"


def main(state_dir: Path) -> None:
    """Check the project, migrate, make user and token where they are missing; their secrets go to private files."""
    django.setup()
    from django.core.management import call_command

    call_command("check")
    call_command("migrate", interactive=False)
    user = _demo_user(state_dir / "demo-password")
    _demo_token(state_dir / "demo-token", user)


def _demo_user(password_file: Path) -> Any:
    from django.contrib.auth import get_user_model

    model: Any = get_user_model()
    user = model._default_manager.filter(**{model.USERNAME_FIELD: DEMO}).first()
    # One that is there keeps its password: on a team's own server it may be somebody's.
    if user is None:
        password = secrets.token_urlsafe(12)
        write_private(password_file, password + "\n")
        others = dict.fromkeys(model.REQUIRED_FIELDS, f"{DEMO}@localhost")
        return model._default_manager.create_superuser(**{model.USERNAME_FIELD: DEMO}, password=password, **others)
    return user


def _demo_token(token_file: Path, user: Any) -> None:
    from mailbox_app.models import ApiToken
    from mailbox_app.models.api import token_digest

    known = read(token_file)
    if known and ApiToken.objects.usable().filter(digest=token_digest(known), user=user).exists():
        return
    _, secret = ApiToken.objects.issue(name=DEMO, scope=SCOPE, user=user)
    write_private(token_file, secret + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
