"""`manage.py test`: the whole suite by pytest, with every argument passed on."""

import os
import sys
from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Run the test suite with pytest; all arguments are pytest's."

    def run_from_argv(self, argv: list[str]) -> None:
        """Become pytest: settings must be read again, with the servers that its plugin starts for the tests."""
        root = Path(settings.BASE_DIR)
        if root not in (Path.cwd(), *Path.cwd().parents):
            os.chdir(root)
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *argv[2:]])
