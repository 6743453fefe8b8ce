"""Mistakes that are found before the long start, each with a message that names the value."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_nightjar import preflight
from sglang_nightjar.errors import ConfigError

TARGET = {"architectures": ["LlamaForCausalLM"], "hidden_size": 576, "vocab_size": 49152}
DRAFT = {**TARGET, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 8192}


@pytest.fixture
def folder(tmp_path: Path):
    """Make a model folder with this config."""

    def make(name: str, config: dict[str, Any]) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return str(tmp_path / name)

    return make


def arguments(**given: Any) -> SimpleNamespace:
    """ServerArgs as they are when the user gave only ``given``."""
    unset = dict.fromkeys(
        [
            *("page_size", "quantization", "attention_backend", "speculative_algorithm", "speculative_eagle_topk"),
            *("speculative_draft_model_path", "speculative_adaptive_config", "context_length"),
        ]
    )
    fixed = {"host": "127.0.0.1", "port": 0, "tp_size": 1, "pp_size": 1, "dp_size": 1, "speculative_adaptive": False}
    return SimpleNamespace(**{**unset, **fixed, **given})


def test_a_fitting_pair_passes(folder) -> None:
    target, draft = folder("target", TARGET), folder("draft", DRAFT)
    preflight.check(arguments(model_path=target, speculative_algorithm="EAGLE3", speculative_draft_model_path=draft))


def test_what_looks_like_a_hugging_face_id_is_left_to_sglang() -> None:
    preflight.check(arguments(model_path="HuggingFaceTB/SmolLM2-135M-Instruct"))


@pytest.mark.parametrize("path", ["/no/such/model", "no-such-model", "a/b/c", "./a/b"])
def test_missing_model(path: str) -> None:
    with pytest.raises(ConfigError, match=f"--model-path {path}: there is no such folder"):
        preflight.check(arguments(model_path=path))


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        preflight.check(arguments(model_path=str(tmp_path)))


def test_missing_draft(folder) -> None:
    with pytest.raises(ConfigError, match="--speculative-draft-model-path /no/draft"):
        preflight.check(arguments(model_path=folder("target", TARGET), speculative_draft_model_path="/no/draft"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"hidden_size": 768}, r"hidden size is 768, but .*target has 576"),
        ({"target_hidden_size": 960}, r"hidden size is 960, but .*target has 576"),
        ({"vocab_size": 32000}, r"vocabulary size is 32000, but .*target has 49152"),
        ({"architectures": ["LlamaForCausalLM"]}, r"EAGLE3 needs an EAGLE-3 draft.* is LlamaForCausalLM"),
    ],
)
def test_a_draft_for_another_target(folder, change: dict[str, Any], words: str) -> None:
    target, draft = folder("target", TARGET), folder("draft", {**DRAFT, **change})
    with pytest.raises(ConfigError, match=words):
        preflight.check_draft_fits("EAGLE3", target, draft)


@pytest.mark.parametrize(
    "change, given, words",
    [
        ({"vocab_size": 32000}, {}, r"another vocabulary.* 32000 tokens, but .*target has 49152"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, {}, r"LlamaForCausalLMEagle3: that is .* EAGLE3$"),
        ({"architectures": ["LlamaForCausalLMEagle"]}, {}, r"LlamaForCausalLMEagle: that is .* EAGLE$"),
        ({"max_position_embeddings": 2048}, {}, r"2048 positions, but the context is 8192.* --context-length 2048"),
        ({"max_position_embeddings": 2048}, {"context_length": 4096}, r"context is 4096"),
        ({}, {"speculative_token_map": "a file"}, r"--speculative-token-map is for EAGLE drafts"),
        ({}, {"speculative_draft_model_path": None}, r"STANDALONE needs a draft"),
    ],
    ids=str,
)
def test_a_standalone_draft_that_does_not_fit(
    folder, change: dict[str, Any], given: dict[str, Any], words: str
) -> None:
    args = standalone(folder, change)
    vars(args).update(given)
    with pytest.raises(ConfigError, match=words):
        preflight.check(args)


@pytest.mark.parametrize(
    "change, given",
    [
        ({}, {}),
        ({"hidden_size": 384}, {}),
        ({"max_position_embeddings": 2048}, {"context_length": 2048}),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "llama3"}}, {}),
    ],
    ids=str,
)
def test_a_standalone_draft_that_fits(folder, change: dict[str, Any], given: dict[str, Any]) -> None:
    args = standalone(folder, change)
    vars(args).update(given)
    preflight.check(args)


def standalone(folder, change: dict[str, Any]) -> SimpleNamespace:
    """Arguments for a STANDALONE draft whose config differs from the target's by ``change``."""
    config = {**TARGET, "max_position_embeddings": 8192}
    return arguments(
        model_path=folder("target", config),
        speculative_algorithm="STANDALONE",
        speculative_draft_model_path=folder("draft", {**config, **change}),
    )


def test_a_head_may_be_narrower_than_its_target(folder) -> None:
    target, draft = folder("target", TARGET), folder("draft", {**DRAFT, "hidden_size": 384, "target_hidden_size": 576})
    preflight.check_draft_fits("EAGLE3", target, draft)


def test_a_damaged_config(folder, tmp_path: Path) -> None:
    target, draft = folder("target", TARGET), folder("draft", DRAFT)
    (tmp_path / "draft" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"draft/config\.json is not valid JSON"):
        preflight.check_draft_fits("EAGLE3", target, draft)


def test_busy_port(folder) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"can't listen on 127\.0\.0\.1:{port}"):
            preflight.check(arguments(model_path=folder("target", TARGET), port=port))


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "Expecting property name"),
        ("[1]", "config.json: "),
        ('{"one": {}}', "at least one integer-string"),
        ('{"1": {"candidate_steps": [1, -2]}}', "non-negative"),
    ],
)
def test_adaptive_config(folder, tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    args = arguments(
        model_path=folder("target", TARGET), speculative_adaptive=True, speculative_adaptive_config=str(file)
    )
    with pytest.raises(ConfigError, match="--speculative-adaptive-config") as caught:
        preflight.check(args)
    assert words in str(caught.value)


def test_missing_adaptive_config(folder) -> None:
    args = arguments(
        model_path=folder("target", TARGET), speculative_adaptive=True, speculative_adaptive_config="/no/file"
    )
    with pytest.raises(ConfigError, match="/no/file: No such file"):
        preflight.check(args)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"pp_size": 2}, "pp_size=2"),
        ({"page_size": 16}, "page_size=16"),
        ({"quantization": "fp8"}, "quantization='fp8'"),
        ({"speculative_algorithm": "NGRAM"}, "speculative_algorithm='NGRAM'"),
        ({"speculative_algorithm": "EAGLE3", "speculative_eagle_topk": 4}, "speculative_eagle_topk=4"),
        ({"speculative_algorithm": "EAGLE3", "attention_backend": "torch_native"}, "attention_backend='torch_native'"),
    ],
)
def test_what_the_cpu_engine_can_not_do(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        preflight.check_cpu(arguments(**given))


@pytest.mark.parametrize("algorithm", ["EAGLE3", "STANDALONE"])
def test_what_the_cpu_engine_can_do(algorithm: str) -> None:
    preflight.check_cpu(arguments(page_size=1, speculative_algorithm=algorithm, speculative_eagle_topk=1))
