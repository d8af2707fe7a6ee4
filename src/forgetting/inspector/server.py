"""Serves an inspection to a browser on this machine, read only.

Goes in: an `Inspection`. Comes out: three routes on 127.0.0.1 (the page, a page of its list, a
sample) under a path that nobody can guess. Everything else is refused: other methods, other
paths, requests that another site makes or that come in under another host's name. No file is
ever opened on request.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

from forgetting.errors import InputError
from forgetting.inspector.corpus import Inspection, Query, Sort
from forgetting.inspector.page import served_page

HOST = "127.0.0.1"
# A page that another site loads under its own name and then points here has that name in Host.
OWN_HOSTS = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE)
MAX_TOKENS_SHOWN = 4096
MAX_LIMIT = 200
SECONDS_TO_SEND = 30
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class InspectorServer(ThreadingHTTPServer):
    """A server for one inspection; `serve_forever` until `shutdown`.

    Args:
        inspection: what is served.
        port: 0 takes a free one.

    Raises:
        InputError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, inspection: Inspection, port: int = 0) -> None:
        self.inspection = inspection
        self.prefix = f"/{secrets.token_urlsafe(16)}/"
        self.page = served_page(inspection).encode()
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port} cannot be used: {error}. Leave --port out to take a free one"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}{self.prefix}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "forgetting"
    sys_version = ""
    timeout = SECONDS_TO_SEND
    server: InspectorServer

    def do_GET(self) -> None:
        if not OWN_HOSTS.fullmatch(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return
        is_own = self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
        # Who follows a link to the page sees it; what another site's script asks for is refused.
        if not is_own and self.headers.get("Sec-Fetch-Mode") != "navigate":
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        address = urlsplit(self.path)
        if not address.path.startswith(self.server.prefix):
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        route = address.path.removeprefix(self.server.prefix)
        try:
            fields = parse_qs(address.query, max_num_fields=20, strict_parsing=bool(address.query))
            given = {name: values[-1] for name, values in fields.items()}
            if route == "":
                self._send(self.server.page, "text/html; charset=utf-8")
            elif route == "samples":
                self._send_json(self.server.inspection.page(read_query(given)))
            elif route == "sample":
                row = int(given.get("row", ""))
                if not 0 <= row < len(self.server.inspection):
                    raise ValueError(row)
                self._send_json(self.server.inspection.sample(row, MAX_TOKENS_SHOWN))
            else:
                self._refuse(HTTPStatus.NOT_FOUND)
        except (ValueError, KeyError):
            self._refuse(HTTPStatus.BAD_REQUEST)

    def _send_json(self, value: Any) -> None:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._send(text.encode(), "application/json; charset=utf-8")

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._send(status.phrase.encode(), "text/plain; charset=utf-8", status)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal says where the page is, and no more."""


def read_query(given: dict[str, str]) -> Query:
    """A query from the fields of an address.

    Raises:
        ValueError, KeyError: a field that is unknown or outside its range.
    """
    unknown = set(given) - {"rho", "source", "text", "min", "sort", "offset", "limit"}
    rho = float(given["rho"]) if "rho" in given else None
    least = float(given.get("min", 0))
    offset, limit = int(given.get("offset", 0)), int(given.get("limit", 50))
    sort = {name: name for name in get_args(Sort)}[given.get("sort", "worst")]
    if (
        unknown
        or not (rho is None or 0 < rho < 1)
        or not (math.isfinite(least) and 0 <= least <= 1)
        or offset < 0
        or not 0 < limit <= MAX_LIMIT
    ):
        raise ValueError(given)
    source = int(given["source"]) if "source" in given else None
    return Query(rho, source, given.get("text", ""), least, sort, offset, limit)
