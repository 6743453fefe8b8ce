"""What the policy process would refuse is refused at the start: with the key, its value, and what is allowed."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang_nightjar.config import Options
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy_check import check, check_steerable
from sglang_nightjar.supervise import policy_process


def refused(options: Options) -> str:
    with pytest.raises(ConfigError) as caught:
        check(options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_works() -> None:
    for options in (Options(), Options(policy="off"), Options(policy="static"), Options(policy_endpoint="ipc:///x/y")):
        check(options)


def test_an_unknown_policy() -> None:
    message = refused(Options(policy="statik"))
    assert "'statik'" in message and "nightjar" in message and "static" in message


@pytest.mark.parametrize(
    "text, said",
    [
        ("polcy: {name: static}", ["polcy", "policy", "shadow", "gamma", "link", "log"]),
        ("policy: {name: static, params: {gama: 3}}", ["gama", "gamma"]),
        ("policy: {name: static, params: {gamma: many}}", ["gamma", "many"]),
        ("policy: {name: static, params: {gamma: -1}}", ["gamma", "-1", "0"]),
        ("gamma: {candidates: [0, 900]}", ["candidates", "900", "64"]),
        ("link: {stale_after: soon}", ["stale_after", "soon"]),
        ("shadow: [{name: nosuch}]", ["nosuch", "nightjar"]),
        ("policy: {name: sta", ["no YAML"]),
        ("- a list", ["nightjar.yaml"]),
        ("link: {endpoint: 'tcp://127.0.0.1:5555'}", ["link.keys", "nightjar policy keys"]),
    ],
)
def test_a_config_that_can_not_work(tmp_path: Path, text: str, said: list[str]) -> None:
    file = tmp_path / "nightjar.yaml"
    file.write_text(text)
    message = refused(Options(config=str(file)))
    assert [word for word in said if word not in message] == [], message


def test_a_policy_is_refused_where_the_file_names_a_policy_process_that_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "nightjar.yaml"
    file.write_text(f"link: {{endpoint: 'ipc://{tmp_path}/policy'}}\n")
    for part in ("--nightjar-policy", "static", f"ipc://{tmp_path}/policy", "link.endpoint"):
        assert part in refused(Options(config=str(file), policy="static"))
    check(Options(config=str(file)))
    check(Options(config=str(file), policy="off"))
    # Engine and Runtime have no launcher that checks.
    monkeypatch.setenv("NIGHTJAR_CONFIG", str(file))
    monkeypatch.setenv("NIGHTJAR_POLICY", "static")
    with pytest.raises(ConfigError, match="has a policy of its own"):
        policy_process._start("")


def test_sections_that_only_a_policy_process_reads_are_named_where_there_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "nightjar.yaml"
    file.write_text(f"link: {{endpoint: 'ipc://{tmp_path}/policy'}}\nmemory: {{mode: keep}}\n")
    monkeypatch.setenv("NIGHTJAR_CONFIG", str(file))
    monkeypatch.delenv("NIGHTJAR_POLICY", raising=False)
    policy_process._start("")
    assert "no effect" not in caplog.text
    file.write_text(file.read_text() + "policy: {name: static}\nlog: {path: decisions.jsonl}\n")
    assert policy_process._start("").endpoint == f"ipc://{tmp_path}/policy"
    assert "of no effect here: policy, log" in caplog.text


POLICY = """
from sglang_nightjar.core.policy import Policy
class Mine(Policy):
    name = "mine"
"""


@pytest.mark.parametrize(
    "source, said",
    [
        ("import nosuchmodule", "ModuleNotFoundError"),
        ("x = (", "SyntaxError"),
        ("x = 1", "one class that derives from Policy"),
        (POLICY + "    def __init__(self, params, seed): raise RuntimeError('not today')", "RuntimeError: not today"),
        ("import os; os._exit(7)", "exit code 7"),
    ],
)
def test_a_file_that_is_no_policy(tmp_path: Path, source: str, said: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    assert said in refused(Options(policy=str(file)))
    file.write_text(POLICY)
    check(Options(policy=str(file)))


def args(**values: object) -> SimpleNamespace:
    return SimpleNamespace(**{"speculative_algorithm": "EAGLE3", "speculative_adaptive": False, **values})


def test_a_policy_needs_something_to_choose() -> None:
    check_steerable(Options(policy="static"), args())
    check_steerable(Options(), args(speculative_algorithm=None))
    check_steerable(Options(policy="off"), args(speculative_adaptive=True))
    with pytest.raises(ConfigError, match="static: this server does not speculate"):
        check_steerable(Options(policy="static"), args(speculative_algorithm=None))
    with pytest.raises(ConfigError, match="static and --speculative-adaptive both choose"):
        check_steerable(Options(policy="static"), args(speculative_adaptive=True))
