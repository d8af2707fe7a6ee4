"""A step of the trainer on each architecture, against equation 8 from full logits in float64."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset

from forgetting.training.config import ForgettingConfig
from forgetting.training.trainer import ForgettingTrainer
from tests.conftest import byte_tokenizer, small_model

LAMBDA, RATE = 0.4, 0.05


def rows():
    random = np.random.default_rng(0)
    samples = []
    for index in range(6):
        length = int(random.integers(6, 20))
        ids = random.integers(3, 259, length).tolist()
        signs = random.choice([-1, 0, 1], length - 3).tolist() if index % 2 else [1] * (length - 3)
        samples.append(
            {"input_ids": ids, "labels": [-100] * 3 + ids[3:], "polarity": [0] * 3 + signs}
        )
    return samples


def padded(samples, name, fill):
    width = max(len(row[name]) for row in samples)
    return torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in samples])


@pytest.mark.parametrize("padding_free", [False, True], ids=["padded", "padding-free"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neo", "gemma2", "mixtral"])
def test_a_step_is_that_of_equation_8(kind, padding_free, tmp_path):
    samples, tokenizer = rows(), byte_tokenizer()
    model = small_model(kind, len(tokenizer))
    router = kind == "mixtral"
    if router:
        model.config.output_router_logits = True
        # Large enough to be seen if it were left out or counted twice.
        model.config.router_aux_loss_coef = 1.0
    double = copy.deepcopy(model).double().train()
    if router:
        # The grouped matrix multiplication has no float64.
        double.set_experts_implementation("eager")
    trainer = ForgettingTrainer(
        model,
        ForgettingConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=len(samples),
            max_steps=1,
            optim="sgd",
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            max_length=None,
            padding_free=padding_free,
            schedule="constant",
            t_max=LAMBDA,
        ),
        train_dataset=Dataset.from_list(samples),
        processing_class=tokenizer,
    )
    trainer.train()

    positive, negative = [], []
    for row in samples:
        ids = torch.tensor([row["input_ids"]])
        log_probs = double(input_ids=ids).logits[0].log_softmax(-1)
        for position, sign in enumerate(row["polarity"]):
            if sign:
                of_sign = positive if sign > 0 else negative
                of_sign.append(log_probs[position - 1, ids[0, position]])
    loss = -torch.stack(positive).mean() + LAMBDA * torch.stack(negative).mean()
    if router:
        # A loss of the whole batch, without its padding.
        mask = [{"mask": [1] * len(row["input_ids"])} for row in samples]
        aux_loss = double(
            input_ids=padded(samples, "input_ids", tokenizer.pad_token_id),
            attention_mask=padded(mask, "mask", 0),
            output_router_logits=True,
        ).aux_loss
        assert aux_loss > 0
        loss = loss + trainer.router_aux_loss_coef * aux_loss
    loss.backward()
    moved = 0.0
    trained = dict(model.named_parameters())
    for name, parameter in double.named_parameters():
        if parameter.grad is not None:
            expected = parameter.detach() - RATE * parameter.grad
            assert (expected - trained[name].double()).abs().max().item() <= 5e-6, name
            moved = max(moved, (RATE * parameter.grad).abs().max().item())
    assert moved > 1e-3
