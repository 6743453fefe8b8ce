"""The draft's weights in their buffer: what moves in and what stays, packed copies, updates, and the order of a GPU's
events (against stand-ins of torch's streams)."""

from types import SimpleNamespace

import pytest
import torch

from sglang_nightjar.cpu import kernels, packed_linear
from sglang_nightjar.draft import residency, weights
from sglang_nightjar.draft.weights import DraftWeights
from sglang_nightjar.memory.posix import PosixBuffer, resident_bytes


class Draft(torch.nn.Module):
    """Shares an embedding, owns linear layers, a norm, and two parameters in one storage."""

    def __init__(self, embedding: torch.nn.Embedding):
        super().__init__()
        self.embed_tokens = embedding
        self.fc = torch.nn.Linear(64, 128, bias=False)
        self.lm_head = torch.nn.Linear(128, 256, bias=False)
        self.norm = torch.nn.LayerNorm(128)
        both = torch.randn(2, 32)
        self.first, self.second = torch.nn.Parameter(both[0]), torch.nn.Parameter(both[1])


@pytest.fixture
def draft() -> Draft:
    torch.manual_seed(0)
    made = Draft(torch.nn.Embedding(100, 64))
    return made.requires_grad_(False)


def drain(work) -> int:
    return sum(1 for _ in work)


def test_what_is_shared_stays_and_the_rest_moves(draft: Draft) -> None:
    target = torch.nn.ModuleDict({"embed": draft.embed_tokens})
    original = {name: p.clone() for name, p in draft.named_parameters()}
    place = draft.embed_tokens.weight.data_ptr()
    moved = DraftWeights(draft, target)
    inside = range(moved._buffer.address, moved._buffer.address + moved._buffer.reserved)
    assert draft.embed_tokens.weight.data_ptr() == place not in inside
    for name, parameter in draft.named_parameters():
        assert torch.equal(parameter, original[name])
        assert name.startswith("embed") or parameter.data_ptr() in inside, name
    assert draft.second.data_ptr() - draft.first.data_ptr() == 32 * 4, "one storage stays one"
    drain(moved.release())
    assert moved.device_bytes == 0 and not moved.on_device
    assert resident_bytes(moved._buffer.address, moved._buffer.reserved) == 0
    assert torch.isfinite(draft.embed_tokens.weight).all()
    drain(moved.load())
    assert all(torch.equal(p, original[name]) for name, p in draft.named_parameters())


def test_a_draft_without_weights_of_its_own(draft: Draft) -> None:
    with pytest.raises(ValueError, match="shares all"):
        DraftWeights(draft, draft)


@pytest.mark.skipif(not kernels.in_use(), reason="this machine has kernels of SGLang's")
def test_packed_copies_move_too_and_come_back(draft: Draft) -> None:
    kernels.load()
    x = torch.randn(3, 64)
    before = packed_linear.packed(draft.fc.weight).linear(x)
    moved = DraftWeights(draft, None)
    packed = packed_linear.packed(draft.fc.weight)
    inside = range(moved._buffer.address, moved._buffer.address + moved._buffer.reserved)
    assert packed.weight.data_ptr() in inside
    assert packed_linear.packed(draft.lm_head.weight).weight.data_ptr() in inside, "packed before its first use"
    assert torch.equal(packed.linear(x), before)
    drain(moved.release())
    drain(moved.load())
    assert packed_linear.packed(draft.fc.weight) is packed
    assert torch.equal(packed.linear(x), before)


@pytest.mark.parametrize("away", [False, True])
def test_an_update_outlives_an_offload(draft: Draft, monkeypatch: pytest.MonkeyPatch, away: bool) -> None:
    from sglang_nightjar.patches import draft_weight_updates

    moved = DraftWeights(draft, None)
    machine = SimpleNamespace(state=None)
    monkeypatch.setattr(residency, "current", SimpleNamespace(weights=moved, machine=machine))
    if away:
        drain(moved.release())

    def update(_updater, value: float):
        draft.fc.weight.fill_(value)
        return True, "done"

    updater = SimpleNamespace(get_model=lambda: draft)
    assert draft_weight_updates.update_at_home(update, updater, 0.5) == (True, "done")
    assert moved.on_device is not away
    if not away:
        drain(moved.release())
    drain(moved.load())
    assert draft.fc.weight.eq(0.5).all()
    if packed_linear.can_pack(draft.fc.weight):
        x = torch.ones(1, 64)
        assert torch.allclose(packed_linear.packed(draft.fc.weight).linear(x), torch.full((1, 128), 32.0))


class FakeCuda:
    """Streams and events in the order in which they were used; the event is through after so many questions."""

    def __init__(self, questions: int):
        self.log: list[str] = []
        self.questions = questions

    def Stream(self, device):
        return "side"

    def stream(self, stream):
        log = self.log

        class Inside:
            def __enter__(self):
                log.append(f"on {stream}")

            def __exit__(self, *_):
                log.append("off")

        return Inside()

    def Event(self):
        cuda = self

        class Made:
            def record(self, stream):
                cuda.log.append(f"record on {stream}")

            def query(self):
                cuda.questions -= 1
                return cuda.questions < 0

        return Made()

    def current_stream(self, device):
        return SimpleNamespace(wait_event=lambda event: self.log.append("main waits for the event"))

    def synchronize(self, device):
        self.log.append("synchronize")

    def empty_cache(self):
        self.log.append("empty_cache")


def test_on_a_gpu_copies_run_beside_and_are_waited_for(draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake of the device: memory of the CPU, and streams that only write down what was asked of them."""
    moved = DraftWeights(draft, None, lambda nbytes, device, huge_bytes: PosixBuffer(nbytes))
    cuda = FakeCuda(questions=5)
    monkeypatch.setattr(weights.torch, "cuda", cuda)
    moved._stream, moved._piece = "side", 4096
    released = drain(moved.release())
    assert cuda.log == ["synchronize"] and released == 0 and moved.device_bytes == 0
    cuda.log.clear()
    work = moved.load()
    while not cuda.log:
        next(work)
        assert not moved.on_device
    assert cuda.log == ["on side", "record on side", "off"]
    steps = drain(work)
    assert steps == 4, "an iteration goes by for each question that is answered with no"
    assert cuda.log[-1] == "main waits for the event" and moved.on_device
