"""Scores against full logits in float64, whatever the batches were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forgetting.errors import ForgettingError, InputError
from forgetting.method import select_tokens, token_quality
from forgetting.models import token_statistics
from forgetting.models.token_statistics import STATISTICS
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


def expected_scores(model, ids, labels) -> dict[str, list[np.ndarray]]:
    """Every statistic, and the distance from the target to the next token, one array per sample:
    one sample at a time, full logits, float64."""
    found: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        model = model.double()
        if model.config.model_type == "mixtral":
            model.set_experts_implementation("eager")  # the others know no float64
        for row, targets in zip(ids, labels, strict=True):
            log_p = model(torch.tensor([row])).logits[0].log_softmax(-1).numpy()
            places = np.array([i for i in range(1, len(row)) if targets[i] != -100])
            log_p, of_target = log_p[places - 1], log_p[places - 1, np.array(row)[places]]
            p = np.exp(log_p)
            entropy = -(p * log_p).sum(1)
            others = log_p.copy()
            others[np.arange(len(places)), np.array(row)[places]] = -np.inf
            for name, values in {
                "log_probs": of_target,
                "rank": (log_p > of_target[:, None]).sum(1),
                "is_greedy": (log_p <= of_target[:, None]).all(1),
                "entropy": entropy,
                "surprise_std": np.sqrt((p * log_p**2).sum(1) - entropy**2),
                "best_other_log_prob": others.max(1),
                "sum_squares": (p**2).sum(1),
                "gap": np.abs(others - of_target[:, None]).min(1),
            }.items():
                found.setdefault(name, []).append(values)
        model.float()
    return found


def check(scores, expected, atol) -> None:
    for name, per_sample in expected.items():
        if name == "gap":
            continue
        values, wanted = getattr(scores, name), np.concatenate(per_sample)
        if name in ("rank", "is_greedy"):
            # Float32 cannot order tokens that nearly tie in float64.
            clear = np.concatenate(expected["gap"]) > atol if "gap" in expected else slice(None)
            assert np.array_equal(values[clear], wanted[clear]), name
        else:
            assert values.dtype == np.float32
            assert np.abs(values - wanted).max() < atol, name


KINDS = ["llama", "qwen2", "gpt_neo", "gemma2", "granite", "mixtral"]


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_full_logits(kind):
    model = small_model(kind, VOCAB)
    ids, labels = random_samples()
    samples = Samples.from_lists(ids, labels)
    scores = score_samples(model, samples, statistics=STATISTICS, tokens_per_batch=64)
    assert scores.rank.dtype == np.int32
    check(scores, expected_scores(model, ids, labels), 3e-5)


def test_statistics_are_left_out_unless_requested():
    model = small_model("llama", VOCAB)
    ids, labels = random_samples()
    samples = Samples.from_lists(ids, labels)
    expected = expected_scores(model, ids, labels)
    for asked in ([], ["entropy"], ["rank", "sum_squares"]):
        scores = score_samples(model, samples, statistics=asked)
        kept = {"log_probs", "is_greedy", *asked}
        check(scores, {name: expected[name] for name in (*kept, "gap")}, 1e-5)
        assert all(getattr(scores, name) is None for name in set(STATISTICS) - kept)


def test_an_unknown_statistic_is_refused_before_the_model_runs():
    samples = Samples.from_lists(*random_samples())
    with pytest.raises(InputError, match="unknown statistic 'surprise'"):
        score_samples(None, samples, statistics=["surprise"])


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_padding_change_nothing(kind):
    model = small_model(kind, VOCAB)
    samples = Samples.from_lists(*random_samples(30))
    alone = score_samples(model, samples, statistics=STATISTICS, tokens_per_batch=1)
    wanted = {name: [getattr(alone, name)] for name in ("log_probs", "is_greedy", *STATISTICS)}
    for tokens in (40, 100, 10_000):
        again = score_samples(model, samples, statistics=STATISTICS, tokens_per_batch=tokens)
        check(again, wanted, 1e-5)


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
    whole = score_samples(model, samples, statistics=STATISTICS)
    wanted = {name: [getattr(whole, name)] for name in ("log_probs", "is_greedy", *STATISTICS)}
    monkeypatch.setattr(token_statistics, "ROWS_PER_BLOCK", 5)
    monkeypatch.setattr(token_statistics, "LOGITS_PER_BLOCK", 50)
    check(score_samples(model, samples, statistics=STATISTICS), wanted, 1e-5)


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
    adapted = score_samples(model, samples, statistics=STATISTICS)
    check(adapted, expected_scores(model, ids, labels), 2e-5)
    assert np.abs(adapted.log_probs - base.log_probs).max() > 0.01
    with model.disable_adapter():
        off = score_samples(model, samples)
    assert np.abs(off.log_probs - base.log_probs).max() < 1e-6


def test_an_adapter_on_the_head_counts():
    from peft import LoraConfig, get_peft_model

    ids, labels = random_samples()
    config = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    model = get_peft_model(small_model("llama", VOCAB), config).eval()
    samples = Samples.from_lists(ids, labels)
    adapted = score_samples(model, samples, statistics=STATISTICS)
    check(adapted, expected_scores(model, ids, labels), 2e-5)
    with model.disable_adapter():
        off = score_samples(model, samples)
    assert np.abs(adapted.log_probs - off.log_probs).max() > 0.01


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
    expected = expected_scores(model, ids, labels)
    found = score_dataset(model, ids, labels)
    for got, wanted in zip(found, expected["log_probs"], strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)


def test_score_dataset_gives_the_requested_statistics_of_each_sample():
    model = small_model("llama", VOCAB)
    ids, labels = random_samples(4)
    labels[1] = [-100] * len(labels[1])
    asked = ["surprise_std", "rank"]
    found = score_dataset(model, ids, labels, statistics=asked)
    assert len(found) == 4
    assert found[1].log_probs.size == found[1].rank.size == 0
    assert found[0].entropy is None
    kept = [0, 2, 3]
    expected = expected_scores(model, [ids[i] for i in kept], [labels[i] for i in kept])
    for place, index in enumerate(kept):
        for name in ("log_probs", *asked):
            assert getattr(found[index], name) == pytest.approx(expected[name][place], abs=1e-5)


def test_damaged_weights_name_the_sample():
    model = small_model("llama", VOCAB)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ForgettingError, match="sample 0: the model gives log_probs = nan"):
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


def last_position_off(logits):
    """As far as rounding in bfloat16 can move a token of a real model."""
    logits = logits.clone()
    logits[:, -1, ::2] += 0.5
    logits[:, -1, 1::2] -= 0.5
    return logits


@pytest.mark.parametrize(
    ("change", "is_refused"), [(last_position_off, False), (lambda logits: logits * 100, True)]
)
def test_rounding_in_bfloat16_is_told_from_another_head(change, is_refused):
    model = small_model("llama", VOCAB).to(torch.bfloat16)
    head_forward = model.forward

    def bent(*args, **kwargs):
        output = head_forward(*args, **kwargs)
        output.logits = change(output.logits)
        return output

    model.forward = bent
    samples = Samples.from_lists(*random_samples())
    if is_refused:
        with pytest.raises(ForgettingError, match="not supported"):
            score_samples(model, samples)
    else:
        assert len(score_samples(model, samples).log_probs) == samples.response_ids.size
