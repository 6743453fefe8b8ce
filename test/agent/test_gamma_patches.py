"""The hooks around SGLang's switch of γ, those for CUDA graphs included: with stand-ins, as there is no GPU here."""

import logging
from types import SimpleNamespace as Fake

import pytest

from sglang_nightjar.agent.candidates import Candidates
from sglang_nightjar.agent.selector import GammaSelector
from sglang_nightjar.patches import (
    adaptive_runtime_state,
    base_spec_worker,
    decode_cuda_graph_runner,
    spec_utils,
    standalone_worker_v2,
)

TEXT = Candidates((0, 1, 4), 1).dump()


def test_the_selector_takes_the_place_of_sglangs_rule_only_where_nightjar_set_it_up() -> None:
    ours, theirs = Fake(params="rule"), Fake(params="rule")
    adaptive_runtime_state.install_selector(None, ours, Fake(), TEXT)
    adaptive_runtime_state.install_selector(None, theirs, Fake(), "/a/file.json")
    assert isinstance(ours.params, GammaSelector)
    assert (ours.params.candidate_steps, ours.params.fallback_gamma) == ([0, 1, 4], 1)
    assert theirs.params == "rule"


def test_sglang_reads_the_candidates_from_the_arguments() -> None:
    from sglang.srt.speculative.adaptive_spec_params import AdaptiveStepSlot, _load_adaptive_config

    original = getattr(_load_adaptive_config, "__wrapped__", _load_adaptive_config)
    config, by_size = adaptive_runtime_state.load_inline(original, TEXT)
    assert by_size[1]["candidate_steps"] == [0, 1, 4]
    # What SGLang makes of it before our selector replaces it.
    assert AdaptiveStepSlot(4, {**config, **by_size[1]}).candidate_steps == [0, 1, 4]
    with pytest.raises(FileNotFoundError):
        adaptive_runtime_state.load_inline(original, "/not/there.json")


def test_sglangs_line_for_every_switch_is_left_out_and_no_other() -> None:
    def record(text: str) -> logging.LogRecord:
        return logging.LogRecord("x", logging.INFO, "", 0, text, (), None)

    assert not adaptive_runtime_state.is_no_switch(record("Switch adaptive runtime state: steps 1 -> 2"))
    assert adaptive_runtime_state.is_no_switch(record("Built adaptive runtime state steps=1"))


def test_a_draft_extend_graph_is_as_wide_as_the_gamma_that_it_is_captured_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import sglang.srt.runtime_context as context

    monkeypatch.setattr(context, "get_spec", lambda: Fake(speculative_num_draft_tokens=2))
    resolve = spec_utils.width_of_the_gamma_in_force

    def original(**_: object) -> int:
        return 6

    adaptive, static = Fake(speculative_adaptive=True), Fake(speculative_adaptive=False)
    assert resolve(original, phase="draft_extend", server_args=adaptive) == 2
    assert resolve(original, phase="target_verify", server_args=adaptive, num_draft_tokens=6) == 6
    assert resolve(original, phase="draft_extend", server_args=static) == 6


def test_a_switch_back_finds_the_buffers_that_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_spec_worker, "_max_batch_size", lambda: (None, 64))
    built = []

    def build(worker: Fake) -> None:
        built.append(worker.speculative_num_steps)
        worker._topk1_parents_prealloc, worker._topk1_score_indices_prealloc = object(), object()

    worker = Fake(topk=1, server_args=Fake(speculative_adaptive=True))
    found = []
    for gamma in (3, 0, 3, 0):
        worker.speculative_num_steps = gamma
        base_spec_worker.keep_buffers(build, worker)
        found.append((worker._topk1_parents_prealloc, worker._topk1_score_indices_prealloc))
    assert built == [3, 0]
    assert found[0] == found[2] != found[1] == found[3]
    tree = Fake(topk=4, speculative_num_steps=3, server_args=Fake(speculative_adaptive=False))
    base_spec_worker.keep_buffers(build, tree)
    assert built == [3, 0, 3]


def test_a_graph_warms_up_with_the_backend_that_it_is_captured_for() -> None:
    seen = []
    model_runner = Fake(attn_backend="initial")

    def capture(_runner: object, model_runner: Fake, **rest: object) -> None:
        seen.append((model_runner.attn_backend, rest.get("attn_backend")))
        if rest.get("speculative_num_steps") == 9:
            raise RuntimeError("out of memory")

    hook = decode_cuda_graph_runner.capture_with_its_own_backend
    hook(capture, None, model_runner)
    hook(capture, None, model_runner, attn_backend="second", speculative_num_steps=1)
    with pytest.raises(RuntimeError):
        hook(capture, None, model_runner, attn_backend="third", speculative_num_steps=9)
    assert seen == [("initial", None), ("second", "second"), ("third", "third")]
    assert model_runner.attn_backend == "initial"


@pytest.mark.parametrize("standalone", [False, True])
def test_graphs_of_gamma_0_are_graphs_of_decoding_where_gamma_is_ours_to_choose(standalone: bool) -> None:
    """With hidden states for the journal, if the draft reads any."""
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode

    capture = CaptureHiddenMode.NULL if standalone else CaptureHiddenMode.FULL

    def runner(width: int, config: str | None, is_draft: bool = False) -> Fake:
        algorithm = Fake(is_eagle=lambda: not standalone, is_standalone=lambda: standalone)
        args = Fake(speculative_adaptive_config=config)
        model_runner = Fake(is_draft_worker=is_draft, spec_algorithm=algorithm, server_args=args)
        return Fake(model_runner=model_runner, speculative_num_draft_tokens=width)

    ours = Candidates((0, 3), 3).dump()
    hook = decode_cuda_graph_runner.decode_at_gamma_0
    zero = runner(1, ours)
    assert hook(lambda *_: "verify", zero, 8) is None
    assert zero.capture_forward_mode.is_decode() and zero.capture_hidden_mode == capture
    for other in (runner(4, ours), runner(1, None), runner(1, "/their/file.json"), runner(1, ours, is_draft=True)):
        assert hook(lambda *_: "verify", other, 8) == "verify"


def test_a_standalone_draft_gets_a_controller_where_gamma_can_change() -> None:
    steered, fixed = Fake(speculative_num_steps=4), Fake(speculative_num_steps=4)
    for worker, adaptive in ((steered, True), (fixed, False)):
        args = Fake(speculative_adaptive=adaptive, speculative_adaptive_config=None)
        standalone_worker_v2.add_controller(None, worker, server_args=args, gpu_id=0)
    assert steered.adaptive_controller.worker is steered
    assert not hasattr(fixed, "adaptive_controller")


def test_sglang_lets_a_standalone_draft_switch_only_where_nightjar_set_it_up() -> None:
    def why_not(algorithm: str, config: str | None) -> str | None:
        args = Fake(speculative_algorithm=algorithm, speculative_adaptive_config=config)
        return adaptive_runtime_state.allow_standalone(lambda _: "SGLang's reason", args)

    assert why_not("STANDALONE", TEXT) is None
    assert why_not("STANDALONE", "/a/file.json") == "SGLang's reason"
    assert why_not("STANDALONE", None) == "SGLang's reason"
    assert why_not("NGRAM", TEXT) == "SGLang's reason"
