"""nightjar status and nightjar policy show|set: messages and exit codes."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from observe.examples import answer, policy, rank

from sglang_nightjar import cli
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.observe.cli import parse_params
from sglang_nightjar.observe.status import PolicySide, build


class Server(HTTPServer):
    """Answers every request with ``reply``, and remembers what came."""

    reply: tuple[int, dict[str, Any]] = (200, {})
    seen: list[tuple[str, str | None, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.seen.append((f"{self.command} {self.path}", self.headers.get("Authorization"), body))
        code, reply = self.server.reply
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.seen = []
    monkeypatch.setenv("NIGHTJAR_URL", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.delenv("NIGHTJAR_API_KEY", raising=False)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


STATUS = build(PolicySide("running", answer()), [{"nightjar": rank()}])


def test_status_for_people_and_for_scripts(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.reply = (200, STATUS)
    assert cli.main(["status"]) == 0
    assert "policy    static 1 (gamma=3), running" in capsys.readouterr().out
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_policy_show(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.reply = (200, STATUS)
    assert cli.main(["policy", "show"]) == 0
    assert capsys.readouterr().out == "static 1 (gamma=3), running\n"


def test_policy_set(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.reply = (200, {"policy": policy("static")})
    arguments = ["policy", "set", "static", "--param", "gamma=3", "--param", "name=a b", "--key", "secret"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == "now in charge: static 1 (gamma=3), running\n"
    body = {"name": "static", "params": {"gamma": 3, "name": "a b"}}
    assert server.seen == [("PUT /nightjar/policy", "Bearer secret", body)]


def test_a_path_is_made_absolute(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply = (200, {"policy": policy("mine")})
    monkeypatch.chdir("/tmp")
    assert cli.main(["policy", "set", "./mine.py"]) == 0
    assert server.seen[0][2] == {"path": "/tmp/mine.py", "params": {}}


def test_a_refusal_says_why_and_what_stays(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.reply = (400, {"error": "there is no policy 'x'", "policy": policy("static")})
    assert cli.main(["policy", "set", "x"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == ("nightjar: there is no policy 'x'\nnightjar: still in charge: static 1 (gamma=3), running\n")
    assert cli.main(["policy", "set", "x", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"] == "there is no policy 'x'"


@pytest.mark.parametrize(
    "reply, said",
    [
        ((404, {"detail": "Not Found"}), "has no /nightjar: start it with python -m sglang_nightjar.launch_server"),
        ((401, {"error": "Unauthorized"}), "wants a key: --key, or NIGHTJAR_API_KEY"),
        ((403, {"error": "start it with --admin-api-key."}), "start it with --admin-api-key."),
        ((500, {}), "answered 500"),
    ],
)
def test_what_a_server_may_say(
    server: Server, capsys: pytest.CaptureFixture[str], reply: tuple[int, dict[str, Any]], said: str
) -> None:
    server.reply = reply
    assert cli.main(["status"]) == 1
    assert said in capsys.readouterr().err


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--url", "http://127.0.0.1:9"]) == 1
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err


def test_parameters_are_yaml_values() -> None:
    assert parse_params(["a=1", "b=[1, 2]", "c=x=y", "d=", "e=true"]) == {
        "a": 1,
        "b": [1, 2],
        "c": "x=y",
        "d": None,
        "e": True,
    }
    for wrong in ("gamma", "=3", "a=[1"):
        with pytest.raises(ConfigError, match="--param"):
            parse_params([wrong])


def test_a_wrong_parameter_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["policy", "set", "static", "--param", "gamma"]) == 2
    assert "write KEY=VALUE" in capsys.readouterr().err
