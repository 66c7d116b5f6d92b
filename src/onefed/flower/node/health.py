"""``GET /health`` of a node, where Flower's SuperNode has it: on loopback, and nothing else."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any

REQUEST_LIMIT_S = 2.0


class Health:
    """A thread that answers, one request at a time."""

    def __init__(self, host: str, port: int, facts: Callable[[], dict[str, Any]]) -> None:
        """``facts`` is what the answer says, as JSON; asked in the thread."""

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = REQUEST_LIMIT_S

            def do_GET(self) -> None:
                is_known = self.path == "/health"
                body = json.dumps(facts()).encode() if is_known else b""
                self.send_response(200 if is_known else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing: it is asked several times a second while the node boots."""

        self._server = http.server.HTTPServer((host, port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.5,), name="health", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
