"""Configurations are those that accelerate takes, and what goes wrong comes back as one error."""

import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from forgetting import launch as launch_module
from forgetting.config import load_recipe
from forgetting.errors import ForgettingError, InputError
from forgetting.launch import (
    ERROR_FILE,
    config_path,
    launch,
    launch_options,
    report_failure,
    shipped_configs,
)


@pytest.fixture(autouse=True)
def accelerators(monkeypatch):
    """Says how many this machine has; none at first."""

    def have(count):
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)

    have(0)
    return have


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_are_taken_by_accelerate(name, monkeypatch, accelerators):
    from accelerate.commands.launch import _validate_launch_command

    accelerators(2)
    monkeypatch.setattr(launch_module, "find_spec", lambda package: object())
    options = launch_options(["run", "demo"], 2, name)
    assert (options.training_script, options.training_script_args) == (
        "forgetting",
        ["run", "demo"],
    )
    checked, _, _ = _validate_launch_command(options)
    kinds = {"ddp": checked.multi_gpu, "fsdp2": checked.use_fsdp, "zero3": checked.use_deepspeed}
    assert [kind for kind, is_on in kinds.items() if is_on] == [name]
    assert checked.num_processes == 2
    assert checked.mixed_precision == "no"


def test_a_number_of_processes_is_asked_for_where_nothing_says_it(accelerators):
    with pytest.raises(InputError, match="Pass --processes"):
        launch_options([], None, "ddp")
    accelerators(4)
    assert launch_options([], None, "ddp").num_processes == 4


def test_more_processes_than_accelerators_are_refused(accelerators):
    accelerators(2)
    with pytest.raises(InputError, match=r"and it has 2\. Pass --processes 2"):
        launch_options([], 3, "ddp")


def test_a_file_of_ones_own_is_taken(tmp_path):
    file = tmp_path / "own.yaml"
    text = config_path("ddp").read_text() + "num_processes: 8\nmain_process_port: 2000\n"
    file.write_text(text.replace("num_machines: 1", "num_machines: 4"))
    options = launch_options(["run"], None, str(file))
    assert options.num_processes == 8
    assert options.main_process_port is None  # accelerate reads it from the file


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "there is no file .*Shipped configurations: ddp, fsdp2, zero3"),
        ("distributed_type: MULTI_GPU\ncompute_environment: LOCAL_MACHINE\nx_y: 1\n", "x_y"),
        ("[", "is not an accelerate configuration"),
        ("- 1\n", "is not an accelerate configuration"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path, text, reason):
    file = tmp_path / "own.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=reason):
        launch_options([], 2, str(file))


def test_a_model_is_not_spread_over_cpus(monkeypatch):
    monkeypatch.setattr(launch_module, "find_spec", lambda package: object())
    for name in ("fsdp2", "zero3"):
        with pytest.raises(InputError, match=r"has none\. Pass --accelerate-config ddp"):
            launch_options([], 2, name)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(launch_module, "find_spec", lambda package: None)
    with pytest.raises(InputError, match="pip install deepspeed"):
        launch_options([], 2, "zero3")


@pytest.fixture
def failure(tmp_path, monkeypatch):
    """What torch's launcher knows of a process that failed, with or without a message."""

    def make(rank, exit_code, message=None, when=0.0):
        file = tmp_path / f"{rank}.json"
        if message is not None:
            monkeypatch.setenv(ERROR_FILE, str(file))
            assert report_failure(message, exit_code)
            content = {**json.loads(file.read_text()), "exact_time": when}
            file.write_text(json.dumps(content))
        return rank, ProcessFailure(rank, 1000 + rank, exit_code, str(file))

    return make


def test_the_first_to_fail_is_heard(failure):
    failures = dict([failure(0, 1, "lost a peer", 5.2), failure(1, 2, "bad [recipe]", 5.1)])
    with pytest.raises(InputError, match=r"^bad \[recipe\]$"):
        launch_module._raise_cause(failures)
    failures = dict([failure(0, 1, "diverged", 4.0), failure(1, 1, "diverged", 4.1)])
    with pytest.raises(ForgettingError, match=r"^diverged$") as caught:
        launch_module._raise_cause(failures)
    assert not isinstance(caught.value, InputError)


def test_a_killed_process_is_the_cause_of_what_the_others_say(failure):
    failures = dict([failure(0, 1, "connection closed", 5.0), failure(1, -signal.SIGKILL)])
    with pytest.raises(ForgettingError, match=r"process 1 was ended by SIGKILL.* memory runs out"):
        launch_module._raise_cause(failures)
    with pytest.raises(KeyboardInterrupt):
        launch_module._raise_cause(dict([failure(2, -signal.SIGINT)]))


def test_a_process_that_the_launcher_ended_is_not_the_cause(failure):
    failures = dict([failure(0, -signal.SIGTERM), failure(1, -signal.SIGINT)])
    with pytest.raises(KeyboardInterrupt):
        launch_module._raise_cause(failures)
    failures = dict([failure(0, -signal.SIGTERM), failure(1, -signal.SIGKILL)])
    with pytest.raises(ForgettingError, match="process 1 was ended by SIGKILL"):
        launch_module._raise_cause(failures)


@pytest.mark.parametrize(("stages", "more"), [((), []), (("score",), ["--stage", "score"])])
def test_workers_get_the_recipe_as_a_file(write_recipe, monkeypatch, tmp_path, stages, more):
    started = []

    def run(options):
        arguments = options.training_script_args
        started.append((arguments, load_recipe(arguments[1])))

    monkeypatch.setattr(launch_module, "_run", run)
    recipe = load_recipe(write_recipe(), ["seed=3", "training.learning_rate=1e-5"])
    assert launch(recipe, tmp_path / "run", stages, processes=2, quiet=True)
    (((command, file, *arguments), read),) = started
    assert (command, arguments) == (
        "worker",
        [
            "--run-dir",
            str(tmp_path / "run"),
            *more,
            "--quiet",
            "--launcher",
            str(os.getpid()),
        ],
    )
    assert read == recipe
    assert not Path(file).exists()


def test_only_the_first_machine_has_results(write_recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(launch_module, "_run", lambda options: None)
    file = tmp_path / "own.yaml"
    text = config_path("ddp").read_text().replace("num_machines: 1", "num_machines: 2")
    recipe = load_recipe(write_recipe())
    for rank in (0, 1):
        file.write_text(text.replace("machine_rank: 0", f"machine_rank: {rank}"))
        assert launch(recipe, tmp_path, processes=2, config=str(file)) == (rank == 0)


def test_signals_are_handled_as_before_once_the_processes_have_ended(monkeypatch):
    def launch_command(options):
        for name in launch_module.HANDLED_SIGNALS:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        raise KeyboardInterrupt

    monkeypatch.setattr("accelerate.commands.launch.launch_command", launch_command)
    numbers = [getattr(signal, name) for name in launch_module.HANDLED_SIGNALS]
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(KeyboardInterrupt):
        launch_module._run(launch_options([], 2, "ddp"))
    assert [signal.getsignal(number) for number in numbers] == before


def test_without_a_launcher_nothing_is_left_for_it(monkeypatch):
    monkeypatch.delenv(ERROR_FILE, raising=False)
    assert not report_failure("x", 1)


@pytest.fixture(autouse=True)
def _restore_levels():
    log = logging.getLogger("torch.distributed")
    before = log.level
    yield
    log.setLevel(before)
