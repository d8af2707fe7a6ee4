"""The trainer against its parent, against equation 8 computed apart, and against itself resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from forgetting.checkpoints import latest_checkpoint
from forgetting.errors import DivergenceError
from forgetting.trainer import ForgettingConfig, ForgettingTrainer, sorted_by_length


def rows(number: int, seed: int = 0, negatives: str = "some") -> list[dict[str, list[int]]]:
    """Samples of 6 to 20 tokens, the first 3 a prompt.

    With "some", only every fourth sample has negative tokens and one has no positive token, so
    that whole micro-batches lack one of them.
    """
    random = np.random.default_rng(seed)
    samples = []
    for index in range(number):
        length = int(random.integers(6, 20))
        ids = random.integers(3, 259, length).tolist()
        polarity = np.ones(length, dtype=int)
        if negatives == "some" and index % 4 == 0:
            polarity = random.choice([-1, 0, 1], length)
        if negatives == "some" and index % 8 == 0:
            polarity[:] = -1
        polarity[:3] = 0
        samples.append(
            {
                "input_ids": ids,
                "labels": [-100] * 3 + ids[3:],
                "polarity": polarity.tolist(),
            }
        )
    return samples


def config(folder: Path, **changes) -> dict:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 3,
        "max_length": None,
        "gradient_checkpointing": False,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_grad_norm": 0.0,
        **changes,
    }


@pytest.fixture
def train(tiny_model, tmp_path):
    """Trains the tiny model and returns the trainer."""

    def run(samples, cls=ForgettingTrainer, resume=None, callbacks=None, peft_config=None, **more):
        config_class = ForgettingConfig if cls is ForgettingTrainer else SFTConfig
        trainer = cls(
            model=AutoModelForCausalLM.from_pretrained(tiny_model),
            args=config_class(**config(tmp_path / "out", **more)),
            train_dataset=Dataset.from_list(samples),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
            callbacks=callbacks,
            peft_config=peft_config,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same(first, second, tolerance=0.0):
    assert first.keys() == second.keys()
    for name in first:
        assert (first[name] - second[name]).abs().max().item() <= tolerance, name


def assert_took_the_step(trainer, model, rate):
    """That the trainer's weights are those of `model`, one SGD step along its gradients."""
    expected = {
        name: (p - rate * p.grad).float()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    got = {name: value for name, value in weights(trainer).items() if name in expected}
    assert_same(expected, got, 2e-6)


def test_all_positive_trains_as_sft_does(train):
    samples = rows(16, negatives="none")
    ours = train(samples, t_max=0.25)
    plain = [{k: v for k, v in row.items() if k != "polarity"} for row in samples]
    theirs = train(plain, cls=SFTTrainer)
    assert_same(weights(ours), weights(theirs), 1e-6)
    ours_losses = [entry["loss"] for entry in ours.state.log_history if "loss" in entry]
    their_losses = [entry["loss"] for entry in theirs.state.log_history if "loss" in entry]
    assert ours_losses == pytest.approx(their_losses, abs=1e-6)


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


def test_npo_is_not_normalised_by_tokens(tmp_path):
    with pytest.raises(ValueError, match="one value a sample"):
        ForgettingConfig(**config(tmp_path, term="npo", normalization="token"))


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


def test_samples_of_a_step_are_dealt_by_length_and_none_is_lost():
    generator = torch.Generator().manual_seed(0)
    batches, samples = [], []
    for size, lengths in ((2, [3, 9]), (3, [1, 5, 7]), (1, [2])):
        width = max(lengths)
        mask = torch.tensor([[int(i < n) for i in range(width)] for n in lengths])
        ids = torch.randint(1, 99, (size, width), generator=generator) * mask
        labels = torch.where(mask == 1, ids, -100)
        polarity = mask * torch.randint(-1, 2, (size, width), generator=generator)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "polarity": polarity}
        batches.append(batch)
        samples += rows_of(batch)
    dealt = sorted_by_length(batches)
    assert [tuple(batch["input_ids"].shape) for batch in dealt] == [(2, 9), (3, 5), (1, 1)]
    assert sorted(row for batch in dealt for row in rows_of(batch)) == sorted(samples)
    for batch in dealt:
        padding = batch["attention_mask"] == 0
        assert (batch["labels"][padding] == -100).all()
        assert (batch["polarity"][padding] == 0).all()
    widths = [batch["input_ids"].shape[1] for batch in sorted_by_length(batches, 4)]
    assert widths == [9, 8, 4]


def rows_of(batch):
    return [
        tuple(tuple(values[i][mask == 1].tolist()) for values in batch.values())
        for i, mask in enumerate(batch["attention_mask"])
    ]


class StopAt(TrainerCallback):
    """Ends training after a step, as a kill after its checkpoint would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


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
    assert all(loss <= 2 * losses[0] for loss in losses)
    # Resumed, it compares with the same start.
    with pytest.raises(DivergenceError, match=f"the {losses[0]:.4g} of its start"):
        train(rows(40), divergence_ratio=2.0, resume=str(saved), **HUGE_LAMBDA)


def test_without_a_ratio_the_positive_loss_may_rise(train):
    trainer = train(rows(40), divergence_ratio=None, **HUGE_LAMBDA)
    losses = [e["positive_loss"] for e in trainer.state.log_history if "positive_loss" in e]
    assert max(losses) > 2 * losses[0]
    assert trainer.state.global_step == 30


def test_evaluation_is_the_mean_cross_entropy_of_all_labels(train, tiny_model):
    samples = rows(8)
    trainer = train(samples, max_steps=1)
    plain = Dataset.from_list(
        [{k: v for k, v in row.items() if k != "polarity"} for row in samples]
    )
    theirs = SFTTrainer(
        model=trainer.model,
        args=SFTConfig(**config(Path(trainer.args.output_dir))),
        train_dataset=plain,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    expected = theirs.evaluate(plain)["eval_loss"]
    assert trainer.evaluate(plain)["eval_loss"] == pytest.approx(expected, abs=1e-5)
    with_polarity = trainer.evaluate(Dataset.from_list(samples))["eval_loss"]
    assert with_polarity == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing": True, "max_length": 64}, "packing"),
        ({"padding_free": True}, "padding_free"),
        ({"loss_type": "dft"}, "loss_type"),
        ({"truncation_mode": "keep_end"}, "truncation_mode"),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices"),
    ],
)
def test_what_cannot_carry_polarity_is_refused(train, change, message):
    with pytest.raises(ValueError, match=message):
        train(rows(4), **change)


@pytest.mark.parametrize("column", ["input_ids", "labels", "polarity"])
def test_a_missing_column_is_named(train, column):
    samples = [{k: v for k, v in row.items() if k != column} for row in rows(4)]
    with pytest.raises(ValueError, match=f"no column {column}"):
        train(samples)


def test_a_bad_schedule_is_refused_by_the_config(tmp_path):
    with pytest.raises(ValueError, match="t_min"):
        ForgettingConfig(**config(tmp_path, t_min=0.5, t_max=0.1))
