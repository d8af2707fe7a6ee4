"""State survives the way to disk and back, and a torn checkpoint does not count."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from forgetting.errors import InputError
from forgetting.training.checkpoints import (
    RANDOM_STATE,
    SEAL,
    check_num_processes,
    latest_checkpoint,
    load_state,
    random_state,
    save_state,
    seal,
    set_random_state,
)


def test_nested_state_comes_back_equal(tmp_path):
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}, 7: {}},
        "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "name": None, "fused": False}],
    }
    save_state(state, tmp_path / "optimizer")
    back = load_state(tmp_path / "optimizer")
    assert list(back["state"]) == [0, 7]
    assert torch.equal(back["state"][0]["exp_avg"], state["state"][0]["exp_avg"])
    assert back["param_groups"] == [
        {"lr": 0.1 + 0.2, "betas": [0.9, 0.999], "name": None, "fused": False}
    ]
    assert {f.suffix for f in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_shared_and_strided_tensors_are_saved_whole(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    save_state({"a": whole, "b": whole, "c": whole.T}, tmp_path / "state")
    back = load_state(tmp_path / "state")
    assert torch.equal(back["a"], whole)
    assert torch.equal(back["b"], whole)
    assert torch.equal(back["c"], whole.T)


def test_what_json_and_safetensors_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match="at /a"):
        save_state({"a": object()}, tmp_path / "state")


def test_an_optimizer_goes_on_where_it_stopped(tmp_path):
    def steps(optimizer, weight, number):
        for _ in range(number):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()

    straight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([straight], lr=0.1)
    steps(optimizer, straight, 3)
    save_state(optimizer.state_dict(), tmp_path / "optimizer")
    resumed = torch.nn.Parameter(straight.detach().clone())
    again = torch.optim.AdamW([resumed], lr=0.1)
    again.load_state_dict(load_state(tmp_path / "optimizer"))
    steps(optimizer, straight, 2)
    steps(again, resumed, 2)
    assert torch.equal(straight, resumed)


def test_generators_go_on_where_they_stopped(tmp_path):
    def draw():
        return random.random(), float(np.random.rand()), torch.rand(3).tolist()

    draw()
    save_state(random_state(), tmp_path / "random")
    expected = draw()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    set_random_state(load_state(tmp_path / "random"))
    assert draw() == expected


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path):
    for index in range(3):
        save_state(random_state(), tmp_path / f"{RANDOM_STATE}_{index}")
    check_num_processes(tmp_path, 3)
    with pytest.raises(InputError, match=r"written by 3 processes .* Run with --processes 3, or"):
        check_num_processes(tmp_path, 2)


def test_the_latest_whole_checkpoint_counts(tmp_path):
    for step in (5, 10, 20, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * 10)
        if step != 100:
            seal(folder)
    (tmp_path / "checkpoint-20" / "weights").write_bytes(b"x" * 4)
    (tmp_path / "checkpoint-final").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"x" * 9 + b"y")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"x" * 10)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    sealed = (tmp_path / "checkpoint-10" / SEAL).read_text()
    for odd in ("[]", "3", "null", '{"weights": 10}', "{}", sealed.replace("weights", "weight5")):
        (tmp_path / "checkpoint-10" / SEAL).write_text(odd)
        assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-5", odd
    (tmp_path / "checkpoint-10" / SEAL).unlink()
    (tmp_path / "checkpoint-10" / SEAL).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    (tmp_path / "checkpoint-10" / SEAL).rmdir()
    (tmp_path / "checkpoint-10" / SEAL).write_text("{")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    (tmp_path / "checkpoint-5" / "weights").unlink()
    assert latest_checkpoint(tmp_path) is None
