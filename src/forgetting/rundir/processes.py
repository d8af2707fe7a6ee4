"""The processes that work on one run together, started by `accelerate launch`.

The first leads: it alone decides what is done next and writes the manifest. The others do what
they are told and wait for the next order, however long that takes. A process alone leads itself.
Knows nothing of stages or runs.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from forgetting.errors import InputError

# Stages of one process can take days, and nobody waits for them in vain: a process that ends
# closes its connections.
WAITING = timedelta(days=365)
# Inside a step, where all work: as transformers' `ddp_timeout`.
WORKING = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """How many there are, and which of them this one is."""

    index: int = 0
    count: int = 1
    group: Any = None
    """Of torch.distributed, on the CPU; None for a process alone."""

    @property
    def is_main(self) -> bool:
        """Whether this one leads."""
        return self.index == 0

    def share(self, order: Any = None) -> Any:
        """The order of the leading process, to all; only that one gives it. Plain JSON values."""
        if self.group is None:
            return order
        import torch
        import torch.distributed as dist

        # JSON in a tensor of bytes: torch's own way to send an object is a pickle.
        text = torch.frombuffer(bytearray(json.dumps(order).encode()), dtype=torch.uint8)
        size = torch.tensor([len(text)])
        dist.broadcast(size, 0, self.group)
        if not self.is_main:
            text = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(text, 0, self.group)
        return json.loads(bytes(text.tolist()))

    def wait(self) -> None:
        """Until all are here."""
        if self.group is not None:
            import torch.distributed as dist

            dist.barrier(self.group)


ALONE = Processes()


def num_processes() -> int:
    """How many processes were started together with this one."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def process_index() -> int:
    """Which of them this one is; 0 leads."""
    return int(os.environ.get("RANK", 0)) if num_processes() > 1 else 0


def join_processes(device_type: str) -> Processes:
    """Meet the processes that were started together with this one, to compute on `device_type`.

    Raises:
        InputError: a model is to be spread over processes that cannot.
    """
    if num_processes() == 1:
        return ALONE
    import torch.distributed as dist
    from accelerate import PartialState

    if device_type == "cpu":
        if share_one_model():
            # Accelerate would say nothing and give each process the whole model.
            raise InputError(
                "FSDP and DeepSpeed need accelerators, and this machine has none: start the "
                "processes with another configuration, such as ddp"
            )
        PartialState(cpu=True)
    else:
        PartialState(timeout=WORKING)
    group = dist.new_group(timeout=WAITING, backend="gloo")
    return Processes(dist.get_rank(), dist.get_world_size(), group)


def share_one_model() -> bool:
    """Whether each process holds a part of the model in training, by FSDP or ZeRO-3."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return num_processes() > 1 and any(os.environ.get(name) == "true" for name in names)


def leave_processes() -> None:
    """Part in peace, after the last step."""
    if num_processes() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def end_with_the_others() -> None:
    """End at Ctrl-C at once, and when the process that started this one is gone.

    Whoever started it says what happened. A process in a collective operation hears of neither:
    the operation waits outside of Python.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
