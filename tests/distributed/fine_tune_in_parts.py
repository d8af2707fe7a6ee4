"""Fine-tunes as a stage does, over processes that share one model (FSDP2 on CPUs).

The first process writes what became of each training: of all weights and of an adapter, as they
are and with damaged weights on disk.
"""

import json
import os
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file

from forgetting.config import VariantSettings, load_recipe
from forgetting.errors import ForgettingError
from forgetting.rundir.directory import Work
from forgetting.rundir.processes import Processes
from forgetting.training import fit


class Watched(fit.ForgettingTrainer):
    """Notes whether this process holds only a part of the model."""

    is_sharded: set[bool] = set()

    def save_model(self, output_dir=None, _internal_call=False):
        kinds = {type(parameter).__name__ for parameter in self.model.parameters()}
        self.is_sharded.add(kinds == {"DTensor"})
        super().save_model(output_dir, _internal_call)


class Damaging(Watched):
    """Writes other weights than it trained."""

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        for file in Path(output_dir).glob("*model.safetensors"):
            tensors = load_file(file)
            name = next(name for name in tensors if "q_proj" in name)
            save_file({**tensors, name: tensors[name] + 1}, file, metadata={"format": "pt"})


def main(recipe: str, samples: str, output: str) -> None:
    torch.set_num_threads(1)
    # PyTorch shards models on CPUs. Accelerate does so on accelerators only, and would train the
    # whole model in each process.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    backend = ("gloo", DistributedType.MULTI_GPU)
    PartialState._prepare_backend = lambda self, *args, **kwargs: backend
    PartialState()
    own = fit.ForgettingConfig
    fit.ForgettingConfig = lambda **settings: own(
        **{**settings, "use_cpu": False, "dataloader_pin_memory": False}
    )
    processes = Processes(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))
    table = pa.Table.from_pylist(json.loads(Path(samples).read_text()))
    found: dict = {"sharded": Watched.is_sharded}
    for kind, overrides in (("full", ["training.lora=null"]), ("merged", ["training.merge=true"])):
        loaded = load_recipe(recipe, overrides)
        variant = VariantSettings(objective="full")
        for fit.ForgettingTrainer in (Watched, Damaging):
            name = f"{kind}, damaged" if fit.ForgettingTrainer is Damaging else kind
            work = Work(Path(output) / name, processes)
            work.output.mkdir(parents=True, exist_ok=True)
            try:
                fit.fine_tune(loaded, loaded.training, variant, [table], name, work, [1])
                found[name] = sorted(file.name for file in work.output.iterdir())
            except ForgettingError as error:
                found[name] = str(error)
            processes.wait()
    if processes.is_main:
        Path(output, "found.json").write_text(json.dumps(found, default=list))
