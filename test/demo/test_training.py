"""Corpus, features and training end to end on the tiny target: resuming gives what an uninterrupted run gives."""

import dataclasses

import pytest
import torch

from sglang_nightjar.demo.features import Batch, FeatureStore, pack_states, read_target
from sglang_nightjar.demo.generate import Answered, Sampling, answer_group, groups_of, load_shard, save_shard
from sglang_nightjar.demo.head import DraftHead, HeadShape
from sglang_nightjar.demo.prompts import PromptMaker, lists
from sglang_nightjar.demo.train import Trainer, TrainPlan, count_vocab, taught

SHAPE = HeadShape(aux_layers=(0, 1), draft_vocab=32, intermediate=48)
PLAN = TrainPlan(steps=60, unroll=2, warmup=5, skip=0)


@pytest.fixture
def store(tiny, tmp_path) -> FeatureStore:
    draw = torch.Generator().manual_seed(0)
    answered = []
    for _ in range(24):
        # Sequences that repeat with period 3: easy to predict, so that learning shows within a few steps.
        motif = torch.randint(0, 64, (3,), generator=draw)
        answered.append(Answered(motif.repeat(8).int(), prompt_length=6))
    (tmp_path / "corpus").mkdir()
    save_shard(tmp_path / "corpus" / "a0000.safetensors", answered)
    made = FeatureStore(tmp_path / "features", SHAPE.aux_layers, batch_tokens=200, fill=0)
    made.add(tiny, tmp_path / "corpus" / "a0000.safetensors")
    return made


def test_shard_reads_back(tmp_path):
    answered = [Answered(torch.arange(5).int(), 2), Answered(torch.arange(9).int(), 4)]
    save_shard(tmp_path / "s.safetensors", answered)
    again = load_shard(tmp_path / "s.safetensors")
    assert [(a.tokens.tolist(), a.prompt_length) for a in again] == [([0, 1, 2, 3, 4], 2), (list(range(9)), 4)]


def test_half_written_features_are_not_used(store, tiny, tmp_path):
    whole = store.paths()
    assert whole
    (store.folder / "a0001-000.safetensors").write_bytes(whole[0].read_bytes())
    (store.folder / "a0002-000.partial").write_bytes(b"torn")
    assert store.paths() == whole


def test_training_lowers_the_loss_and_resumes_where_it_stopped(store, tiny, tmp_path):
    vocab, covered = count_vocab(tmp_path / "corpus", 32, 64)
    assert 0.5 < covered <= 1.0
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole = Trainer(tmp_path / "one", tiny, SHAPE, vocab, PLAN)
    whole.run(store, lambda _: None, show_every=20)
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]

    class Stop(Exception):
        pass

    def stop_at_20(text: str) -> None:
        if "step 20," in text:
            raise Stop

    broken = Trainer(tmp_path / "two", tiny, SHAPE, vocab, PLAN)
    with pytest.raises(Stop):
        broken.run(store, stop_at_20, save_every=10, show_every=20)
    resumed = Trainer(tmp_path / "two", tiny, SHAPE, vocab, PLAN)
    assert resumed.step == 10
    resumed.run(store, lambda _: None)
    for a, b in zip(whole.head.parameters(), resumed.head.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_new_text_is_used_before_what_was_seen(store, tiny, tmp_path):
    vocab, _ = count_vocab(tmp_path / "corpus", 32, 64)
    files = len(store.paths())
    trainer = Trainer(tmp_path, tiny, SHAPE, vocab, dataclasses.replace(PLAN, steps=2 * files))
    trainer.run(store, lambda _: None)
    assert set(trainer.visits.values()) == {2}
    (tmp_path / "corpus" / "a0001.safetensors").write_bytes((tmp_path / "corpus" / "a0000.safetensors").read_bytes())
    store.add(tiny, tmp_path / "corpus" / "a0001.safetensors")
    again = Trainer(tmp_path, tiny, SHAPE, vocab, dataclasses.replace(PLAN, steps=3 * files))
    again.run(store, lambda _: None)
    assert {again.visits[path.name] for path in store.paths() if path.name.startswith("a0001")} == {1}


def test_training_ends_after_its_minutes(store, tiny, tmp_path):
    vocab, _ = count_vocab(tmp_path / "corpus", 32, 64)
    trainer = Trainer(tmp_path, tiny, SHAPE, vocab, dataclasses.replace(PLAN, minutes=0.02))
    trainer.run(store, lambda _: None)
    assert 1.2 <= trainer.seconds < 6 and trainer.checkpoint.exists()


def test_a_head_goes_on_from_another_with_a_different_vocabulary(tiny):
    old = DraftHead(SHAPE, tiny, torch.arange(32))
    with torch.no_grad():
        for weight in old.parameters():
            weight.normal_()
    new = DraftHead(SHAPE, tiny, torch.arange(10, 42))
    fresh = new.lm_head.weight.detach().clone()
    new.adopt(old)
    assert torch.equal(new.vocab, torch.arange(10, 42))
    assert torch.equal(new.fc.weight, old.fc.weight)
    assert torch.equal(new.lm_head.weight[:22], old.lm_head.weight[10:])
    assert torch.equal(new.lm_head.weight[22:], fresh[22:])
    with pytest.raises(ValueError, match="shape"):
        new.adopt(DraftHead(dataclasses.replace(SHAPE, intermediate=32), tiny, torch.arange(32)))


def test_rate_rises_stays_and_falls():
    plan = TrainPlan(steps=100, warmup=10, decay=0.5)
    factors = [plan.rate_at(s) for s in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[50] == 1.0
    assert all(a >= b for a, b in zip(factors[50:], factors[51:], strict=False)) and factors[-1] == pytest.approx(0.02)


def test_an_exploding_loss_stops_training_and_keeps_the_checkpoint(store, tiny, tmp_path):
    vocab, _ = count_vocab(tmp_path / "corpus", 32, 64)
    trainer = Trainer(tmp_path, tiny, SHAPE, vocab, dataclasses.replace(PLAN, steps=5))
    with torch.no_grad():
        trainer.head.fc.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        trainer.run(store, lambda _: None)
    assert not trainer.checkpoint.exists()


def test_prompts_are_many_varied_and_reproducible():
    one, two = PromptMaker(3).from_templates(3000), PromptMaker(3).from_templates(3000)
    assert one == two != PromptMaker(4).from_templates(3000)
    texts = {c[0]["content"] for c in one}
    assert len(texts) == 3000
    assert not any("{" in t.replace("{language}", "") and "}" in t and "def " not in t for t in texts)


def test_every_template_names_lists_that_exist():
    words = lists()
    for name, entries in words.items():
        for entry in entries:
            for slot in [part.split("}")[0] for part in entry.split("{")[1:]]:
                drawn = name == "with_words" and slot in ("Word", "word")
                assert ".." in slot or slot in words or drawn, f"{name}: {{{slot}}} in {entry!r}"
    assert set(words["kinds"]) <= set(words)


def test_prompts_with_words_name_them():
    names, plain = ["Getty", "Salvador"], ["fountain", "signature"]
    texts = [c[0]["content"] for c in PromptMaker(0).with_words(names + plain, 50)]
    assert all(any(word in text for word in names + plain) for text in texts)
    assert not any("ord}" in text for text in texts)


def test_prompts_about_texts_quote_them():
    turns = [(f"question {i}", f"answer {i} " * 40) for i in range(20)]
    for conversation in PromptMaker(0).about_texts(turns, 50):
        assert conversation[-1]["role"] == "user"
        assert any("answer" in message["content"] for message in conversation)


def test_states_captured_with_answers_are_those_that_a_second_reading_gives(tiny):
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10, 11, 12]]
    sampling = Sampling(max_new_tokens=12, sampled_share=0.5)
    eos = 7
    answered = answer_group(tiny, prompts, eos, sampling, torch.Generator().manual_seed(3), capture=(0, 1))
    again = read_target(tiny, answered, (0, 1), fill=0)
    packed = pack_states(answered, 2, fill=0)
    assert torch.equal(packed.tokens, again.tokens) and torch.equal(packed.answer, again.answer)
    for row, a in enumerate(answered):
        assert a.states.shape[0] == len(a.tokens) - 1
        read = slice(0, len(a.tokens) - 1)
        torch.testing.assert_close(packed.features[row, read], again.features[row, read], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(packed.final[row, read], again.final[row, read], atol=1e-4, rtol=1e-4)


def test_groups_are_bounded_in_prompts_and_in_tokens():
    prompts = [[0] * n for n in (50, 3, 4, 100, 5, 90, 6)]
    groups = groups_of(prompts, 3, tokens=150)
    assert [[len(p) for p in g] for g in groups] == [[3, 4, 5], [6, 50], [90], [100]]
    assert [len(p) for g in groups_of(prompts, 10) for p in g] == sorted(map(len, prompts))


def test_prompts_teach_but_not_their_first_tokens_nor_padding():
    answer = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1]]).bool()
    batch = Batch(torch.zeros(2, 6), torch.zeros(2, 6, 1), torch.zeros(2, 6, 1), answer)
    assert taught(batch, 1).int().tolist() == [[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]]
