"""The launcher's command line: SGLang's flags, ours, and what is filled in when no model is named."""

from pathlib import Path

import pytest

from sglang_nightjar import launch_server
from sglang_nightjar.demo.pair import DemoPair
from sglang_nightjar.errors import ConfigError

PAIR = DemoPair(target=Path("/models/Some-Target"), draft=Path("/models/draft"))


@pytest.fixture
def flags_with_demo(monkeypatch: pytest.MonkeyPatch):
    """What SGLang is given for these flags of the user's, as parsed arguments."""
    monkeypatch.setattr("sglang_nightjar.demo.pair.ensure_pair", lambda: PAIR)

    def parse(*argv: str):
        argv, args = launch_server._parse(list(argv))
        assert args.model_path is None
        return launch_server._parse(argv + launch_server._demo_flags(args))[1]

    return parse


def test_without_a_model_the_demo_pair_is_served_with_speculation(flags_with_demo) -> None:
    args = flags_with_demo("--port", "31234")
    assert args.model_path == str(PAIR.target)
    assert args.served_model_name == "Some-Target"
    assert args.speculative_algorithm == "EAGLE3"
    assert args.speculative_draft_model_path == str(PAIR.draft)
    assert (args.speculative_num_steps, args.speculative_eagle_topk) == (3, 1)
    assert args.port == 31234


def test_the_users_speculation_stays(flags_with_demo) -> None:
    args = flags_with_demo("--speculative-num-steps", "5", "--served-model-name", "mine")
    assert args.speculative_num_steps == 5
    assert args.served_model_name == "mine"
    args = flags_with_demo("--speculative-adaptive")
    assert args.speculative_num_steps is None
    args = flags_with_demo("--speculative-algorithm", "NGRAM")
    assert args.speculative_algorithm == "NGRAM"
    assert args.speculative_draft_model_path is None


def test_a_model_in_a_config_file_counts(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("model-path: owner/name\nport: 31235\n")
    _, args = launch_server._parse(["--config", str(file)])
    assert args.model_path == "owner/name"
    assert args.port == 31235


def test_mistakes_are_short() -> None:
    for argv in (["--no-such-flag"], ["--port", "many"], ["--config", "/no/such.yaml"]):
        with pytest.raises(ConfigError) as caught:
            launch_server._parse(argv)
        assert "\n" not in str(caught.value)


def test_help_lists_both_kinds_of_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        launch_server._parse(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "--nightjar-strict" in printed
    assert "--speculative-num-steps" in printed


@pytest.mark.parametrize(
    "argv, asks",
    [(["--device", "cpu"], True), (["--device=cpu"], True), (["--device", "cuda"], False), (["cpu"], False)],
)
def test_a_cpu_is_asked_for_before_sglang_is_imported(argv: list[str], asks: bool) -> None:
    assert launch_server._asks_for_cpu(argv) is asks
