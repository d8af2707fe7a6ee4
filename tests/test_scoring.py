"""Scores against full logits in float64, whatever the batches were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forgetting.errors import ForgettingError
from forgetting.method import select_tokens, token_quality
from forgetting.models import lm_head as head
from forgetting.rundir.samples import Samples
from forgetting.scoring import score_dataset, score_samples
from tests.conftest import small_model

VOCAB = 61


def random_samples(number: int = 12, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Samples of 4 to 30 tokens; labels with gaps, one of them from the first token on."""
    random = np.random.default_rng(seed)
    ids, labels = [], []
    for index in range(number):
        length = int(random.integers(4, 30))
        row = random.integers(0, VOCAB, length)
        kept = random.random(length) < 0.6
        kept[-1] = True
        if index == 0:
            kept[:] = True
        ids.append(row.tolist())
        labels.append(np.where(kept, row, -100).tolist())
    return ids, labels


def expected_scores(model, ids, labels) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Log-probabilities and ranks: one sample at a time, full logits, float64."""
    log_probs, ranks = [], []
    with torch.no_grad():
        model = model.double()
        if model.config.model_type == "mixtral":
            model.set_experts_implementation("eager")  # the others know no float64
        for row, targets in zip(ids, labels, strict=True):
            logits = model(torch.tensor([row])).logits[0].log_softmax(-1)
            places = [i for i in range(1, len(row)) if targets[i] != -100]
            log_probs.append(np.array([logits[i - 1, row[i]].item() for i in places]))
            ranks.append(
                np.array([(logits[i - 1] > logits[i - 1, row[i]]).sum().item() for i in places])
            )
        model.float()
    return log_probs, ranks


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neo", "gemma2", "granite", "mixtral"])
def test_scores_are_those_of_full_logits(kind):
    model = small_model(kind, VOCAB)
    ids, labels = random_samples()
    samples = Samples.from_lists(ids, labels)
    scores = score_samples(model, samples, tokens_per_batch=64)
    log_probs, ranks = expected_scores(model, ids, labels)
    assert np.abs(scores.log_probs - np.concatenate(log_probs)).max() < 3e-5
    assert np.array_equal(scores.is_greedy, np.concatenate(ranks) == 0)
    assert scores.entropy is None
    assert scores.rank is None


def test_entropy_and_rank_are_those_of_full_logits():
    model = small_model("llama", VOCAB)
    ids, labels = random_samples()
    samples = Samples.from_lists(ids, labels)
    scores = score_samples(model, samples, with_entropy=True, with_rank=True, tokens_per_batch=64)
    log_probs, ranks = expected_scores(model, ids, labels)
    assert np.abs(scores.log_probs - np.concatenate(log_probs)).max() < 1e-5
    assert np.array_equal(scores.rank, np.concatenate(ranks))
    assert scores.rank.dtype == np.int32
    entropy = []
    with torch.no_grad():
        model = model.double()
        for row, targets in zip(ids, labels, strict=True):
            probs = model(torch.tensor([row])).logits[0].softmax(-1)
            found = -(probs * probs.log()).sum(-1).numpy()
            entropy += [found[i - 1] for i in range(1, len(row)) if targets[i] != -100]
    assert scores.entropy == pytest.approx(np.array(entropy), abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neo", "gemma2", "granite", "mixtral"])
def test_batches_and_padding_change_nothing(kind):
    model = small_model(kind, VOCAB)
    samples = Samples.from_lists(*random_samples(30))
    asked = {"with_entropy": True, "with_rank": True}
    alone = score_samples(model, samples, tokens_per_batch=1, **asked)
    for tokens in (40, 100, 10_000):
        again = score_samples(model, samples, tokens_per_batch=tokens, **asked)
        assert np.abs(again.log_probs - alone.log_probs).max() < 1e-5
        assert np.abs(again.entropy - alone.entropy).max() < 1e-5
        assert np.array_equal(again.rank, alone.rank)


def test_selection_does_not_depend_on_batches():
    base, tuned = small_model("llama", VOCAB), small_model("granite", VOCAB)
    samples = Samples.from_lists(*random_samples(30))
    chosen = [
        select_tokens(
            token_quality(
                *(
                    score_samples(model, samples, tokens_per_batch=tokens).log_probs
                    for model in (base, tuned)
                )
            ),
            rho=0.7,
        ).tolist()
        for tokens in (1, 50, 10_000)
    ]
    assert chosen[0] == chosen[1] == chosen[2]


def test_what_follows_the_last_response_token_is_not_read():
    model = small_model("llama", VOCAB)
    seen = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    row = [5, 6, 7, 8, 9, 10]
    samples = Samples.from_lists([row, row], [[-100, -100, 7, -100, -100, -100], [-100] * 6])
    scores = score_samples(model, samples)
    assert seen[0] == [[5, 6]]
    assert scores.log_probs.shape == (1,)


def test_tiles_change_nothing(monkeypatch):
    model = small_model("llama", VOCAB)
    samples = Samples.from_lists(*random_samples(20))
    whole = score_samples(model, samples)
    monkeypatch.setattr(head, "ROWS_PER_TILE", 3)
    monkeypatch.setattr(head, "ROWS_PER_BLOCK", 5)
    monkeypatch.setattr(head, "LOGITS_PER_BLOCK", 50)
    for with_rank in (True, False):
        tiled = score_samples(model, samples, with_rank=with_rank)
        assert np.abs(whole.log_probs - tiled.log_probs).max() < 1e-5


def test_a_choice_of_samples_comes_in_its_own_order():
    model = small_model("llama", VOCAB)
    samples = Samples.from_lists(*random_samples(10))
    whole = score_samples(model, samples)
    chosen = [7, 2, 5]
    some = score_samples(model, samples, chosen)
    parts = [
        whole.log_probs[samples.response_starts[i] : samples.response_starts[i + 1]] for i in chosen
    ]
    assert some.log_probs == pytest.approx(np.concatenate(parts), abs=1e-5)


def test_adapter_on_and_off_are_reference_and_base():
    from peft import LoraConfig, get_peft_model

    ids, labels = random_samples()
    samples = Samples.from_lists(ids, labels)
    base = score_samples(small_model("llama", VOCAB), samples)
    model = get_peft_model(
        small_model("llama", VOCAB),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    ).eval()
    adapted = score_samples(model, samples)
    expected, _ = expected_scores(model, ids, labels)
    assert np.abs(adapted.log_probs - np.concatenate(expected)).max() < 1e-5
    assert np.abs(adapted.log_probs - base.log_probs).max() > 0.01
    with model.disable_adapter():
        off = score_samples(model, samples)
    assert np.abs(off.log_probs - base.log_probs).max() < 1e-6


def test_samples_without_a_response_have_no_scores():
    model = small_model("llama", VOCAB)
    ids, labels = random_samples(4)
    labels[1] = [-100] * len(labels[1])
    found = score_dataset(model, ids, labels)
    assert [len(row) for row in found] == [
        sum(label != -100 for label in row[1:]) for row in labels
    ]
    nothing = score_dataset(model, [[1, 2]], [[-100, -100]])
    assert [len(row) for row in nothing] == [0]


def test_score_dataset_gives_one_array_a_sample():
    model = small_model("llama", VOCAB)
    ids, labels = random_samples()
    expected, _ = expected_scores(model, ids, labels)
    for got, wanted in zip(score_dataset(model, ids, labels), expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)


def test_damaged_weights_name_the_sample():
    model = small_model("llama", VOCAB)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ForgettingError, match="sample 0 a log-probability of nan"):
        score_samples(model, Samples.from_lists(*random_samples()))


def test_a_head_that_does_more_than_we_know_is_refused():
    model = small_model("llama", VOCAB)
    head_forward = model.forward

    def bent(*args, **kwargs):
        output = head_forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    model.forward = bent
    with pytest.raises(ForgettingError, match="not supported"):
        score_samples(model, Samples.from_lists(*random_samples()))
