"""Trains on samples from a file as one of two processes: straight, stopped by a signal, resumed.

The signal reaches the second process only, in the middle of its second step.
"""

import json
import os
import signal
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from forgetting.training.config import ForgettingConfig
from forgetting.training.stopping import CheckpointCallback, SignalWatch
from forgetting.training.trainer import ForgettingTrainer


class SignalSecond(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1 and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main(model: str, samples: str, output: str, config: str) -> None:
    torch.set_num_threads(1)
    for name in ("straight", "stopped", "resumed"):
        folder = Path(output) / ("straight" if name == "straight" else "stopped")
        watch = SignalWatch()
        stops = CheckpointCallback(watch, is_timed=False)
        trainer = ForgettingTrainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=ForgettingConfig(output_dir=str(folder), **json.loads(config)),
            train_dataset=Dataset.from_list(json.loads(Path(samples).read_text())),
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[stops, *([SignalSecond()] if name == "stopped" else [])],
        )
        with watch:
            trainer.train(resume_from_checkpoint=name == "resumed" or None)
        found = {"step": trainer.state.global_step, "stopped_by": stops.stopped_by}
        found["log"] = [entry for entry in trainer.state.log_history if "loss" in entry]
        (Path(output) / f"{name}-{trainer.args.process_index}.json").write_text(json.dumps(found))
        if trainer.accelerator.is_main_process:
            weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
            save_file(weights, Path(output) / f"{name}.safetensors")
