"""Transformers' `Trainer` with checkpoints that hold no pickle and are whole or not there.

Each override replaces a place where Trainer pickles. Under DeepSpeed, checkpoints keep DeepSpeed's
own format. Knows nothing of the loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from forgetting.training.checkpoints import (
    OPTIMIZER,
    RANDOM_STATE,
    check_resumable,
    check_whole,
    latest_checkpoint,
    load_state,
    random_state,
    save_state,
    seal,
    set_random_state,
)

COURSE = "course.json"
"""In every checkpoint: what must not change when training resumes from it."""
SCALER = "scaler"
PROGRESS = "progress.json"
"""In every checkpoint: how far the run has come, besides what Trainer keeps."""


class _TorchWithoutSave:
    """The module torch, with a `save` that writes nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def save(self, *_: Any, **__: Any) -> None:
        pass


def _without_pickle() -> Any:
    """While this context is open, nothing that Trainer itself pickles is written."""
    return patch.object(transformers.trainer, "torch", _TorchWithoutSave())


class SafeTrainer(Trainer):
    """Saves tensors as safetensors, everything else as JSON, and a seal last."""

    _unpushed: str | None = None
    """A checkpoint to upload once it is complete."""
    _open_log: tuple[float, int] | None = None
    """Sum of the losses since the last log and the step of that log, in a resumed run."""

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *positional: Any, **named: Any
    ) -> Any:
        """Train as `Trainer` does; True resumes from the last checkpoint that is whole."""
        if resume_from_checkpoint is True:
            # Trainer would take the last one, even if it was killed while it wrote it.
            latest = latest_checkpoint(Path(self.args.output_dir))
            if latest is None:
                raise ValueError(f"{self.args.output_dir} holds no complete checkpoint to resume")
            resume_from_checkpoint = str(latest)
        elif resume_from_checkpoint:
            check_whole(Path(resume_from_checkpoint))
        if resume_from_checkpoint and not self.is_deepspeed_enabled:
            check_resumable(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *positional, **named)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Trainer pickles its arguments next to the weights.
        with _without_pickle():
            super()._save(output_dir, state_dict)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer would upload a checkpoint that is not complete yet.
        self._unpushed = checkpoint_folder

    def _push(self, checkpoint_folder: str) -> None:
        # Trainer pickles its arguments here as well, among what it uploads in the background.
        with _without_pickle():
            super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        # Trainer writes nothing if checkpoints are sharded. A checkpoint holds the weights in
        # another form, see `_save_optimizer_and_scheduler`.
        if not _internal_call:
            weights = self.accelerator.get_state_dict(self.model)
            # Gathered one by one, so save_pretrained cannot see which weights are tied.
            for name in self.model.all_tied_weights_keys:
                weights.pop(name, None)
            if self.args.should_save:
                self._save(output_dir, weights)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._unpushed = None
        super()._save_checkpoint(model, trial)
        # Every process computes it: it may hold sums over all of them.
        progress = self._progress()
        # Each process writes the state of its random generators.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir) / (
                f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            )
            (folder / COURSE).write_text(json.dumps(self._course(), indent=1))
            (folder / PROGRESS).write_text(json.dumps(progress, indent=1))
            seal(folder)
        if self._unpushed is not None:
            self._push(self._unpushed)

    def _course(self) -> dict[str, Any]:
        """What every step of the run depends on. Subclasses add to it."""
        return {
            "max_steps": self.state.max_steps,
            "num_processes": self.args.world_size,
            "per_device_train_batch_size": self.args.per_device_train_batch_size,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
        }

    def _progress(self) -> dict[str, Any]:
        """State of the run as JSON, that a resumed run goes on from. Subclasses add to it."""
        losses = self.accelerator.gather(self._tr_loss).mean().item()
        return {"open_loss": losses, "last_logged": self._globalstep_last_logged}

    def _set_progress(self, progress: dict[str, Any]) -> None:
        """Go on from what `_progress` returned."""
        if "open_loss" in progress:
            self._open_log = progress["open_loss"], progress["last_logged"]

    def _run_epoch(self, *positional: Any, **named: Any) -> Any:
        # Trainer begins a new mean of the loss where it resumes, also between two logs.
        if self._open_log is not None:
            losses, self._globalstep_last_logged = self._open_log
            self._tr_loss += losses
            self._open_log = None
        if self.state.global_step >= self.state.max_steps:
            # Resumed from its end. Trainer looks only after a step, and would train one too many
            # where the end is within an epoch.
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*positional, **named)

    def _check_course(self, checkpoint: str) -> None:
        # Trainer would resume with other settings, and take other samples and another lambda.
        file = Path(checkpoint) / COURSE
        if not file.is_file():
            return
        before = json.loads(file.read_text())
        for name, value in self._course().items():
            if name in before and before[name] != value:
                raise ValueError(
                    f"{checkpoint} was written with {name} {before[name]}, and this run has "
                    f"{value}: the schedule of lambda and the order of the samples would change. "
                    f"Set {name} back, or train from the start"
                )

    # Trainer pickles the optimizer, the scheduler, the scaler of gradients, the random generators,
    # and under FSDP the weights.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        if self.is_fsdp_enabled:
            # Gathered on the first process; weights keep the names of the sharded model.
            options = StateDictOptions(
                full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
            )
            weights, optimizer = get_state_dict(self.model, self.optimizer, options=options)
            if self.args.should_save:
                save_state(weights, Path(output_dir) / "weights")
        else:
            optimizer = self.optimizer.state_dict()
        if self.args.should_save:
            save_state(optimizer, Path(output_dir) / OPTIMIZER)
            save_state(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._check_course(checkpoint)
            progress = Path(checkpoint) / PROGRESS
            if progress.is_file():
                self._set_progress(json.loads(progress.read_text()))
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        if self.is_fsdp_enabled:
            # Only the first process reads. Not `set_state_dict`: without weights it would leave
            # the weights alone on the other processes, and the first would wait for them.
            options = StateDictOptions(
                full_state_dict=True, broadcast_from_rank0=True, strict=False
            )
            is_main = self.accelerator.is_main_process
            weights = load_state(folder / "weights") if is_main else {}
            set_model_state_dict(self.model, weights, options=options)
            state = load_state(folder / OPTIMIZER) if is_main else {}
            set_optimizer_state_dict(self.model, self.optimizer, state, options=options)
        else:
            self.optimizer.load_state_dict(load_state(folder / OPTIMIZER))
        self.lr_scheduler.load_state_dict(load_state(folder / "scheduler"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Under FSDP the weights are loaded with the optimizer.
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_rng_state(self, output_dir: str) -> None:
        save_state(random_state(), self._random_state_path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(load_state(self._random_state_path(checkpoint)))

    def _save_scaler(self, output_dir: str) -> None:
        scaler = self._scaler
        if scaler is not None and self.args.should_save:
            save_state(scaler.state_dict(), Path(output_dir) / SCALER)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and (Path(checkpoint) / f"{SCALER}.json").is_file():
            self.accelerator.scaler.load_state_dict(load_state(Path(checkpoint) / SCALER))

    @property
    def _scaler(self) -> Any:
        """Scales gradients with `fp16`; None without."""
        return getattr(self.accelerator, "scaler", None)

    def _random_state_path(self, checkpoint: str) -> Path:
        Path(checkpoint).mkdir(parents=True, exist_ok=True)
        return Path(checkpoint) / f"{RANDOM_STATE}_{self.args.process_index}"
