"""Trains a model on samples from a file, as one of several processes, or alone.

Once for each of several configurations (JSON) by name, because starting processes takes longer than
training.
"""

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.training.config import ForgettingConfig
from forgetting.training.trainer import ForgettingTrainer


def main(model: str, samples: str, output: str, configs: str) -> None:
    torch.set_num_threads(1)
    for name, config in json.loads(configs).items():
        train(model, samples, Path(output) / name, config)


def train(model: str, samples: str, output: Path, config: dict[str, Any]) -> None:
    trainer = ForgettingTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=ForgettingConfig(output_dir=str(output / "out"), **config),
        train_dataset=Dataset.from_list(json.loads(Path(samples).read_text())),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        output.mkdir(parents=True, exist_ok=True)
        save_file(weights, output / "weights.safetensors")
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))
        (output / "processes.txt").write_text(str(trainer.accelerator.num_processes))
