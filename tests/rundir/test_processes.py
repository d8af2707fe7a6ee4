"""A process alone leads itself; several find each other through what the launcher set."""

import pytest

from forgetting.errors import InputError
from forgetting.rundir.processes import ALONE, join_processes, num_processes, process_index


@pytest.fixture
def launched(monkeypatch):
    """As the second of two processes, before it has met the first."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def test_a_process_alone_waits_for_nobody(monkeypatch):
    # Set by schedulers, also where nothing was launched.
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (num_processes(), process_index()) == (1, 0)
    assert join_processes("cpu") is ALONE
    assert ALONE.is_main
    ALONE.wait()
    assert ALONE.share({"step": "score"}) == {"step": "score"}


def test_several_know_their_number_and_their_place(launched):
    assert (num_processes(), process_index()) == (2, 1)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_model_cannot_be_spread_over_cpus(launched, monkeypatch, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(InputError, match="need accelerators"):
        join_processes("cpu")
