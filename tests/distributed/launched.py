"""Two processes that compute together, started as `accelerate launch` starts them.

Accelerate's launcher reads the options and the configuration and prepares the environment. Only
torch's launcher behind it is replaced: each of its processes would import everything for longer
than it computes. How it starts, watches and ends processes is in `test_launch.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from unittest import mock

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed import TCPStore
from torch.multiprocessing import start_processes

from tests.forked import become, fork_server

MINUTES = 15 * 60
HOST = "127.0.0.1"
# Processes of torch.distributed without a configuration; with --cpu, accelerate would start them
# by MPI.
PLAIN = ("--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")


def launch(function: Callable[..., None], *arguments: str, options: Sequence[str] = PLAIN) -> None:
    """Call a function in two processes that know of each other, and wait for both.

    Args:
        function: of a module, so that the other process finds it.
        options: of `accelerate launch`.

    Raises:
        ProcessRaisedException: one of them failed; holds its traceback. The other is ended.
    """

    def run(args) -> None:
        count = int(args.nproc_per_node)
        # As with torch's launcher, the processes meet at a port of the one that starts them.
        store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        environment = {
            **os.environ,
            "MASTER_ADDR": HOST,
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
        }
        fork_server()
        work = environment, function, arguments
        processes = start_processes(_work, work, count, join=False, start_method="forkserver")
        end = time.monotonic() + MINUTES
        try:
            # It returns whenever one of them has ended.
            while not processes.join(timeout=MINUTES):
                assert time.monotonic() < end, "the processes do not end"
        finally:
            for process in processes.processes:
                process.kill()

    given = [*options, "--num_processes=2", "--main_process_port=0", "-m", function.__module__]
    with mock.patch("torch.distributed.run.run", run):
        launch_command(launch_command_parser().parse_args(given))


def _work(
    rank: int,
    environment: Mapping[str, str],
    function: Callable[..., None],
    arguments: Sequence[str],
) -> None:
    become({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    function(*arguments)
