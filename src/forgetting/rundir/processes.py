"""Processes that work on one run together, started by `accelerate launch`.

The main process alone decides what comes next and writes the manifest. The others follow its orders
and wait for the next one without a time limit. A single process is the main process. Knows nothing
of stages or runs.
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

# A stage of one process can take days. A process that ends closes its connections, so nobody waits
# in vain.
WAITING = timedelta(days=365)
# Inside a shared stage; the default of transformers' `ddp_timeout`.
WORKING = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """The number of processes, and the index of this one."""

    index: int = 0
    count: int = 1
    group: Any = None
    """A CPU process group of torch.distributed; None for a single process."""

    @property
    def is_main(self) -> bool:
        """Whether this is the main process."""
        return self.index == 0

    def share(self, order: Any = None) -> Any:
        """Send a JSON value from the main process to all; returns it everywhere.

        Args:
            order: the value. Only the main process passes it.
        """
        if self.group is None:
            return order
        import torch
        import torch.distributed as dist

        # JSON in a tensor of bytes, because torch sends objects as pickles.
        text = torch.frombuffer(bytearray(json.dumps(order).encode()), dtype=torch.uint8)
        size = torch.tensor([len(text)])
        dist.broadcast(size, 0, self.group)
        if not self.is_main:
            text = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(text, 0, self.group)
        return json.loads(bytes(text.tolist()))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.group is not None:
            import torch.distributed as dist

            dist.barrier(self.group)


ALONE = Processes()


def num_processes() -> int:
    """The number of processes that were started together."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def process_index() -> int:
    """The index of this process; 0 is the main process."""
    return int(os.environ.get("RANK", 0)) if num_processes() > 1 else 0


def join_processes(device_type: str) -> Processes:
    """Join the processes that were started together, to compute on `device_type`.

    Raises:
        InputError: FSDP or DeepSpeed is configured on a machine without accelerators.
    """
    if num_processes() == 1:
        return ALONE
    import torch.distributed as dist
    from accelerate import PartialState

    if device_type == "cpu":
        if share_one_model():
            # Accelerate would silently give each process the whole model.
            raise InputError(
                "FSDP and DeepSpeed need accelerators, and this machine has none. Use another "
                "configuration, such as ddp"
            )
        PartialState(cpu=True)
    else:
        PartialState(timeout=WORKING)
    group = dist.new_group(timeout=WAITING, backend="gloo")
    return Processes(dist.get_rank(), dist.get_world_size(), group)


def share_one_model() -> bool:
    """Whether FSDP or ZeRO-3 splits the model over the processes in training."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return num_processes() > 1 and any(os.environ.get(name) == "true" for name in names)


def leave_processes() -> None:
    """Leave the process group after the last stage."""
    if num_processes() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def end_with_the_others(launcher: int | None = None) -> None:
    """Exit at once on Ctrl-C, and when the parent process is gone.

    The parent reports what happened. A process in a collective operation waits outside of Python
    and would notice neither.

    Args:
        launcher: process id of the parent, if it is known; the parent may be gone already.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = os.getppid() if launcher is None else launcher

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
