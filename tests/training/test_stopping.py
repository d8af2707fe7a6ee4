"""A training that is asked to end writes a checkpoint, and goes on as if it had never ended."""

from __future__ import annotations

import os
import signal
import threading
from itertools import pairwise
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from forgetting.config import TrainingSettings
from forgetting.training.checkpoints import latest_checkpoint
from forgetting.training.stopping import (
    SECONDS_BETWEEN_CHECKPOINTS,
    CheckpointCallback,
    SignalWatch,
    leave,
)
from tests.training.conftest import assert_same, rows, weights


class SignalAt(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as Python handles it; runners of tests may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def logged(trainer):
    timing = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
    return [
        {name: value for name, value in entry.items() if name not in timing}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("logging_steps", [1, 4])
def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(
    train, tmp_path, number, logging_steps
):
    samples = rows(24)
    options = {"max_steps": 8, "t_max": 0.3, "logging_steps": logging_steps}
    straight = train(samples, **options)
    watch = SignalWatch()
    stops = CheckpointCallback(watch, is_timed=False)
    with watch:
        stopped = train(samples, callbacks=[SignalAt(number, 3), stops], **options)
    assert stops.stopped_by == number
    assert stopped.state.global_step == 3
    # Between two logs, if there are four steps to a log.
    assert latest_checkpoint(tmp_path / "out").name == "checkpoint-3"
    resumed = train(samples, resume=True, **options)
    assert_same(weights(straight), weights(resumed))
    assert len(logged(straight)) == 8 // logging_steps
    assert logged(resumed) == logged(straight)


@pytest.mark.slow
@pytest.mark.parametrize(
    "length",
    [{"max_steps": 5}, {"max_steps": -1, "num_train_epochs": 1.5}],
    ids=["steps", "epochs"],
)
def test_a_training_that_was_stopped_at_its_end_takes_no_further_step(train, length):
    # The end is within the second epoch of three steps, the last of them smaller.
    samples, options = rows(22), {**length, "t_max": 0.3, "gradient_accumulation_steps": 2}
    watch = SignalWatch()
    stops = CheckpointCallback(watch, is_timed=True)
    with watch:
        stopped = train(samples, callbacks=[SignalAt(signal.SIGTERM, 5), stops], **options)
    assert stops.stopped_by == signal.SIGTERM
    assert stopped.state.global_step == stopped.state.max_steps == 5
    resumed = train(samples, resume=True, **options)
    assert resumed.state.global_step == 5
    assert_same(weights(stopped), weights(resumed))
    assert logged(resumed) == logged(stopped)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_acts_at_once(capfd):
    with SignalWatch() as watch:
        signal.raise_signal(signal.SIGINT)
        assert watch.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.count("Press Ctrl-C again") == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_ignored_stays_ignored_and_handlers_come_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with SignalWatch() as watch:
            signal.raise_signal(signal.SIGINT)
            assert watch.received is None
    finally:
        signal.signal(signal.SIGINT, before[0])
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_have_no_signals():
    def enter():
        with SignalWatch() as watch:
            seen.append(watch.received)

    seen: list[int | None] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None]


def test_several_processes_leave_ctrl_c_to_the_launcher(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGINT)
    with SignalWatch():
        assert signal.getsignal(signal.SIGINT) is before
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, before)


def test_the_way_out():
    with pytest.raises(KeyboardInterrupt):
        leave(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        leave(signal.SIGTERM)
    assert caught.value.code == 143


def saved_steps(step_seconds, num_steps, *, is_timed=True):
    """The steps after which a checkpoint is written, which takes a minute."""
    now = 0.0
    stops = CheckpointCallback(SignalWatch(), is_timed=is_timed, clock=lambda: now)
    stops.on_train_begin(None, None, None)
    saved, moments = [], [0.0]
    for step in range(1, num_steps + 1):
        now += step_seconds
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        stops.on_step_end(None, SimpleNamespace(global_step=step, max_steps=num_steps), control)
        if control.should_save:
            moments.append(now)
            saved.append(step)
            now += 60
            stops.on_save(None, None, None)
        assert not control.should_training_stop
    return saved, moments


@pytest.mark.parametrize("step_seconds", [0.5, 7, 100, 149, 299])
def test_a_checkpoint_is_written_at_least_every_five_minutes(step_seconds):
    saved, moments = saved_steps(step_seconds, 1000)
    assert saved[-1] == 1000
    work = [b - a - 60 * (i > 0) for i, (a, b) in enumerate(pairwise(moments))]
    assert max(work) <= SECONDS_BETWEEN_CHECKPOINTS
    # And not much more often.
    assert all(w > SECONDS_BETWEEN_CHECKPOINTS - step_seconds for w in work[:-1])


def test_steps_of_more_than_five_minutes_have_a_checkpoint_each():
    assert saved_steps(400, 4)[0] == [1, 2, 3, 4]


def test_checkpoints_by_steps_are_left_to_the_trainer():
    assert saved_steps(100, 50, is_timed=False)[0] == []


@pytest.mark.parametrize(
    ("num_samples", "logs"), [(1, 1), (24 * 11, 11), (24 * 100, 50), (24 * 1130, 49)]
)
def test_figures_are_logged_about_fifty_times(num_samples, logs):
    training = TrainingSettings()
    interval = training.logging_interval(num_samples)
    assert training.num_steps(num_samples) // interval == logs
    assert TrainingSettings(logging_steps=7).logging_interval(num_samples) == 7
