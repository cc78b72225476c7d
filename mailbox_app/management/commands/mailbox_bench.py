"""`manage.py mailbox_bench`: how fast this machine takes and does work, on a stack of its own."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from mailbox_app.devtools.servers import destroy
from mailbox_app.devtools.stack import Options, Stack
from mailbox_app.devtools.state import StateFolder
from mailbox_app.management.commands.mailbox_dev import Interruptible, start

# The passes would signal what a scenario has parked on purpose.
_SETTINGS = {"sweep_seconds": 3_600, "due_tick_seconds": 1, "max_batch_runs": 1_000}
# Name → what measures it, how often at scale 1, and its options.
SCENARIOS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "celery": ("celery", 2_000, {}),
    "submit": ("submit", 600, {}),
    "bulk": ("bulk", 4_000, {}),
    "http": ("http_submit", 800, {"clients": 8}),
    "drain-500": ("drain", 2_000, {"threads": 500}),
    "drain-200": ("drain", 2_000, {"threads": 200}),
    "drain-1": ("drain", 300, {"threads": 1}),
    "latency": ("latency", 100, {}),
    "scheduled": ("scheduled", 100, {}),
    "waiting": ("waiting", 200, {"seconds": 5.0}),
}
_PACKAGES = ("django", "djangorestframework", "celery", "kombu", "redis", "psycopg", "uvicorn")


class Command(BaseCommand):
    help = "Measure submit, drain and start latency on a stack of its own (durable servers, workers, web)."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--rounds", type=int, default=3, help="times each scenario runs; medians are reported")
        parser.add_argument("--scale", type=float, default=1.0, help="multiplies the counts")
        parser.add_argument("--pool", choices=("threads", "prefork"), default="threads")
        parser.add_argument("--concurrency", type=int, default=16, help="slots of each worker process")
        parser.add_argument("--workers", type=int, default=2, help="worker processes")
        parser.add_argument("--only", action="append", default=[], help="scenario to run; may be repeated")
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        if unknown := set(options["only"]) - set(SCENARIOS):
            raise CommandError(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
        folder = Path(tempfile.mkdtemp(prefix="mailbox-bench-"))
        os.environ["MAILBOX_SETTINGS"] = json.dumps({**_given_settings(), **_SETTINGS})
        extra = [name for name in os.environ.get("MAILBOX_EXTRA_APPS", "").split(",") if name]
        os.environ["MAILBOX_EXTRA_APPS"] = ",".join({*extra, "mailbox_app.devtools.workloads"})
        for name in ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"):
            os.environ.pop(name, None)
        stack = Stack(
            StateFolder(folder),
            Options(
                pool=options["pool"],
                concurrency=options["concurrency"],
                workers=options["workers"],
                without=frozenset({"flower"}),
            ),
            say=lambda text: None if options["json"] else self.stderr.write(f"starting {text}"),
        )
        try:
            with Interruptible(stack):
                start(stack)
                try:
                    self._report(self._measure(stack, options), options)
                finally:
                    stack.stop()
        finally:
            destroy(folder)
            shutil.rmtree(folder, ignore_errors=True)

    def _measure(self, stack: Stack, options: dict[str, Any]) -> dict[str, Any]:
        scenarios = _scenarios(stack, options["scale"])
        chosen = options["only"] or list(SCENARIOS)
        rounds: dict[str, list[dict[str, float]]] = defaultdict(list)
        for number in range(options["rounds"]):
            for name in chosen:
                command = [sys.executable, "-m", "mailbox_app.devtools.bench", *scenarios[name]]
                found = self._one(stack, name, command)
                rounds[name].append(found)
                if not options["json"]:
                    self.stderr.write(f"round {number + 1}: {name} {_line(found)}")
        return {
            "machine": _machine(stack),
            "settings": {
                **{name: options[name] for name in ("pool", "concurrency", "workers", "rounds", "scale")},
                **_SETTINGS,
            },
            "medians": {
                name: {key: statistics.median(one[key] for one in found) for key in found[0]}
                for name, found in rounds.items()
            },
            "rounds": rounds,
        }

    def _one(self, stack: Stack, name: str, command: list[str]) -> dict[str, float]:
        """One scenario in a process of its own; the children are read meanwhile, or their logs would stop them."""
        with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as failed:
            process = subprocess.Popen(command, env=stack.environment, stdout=told, stderr=failed)
            try:
                while process.poll() is None:
                    stack.tick(0.05)
            finally:
                process.kill()
                process.wait()
            told.seek(0)
            failed.seek(0)
            if process.returncode:
                raise CommandError(f"{name}: {failed.read()[-2_000:]}")
            found: dict[str, float] = json.loads(told.read().splitlines()[-1])
            return found

    def _report(self, found: dict[str, Any], options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(found, indent=2))
            return
        self.stdout.write("\n".join(f"{name}: {value}" for name, value in found["machine"].items()))
        self.stdout.write(f"settings: {_line(found['settings'])}\n")
        self.stdout.write(f"| scenario | median of {options['rounds']} |")
        self.stdout.write("|---|---|")
        for name, figures in found["medians"].items():
            self.stdout.write(f"| {name} | {_line(figures)} |")


def _scenarios(stack: Stack, scale: float) -> dict[str, list[str]]:
    """Name → arguments of `devtools.bench`."""
    facts = stack.facts
    token = Path(facts["token_file"]).read_text().strip()
    found = {}
    for name, (function, count, more) in SCENARIOS.items():
        given = {"count": max(int(count * scale), 16), **more}
        if function == "http_submit":
            given |= {"url": facts["urls"]["web"], "token": token}
        found[name] = [function, json.dumps(given)]
    return found


def _machine(stack: Stack) -> dict[str, str]:
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "machine": f"{os.cpu_count()} x {cpu}, {platform.platform()}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        "servers": _servers(stack),
    }


def _servers(stack: Stack) -> str:
    code = (
        "import django; django.setup()\n"
        "from django.db import connection\n"
        "cursor = connection.cursor(); cursor.execute('SHOW server_version'); version = cursor.fetchone()[0]\n"
        "cursor.execute('SHOW fsync'); fsync = cursor.fetchone()[0]\n"
        "cursor.execute('SHOW synchronous_commit'); print('PostgreSQL', version, 'fsync', fsync, "
        "'synchronous_commit', cursor.fetchone()[0])\n"
        "import redis; from mailbox_app.conf import conf\n"
        "found = redis.Redis.from_url(conf.redis_url).info('server')\n"
        "print('Valkey', found.get('valkey_version') or found['redis_version'])\n"
    )
    told = subprocess.run([sys.executable, "-c", code], env=stack.environment, capture_output=True, text=True)
    return " · ".join(told.stdout.split("\n")).strip(" ·")


def _given_settings() -> dict[str, Any]:
    return dict(json.loads(os.environ.get("MAILBOX_SETTINGS") or "{}"))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _line(figures: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:,.1f}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )
