"""Mistakes: a start that can't work ends with one clear line, and a running server answers and lives on."""

import json
import socket
import urllib.error
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import Server, run_launcher

pytestmark = pytest.mark.server


def error_line(*flags: str) -> str:
    """The last line that a failing start prints. Asserts exit code 2 and that there is no traceback."""
    done = run_launcher(*flags)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_unknown_nightjar_flag() -> None:
    line = error_line("--nightjar-gamma", "3")
    assert "no flag --nightjar-gamma; Nightjar's flags are: " in line and "--nightjar-policy-endpoint" in line


def test_unknown_flag() -> None:
    assert "unrecognized arguments: --no-such-flag" in error_line("--model-path", "a/b", "--no-such-flag")


def test_missing_model() -> None:
    assert "--model-path /no/such/model: there is no such folder" in error_line("--model-path", "/no/such/model")


def test_draft_for_another_target(target: Path, draft: Path, tmp_path: Path) -> None:
    config = json.loads((draft / "config.json").read_text())
    other = tmp_path / "draft"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**config, "hidden_size": 640, "target_hidden_size": 640}))
    line = error_line(
        *("--model-path", str(target), "--speculative-algorithm", "EAGLE3"),
        *("--speculative-draft-model-path", str(other)),
    )
    hidden_size = json.loads((target / "config.json").read_text())["hidden_size"]
    assert f"hidden size is 640, but {target} has {hidden_size}" in line


def test_context_longer_than_the_models(target: Path) -> None:
    line = error_line("--model-path", str(target), "--context-length", "1000000")
    assert "context_length (1000000) is greater" in line


def test_bad_adaptive_config(eagle_flags: list[str], tmp_path: Path) -> None:
    file = tmp_path / "adaptive.json"
    file.write_text('{"1": {"candidate_steps": "three"}}')
    line = error_line(*eagle_flags, "--speculative-adaptive", "--speculative-adaptive-config", str(file))
    assert "candidate_steps must be a list" in line
    assert "'three'" in line


def test_busy_port(target: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert f"can't listen on 127.0.0.1:{port}" in error_line("--model-path", str(target), "--port", str(port))


NONSENSE: list[dict[str, Any]] = [
    {"temperature": -1},
    {"top_p": 0},
    {"top_p": 1.5},
    {"top_k": -7},
    {"min_p": 2},
    {"max_new_tokens": -5},
    {"repetition_penalty": -1},
    {"frequency_penalty": 9},
    {"min_new_tokens": 10, "max_new_tokens": 5},
    {"no_such_parameter": 1},
    {"temperature": "hot"},
    {"max_new_tokens": "many"},
    {"json_schema": "{not json"},
    {"regex": "(unclosed"},
]


@pytest.mark.parametrize("params", NONSENSE, ids=str)
def test_nonsense_sampling_parameters(server: Server, params: dict[str, Any]) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.post("/generate", {"text": "Hello", "sampling_params": params})
    assert caught.value.code == 400
    assert caught.value.read()
    still_answers(server)


def test_context_overflow(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.generate("word " * 20_000, max_new_tokens=4)
    assert caught.value.code == 400
    assert "longer than" in caught.value.read().decode() or "exceed" in caught.value.read().decode()
    still_answers(server)


def test_a_body_that_is_no_json(server: Server) -> None:
    import requests

    answer = requests.post(server.url + "/generate", data="{", headers={"Content-Type": "application/json"}, timeout=60)
    assert 400 <= answer.status_code < 500
    still_answers(server)


def still_answers(server: Server) -> None:
    assert server.process.poll() is None
    assert server.generate("The capital of France is", max_new_tokens=2)["text"].strip().startswith("Paris")
