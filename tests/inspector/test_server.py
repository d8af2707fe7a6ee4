"""The server answers its three routes to its own page, and nothing else to nobody."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forgetting.errors import InputError
from forgetting.inspector import InspectorServer, open_inspection, usual_port
from forgetting.inspector import server as server_module
from forgetting.inspector.queries import Query
from forgetting.inspector.rendering import served_page
from forgetting.inspector.server import MAX_TOKENS_SHOWN

Decode = Callable[..., str]
MINUTES = 15 * 60


@pytest.fixture
def server(run_dir: Path, decode: Decode) -> Iterator[InspectorServer]:
    inspection = open_inspection(run_dir, decode)
    assert inspection is not None
    with InspectorServer(inspection) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: InspectorServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=MINUTES)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    result = answer.status, answer.read(), dict(answer.headers)
    connection.close()
    return result


def ask_json(server: InspectorServer, route: str) -> Any:
    status, body, _ = ask(server, server.prefix + route)
    assert status == 200
    return json.loads(body)


def data_of(page: bytes) -> str:
    """The JSON in a page."""
    (found,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', str(page, "utf-8")
    )
    return str(found)


def test_routes_answer_with_the_page_a_list_and_a_sample(server: InspectorServer) -> None:
    status, body, headers = ask(server, server.prefix)
    assert (status, body) == (200, server.page)
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    listed = ask_json(server, "samples?rho=0.4&min=0.1&sort=best&offset=3&limit=2&source=0")
    query = Query(rho=0.4, min_negative=0.1, sort="best", offset=3, limit=2, source=0)
    assert listed == server.inspection.page(query)
    assert len(listed["rows"]) == 2
    assert ask_json(server, "sample?row=7") == server.inspection.sample(7, MAX_TOKENS_SHOWN)


def test_a_list_is_narrowed_and_begins_at_the_page_of_a_row(server: InspectorServer) -> None:
    listed = ask_json(server, "samples?only=3,5,70&without=5&sort=position")
    assert [row["id"] for row in listed["rows"]] == [3, 70]
    assert ask_json(server, "samples?only=&sort=position")["total"] == 0
    listed = ask_json(server, "samples?sort=position&limit=20&row=45")
    assert (listed["offset"], listed["rows"][0]["id"]) == (40, 40)
    listed = ask_json(server, "samples?sort=position&limit=20&offset=60&row=45&without=45")
    assert listed["offset"] == 60
    listed = ask_json(server, "samples?sort=loss")
    losses = [row["loss"] for row in listed["rows"]]
    assert losses == sorted(losses, reverse=True)
    # Without the detector, no token is suspected.
    assert ask_json(server, "samples?least=0.01")["total"] == 0
    assert ask_json(server, "samples?kind=0")["total"] == 0


def test_each_measure_that_the_scores_allow_has_a_page(
    server: InspectorServer, run_dir: Path, decode: Decode
) -> None:
    shown = json.loads(data_of(ask(server, server.prefix)[1]))
    assert (shown["quality"], shown["measures"]["base_loss"]) == ("influence", "−l base")
    # They need the detector, or scores that the run does not have.
    assert not {"detector", "entropy_gap", "rank_gap"} & set(shown["measures"])
    other = open_inspection(run_dir, decode, quality="base_loss")
    assert other is not None
    status, body, _ = ask(server, f"{server.prefix}?measure=base_loss")
    assert (status, data_of(body)) == (200, data_of(served_page(other).encode()))
    listed = ask_json(server, "samples?measure=base_loss&sort=best&rho=0.4")
    assert listed == other.page(Query(rho=0.4, sort="best"))
    assert listed != ask_json(server, "samples?sort=best&rho=0.4")
    shown = ask_json(server, "sample?row=7&measure=base_loss")
    assert shown == other.sample(7, MAX_TOKENS_SHOWN)
    assert ask_json(server, "sample?row=7") == server.inspection.sample(7, MAX_TOKENS_SHOWN)
    assert ask(server, f"{server.prefix}?measure=influence")[1] == server.page
    for name in ("entropy_gap", "nonsense", ""):
        assert ask(server, f"{server.prefix}samples?measure={name}")[0] == 400


def test_a_run_has_its_port_unless_it_is_taken(server: InspectorServer) -> None:
    port = usual_port("ab")
    assert port == usual_port("ab") != usual_port("cd")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert usual_port("ab") == 0


def test_a_token_is_explained_on_request(server: InspectorServer) -> None:
    server.inspection.explain = lambda row, tokens: [
        [("base z", row + token / 10)] for token in tokens
    ]
    assert ask_json(server, "telling?row=7&token=2") == [["base z", 7.2]]
    for route in ("telling?row=7", "telling?row=80&token=0", "telling?row=7&token=99"):
        assert ask(server, server.prefix + route)[0] == 400

    def gone(row: int, tokens: Any) -> Any:
        raise InputError("the copies are gone")

    server.inspection.explain = gone
    status, body, _ = ask(server, server.prefix + "telling?row=7&token=2")
    assert (status, body) == (500, b"the copies are gone")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_another_hosts_name_is_refused(server: InspectorServer, host: str) -> None:
    assert ask(server, server.prefix, Host=host)[0] == 421


@pytest.mark.parametrize("host", ["localhost:8123", "127.0.0.1"])
def test_a_forwarded_port_is_served(server: InspectorServer, host: str) -> None:
    assert ask(server, server.prefix, Host=host)[0] == 200


def test_another_sites_request_is_refused(server: InspectorServer) -> None:
    assert ask(server, server.prefix, Sec_Fetch_Site="cross-site")[0] == 403
    foreign = {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"}
    assert ask(server, server.prefix + "sample?row=0", **foreign)[0] == 403
    assert ask(server, server.prefix, Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/samples",
        "{}recipe.yaml",
        "{}../",
        "{}..%2f..%2fetc/passwd",
        "{}sample/",
        "//",
        "{}%00",
    ],
)
def test_no_other_path_is_known(server: InspectorServer, path: str) -> None:
    assert ask(server, path.format(server.prefix))[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_nothing_but_reading_is_known(server: InspectorServer, method: str) -> None:
    assert ask(server, server.prefix, method)[0] == 501


@pytest.mark.parametrize(
    "route",
    [
        "sample",
        "sample?row=-1",
        "sample?row=80",
        "sample?row=x",
        f"sample?row={'9' * 5000}",
        "samples?rho=1",
        "samples?rho=nan",
        "samples?min=nan",
        "samples?min=2",
        "samples?limit=0",
        "samples?limit=1000000",
        "samples?offset=-1",
        "samples?sort=__class__",
        "samples?sort=bad",
        "samples?source=x",
        "samples?kind=x",
        "samples?least=2",
        "samples?only=1,x",
        "samples?unknown=1",
        "samples?" + "&".join(f"text={i}" for i in range(50)),
    ],
)
def test_a_question_that_makes_no_sense_is_400(server: InspectorServer, route: str) -> None:
    assert ask(server, server.prefix + route)[0] == 400


def test_a_connection_that_says_nothing_keeps_nobody_waiting(server: InspectorServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port)):
        assert ask(server, server.prefix)[0] == 200


def test_a_link_to_the_page_can_be_followed(server: InspectorServer) -> None:
    headers = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    status, _, answered = ask(server, server.prefix, **headers)
    assert (status, answered["X-Frame-Options"]) == (200, "DENY")


def test_it_listens_on_this_machine_alone(server: InspectorServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_taken_port_is_named(server: InspectorServer) -> None:
    with pytest.raises(InputError, match=f"port {server.server_port} cannot be used"):
        InspectorServer(server.inspection, server.server_port)


def test_hundreds_of_connections_at_once_are_answered(
    server: InspectorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SECONDS_TO_ASK", MINUTES)
    number = server_module.MAX_CONNECTIONS + 50
    request = f"GET {server.prefix}sample?row=7 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(number):
            address = ("127.0.0.1", server.server_port)
            client = stack.enter_context(socket.create_connection(address, timeout=MINUTES))
            client.sendall(request)
            clients.append(client)
        answers = []
        for client in clients:
            answers.append(client.recv(15))
            client.close()
    assert answers == [b"HTTP/1.1 200 OK"] * number


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: loc", b"GET"])
def test_a_connection_that_does_not_ask_is_closed_and_makes_room(
    server: InspectorServer, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(server_module, "SECONDS_TO_ASK", 1)
    allowed = []
    allow = server.allow

    def noted(request: socket.socket, seconds: float) -> None:
        allow(request, seconds)
        allowed.append(seconds)

    monkeypatch.setattr(server, "allow", noted)
    address = ("127.0.0.1", server.server_port)
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(address, timeout=MINUTES))
            for _ in range(3)
        ]
        for client in silent:
            client.sendall(said)
        # At the beginning of each connection, and of its first request.
        while len(allowed) < 6:
            time.sleep(0.01)
        monkeypatch.setattr(server_module, "SECONDS_TO_ASK", MINUTES)
        # Without room for it, it waits until one of the others is closed.
        assert ask(server, server.prefix)[0] == 200
        assert [client.recv(1) for client in silent] == [b""] * 3


def test_an_answer_may_take_as_long_as_it_takes(
    server: InspectorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines = []

    def telling(row: int, tokens: Any) -> Any:
        deadlines.extend(server._deadlines.values())
        return [["base z", 1.0]]

    monkeypatch.setattr(server.inspection, "telling", telling)
    assert ask_json(server, "telling?row=7&token=2") == ["base z", 1.0]
    assert deadlines == [math.inf]


def test_the_policy_is_a_header_too(server: InspectorServer) -> None:
    _, body, headers = ask(server, server.prefix)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', body.decode())
    assert policy is not None
    own = f"{policy[1]}; frame-ancestors 'none'"
    assert headers["Content-Security-Policy"] == own
    for route in ("sample?row=0", "sample?row=x", "nothing"):
        _, _, headers = ask(server, server.prefix + route)
        assert headers["Content-Security-Policy"] == server_module.NO_PAGE
    status, body, headers = ask(server, server.prefix, "<script>")
    assert (status, b"script" in body) == (501, False)
    assert headers["Content-Security-Policy"] == server_module.NO_PAGE


def test_half_a_surrogate_pair_is_sent(
    server: InspectorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"text": "a\ud83d é", "\udfff": ["\ud800"]}
    monkeypatch.setattr(server.inspection, "sample", lambda row, limit: found)
    assert ask_json(server, "sample?row=0") == found
