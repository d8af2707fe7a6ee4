"""Trains a model on samples from files: python train_rows.py MODEL SAMPLES OUTPUT CONFIG (JSON).

Started by tests, alone and by `accelerate launch`.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.training.config import ForgettingConfig
from forgetting.training.trainer import ForgettingTrainer


def main(model: str, samples: str, output: str, config: str) -> None:
    torch.set_num_threads(1)
    trainer = ForgettingTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=ForgettingConfig(output_dir=str(Path(output) / "out"), **json.loads(config)),
        train_dataset=Dataset.from_list(json.loads(Path(samples).read_text())),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        save_file(weights, Path(output) / "weights.safetensors")
        (Path(output) / "log.json").write_text(json.dumps(trainer.state.log_history))
        (Path(output) / "processes.txt").write_text(str(trainer.accelerator.num_processes))


if __name__ == "__main__":
    main(*sys.argv[1:])
