"""What goes to the hub, by its real client, to a server that speaks as much of its API as that."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from forgetting.cli import main
from forgetting.errors import ForgettingError, InputError
from forgetting.export import export_run
from forgetting.export.hub import check_repo


class FakeHub(ThreadingHTTPServer):
    """Keeps repositories in memory: whether each is private, and its files."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.private, self.files, self.commits = {}, {}, []


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(body)

    def repo(self):
        _, _, kind, *name = urlsplit(self.path).path.split("/")
        return f"{kind}/{'/'.join(name[:2])}"

    def do_GET(self):
        if self.headers["Authorization"] != "Bearer hf_test":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/whoami-v2":
            self.answer({"name": "me", "type": "user", "orgs": []})
        elif self.repo() in self.server.private:
            name = self.repo().split("/", 1)[1]
            self.answer({"id": name, "private": self.server.private[self.repo()], "sha": "0" * 40})
        else:
            self.answer({"error": "Repository not found"}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            kind = asked.get("type") or "model"
            if f"{kind}s/{name}" in server.private:
                self.answer({"url": f"{server.url}/{name}", "error": "exists"}, 409)
                return
            server.private[f"{kind}s/{name}"] = asked.get("visibility") == "private"
            place = name if kind == "model" else f"{kind}s/{name}"
            self.answer({"url": f"{server.url}/{place}", "name": name})
        elif self.path.startswith("/api/validate-yaml"):
            self.answer({"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            kept = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            self.answer({"files": [{**f, "shouldIgnore": False, "oid": None} for f in kept]})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = server.files.setdefault(self.repo(), {})
            for line in lines:
                if line["key"] == "file":
                    value = line["value"]
                    files[value["path"]] = base64.b64decode(value["content"])
            server.commits.append(self.repo())
            url = f"{server.url}/{self.repo().removeprefix('models/')}/commit/{'1' * 40}"
            self.answer({"success": True, "commitOid": "1" * 40, "commitUrl": url})
        else:
            self.answer({"error": f"not here: {self.path}"}, 404)


@pytest.fixture
def hub(monkeypatch):
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("what", "kind"), [("data", "datasets"), ("adapter", "models")])
def test_the_whole_folder_goes_to_a_private_repository(what, kind, hub, finished_run, tmp_path):
    export = export_run(finished_run[1], what, output=tmp_path / "out", push_to_hub="me/mine")
    repo = f"{kind}/me/mine"
    assert hub.private == {repo: True}
    assert hub.commits == [repo]
    assert hub.files[repo] == {f.name: f.read_bytes() for f in export.path.iterdir()}
    assert export.url == f"{hub.url}/{'datasets/' * (what == 'data')}me/mine"


def test_a_private_repository_is_filled_again(hub, finished_run, tmp_path):
    for number in range(2):
        export_run(finished_run[1], "data", output=tmp_path / str(number), push_to_hub="me/mine")
    assert hub.commits == ["datasets/me/mine"] * 2


def test_the_command_makes_a_public_one_only_when_asked(hub, finished_run, tmp_path, capsys):
    arguments = ["export", str(finished_run[1]), "--push-to-hub", "me/open"]
    hub.private["datasets/me/open"] = False
    assert main([*arguments, "--output", str(tmp_path / "one")]) == 2
    assert "this repository is public. Add --public" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()
    hub.private.clear()
    assert main([*arguments, "--public", "--output", str(tmp_path / "two")]) == 0
    assert hub.private == {"datasets/me/open": False}
    assert f"{hub.url}/datasets/me/open" in capsys.readouterr().out


def test_a_failure_says_that_the_folder_is_there(hub, finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "do_POST", lambda self: self.answer({"error": "Full"}, 507))
    with pytest.raises(ForgettingError, match=r"me/mine: .*Full.* The export is in .*out"):
        export_run(finished_run[1], output=tmp_path / "out", push_to_hub="me/mine")
    assert (tmp_path / "out" / "train.parquet").is_file()


def test_nobody_logged_in_is_told_how(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="hf auth login"):
        check_repo("me/mine", "dataset", public=False)


def test_a_wrong_token_and_a_wrong_name_are_told(hub, monkeypatch):
    with pytest.raises(InputError, match="--push-to-hub a/b/c"):
        check_repo("a/b/c", "dataset", public=False)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ForgettingError, match=r"me/mine: .*Invalid"):
        check_repo("me/mine", "dataset", public=False)
