"""Fine-tunes the base model of a recipe on selected tokens.

Input: a recipe, how to train, and samples with polarity. Output: a folder with the adapter
or the weights, and the figures of every logged step. An interrupted training resumes from its
last whole checkpoint. The processes of a run call `fine_tune` together.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback

from forgetting.config import Recipe, TrainingSettings, VariantSettings
from forgetting.console import logger
from forgetting.errors import DivergenceError, InputError
from forgetting.models import loading
from forgetting.models.adapters import continue_adapter, whole_weights
from forgetting.models.prompting import prompting_tokenizer, set_end_tokens
from forgetting.models.reported import first_not_finite
from forgetting.models.saving import check_adapter, check_saved, save_merged
from forgetting.models.verification import check_prompting, probe_logits
from forgetting.rundir.directory import Work
from forgetting.rundir.processes import share_one_model
from forgetting.rundir.stats import continued_log, write_training_log
from forgetting.training.checkpoints import check_num_processes, latest_checkpoint
from forgetting.training.config import ForgettingConfig
from forgetting.training.dataset import write_stream
from forgetting.training.progress import ProgressCallback
from forgetting.training.stopping import CheckpointCallback, SignalWatch, agree, leave
from forgetting.training.trainer import ForgettingTrainer


@dataclass(frozen=True)
class Start:
    """A model of the same recipe that a training goes on from, instead of the base model."""

    path: Path
    """Its folder, as `fine_tune` wrote it without `merge`."""
    num_steps: int
    """Optimizer steps of its own training."""


def fine_tune(
    recipe: Recipe,
    training: TrainingSettings,
    variant: VariantSettings,
    tables: Iterable[pa.Table],
    label: str,
    work: Work,
    end_token_ids: Collection[int],
    start: Start | None = None,
) -> None:
    """Fine-tune the base model and write it to `work.output`.

    Resumes from the checkpoints in `work.path`.

    Args:
        training: the recipe's `training` or `reference`.
        variant: how tokens are learned, and whether and how negative ones are unlearned.
        tables: the samples in parts, with the columns of `dataset.trainer_columns`.
        label: name for the progress bar and for trackers.
        end_token_ids: tokens that end a labeled response, at which generation will stop.
        start: model whose weights the training begins with. Its optimizer and schedule are new.
            Its log comes before the new one.

    Raises:
        ForgettingError: what was written does not work like the trained model.
        InputError: the checkpoint was written by another number of processes, or a tracker is
            not installed.
        DivergenceError: training diverged.
        KeyboardInterrupt: Ctrl-C was pressed. A checkpoint has been written.
        SystemExit: the process was asked to end (SIGTERM). A checkpoint has been written.
    """
    dtype = loading.pick_dtype(recipe.model)
    # A file that every process maps into memory, so that none holds it.
    data = work.path / "samples.arrow"
    if work.processes.is_main:
        write_stream(tables, data)
    work.processes.wait()
    dataset = Dataset.from_file(str(data))
    checkpoints = work.path / "checkpoints"
    latest = latest_checkpoint(checkpoints)
    if latest is not None:
        check_num_processes(latest, work.processes.count)
    config = trainer_config(
        recipe, training, variant, checkpoints, label, work.processes.count, len(dataset)
    )
    # All weights train in float32 and compute in `dtype`; the base of an adapter is frozen.
    # Loaded after the configuration, which may say that processes share one model.
    first = recipe.model
    if start is not None and training.lora is None:
        first = whole_weights(first, start.path)
    model = loading.load_base_model(
        first, dtype if training.lora else torch.float32, in_parts=share_one_model()
    )
    tokenizer = prompting_tokenizer(recipe)
    watch = SignalWatch()
    stops = CheckpointCallback(watch, is_timed=training.save_steps is None)
    callbacks = [ProgressCallback(label), stops, *_tensorboard(training, work)]
    trainer = make_trainer(recipe, training, config, model, tokenizer, dataset, callbacks)
    if start is not None and training.lora is not None:
        continue_adapter(trainer.model, start.path)
    if latest is not None:
        logger.info("%s: resuming from step %s", label, latest.name.removeprefix("checkpoint-"))
    with watch:
        trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    # A signal during the last step's checkpoint or log reached no step that could stop.
    number = stops.stopped_by or agree(False, watch.received or 0)[1]
    if number:
        leave(number)
    set_end_tokens(model, end_token_ids)
    folder = work.path / "adapter" if training.merge else work.output
    # Before anything is computed: parts that were gathered for it would stay so.
    trainer.save_model(str(folder))
    is_shared = share_one_model()
    # All processes compute it: if they share one model, no process can do so alone.
    expected = probe_logits(
        trainer.model,
        dtype,
        forward=trainer.model_wrapped if is_shared else None,
        device=trainer.args.device if is_shared else None,
    )
    _check_finite(trainer.model, expected, label, is_shared)
    if not work.processes.is_main:
        return
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    if start is not None:
        entries = continued_log(start.path, start.num_steps, entries)
    write_training_log(work.output, entries)
    num_tokens = pc.sum(pc.list_value_length(dataset.data["input_ids"])).as_py()
    work.details["tokens"] = round(training.epochs * num_tokens)
    work.details["steps"] = trainer.state.global_step
    work.details["trainable_parameters"] = sum(
        p.numel() for p in trainer.model.parameters() if p.requires_grad
    )
    if training.lora:
        # PEFT writes the adapter only.
        model.generation_config.save_pretrained(folder)
        if not is_shared:
            check_adapter(trainer.model, dtype, folder, expected)
    # A second model is loaded now, for which the first must go.
    del trainer, model
    gc.collect()
    if is_shared or training.lora is None:
        # A model that does not fit here in float32 is loaded as it will be evaluated.
        weights = dtype if is_shared else torch.float32
        check_saved(recipe.model, weights, dtype, folder, expected)
    if training.merge:
        save_merged(recipe.model, dtype, folder, work.output, tokenizer, end_token_ids)
    check_prompting(work.output, tokenizer, end_token_ids)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _check_finite(model: Any, logits: Tensor, label: str, is_shared: bool) -> None:
    """Refuse a trained model with a weight that is no finite number, before its stage is done.

    Args:
        logits: of the model, which show what this process may not hold of a shared one.

    Raises:
        DivergenceError: there is one.
    """
    name = None if is_shared else first_not_finite(model)
    if name is None and bool(torch.isfinite(logits).all()):
        return
    where = "its logits are" if name is None else f"{name} is"
    raise DivergenceError(
        f"{label}: training diverged in its last step: {where} not finite. Lower the learning rate "
        "or weight_decay, or set max_grad_norm"
    )


def make_trainer(
    recipe: Recipe,
    training: TrainingSettings,
    config: ForgettingConfig,
    model: Any,
    tokenizer: Any,
    dataset: Dataset,
    callbacks: list[Any],
) -> Any:
    """The trainer of a recipe, ready to train."""
    trainer = ForgettingTrainer(
        model=model,
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=loading.lora_config(training.lora) if training.lora else None,
        callbacks=callbacks,
    )
    if recipe.model.quantization is not None and loading.pick_dtype(recipe.model) == torch.float32:
        # TRL has made them bfloat16, which modules that are trained whole cannot compute with here.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    return trainer


def trainer_config(
    recipe: Recipe,
    training: TrainingSettings,
    variant: VariantSettings,
    checkpoints: Path,
    label: str,
    num_processes: int,
    num_samples: int,
) -> ForgettingConfig:
    """The settings of the trainer of a recipe."""
    # A lambda of zero ignores the negatives, and their figures are still logged.
    unlearning: dict[str, Any] = {"schedule": "constant", "t_min": 0.0, "t_max": 0.0}
    if variant.objective == "forgetting":
        unlearning = variant.forgetting.trainer_arguments()
    return ForgettingConfig(
        output_dir=str(checkpoints),
        **unlearning,
        **variant.loss.trainer_arguments(),
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler,
        # The first step of a warm-up has the rate 0, and would be all there is.
        warmup_steps=training.warmup_ratio if training.num_steps(num_samples) > 1 else 0,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=training.batch_size
        // (training.micro_batch_size * num_processes),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        bf16=loading.pick_dtype(recipe.model) == torch.bfloat16,
        ddp_find_unused_parameters=False,
        use_cpu=loading.pick_device().type == "cpu",
        # Without a number of steps, `CheckpointCallback` asks for checkpoints.
        save_strategy="no" if training.save_steps is None else "steps",
        save_steps=training.save_steps or 0,
        # The checkpoint before the newest stays until the newest is sealed.
        save_total_limit=2,
        logging_steps=training.logging_interval(num_samples),
        report_to=[tracker for tracker in training.report_to if tracker != "tensorboard"],
        run_name=f"{recipe.name}: {label}",
        disable_tqdm=True,
        sort_by_length=True,
        # `prepare` has cut the samples.
        max_length=None,
        seed=recipe.seed,
    )


def _tensorboard(training: TrainingSettings, work: Work) -> list[Any]:
    """A callback that writes next to the model.

    Trainer's own would write into the checkpoints, which are removed when training ends.
    """
    if "tensorboard" not in training.report_to or not work.processes.is_main:
        return []
    from transformers.integrations import TensorBoardCallback

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "training.report_to names tensorboard, which is not installed: "
            "pip install 'forgetting[tensorboard]'"
        ) from error
    return [TensorBoardCallback(SummaryWriter(str(work.output / "tensorboard")))]
