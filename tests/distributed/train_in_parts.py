"""Trains on samples from a file, as one of several processes, or alone.

All weights, then an adapter; each once from start to end, and once more from the checkpoint in the
middle.
"""

import json
import os
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.training.config import ForgettingConfig
from forgetting.training.trainer import ForgettingTrainer

LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def main(model: str, samples: str, output: str, config: str) -> None:
    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # PyTorch shards models on CPUs. Accelerate does so on accelerators only, and would
        # train the whole model in each process.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        backend = ("gloo", DistributedType.MULTI_GPU)
        PartialState._prepare_backend = lambda self, *args, **kwargs: backend
    for kind in ("full", "lora"):
        for resume in (False, True):
            folder = Path(output) / kind
            trainer = ForgettingTrainer(
                model=AutoModelForCausalLM.from_pretrained(model),
                args=ForgettingConfig(output_dir=str(folder), **json.loads(config)),
                train_dataset=Dataset.from_list(json.loads(Path(samples).read_text())),
                processing_class=AutoTokenizer.from_pretrained(model),
                peft_config=LoraConfig(**LORA) if kind == "lora" else None,
            )
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
            trainer.save_model(str(folder / ("resumed" if resume else "whole")))
            is_sharded = "DTensor" in {type(p).__name__ for p in trainer.model.parameters()}
            (folder / "sharded.txt").write_text(str(is_sharded))
