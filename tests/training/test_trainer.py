"""The trainer against its parent, against equation 8 computed apart, and against itself resumed."""

from __future__ import annotations

import json
import math
from statistics import median_low

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from forgetting.errors import DivergenceError
from forgetting.training.checkpoints import latest_checkpoint
from forgetting.training.config import ForgettingConfig
from forgetting.training.step_figures import NUM_FIRST_STEPS
from forgetting.training.trainer import ForgettingTrainer
from tests.training.conftest import (
    StopAt,
    assert_same,
    assert_took_the_step,
    config,
    rows,
    weights,
)


def test_a_step_is_that_of_equation_8_in_float64(train, tiny_model):
    samples = rows(8)
    lam, rate = 0.4, 0.1
    trainer = train(
        samples,
        optim="sgd",
        learning_rate=rate,
        max_steps=1,
        per_device_train_batch_size=8,
        schedule="constant",
        t_max=lam,
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model).double()
    positive, negative = [], []
    for row in samples:
        ids = torch.tensor([row["input_ids"]])
        log_probs = model(ids).logits[0].log_softmax(-1)
        for position in range(1, ids.shape[1]):
            if row["labels"][position] == -100:
                continue
            loss = -log_probs[position - 1, ids[0, position]]
            if row["polarity"][position] > 0:
                positive.append(loss)
            elif row["polarity"][position] < 0:
                negative.append(loss)
    loss = torch.stack(positive).mean() - lam * torch.stack(negative).mean()
    loss.backward()
    assert_took_the_step(trainer, model, rate)
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert logged["positive_loss"] == pytest.approx(torch.stack(positive).mean().item(), abs=1e-5)
    assert logged["negative_loss"] == pytest.approx(torch.stack(negative).mean().item(), abs=1e-5)
    probabilities = (-torch.stack(negative)).exp()
    assert logged["negative_prob"] == pytest.approx(probabilities.mean().item(), abs=1e-5)
    assert logged["lambda"] == lam


def test_accumulation_changes_nothing_where_micro_batches_lack_a_set(train):
    # Unshuffled, micro-batches of 2 hold samples without negatives, and without positives.
    samples = rows(40)
    common = {"max_steps": 5, "schedule": "constant", "t_max": 0.3, "learning_rate": 1e-3}
    whole = train(samples, per_device_train_batch_size=8, **common)
    parts = train(samples, per_device_train_batch_size=2, gradient_accumulation_steps=4, **common)
    assert_same(weights(whole), weights(parts), 1e-5)
    for name in ("loss", "positive_loss", "negative_loss", "negative_prob", "entropy"):
        first, second = (
            [entry[name] for entry in trainer.state.log_history if name in entry]
            for trainer in (whole, parts)
        )
        assert first == pytest.approx(second, abs=1e-4), name


def with_base(samples, seed=3):
    random = np.random.default_rng(seed)
    return [
        {**row, "base_log_probs": (-5 * random.random(len(row["labels"]))).tolist()}
        for row in samples
    ]


TERMS = [
    {"term": "wga"},
    {"term": "satimp", "beta1": 2.0},
    {"term": "npo"},
    {"term": "tnpo", "beta": 0.5},
    {"term": "wtnpo"},
    {"term": "unlikelihood"},
    {"floor": 0.01},
    {"normalization": "token"},
]


@pytest.mark.parametrize("options", TERMS, ids=str)
def test_accumulation_changes_nothing_whatever_the_term(train, options):
    samples = with_base(rows(24))
    common = {"schedule": "constant", "t_max": 0.3, "learning_rate": 1e-3, **options}
    whole = train(samples, per_device_train_batch_size=8, **common)
    parts = train(samples, per_device_train_batch_size=2, gradient_accumulation_steps=4, **common)
    assert_same(weights(whole), weights(parts), 1e-5)
    plain = train(samples, per_device_train_batch_size=8, **{**common, "t_max": 0.0, "t_min": 0.0})
    moved = [
        (a - b).abs().max()
        for a, b in zip(weights(whole).values(), weights(plain).values(), strict=True)
    ]
    assert max(moved) > 1e-5


def test_base_log_probs_reach_their_tokens_and_both_sets_the_count_of_all(train, tiny_model):
    """One step of TNPO, normalised by tokens, in float64; samples are cut, padded and sorted."""
    samples = with_base(rows(8))
    lam, beta, rate, limit = 0.4, 0.5, 0.1, 15
    trainer = train(
        samples,
        optim="sgd",
        learning_rate=rate,
        max_steps=1,
        max_length=limit,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        schedule="constant",
        t_max=lam,
        term="tnpo",
        beta=beta,
        normalization="token",
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model).double()
    loss, num_tokens = torch.zeros((), dtype=torch.float64), 0
    for row in samples:
        ids = torch.tensor([row["input_ids"][:limit]])
        log_probs = model(ids).logits[0].log_softmax(-1)
        for position in range(3, ids.shape[1]):
            log_p = log_probs[position - 1, ids[0, position]]
            num_tokens += 1
            if row["polarity"][position] > 0:
                loss = loss - log_p
            elif row["polarity"][position] < 0:
                ratio = torch.exp(log_p - row["base_log_probs"][position]) ** beta
                loss = loss + lam * 2 / beta * torch.log(1 + ratio)
    (loss / num_tokens).backward()
    assert_took_the_step(trainer, model, rate)


def test_a_term_that_compares_with_the_base_needs_its_column(train):
    with pytest.raises(ValueError, match="base_log_probs"):
        train(rows(4), term="tnpo")


@pytest.mark.parametrize(("max_steps", "logging_steps"), [(3, 10), (5, 2)])
def test_the_last_log_has_the_figures_of_the_steps_before_it(train, max_steps, logging_steps):
    samples = rows(24)
    options = {"max_steps": max_steps, "schedule": "constant", "learning_rate": 0.0}
    each = train(samples, **options).state.log_history[:-1]
    last = train(samples, **options, logging_steps=logging_steps).state.log_history[-1]
    assert "train_loss" in last
    steps = each[max_steps - max_steps % logging_steps :]
    assert last["lambda"] == 0.25
    assert last["num_tokens"] == steps[-1]["num_tokens"]
    for name in ("positive_loss", "entropy", "mean_token_accuracy", "share_negative"):
        # A mean over tokens lies among those of the steps.
        values = [entry[name] for entry in steps]
        assert min(values) - 1e-9 <= last[name] <= max(values) + 1e-9


def test_figures_after_an_evaluation_that_ends_training_are_not_lost(train):
    class Evaluates(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = state.global_step == 3

    trainer = train(
        rows(12), logging_steps=2, callbacks=[Evaluates()], eval_dataset=Dataset.from_list(rows(4))
    )
    assert "eval_loss" in trainer.state.log_history[-2]
    assert {"train_loss", "positive_loss", "lambda"} <= trainer.state.log_history[-1].keys()


def test_sorting_by_length_changes_nothing_but_the_padding(train):
    samples = rows(16)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    sorted_, given = (train(samples, **options, sort_by_length=value) for value in (True, False))
    assert_same(weights(sorted_), weights(given), 1e-5)
    assert sorted_.state.total_flos < given.state.total_flos


def test_lambda_counts_optimizer_steps(train):
    trainer = train(
        rows(32), max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    logged = [entry["lambda"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([(0.25 - 1e-4) * step / 4 for step in range(4)])


def test_a_constant_zero_ignores_the_negatives_but_logs_them(train):
    samples = rows(16)
    ignored = [{**row, "polarity": [max(value, 0) for value in row["polarity"]]} for row in samples]
    zero = train(samples, schedule="constant", t_min=0.0, t_max=0.0)
    left_out = train(ignored, schedule="constant", t_max=0.5)
    assert_same(weights(zero), weights(left_out), 1e-7)
    assert any("negative_loss" in entry for entry in zero.state.log_history)


def test_an_unlabelled_token_counts_for_nothing(train):
    samples = rows(8)
    marked = [{**row, "polarity": [-1, -1, -1, *row["polarity"][3:]]} for row in samples]
    first, second = (train(some, schedule="constant") for some in (samples, marked))
    assert_same(weights(first), weights(second))


def test_polarity_is_cut_with_its_tokens(train):
    samples = rows(8)
    cut = [{name: values[:9] for name, values in row.items()} for row in samples]
    first = train(samples, max_length=9, schedule="constant")
    second = train(cut, schedule="constant")
    assert_same(weights(first), weights(second))


@pytest.mark.parametrize("layout", [{}, {"packing": True, "packing_strategy": "bfd"}], ids=str)
def test_rows_that_max_length_leaves_without_labels_are_counted(train, layout, caplog):
    samples = rows(8)
    late = [{**row, "labels": [-100] * len(row["labels"][:-1]) + [5]} for row in rows(4, seed=1)]
    train([*samples, *late], max_length=5, max_steps=1, **layout)
    (message,) = [r.getMessage() for r in caplog.records if "max_length" in r.getMessage()]
    assert "max_length 5 removes all labels of 4 of 12 rows of the train dataset" in message
    assert "some labels of 8 rows" in message


@pytest.mark.parametrize("layout", [{}, {"packing": True, "packing_strategy": "bfd"}], ids=str)
def test_a_max_length_that_leaves_no_labels_is_an_error(tiny_model, tmp_path, layout):
    data = [{"prompt": "Tom went to the park. ", "completion": " Sue ran.", "polarity": 1}] * 4
    with pytest.raises(ValueError, match="max_length 16 removes the labels of all 4 rows"):
        ForgettingTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_model),
            ForgettingConfig(**config(tmp_path, max_length=16, **layout)),
            train_dataset=Dataset.from_list(data),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
        )


def test_resume_ends_with_the_same_weights_and_log(train, tmp_path):
    from peft import LoraConfig

    common = {
        # Dropout, so that the random state must be right; two epochs, so that the order must be.
        "peft_config": LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear"),
        "max_steps": 8,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
    }
    samples = rows(20)
    straight = train(samples, **common)
    for folder in (tmp_path / "out").glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > 4:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    # Start over and stop after step 4, then go on in a new trainer.
    train(samples, callbacks=[StopAt(4)], **common)
    checkpoint = latest_checkpoint(tmp_path / "out")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-4"
    resumed = train(samples, resume=str(checkpoint), **common)
    assert_same(weights(straight), weights(resumed))
    assert [e for e in straight.state.log_history if "loss" in e] == [
        e for e in resumed.state.log_history if "loss" in e
    ]


def test_checkpoints_hold_no_pickle(train, tmp_path):
    train(rows(8), max_steps=1, save_strategy="steps", save_steps=1)
    checkpoint = latest_checkpoint(tmp_path / "out")
    names = {file.name for file in checkpoint.rglob("*")}
    assert "optimizer.safetensors" in names
    for file in checkpoint.rglob("*"):
        start = file.read_bytes()[:4]
        assert not start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")), file


def test_the_scaler_of_gradients_is_saved_without_pickle(train, tmp_path):
    first, second = train(rows(4), max_steps=1), train(rows(4), max_steps=1)
    first.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    second.accelerator.scaler = torch.amp.GradScaler("cpu")
    first._save_scaler(str(tmp_path))
    second._load_scaler(str(tmp_path))
    assert second.accelerator.scaler.get_scale() == 128.0
    names = {file.name for file in tmp_path.iterdir() if file.is_file()}
    assert names == {"scaler.json", "scaler.safetensors"}


def test_divergence_stops_before_the_weights_are_touched(train, tmp_path):
    class Poison(TrainerCallback):
        """Makes one weight infinite after step 2 has been saved."""

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.model.norm.weight.data[0] = math.inf

    with pytest.raises(DivergenceError, match=r"diverged at step 3 of 5.*checkpoint-2"):
        train(
            rows(20),
            max_steps=5,
            callbacks=[Poison()],
            save_strategy="steps",
            save_steps=1,
        )
    saved = latest_checkpoint(tmp_path / "out")
    state = json.loads((saved / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert all(math.isfinite(entry["loss"]) for entry in state["log_history"])


HUGE_LAMBDA = {
    "schedule": "constant",
    "t_max": 1e4,
    "learning_rate": 3e-2,
    "max_steps": 30,
    "save_strategy": "steps",
    "save_steps": 1,
}


def test_a_huge_lambda_is_stopped_by_the_positive_loss_and_the_last_checkpoint_kept(
    train, tmp_path
):
    with pytest.raises(DivergenceError, match=r"positive loss is .* more than 2 times") as caught:
        train(rows(40), divergence_ratio=2.0, **HUGE_LAMBDA)
    saved = latest_checkpoint(tmp_path / "out")
    state = json.loads((saved / "trainer_state.json").read_text())
    assert f"at step {state['global_step'] + 1} of 30" in str(caught.value)
    assert str(saved) in str(caught.value)
    assert "lambda 10000" in str(caught.value)
    losses = [e["positive_loss"] for e in state["log_history"] if "positive_loss" in e]
    start = median_low(losses[:NUM_FIRST_STEPS])
    assert all(loss <= 2 * start for loss in losses)
    # Resumed, it compares with the same start.
    with pytest.raises(DivergenceError, match=f"the {start:.4g} of its start"):
        train(rows(40), divergence_ratio=2.0, resume=str(saved), **HUGE_LAMBDA)


@pytest.mark.parametrize("logging_steps", [1, 10, 100])
def test_divergence_is_found_at_the_same_step_whatever_is_logged(train, logging_steps):
    options = {**HUGE_LAMBDA, "save_strategy": "no", "divergence_ratio": 1.8}
    with pytest.raises(DivergenceError, match="diverged at step 21 of 30"):
        train(rows(40), **options, logging_steps=logging_steps)


def test_a_run_that_diverges_in_its_last_steps_does_not_end_well(train):
    """Steps after the last logging step are checked too."""
    options = {**HUGE_LAMBDA, "save_strategy": "no", "max_steps": 21}
    with pytest.raises(DivergenceError, match="diverged at step 21 of 21"):
        train(rows(40), **options, divergence_ratio=1.8, logging_steps=10)


def test_without_a_ratio_the_positive_loss_may_rise(train):
    trainer = train(rows(40), divergence_ratio=None, **HUGE_LAMBDA)
    losses = [e["positive_loss"] for e in trainer.state.log_history if "positive_loss" in e]
    assert max(losses) > 2 * losses[0]
    assert trainer.state.global_step == 30


def test_packing_needs_a_length(train):
    with pytest.raises(ValueError, match="packing needs max_length"):
        train(rows(4), packing=True, max_length=None)


# What a step of a padding-free or packed batch must not change: all samples of the list are in
# one optimizer step.
ONE_STEP = {
    "optim": "sgd",
    "learning_rate": 0.1,
    "max_steps": 1,
    "schedule": "constant",
    "t_max": 0.4,
    "per_device_train_batch_size": 8,
}


@pytest.mark.parametrize("options", [{}, {"term": "npo"}, {"term": "tnpo"}], ids=str)
@pytest.mark.parametrize(
    "layout",
    [
        {"padding_free": True},
        {"padding_free": True, "pad_to_multiple_of": 16},
        {"packing": True, "max_length": 40, "packing_strategy": "bfd"},
    ],
    ids=str,
)
def test_padding_free_and_packed_samples_take_the_step_of_padded_ones(train, layout, options):
    samples = with_base(rows(8))
    step = {**ONE_STEP, **options}
    apart = train(samples, **step)
    together = train(samples, **{**step, **layout})
    assert_same(weights(apart), weights(together), 2e-6)
    assert together.state.global_step == 1
    for name in ("positive_loss", "negative_loss", "negative_prob", "share_negative"):
        first, second = (trainer.state.log_history[0][name] for trainer in (apart, together))
        assert first == pytest.approx(second, abs=1e-5), name


def test_a_wrapped_row_is_a_sample_of_equation_8_in_float64(train, tiny_model):
    """Rows run over the ends of samples; each token keeps its polarity and its weight."""
    samples = [{**row, "token_weights": weights_of(row)} for row in rows(8)]
    size = 21
    trainer = train(samples, packing=True, packing_strategy="wrapped", max_length=size, **ONE_STEP)
    flat = {name: [v for row in samples for v in row[name]] for name in samples[0]}
    model = AutoModelForCausalLM.from_pretrained(tiny_model).double()
    sums, counts = {1: 0.0, -1: 0.0}, {1: 0, -1: 0}
    for begin in range(0, len(flat["input_ids"]), size):
        ids = torch.tensor([flat["input_ids"][begin : begin + size]])
        log_probs = model(ids).logits[0].log_softmax(-1)
        for place in range(1, ids.shape[1]):
            sign = flat["polarity"][begin + place]
            if flat["labels"][begin + place] == -100 or sign == 0:
                continue
            log_p = log_probs[place - 1, ids[0, place]]
            sums[sign] = sums[sign] - flat["token_weights"][begin + place] * log_p
            counts[sign] += 1
    (sums[1] / counts[1] - ONE_STEP["t_max"] * sums[-1] / counts[-1]).backward()
    assert_took_the_step(trainer, model, ONE_STEP["learning_rate"])


def weights_of(row):
    return [0.25 + (token % 7) / 4 for token in row["input_ids"]]


@pytest.mark.parametrize("options", [{}, {"padding_free": True}], ids=str)
def test_token_weights_multiply_each_token_in_float64(train, tiny_model, options):
    samples = [{**row, "token_weights": weights_of(row)} for row in rows(8)]
    trainer = train(samples, **{**ONE_STEP, **options})
    model = AutoModelForCausalLM.from_pretrained(tiny_model).double()
    sums, counts = {1: 0.0, -1: 0.0}, {1: 0, -1: 0}
    for row in samples:
        ids = torch.tensor([row["input_ids"]])
        log_probs = model(ids).logits[0].log_softmax(-1)
        for place, sign in enumerate(row["polarity"]):
            if sign:
                log_p = log_probs[place - 1, ids[0, place]]
                sums[sign] = sums[sign] - row["token_weights"][place] * log_p
                counts[sign] += 1
    (sums[1] / counts[1] - ONE_STEP["t_max"] * sums[-1] / counts[-1]).backward()
    assert_took_the_step(trainer, model, ONE_STEP["learning_rate"])


@pytest.mark.parametrize("options", [{}, {"padding_free": True}], ids=str)
def test_a_weight_of_all_tokens_of_a_sample_is_that_of_its_value(train, options):
    """`npo` has one value per sample: half the weight is half the loss, and half the step."""
    options = {**ONE_STEP, **options, "term": "npo"}
    samples = [
        {**row, "polarity": [-abs(p) for p in row["polarity"]]} for row in with_base(rows(4))
    ]
    whole = train([{**row, "token_weights": 1.0} for row in samples], **options)
    half = train([{**row, "token_weights": 0.5} for row in samples], **options)
    same = train(samples, **options)
    assert_same(weights(whole), weights(same), 1e-9)
    loss = [trainer.state.log_history[0]["loss"] for trainer in (whole, half)]
    assert loss[1] == pytest.approx(loss[0] / 2, rel=1e-3)


CHAT = (
    "{% for message in messages %}{{ '[' + message.role + ']' + message.content + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
RAW = {
    "prompt and completion": (
        {"prompt": "What is two and two? ", "completion": "Four, or five."},
        "Four, or five.</s>",
    ),
    "conversational prompt and completion": (
        {
            "prompt": [{"role": "user", "content": "Is it wet?"}],
            "completion": [{"role": "assistant", "content": "Yes, no."}],
        },
        "Yes, no.</s>",
    ),
    "messages": (
        {
            "messages": [
                {"role": "user", "content": "Hello."},
                {"role": "assistant", "content": "Good day."},
            ]
        },
        "user]Hello.</s>[assistant]Good day.</s>",
    ),
}


@pytest.mark.parametrize("form", RAW)
@pytest.mark.parametrize("layout", [{}, {"packing": True, "max_length": 64}], ids=str)
def test_polarity_finds_its_tokens_in_what_trl_tokenises(tiny_model, tmp_path, form, layout):
    """One value for each predicted token of a text: it must come back on that very token."""
    raw, predicted = RAW[form]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = CHAT
    signs = {character: 1 if index % 3 else -1 for index, character in enumerate("Fo,.YeGd ")}
    # One token a character, and one for the end of a turn.
    tokens = [*predicted.replace("</s>", "\0")]
    polarity = [signs.get(token, 0) for token in tokens]
    trainer = ForgettingTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=ForgettingConfig(**config(tmp_path, **layout)),
        train_dataset=Dataset.from_list([{**raw, "polarity": polarity}] * 2),
        processing_class=tokenizer,
    )
    (batch,) = list(trainer.get_train_dataloader())
    found = 0
    for ids, labels, values in zip(
        batch["input_ids"], batch["labels"], batch["polarity"], strict=True
    ):
        for token, label, value in zip(ids, labels, values, strict=True):
            if label == -100:
                continue
            text = tokenizer.decode([int(token)])
            assert int(value) == (0 if text == "</s>" else signs.get(text, 0)), text
            found += int(value) != 0
    assert found == 2 * sum(value != 0 for value in polarity)


def test_one_number_a_sample_learns_or_unlearns_its_whole_response(train, tiny_model, tmp_path):
    texts = [("What? ", "Blue."), ("Why? ", "Never mind.")]
    common = {"processing_class": AutoTokenizer.from_pretrained(tiny_model)}
    signs = [1, -1]
    raw = [
        {"prompt": prompt, "completion": completion, "polarity": sign}
        for (prompt, completion), sign in zip(texts, signs, strict=True)
    ]
    spelled = [{**row, "polarity": [row["polarity"]] * (len(row["completion"]) + 1)} for row in raw]
    trained = []
    for rows_ in (raw, spelled):
        trainer = ForgettingTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_model),
            args=ForgettingConfig(**config(tmp_path, **ONE_STEP)),
            train_dataset=Dataset.from_list(rows_),
            **common,
        )
        trainer.train()
        assert trainer.state.log_history[0]["share_negative"] == pytest.approx(12 / 18)
        trained.append(weights(trainer))
    assert_same(*trained)


def pad_left(examples):
    width = max(len(e["input_ids"]) for e in examples)

    def row(values, fill):
        return [fill] * (width - len(values)) + list(values)

    return {
        "input_ids": torch.tensor([row(e["input_ids"], 2) for e in examples]),
        "labels": torch.tensor([row(e["labels"], -100) for e in examples]),
        "attention_mask": torch.tensor([row([1] * len(e["input_ids"]), 0) for e in examples]),
    }


@pytest.mark.parametrize("accumulation", [1, 4])
def test_left_padding_takes_the_step_of_right_padding(tiny_model, tmp_path, accumulation):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, padding_side="left")
    trained = []
    for collator in (None, pad_left):
        options = {**ONE_STEP, "per_device_train_batch_size": 8 // accumulation}
        trainer = ForgettingTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_model),
            args=ForgettingConfig(
                **config(tmp_path, gradient_accumulation_steps=accumulation, **options)
            ),
            train_dataset=Dataset.from_list(with_base(rows(8))),
            processing_class=tokenizer,
            data_collator=collator,
        )
        trainer.train()
        trained.append(weights(trainer))
    assert_same(*trained, 2e-6)


def test_a_streamed_dataset_trains_as_a_listed_one(tiny_model, tmp_path):
    trained = []
    for stream in (False, True):
        data = Dataset.from_list(rows(8))
        trainer = ForgettingTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_model),
            args=ForgettingConfig(**config(tmp_path, **{**ONE_STEP, "max_length": 15})),
            train_dataset=data.to_iterable_dataset() if stream else data,
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
        )
        trainer.train()
        trained.append(weights(trainer))
    assert_same(*trained, 1e-6)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"max_steps": 6}, "max_steps"),
        ({"per_device_train_batch_size": 2}, "per_device_train_batch_size"),
        ({"t_max": 0.1}, "t_max"),
        ({"term": "wga"}, "term.kind"),
    ],
)
def test_resuming_with_another_course_is_refused(train, tmp_path, change, name):
    common = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    train(rows(20), callbacks=[StopAt(2)], **common)
    checkpoint = latest_checkpoint(tmp_path / "out")
    with pytest.raises(ValueError, match=f"written with {name} "):
        train(rows(20), resume=str(checkpoint), **{**common, **change})


@pytest.mark.parametrize("use_adapter", [False, True], ids=["whole", "adapter"])
def test_gradient_checkpointing_takes_the_same_step(train, use_adapter):
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    trained = []
    for checkpointing in (False, True):
        options = {**ONE_STEP, "gradient_checkpointing": checkpointing}
        trainer = train(rows(8), peft_config=adapter if use_adapter else None, **options)
        trained.append(weights(trainer))
    assert_same(*trained, 2e-6)


def test_bfloat16_takes_nearly_the_step_of_float32(train):
    before = weights(train(rows(8), **{**ONE_STEP, "learning_rate": 0.0}))
    moves = []
    for bf16 in (False, True):
        trainer = train(rows(8), **{**ONE_STEP, "bf16": bf16, "use_cpu": True})
        after = weights(trainer)
        moves.append(torch.cat([(after[name] - before[name]).flatten() for name in before]))
    # The arithmetic is coarse, not the direction.
    assert torch.cosine_similarity(*moves, dim=0) > 0.99
    assert not torch.equal(*moves)


def test_true_resumes_from_the_last_whole_checkpoint(train, tmp_path):
    common = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "t_max": 0.3}
    samples = rows(24)
    straight = train(samples, **common)
    # As a kill while the checkpoint of step 6 is written leaves it.
    for name in ("sealed.json", "trainer_state.json"):
        (tmp_path / "out" / "checkpoint-6" / name).unlink()
    resumed = train(samples, resume=True, **common)
    assert_same(weights(straight), weights(resumed))
    for file in (tmp_path / "out").glob("checkpoint-*/sealed.json"):
        file.unlink()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        train(samples, resume=True, **common)


def test_nothing_is_pickled_not_even_for_a_moment(train, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was written")

    monkeypatch.setattr(torch, "save", refuse)
    trainer = train(rows(8), max_steps=2, save_strategy="steps", save_steps=1)
    trainer.save_model(str(tmp_path / "model"))
    assert not list(tmp_path.rglob("training_args*"))
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_checkpoint_that_is_not_whole_is_refused_by_its_path(train, tmp_path):
    common = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    train(rows(16), **common)
    first, last = (tmp_path / "out" / f"checkpoint-{step}" for step in (2, 4))
    (last / "optimizer.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=rf"{last} is not complete: .* Resume from {first}"):
        train(rows(16), resume=str(last), **common)
    (last / "sealed.json").unlink()
    with pytest.raises(ValueError, match=rf"{last} has no sealed.json: .* Resume from {first}"):
        train(rows(16), resume=str(last), **common)
    (first / "sealed.json").unlink()
    with pytest.raises(ValueError, match=rf"{first} has no sealed.json: .* Train from the start"):
        train(rows(16), resume=str(first), **common)
    with pytest.raises(ValueError, match="there is no checkpoint"):
        train(rows(16), resume=str(tmp_path / "nowhere"), **common)


def test_a_checkpoint_of_the_model_alone_cannot_be_resumed(train, tmp_path):
    common = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    train(rows(8), **common)
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    for resume in (True, checkpoint):
        with pytest.raises(ValueError, match=rf"{checkpoint} holds the model .*save_only_model"):
            train(rows(8), resume=resume, **common)
