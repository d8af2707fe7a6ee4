"""Several processes for one run: `accelerate launch`, called with a configuration.

Input: a recipe, a run directory, a number of processes, and the name of a shipped configuration
or a file of accelerate's. Output: nothing, or the error of the process that failed first, as
if it had happened here. Each process runs `python -m forgetting worker`, see `forgetting.cli`.

Ctrl-C reaches only this process: torch's launcher starts each worker in a session of its own.
Here it is Python's usual `KeyboardInterrupt`. On its way out torch's launcher ends the workers
with SIGTERM, which they do not handle: they die at once and in silence, even while they import or
wait for each other. So whoever called `launch` is the only one to answer. Workers that it has not
yet taken note of see that their parent is gone.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from forgetting.errors import ForgettingError, InputError

if TYPE_CHECKING:
    from forgetting.config import Recipe

DEFAULT_CONFIG = "ddp"
# The file in which a process tells the launcher how it ended.
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# Those that torch's launcher turns into exceptions: its default without SIGINT.
HANDLED_SIGNALS = ("SIGTERM", "SIGHUP", "SIGQUIT")


def shipped_configs() -> list[str]:
    """Names of the configurations in the package."""
    folder = resources.files("forgetting") / "launch_configs"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir())


def config_path(name: str) -> Path:
    """The file of a shipped configuration, or the user's own.

    Raises:
        InputError: there is neither.
    """
    if name in shipped_configs():
        return Path(str(resources.files("forgetting") / "launch_configs" / f"{name}.yaml"))
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"--accelerate-config: there is no file {name}. Shipped configurations: "
            f"{', '.join(shipped_configs())}. `accelerate config` writes one of your own"
        )
    return path


def launch(
    recipe: Recipe,
    run_dir: Path,
    stages: Sequence[str] | None = None,
    *,
    processes: int | None = None,
    config: str | None = None,
    quiet: bool = False,
) -> bool:
    """Run stages of a recipe in several processes and wait until they end.

    Args:
        stages: names of stages. Default: all.
        processes: number of processes, over all machines. Default: as the configuration says,
            else one for each accelerator of this machine.
        config: name of a shipped configuration, or a file that `accelerate config` wrote.
            Default: `ddp`.
        quiet: log only warnings and errors.

    Returns:
        Whether the leading process was on this machine, so that there are results to show.

    Raises:
        InputError: the processes cannot be started like this, or one found the user's input
            wrong.
        ForgettingError: one of them failed.
        KeyboardInterrupt: they were interrupted.
    """
    from forgetting.config import dump_recipe

    with tempfile.TemporaryDirectory(prefix="forgetting-") as folder:
        # The recipe as it was read here: extended, overridden, with absolute paths.
        file = Path(folder) / "recipe.yaml"
        file.write_text(dump_recipe(recipe), encoding="utf-8")
        arguments = ["worker", str(file), "--run-dir", str(run_dir)]
        for stage in stages or ():
            arguments += ["--stage", stage]
        options = launch_options(arguments + ["--quiet"] * quiet, processes, config)
        if options.num_machines == 1:
            # Interrupted while it starts the workers, torch's launcher forgets them.
            options.training_script_args += ["--launcher", str(os.getpid())]
        _run(options)
    return not options.machine_rank


def _run(options: Any) -> None:
    """Run accelerate's launcher; a failure becomes one of our errors."""
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with _own_logs_and_signals():
        try:
            try:
                launch_command(options)
            except ChildFailedError as error:
                _raise_cause(error.failures)
        except (ValueError, ConnectionError) as error:
            raise InputError(
                f"`accelerate launch` refuses {options.config_file}: {error}"
            ) from error
        except SignalException as error:
            raise ForgettingError(
                f"ended by {error.sigval.name}. Run the same command again to resume"
            ) from error


@contextmanager
def _own_logs_and_signals() -> Iterator[None]:
    """Silence the launchers, which print tables for what is one message here, and take back the
    signals that torch's launcher handles from then on."""
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in HANDLED_SIGNALS}
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for name, handler in handlers.items():
            signal.signal(getattr(signal, name), handler)


def launch_options(arguments: Sequence[str], num_processes: int | None, config: str | None) -> Any:
    """The options of `accelerate launch`, checked by its own parser.

    Args:
        arguments: of `python -m forgetting` in each process.

    Raises:
        InputError: this machine cannot start so many processes with this configuration.
    """
    path = config_path(config or DEFAULT_CONFIG)
    settings = _read(path)
    count = num_processes or settings.get("num_processes") or _num_accelerators()
    if not isinstance(count, int) or count < 1:
        raise InputError(
            f"{path} does not say how many processes to start, and this machine has no "
            "accelerator. Pass --processes"
        )
    if settings.get("distributed_type") == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise InputError(
            f"{path} needs the package deepspeed, which is not installed: pip install deepspeed"
        )
    if settings.get("distributed_type") in ("FSDP", "DEEPSPEED") and not _num_accelerators():
        raise InputError(
            f"{path} shards a model over accelerators, and this machine has none. Pass "
            "--accelerate-config ddp"
        )
    num_machines = settings.get("num_machines") or 1
    here = count // num_machines
    if 0 < _num_accelerators() < here:
        raise InputError(
            f"{here} processes on this machine need as many accelerators, and it has "
            f"{_num_accelerators()}. Pass --processes {_num_accelerators() * num_machines}"
        )
    given = ["--config_file", str(path), "--num_processes", str(count)]
    if "main_process_port" not in settings and num_machines == 1:
        # Any free port, so that two runs on one machine do not collide.
        given += ["--main_process_port", "0"]
    if "OMP_NUM_THREADS" not in os.environ:
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        given += ["--num_cpu_threads_per_process", str(max(cores // here, 1))]
    from accelerate.commands.launch import launch_command_parser

    try:
        options = launch_command_parser().parse_args([*given, "-m", "forgetting", *arguments])
    except SystemExit as error:
        raise InputError(f"{path}: `accelerate launch` refuses it") from error
    # An option of torch's launcher that accelerate passes on if it is there.
    options.signals_to_handle = ",".join(HANDLED_SIGNALS)
    options.num_machines = num_machines
    options.machine_rank = settings.get("machine_rank") or 0
    return options


def _read(path: Path) -> Mapping[str, Any]:
    """A configuration, after accelerate has read it too.

    Raises:
        InputError: it cannot be read; the message is accelerate's.
    """
    from accelerate.commands.config import load_config_from_file

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        load_config_from_file(str(path))
    except (ValueError, TypeError, KeyError, AttributeError, OSError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not an accelerate configuration: {error}") from error
    return settings


def _num_accelerators() -> int:
    import torch

    return torch.accelerator.device_count()


def report_failure(message: str, exit_code: int) -> bool:
    """Leave a message for the launcher, in the form that torch's launcher reads.

    Returns:
        Whether there is a launcher to show it.
    """
    file = os.environ.get(ERROR_FILE)
    if file is None:
        return False
    now = time.time()
    content = {
        "message": message,
        "timestamp": str(int(now)),
        "exact_time": now,
        "exit_code": exit_code,
    }
    Path(file).write_text(json.dumps(content), encoding="utf-8")
    return True


def _raise_cause(failures: Mapping[int, Any]) -> None:
    """Raise the error of the process that failed first.

    The others fail because it is gone, or for the same reason.
    """

    def place(rank: int) -> tuple[float, bool, int]:
        # A process without a message was killed, and the messages of the others are about that.
        # The launcher ends those that are left with SIGTERM.
        failure = failures[rank]
        moment = failure.error_file_data.get("exact_time", 0.0)
        return moment, failure.exitcode == -signal.SIGTERM, rank

    rank = min(failures, key=place)
    failure = failures[rank]
    data = failure.error_file_data
    if "exit_code" in data:
        error = InputError if data["exit_code"] == 2 else ForgettingError
        raise error(data["message"])
    if failure.exitcode == -signal.SIGINT:
        raise KeyboardInterrupt
    how = f"ended with exit code {failure.exitcode}"
    if failure.exitcode < 0:
        how = f"was ended by {signal.Signals(-failure.exitcode).name}"
        if failure.exitcode == -signal.SIGKILL:
            how += ", which the system sends when memory runs out"
    raise ForgettingError(f"process {rank} {how}. Run the same command again to resume")
