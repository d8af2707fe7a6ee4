"""Several processes for one command: `accelerate launch`, called with a configuration.

Goes in: a command of this program, a number of processes, the name of a shipped configuration or
a file of accelerate's. Comes out: nothing, or the error of the process that failed first, as if
it had happened here. Knows nothing of what the command does.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import yaml

from forgetting.errors import ForgettingError, InputError

DEFAULT_CONFIG = "ddp"
# Where the launcher looks for what a process has to say about its end.
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
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
            f"--accelerate-config: there is no file {name}. Shipped are "
            f"{', '.join(shipped_configs())}; `accelerate config` writes one of your own"
        )
    return path


def launch(arguments: Sequence[str], num_processes: int | None, config: str | None) -> None:
    """Run `python -m forgetting ARGUMENTS` in several processes and wait for their end.

    Args:
        arguments: of the command line.
        num_processes: over all machines; None: as the configuration says, else one for each
            accelerator of this machine.
        config: name of a shipped configuration, or a file that `accelerate config` wrote;
            None: `ddp`.

    Raises:
        InputError: the processes cannot be started so, or one found the user's input wrong.
        ForgettingError: one of them failed.
        KeyboardInterrupt: they were interrupted.
    """
    options = launch_options(arguments, num_processes, config)
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # They report at length, with tables, what is one message here.
    logging.disable()
    try:
        launch_command(options)
    except (ValueError, ConnectionError) as error:
        raise InputError(f"`accelerate launch` refuses {options.config_file}: {error}") from error
    except ChildFailedError as error:
        _raise_cause(error.failures)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise ForgettingError(
            f"ended by {error.sigval.name}. The same command goes on from here"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def launch_options(arguments: Sequence[str], num_processes: int | None, config: str | None) -> Any:
    """What `accelerate launch` would read from its command line, checked by its own parser."""
    path = config_path(config or DEFAULT_CONFIG)
    settings = _read(path)
    count = num_processes or settings.get("num_processes") or _num_accelerators()
    if not isinstance(count, int) or count < 1:
        raise InputError(
            f"{path} does not say how many processes, and this machine has no accelerator: "
            "give --processes"
        )
    if settings.get("distributed_type") == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise InputError(
            f"{path} needs the package deepspeed, which is not installed: pip install deepspeed"
        )
    if settings.get("distributed_type") in ("FSDP", "DEEPSPEED") and not _num_accelerators():
        raise InputError(
            f"{path} spreads a model over accelerators, and this machine has none: "
            "use --accelerate-config ddp"
        )
    num_machines = settings.get("num_machines") or 1
    here = count // num_machines
    if 0 < _num_accelerators() < here:
        raise InputError(
            f"{here} processes on this machine need as many accelerators, and it has "
            f"{_num_accelerators()}. Give --processes {_num_accelerators() * num_machines}"
        )
    given = ["--config_file", str(path), "--num_processes", str(count)]
    if "main_process_port" not in settings and num_machines == 1:
        # Any free one, so that two runs on one machine do not meet.
        given += ["--main_process_port", "0"]
    if "OMP_NUM_THREADS" not in os.environ:
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        given += ["--num_cpu_threads_per_process", str(max(cores // here, 1))]
    from accelerate.commands.launch import launch_command_parser

    try:
        return launch_command_parser().parse_args([*given, "-m", "forgetting", *arguments])
    except SystemExit as error:
        raise InputError(f"{path}: `accelerate launch` refuses it") from error


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
        raise InputError(f"{path} is no configuration of accelerate: {error}") from error
    return settings


def _num_accelerators() -> int:
    import torch

    return torch.accelerator.device_count()


def report_failure(message: str, exit_code: int) -> bool:
    """Leave a message for the launcher, in the form that torch's launcher reads.

    Returns:
        Whether there is a launcher that will show it.
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
    """Raise what the process that failed first had to say.

    The others fail of its absence, or of the same cause.
    """

    def when(rank: int) -> tuple[float, int]:
        # A process without a message was killed, and the messages of the others are of that.
        return failures[rank].error_file_data.get("exact_time", 0.0), rank

    rank = min(failures, key=when)
    failure = failures[rank]
    data = failure.error_file_data
    if "exit_code" in data:
        error = InputError if data["exit_code"] == 2 else ForgettingError
        raise error(data["message"])
    if failure.exitcode == -signal.SIGINT:
        raise KeyboardInterrupt
    how = f"with exit code {failure.exitcode}"
    if failure.exitcode < 0:
        how = f"by {signal.Signals(-failure.exitcode).name}"
        if failure.exitcode == -signal.SIGKILL:
            how += ", as the system does when memory runs out"
    raise ForgettingError(f"process {rank} was ended {how}. The same command goes on from here")
