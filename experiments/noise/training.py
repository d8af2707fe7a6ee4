"""Train a variant with `ForgettingTrainer`, and measure a model on held-out questions.

In: a recipe's training settings, and samples with polarity or weights. Out: the model, in memory.
Knows nothing of noise, cells or files.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from forgetting import ForgettingConfig, ForgettingTrainer, Recipe
from forgetting.config import VariantSettings
from forgetting.rundir.samples import Samples

SAMPLES_PER_BATCH = 64


def load_base(recipe: Recipe) -> Any:
    """The base model of a recipe, in float32."""
    return AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path, dtype=torch.float32)


def train(recipe: Recipe, variant: VariantSettings, samples: pa.Table) -> Any:
    """Fine-tune the base model on samples.

    Args:
        samples: with the columns of the trainer.

    Returns:
        The model.

    Raises:
        DivergenceError: training diverged.
    """
    settings = recipe.training
    # Lambda stays 0 if the negative tokens are ignored.
    forgetting: dict[str, Any] = {"schedule": "constant", "t_min": 0.0, "t_max": 0.0}
    if variant.objective == "forgetting":
        forgetting = variant.forgetting.trainer_arguments()
    lora = settings.lora
    with tempfile.TemporaryDirectory() as folder:
        config = ForgettingConfig(
            output_dir=folder,
            sort_by_length=True,
            **forgetting,
            **variant.loss.trainer_arguments(),
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.lr_scheduler,
            warmup_steps=settings.warmup_ratio,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.micro_batch_size,
            gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            gradient_checkpointing=settings.gradient_checkpointing,
            bf16=False,
            use_cpu=not torch.accelerator.is_available(),
            # A training takes seconds: an interrupted one is done again.
            save_strategy="no",
            logging_steps=settings.logging_interval(len(samples)),
            report_to=[],
            disable_tqdm=True,
            max_length=None,
            seed=recipe.seed,
        )
        trainer = ForgettingTrainer(
            model=load_base(recipe),
            args=config,
            train_dataset=Dataset(samples),
            processing_class=AutoTokenizer.from_pretrained(recipe.model.name_or_path),
            peft_config=None
            if lora is None
            else LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
                task_type="CAUSAL_LM",
            ),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.model


@torch.inference_mode()
def evaluate(model: Any, samples: Samples) -> tuple[NDArray[np.bool_], float]:
    """Whether greedy decoding gives each response exactly, and the mean loss of the response
    tokens in nats.

    The right response is fed in: greedy decoding gives it if and only if each of its tokens is the
    most probable one after those before it.

    Returns:
        Shape (samples,), and one number.
    """
    model.eval()
    device = next(model.parameters()).device
    starts = samples.token_starts
    is_exact = np.ones(len(samples), bool)
    total = 0.0
    # Samples of similar length share a batch.
    order = np.argsort(samples.lengths, kind="stable")
    for begin in range(0, len(samples), SAMPLES_PER_BATCH):
        batch = order[begin : begin + SAMPLES_PER_BATCH]
        input_ids = np.zeros((len(batch), samples.lengths[batch].max()), np.int64)
        is_response = np.zeros(input_ids.shape, bool)
        for row, index in enumerate(batch):
            own = slice(starts[index], starts[index + 1])
            input_ids[row, : own.stop - own.start] = samples.input_ids[own]
            is_response[row, : own.stop - own.start] = samples.is_response[own]
        # No mask: a causal model does not look at the padding, which is on the right.
        ids = torch.from_numpy(input_ids).to(device)
        log_probs = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        is_right = (log_probs.argmax(-1) == ids[:, 1:]).cpu().numpy()
        losses = -log_probs.gather(-1, ids[:, 1:, None])[..., 0].cpu().numpy()
        wanted = is_response[:, 1:]
        is_exact[batch] = (is_right | ~wanted).all(1)
        total += float(losses[wanted].sum(dtype=np.float64))
    return is_exact, total / int(samples.is_response.sum())
