"""Serve what a worker and its pool children have counted, on a port of the worker's own.

A process of its own, for a worker that forks must have no threads; it loads neither the project nor Celery, and ends
when the worker does, however that ends.
"""

import hmac
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from django.conf import settings

from mailbox_app import metrics
from mailbox_app.conf import conf
from mailbox_app.tally import tally
from mailbox_app.telemetry import observe

_STOP_SECONDS = 5.0


class Exposer:
    """The worker's side: start, look after and stop the process that serves `metrics_port`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._own_folder: str | None = None
        self._is_wanted = False

    def prepare(self) -> None:
        """Before the pool forks: have somewhere to count together."""
        if conf.metrics_port and tally.folder is None:
            self._own_folder = tempfile.mkdtemp(prefix="mailbox-metrics-")
            tally.use(Path(self._own_folder))

    def start(self) -> None:
        """Serve, if a port is set; a port that is taken is told and costs nothing else."""
        self._is_wanted = bool(conf.metrics_port)
        self.look()

    def look(self) -> None:
        """Start the process if it is wanted and does not run."""
        if not self._is_wanted or (self._process is not None and self._process.poll() is None):
            return
        address = (conf.metrics_address, conf.metrics_port)
        family = socket.AF_INET6 if ":" in conf.metrics_address else socket.AF_INET
        try:
            listening = socket.create_server(address, family=family)
        except OSError as error:
            self._is_wanted = False
            observe("metrics.port_failed", level=logging.ERROR, port=conf.metrics_port, error=error.strerror)
            return
        with listening:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mailbox_app.exposer", str(listening.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listening.fileno()],
                # A Ctrl-C in the terminal is the worker's; this process ends after it.
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        assert self._process.stdin is not None
        # On its standard input, where nobody can read the token; the input's end is the worker's.
        given = {"metrics_folder": str(tally.folder), "metrics_token": conf.metrics_token}
        self._process.stdin.write(json.dumps(given).encode() + b"\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """End the process, and forget what was counted in a folder of the worker's own."""
        self._is_wanted = False
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._own_folder is not None:
            tally.close()
            shutil.rmtree(self._own_folder, ignore_errors=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10

    def do_GET(self) -> None:
        """Answer `/metrics`."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
        elif conf.metrics_token and not _is_token(self.headers.get("Authorization", "")):
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Bearer realm="mailbox"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            text = metrics.exposition(metrics.counted)
            self.send_response(200)
            self.send_header("Content-Type", metrics.CONTENT_TYPE)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing about each scrape."""


def _is_token(authorization: str) -> bool:
    scheme, _, given = authorization.strip().partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), conf.metrics_token.encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that went away is nobody's business."""


def main(descriptor: int) -> None:
    """Serve on the socket until the input ends; its first line says which folder."""
    settings.configure(MAILBOX=json.loads(sys.stdin.readline()))
    listening = socket.socket(fileno=descriptor)
    server = _Server(listening.getsockname()[:2], _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]))
