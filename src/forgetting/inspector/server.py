"""A read-only localhost server for the inspector.

Input: an `Inspection`. Output: four routes on 127.0.0.1 (the page, a part of the list, one sample,
why a token looks bad) below a random path. Everything else is refused: other methods and paths,
requests from other sites, and requests for another host name. No request names a file. Connections,
the time for a request or for its answer, and the work at a time are bounded.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

from forgetting.errors import InputError
from forgetting.inspector.corpus import Inspection
from forgetting.inspector.queries import Query, Sort
from forgetting.inspector.rendering import compact_json, served_page, served_policy

HOST = "127.0.0.1"
# Stops DNS rebinding: a site that points its own name at this machine sends that name as Host.
OWN_HOSTS = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE)
MAX_TOKENS_SHOWN = 4096
MAX_LIMIT = 200
FIRST_PORT, NUM_PORTS = 20000, 10000
"""Where the ports of runs are: below those that systems give to connections."""
MAX_CONNECTIONS = 256
"""Connections at a time. Others wait until one is closed."""
MAX_AT_WORK = 8
"""Answers that are made at a time."""
SECONDS_TO_ASK = 10
"""From the beginning of a connection, or the end of an answer, to the end of the request."""
SECONDS_TO_SEND = 30
"""For a whole answer, once it is made."""
NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
"""Content policy of answers that are no page."""
QUERY_FIELDS = {
    *("rho", "source", "text", "min", "sort", "offset", "limit"),
    *("kind", "least", "only", "without", "row"),
}
HTML = "text/html; charset=utf-8"
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class InspectorServer(ThreadingHTTPServer):
    """Serves one inspection, with `serve_forever` until `shutdown`.

    Args:
        inspection: the corpus.
        port: 0 chooses a free port.

    Raises:
        InputError: the port cannot be used.
    """

    daemon_threads = True
    # Connections that wait for one of ours to end. The default of 5 loses some of a browser's.
    request_queue_size = 1024

    def __init__(self, inspection: Inspection, port: int = 0) -> None:
        self.inspection = inspection
        self.at_work = threading.BoundedSemaphore(MAX_AT_WORK)
        self._deadlines: dict[socket.socket, float] = {}
        """When each open connection is closed."""
        self._changed = threading.Condition()
        self.policy = served_policy()
        self.prefix = f"/{secrets.token_urlsafe(16)}/"
        self.page = served_page(inspection).encode()
        self._measured = {inspection.selection.quality: inspection}
        self._measuring = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port} cannot be used: {error}. Omit --port to use a free one"
            ) from error

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}{self.prefix}"

    def measured_by(self, name: str | None) -> Inspection:
        """The inspection by a measure, computed once; None: the one that was given.

        Raises:
            KeyError: the scores do not allow this measure.
            InputError: the scores are missing or damaged.
        """
        if name is None:
            return self.inspection
        with self._measuring:
            if name not in self._measured:
                self._measured[name] = self.inspection.measured_by(name)
            return self._measured[name]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, once there are not too many."""
        until = time.monotonic() + SECONDS_TO_ASK + SECONDS_TO_SEND
        while len(self._deadlines) >= MAX_CONNECTIONS:
            if time.monotonic() > until:
                self.shutdown_request(request)
                return
            self.service_actions()
            with self._changed:
                self._changed.wait(0.05)
        self.allow(request, SECONDS_TO_ASK)
        super().process_request(request, client_address)

    def allow(self, request: socket.socket, seconds: float) -> None:
        """Close a connection after some seconds, unless this is called again."""
        with self._changed:
            self._deadlines[request] = time.monotonic() + seconds

    def service_actions(self) -> None:
        """Close the connections whose time is over; `serve_forever` calls this."""
        now = time.monotonic()
        with self._changed:
            overdue = [request for request, until in self._deadlines.items() if until < now]
        for request in overdue:
            # Its thread notices that nothing comes any more, and ends.
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._changed:
            self._deadlines.pop(request, None)
            self._changed.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that disconnects during a response."""


def usual_port(fingerprint: str) -> int:
    """A port that follows from a run, because browsers keep marks by port; 0 if it is taken."""
    digest = hashlib.sha256(fingerprint.encode()).digest()
    port = FIRST_PORT + int.from_bytes(digest[:4], "big") % NUM_PORTS
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return 0
    return port


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "forgetting"
    sys_version = ""
    timeout = SECONDS_TO_SEND
    server: InspectorServer

    def handle_one_request(self) -> None:
        """Read and answer a request in the time that there is for it."""
        self.server.allow(self.connection, SECONDS_TO_ASK)
        super().handle_one_request()

    def do_GET(self) -> None:
        # An answer takes as long as it takes.
        self.server.allow(self.connection, math.inf)
        with self.server.at_work:
            answer = self._answer()
        self.server.allow(self.connection, SECONDS_TO_SEND)
        self._send(*answer)

    def _answer(self) -> tuple[bytes, str, HTTPStatus]:
        """Body, type and status."""
        if not OWN_HOSTS.fullmatch(self.headers.get("Host", "")):
            return self._refusal(HTTPStatus.MISDIRECTED_REQUEST)
        is_own = self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
        # A link to the page may be followed. Requests by other sites' scripts are refused.
        if not is_own and self.headers.get("Sec-Fetch-Mode") != "navigate":
            return self._refusal(HTTPStatus.FORBIDDEN)
        address = urlsplit(self.path)
        if not address.path.startswith(self.server.prefix):
            return self._refusal(HTTPStatus.NOT_FOUND)
        route = address.path.removeprefix(self.server.prefix)
        try:
            fields = parse_qs(
                address.query,
                keep_blank_values=True,
                max_num_fields=20,
                strict_parsing=bool(address.query),
            )
            given = {name: values[-1] for name, values in fields.items()}
            inspection = self.server.measured_by(given.pop("measure", None))
            if route == "":
                is_first = inspection is self.server.inspection
                page = self.server.page if is_first else served_page(inspection).encode()
                return page, HTML, HTTPStatus.OK
            if route == "samples":
                return _json(inspection.page(read_query(given)))
            if route == "sample":
                return _json(inspection.sample(self._row(given), MAX_TOKENS_SHOWN))
            if route == "telling":
                token = int(given.get("token", ""))
                return _json(inspection.telling(self._row(given), [token])[0])
        except (ValueError, KeyError):
            return self._refusal(HTTPStatus.BAD_REQUEST)
        except InputError as error:
            # The copies of the detector are read on request, and may be gone.
            return str(error).encode(), "text/plain", HTTPStatus.INTERNAL_SERVER_ERROR
        return self._refusal(HTTPStatus.NOT_FOUND)

    def _row(self, given: Mapping[str, str]) -> int:
        """The row that a request names."""
        row = int(given.get("row", ""))
        if not 0 <= row < len(self.server.inspection):
            raise ValueError(row)
        return row

    def _send(self, body: bytes, kind: str, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        policy = self.server.policy if kind == HTML else NO_PAGE
        self.send_header("Content-Security-Policy", policy)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _refusal(self, status: HTTPStatus) -> tuple[bytes, str, HTTPStatus]:
        self.close_connection = True
        return status.phrase.encode(), "text/plain; charset=utf-8", status

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request, or one with another method, as any other."""
        self._send(*self._refusal(HTTPStatus(code)))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing to the terminal."""


def _json(value: Any) -> tuple[bytes, str, HTTPStatus]:
    return compact_json(value).encode(), "application/json; charset=utf-8", HTTPStatus.OK


def read_query(given: dict[str, str]) -> Query:
    """The query in the fields of a URL.

    Raises:
        ValueError, KeyError: a field is unknown or out of range.
    """
    unknown = set(given) - QUERY_FIELDS
    rho = float(given["rho"]) if "rho" in given else None
    least = float(given["least"]) if "least" in given else None
    min_negative = float(given.get("min", 0))
    offset, limit = int(given.get("offset", 0)), int(given.get("limit", 50))
    sort = {name: name for name in get_args(Sort)}[given.get("sort", "worst")]
    if (
        unknown
        or not (rho is None or 0 < rho < 1)
        or not (least is None or 0 <= least <= 1)
        or not (math.isfinite(min_negative) and 0 <= min_negative <= 1)
        or offset < 0
        or not 0 < limit <= MAX_LIMIT
    ):
        raise ValueError(given)

    def number(name: str) -> int | None:
        return int(given[name]) if name in given else None

    def numbers(name: str) -> tuple[int, ...]:
        return tuple(int(each) for each in given[name].split(",") if each)

    return Query(
        rho=rho,
        source=number("source"),
        text=given.get("text", ""),
        min_negative=min_negative,
        sort=sort,
        offset=offset,
        limit=limit,
        kind=number("kind"),
        least=least,
        only=numbers("only") if "only" in given else None,
        without=numbers("without") if "without" in given else (),
        row=number("row"),
    )
