"""Objectives, losses and terms in the trainer: one step in float64, and all divisions of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from forgetting.method.losses import LOSSES
from forgetting.training.checkpoints import latest_checkpoint
from tests.training.conftest import StopAt, assert_same, assert_took_the_step, rows, weights

NUM_KEPT = 5
STEP = {
    "optim": "sgd",
    "learning_rate": 0.1,
    "max_steps": 1,
    "schedule": "constant",
    "t_max": 0.4,
    "per_device_train_batch_size": 8,
}
# The same step, divided in other ways.
DIVISIONS = [
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    {"padding_free": True},
    {"pad_to_multiple_of": 16},
    {"packing": True, "max_length": 40, "packing_strategy": "bfd"},
]


def posterior_of(number, seed=5):
    """Samples that are all positive, and the posterior of each token; some have none above 0."""
    random = np.random.default_rng(seed)
    samples = rows(number, negatives="none")
    for index, row in enumerate(samples):
        posterior = random.random(len(row["labels"])) * (random.random(len(row["labels"])) < 0.5)
        row["posterior"] = np.where(posterior < 0.05, 0, posterior) * (index % 3 > 0)
    return samples


def weighted(number=8):
    samples = posterior_of(number)
    for row in samples:
        row["token_weights"] = (1 - row.pop("posterior")).tolist()
    return samples


def corrected(number=8):
    """Samples with alternatives for the tokens that may be bad."""
    random = np.random.default_rng(9)
    samples = posterior_of(number)
    for row in samples:
        posterior = row.pop("posterior") * (np.array(row["labels"]) != -100)
        row["token_weights"] = (1 - posterior).tolist()
        row["alternative_weights"] = posterior.tolist()
        row["alternative_ids"], row["alternative_log_probs"] = [], []
        for token, weight in zip(row["input_ids"], posterior, strict=True):
            others = np.setdiff1d(np.arange(259), [token])
            q = random.dirichlet(np.full(NUM_KEPT + 1, 0.7)) + 1e-3
            chosen = random.permutation(others)[:NUM_KEPT].tolist()
            row["alternative_ids"].append(chosen if weight else [])
            row["alternative_log_probs"].append(np.log(q / q.sum()).tolist() if weight else [])
    return samples


def targets(samples, tiny_model):
    """A model in float64, and for each predicted token: sample, place, token, all its log p."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model).double()
    found = []
    for index, row in enumerate(samples):
        ids = torch.tensor([row["input_ids"]])
        log_probs = model(ids).logits[0].log_softmax(-1)
        found += [
            (index, place, int(ids[0, place]), log_probs[place - 1])
            for place in range(1, ids.shape[1])
            if row["labels"][place] != -100
        ]
    return model, found


def test_weighted_divides_by_the_count_of_all_response_tokens(train, tiny_model):
    samples = weighted()
    model, found = targets(samples, tiny_model)
    loss = sum(-samples[i]["token_weights"][place] * log_p[t] for i, place, t, log_p in found)
    (loss / len(found)).backward()
    for division in ({}, *DIVISIONS):
        trainer = train(samples, **{**STEP, **division})
        assert_took_the_step(trainer, model, STEP["learning_rate"])
        logged = trainer.state.log_history[0]
        assert logged["loss"] == pytest.approx(loss.item() / len(found), abs=1e-5)


@pytest.mark.parametrize("division", [{}, *DIVISIONS], ids=str)
def test_a_step_of_corrected_is_its_formula_in_float64(train, tiny_model, division):
    samples = corrected()
    model, found = targets(samples, tiny_model)
    loss, corrections = torch.zeros((), dtype=torch.float64), []
    for index, place, token, log_p in found:
        row = samples[index]
        c = row["alternative_weights"][place]
        loss = loss - (1 - c) * log_p[token]
        if c:
            q = torch.tensor(row["alternative_log_probs"][place], dtype=torch.float64).exp()
            kept = log_p[row["alternative_ids"][place]].exp()
            rest = 1 - kept.sum() - log_p[token].exp()
            corrections.append(-(q[:-1] * kept.log()).sum() - q[-1] * rest.log())
            loss = loss + c * corrections[-1]
    (loss / len(found)).backward()
    trainer = train(samples, **{**STEP, **division})
    assert_took_the_step(trainer, model, STEP["learning_rate"])
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item() / len(found), abs=1e-5)
    assert 10 < len(corrections) < len(found) / 2
    assert logged["share_corrected"] == pytest.approx(len(corrections) / len(found))
    expected = torch.stack(corrections).mean().item()
    assert logged["correction_loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
def test_alternatives_stay_with_their_tokens_where_packing_splits_samples(train, strategy):
    """Rows as long as all samples together: what is split is split in the middle of tokens with
    alternatives, and the loss of a token depends on nothing else if no context is lost."""
    samples = corrected(4)
    whole = train(samples, packing=True, packing_strategy=strategy, max_length=256, **STEP)
    by_hand = {name: [v for row in samples for v in row[name]] for name in samples[0]}
    if strategy == "wrapped":
        one_row = train([by_hand], **{**STEP, "per_device_train_batch_size": 1})
        assert_same(weights(whole), weights(one_row), 2e-6)
    else:
        assert_same(weights(whole), weights(train(samples, **STEP)), 2e-6)


def test_without_alternatives_corrected_is_plain_sft_bit_for_bit(train):
    samples = rows(16, negatives="none")
    marked = [
        {
            **row,
            "token_weights": [1.0] * len(row["labels"]),
            "alternative_weights": [0.0] * len(row["labels"]),
            "alternative_ids": [[] for _ in row["labels"]],
            "alternative_log_probs": [[] for _ in row["labels"]],
        }
        for row in samples
    ]
    assert_same(weights(train(samples)), weights(train(marked)))


def test_corrected_resumes_with_the_same_weights(train, tmp_path):
    from peft import LoraConfig

    common = {
        "peft_config": LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear"),
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
    }
    samples = corrected(16)
    straight = train(samples, **common)
    for folder in (tmp_path / "out").glob("checkpoint-*"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    train(samples, callbacks=[StopAt(2)], **common)
    resumed = train(samples, resume=str(latest_checkpoint(tmp_path / "out")), **common)
    assert_same(weights(straight), weights(resumed))


def test_bfloat16_corrects_in_nearly_the_same_direction(train):
    before = weights(train(corrected(), **{**STEP, "learning_rate": 0.0}))
    moves = []
    for bf16 in (False, True):
        after = weights(train(corrected(), **{**STEP, "bf16": bf16, "use_cpu": True}))
        moves.append(torch.cat([(after[name] - before[name]).flatten() for name in before]))
    assert torch.cosine_similarity(*moves, dim=0) > 0.99


def damaged(column, change):
    samples = corrected()
    row = next(row for row in samples if any(row["alternative_weights"]))
    place = next(place for place, weight in enumerate(row["alternative_weights"]) if weight)
    row[column][place] = change(row[column][place])
    return samples


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (lambda: damaged("alternative_ids", lambda ids: []), "alternative_ids has no values"),
        (lambda: damaged("alternative_ids", lambda ids: ids[1:]), "lists of 4 and of 5 values"),
        (lambda: damaged("alternative_weights", lambda c: -c), "numbers of at least 0"),
        (
            lambda: [{k: v for k, v in r.items() if k != "alternative_ids"} for r in corrected()],
            "has alternative_weights but no alternative_ids",
        ),
    ],
)
def test_alternatives_that_do_not_fit_are_refused(train, samples, message):
    with pytest.raises(ValueError, match=message):
        train(samples(), **STEP)


def statistic(name, log_p):
    p = log_p.detach().exp()
    if name == "sum_squares":
        return (p**2).sum()
    best = log_p.detach().sort(descending=True).values[:20].softmax(0)
    return -(best * best.log()).sum()


VALUES = {
    "dft": lambda log_p, s: -log_p.detach().exp().clamp(min=0.1) * log_p,
    "deft": lambda log_p, s: (1 - log_p.exp() ** s) / s,
    "eaft": lambda log_p, s: -((s / math.log(20)) ** 1.5) * log_p,
}
LOSS_PARAMETERS = {"dft": {"min_weight": 0.1}, "eaft": {"alpha": 1.5}}


@pytest.mark.parametrize("division", [{}, *DIVISIONS[:1], *DIVISIONS[-1:]], ids=str)
@pytest.mark.parametrize("kind", VALUES)
def test_a_step_of_a_loss_is_its_formula_in_float64(train, tiny_model, kind, division):
    """With negative tokens, which have their own term."""
    samples = rows(8)
    model, found = targets(samples, tiny_model)
    parts = {1: [], -1: []}
    for index, place, token, log_p in found:
        sign = samples[index]["polarity"][place]
        if sign > 0:
            names = LOSSES[kind].statistics
            s = statistic(names[0], log_p) if names else None
            parts[1].append(VALUES[kind](log_p[token], s))
        elif sign < 0:
            parts[-1].append(log_p[token])
    loss = torch.stack(parts[1]).mean() + STEP["t_max"] * torch.stack(parts[-1]).mean()
    loss.backward()
    options = {"loss": kind, "loss_parameters": LOSS_PARAMETERS.get(kind)}
    trainer = train(samples, **{**STEP, **options, **division})
    assert_took_the_step(trainer, model, STEP["learning_rate"])


@pytest.mark.parametrize("division", [{}, *DIVISIONS], ids=str)
@pytest.mark.parametrize("kind", ["truncation", "rho1"])
def test_a_step_learns_the_highest_share_of_all_its_tokens(train, tiny_model, kind, division):
    samples = rows(8)
    random = np.random.default_rng(4)
    for row in samples:
        row["reference_log_probs"] = (-6 * random.random(len(row["labels"]))).tolist()
    model, found = targets(samples, tiny_model)
    positive = [t for t in found if samples[t[0]]["polarity"][t[1]] > 0]
    own = {(i, place): log_p[token].item() for i, place, token, log_p in positive}
    keep = 0.55
    if kind == "rho1":
        excess = {key: samples[key[0]]["reference_log_probs"][key[1]] - own[key] for key in own}
        best = sorted(excess, key=excess.get, reverse=True)
        kept = set(best[: round(keep * len(best))])
    else:
        of_sample = {
            i: np.mean([value for key, value in own.items() if key[0] == i])
            for i in {key[0] for key in own}
        }
        best = sorted(of_sample, key=of_sample.get, reverse=True)
        learned = set(best[: round(keep * len(best))])
        kept = {key for key in own if key[0] in learned}
    assert 0 < len(kept) < len(own)
    losses = [-log_p[token] for i, place, token, log_p in positive if (i, place) in kept]
    negative = [log_p[t] for i, place, t, log_p in found if samples[i]["polarity"][place] < 0]
    loss = torch.stack(losses).mean() + STEP["t_max"] * torch.stack(negative).mean()
    loss.backward()
    options = {"loss": kind, "loss_parameters": {"keep": keep}}
    trainer = train(samples, **{**STEP, **options, **division})
    assert_took_the_step(trainer, model, STEP["learning_rate"])


def test_ranking_a_step_leaves_dropout_as_it_was(train):
    """A share of 1 keeps every token: the same training as without a ranking."""
    from peft import LoraConfig

    adapter = LoraConfig(r=4, lora_dropout=0.3, target_modules="all-linear")
    samples = rows(12)
    plain = train(samples, peft_config=adapter)
    ranked = train(samples, peft_config=adapter, loss="truncation", loss_parameters={"keep": 1.0})
    assert_same(weights(plain), weights(ranked))


TERM_OPTIONS = [
    {"term": "inverted_hinge"},
    {"term": "simnpo", "term_parameters": {"simnpo_beta": 2.5}},
]


@pytest.mark.parametrize("division", [{}, *DIVISIONS], ids=str)
@pytest.mark.parametrize("options", TERM_OPTIONS, ids=str)
def test_a_step_of_a_bounded_term_is_its_formula_in_float64(train, tiny_model, options, division):
    samples = rows(8)
    model, found = targets(samples, tiny_model)
    positive, negative, of_sample = [], [], {}
    for index, place, token, log_p in found:
        sign = samples[index]["polarity"][place]
        if sign > 0:
            positive.append(-log_p[token])
        elif sign < 0:
            others = torch.cat([log_p[:token], log_p[token + 1 :]])
            negative.append(1 + log_p[token].exp() - others.max().exp())
            of_sample.setdefault(index, []).append(log_p[token])
    if options["term"] == "simnpo":
        means = torch.stack([torch.stack(values).mean() for values in of_sample.values()])
        negative = -2 / 2.5 * torch.nn.functional.logsigmoid(-2.5 * means)
    else:
        negative = torch.stack(negative)
    (torch.stack(positive).mean() + STEP["t_max"] * negative.mean()).backward()
    trainer = train(samples, **{**STEP, **options, **division})
    assert_took_the_step(trainer, model, STEP["learning_rate"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "rho1"}, "needs a column reference_log_probs"),
        (
            {"loss": "truncation", "packing": True, "packing_strategy": "wrapped"},
            "ranks whole samples, and packing_strategy 'wrapped' splits them",
        ),
        ({"loss": "nothing"}, "unknown loss"),
        ({"loss": "dft", "loss_parameters": {"keep": 0.5}}, "no parameter 'keep'"),
    ],
)
def test_what_a_loss_cannot_do_is_refused(train, options, message):
    with pytest.raises(ValueError, match=message):
        train(rows(4), max_length=64, **options)


def test_resuming_with_another_loss_is_refused(train, tmp_path):
    common = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    train(rows(20), callbacks=[StopAt(2)], **common)
    checkpoint = latest_checkpoint(tmp_path / "out")
    with pytest.raises(ValueError, match=r"written with loss.kind cross_entropy"):
        train(rows(20), resume=str(checkpoint), loss="dft", **common)


def test_a_step_with_a_learned_prompt_is_its_formula_in_float64(train):
    """Virtual tokens precede each sample, in the outputs and in what a term asks for."""
    from peft import PromptTuningConfig

    adapter = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    samples, lam = rows(8), STEP["t_max"]
    still = {**STEP, "learning_rate": 0.0, "term": "inverted_hinge"}
    for division in ({}, DIVISIONS[0]):
        trainer = train(samples, peft_config=adapter, **{**still, **division})
        model = trainer.model.double()
        positive, negative = [], []
        for row in samples:
            ids = torch.tensor([row["input_ids"]])
            found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            log_probs = found[3:].log_softmax(-1)
            for place, sign in enumerate(row["polarity"]):
                token, of_place = row["input_ids"][place], log_probs[place - 1]
                if sign > 0:
                    positive.append(-of_place[token])
                elif sign < 0:
                    others = torch.cat([of_place[:token], of_place[token + 1 :]])
                    negative.append(1 + of_place[token].exp() - others.max().exp())
        loss = torch.stack(positive).mean() + lam * torch.stack(negative).mean()
        model.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        logged = trainer.state.log_history[0]
        assert logged["loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
