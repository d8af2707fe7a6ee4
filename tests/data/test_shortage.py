"""A dry run knows whether the sources hold as many samples as a recipe asks for."""

import json

import pytest

from forgetting.config import Recipe
from forgetting.data import shortage
from forgetting.data.shortage import check_number_of_records
from forgetting.errors import TooFewSamples


def recipe(*sources, **numbers):
    numbers = {"num_reference": 2, "num_train": 6, "num_heldout": 2, **numbers}
    return Recipe(name="n", model={"name_or_path": "m"}, data={"sources": sources, **numbers})


@pytest.fixture
def ten(tmp_path):
    """Ten usable records, and two without a response."""
    rows = [{"prompt": f"{i}?", "completion": "a" if i < 10 else ""} for i in range(12)]
    path = tmp_path / "ten.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_as_many_records_as_samples_are_enough(ten):
    check_number_of_records(recipe({"path": ten}))
    check_number_of_records(recipe({"path": ten}, {"path": ten, "name": "again"}, num_train=16))


@pytest.mark.parametrize(("limit", "num_train", "usable"), [(None, 7, 10), (9, 6, 9)])
def test_fewer_usable_records_are_refused(ten, limit, num_train, usable):
    told = rf"{num_train + 4} samples \(num_reference 2 .*have only {usable} usable records"
    with pytest.raises(TooFewSamples, match=told):
        check_number_of_records(recipe({"path": ten, "limit": limit}, num_train=num_train))


def test_pairs_count_twice_if_both_responses_are_used(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)))
    check_number_of_records(recipe({"path": str(path), "negatives": "rejected"}))
    with pytest.raises(TooFewSamples, match="only 5 usable"):
        check_number_of_records(recipe({"path": str(path)}))


def test_the_hub_and_large_corpora_are_not_read(ten, monkeypatch):
    check_number_of_records(recipe({"path": ten}, {"path": "somebody/data"}, num_train=99))
    monkeypatch.setattr(shortage, "MOST_READ", 50)
    check_number_of_records(recipe({"path": ten}, num_train=99))
