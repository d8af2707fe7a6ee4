"""The samples of a step, sorted into micro-batches by length, keep all their values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from forgetting.training.collator import TokenColumnCollator
from forgetting.training.dealing import deal_by_length, draws_random_numbers
from tests.conftest import small_model
from tests.training.conftest import assert_together, padded, tagged

few = settings(max_examples=20)


@pytest.mark.parametrize("side", ["left", "right"])
@few
@given(lengths=st.lists(st.integers(2, 30), min_size=6, max_size=6))
def test_samples_of_a_step_are_dealt_by_length_and_none_is_lost(side, lengths):
    examples = list(tagged(lengths))
    collator = TokenColumnCollator(lambda some: padded(some, side))
    batches = [collator(examples[a:b]) for a, b in ((0, 2), (2, 5), (5, 6))]
    if side == "left":
        # As if every collated batch had them.
        batches = [
            {**b, "position_ids": (b["attention_mask"].cumsum(1) - 1).clamp(min=0)} for b in batches
        ]
    dealt = deal_by_length(batches)
    assert [len(batch["labels"]) for batch in dealt] == [2, 3, 1]
    longest_first = sorted(lengths, reverse=True)
    assert [batch["labels"].shape[1] for batch in dealt] == [longest_first[i] for i in (0, 2, 5)]
    found = []
    for batch in dealt:
        mask = batch["attention_mask"] == 1
        assert (batch["labels"][~mask] == -100).all()
        assert (batch["polarity"][~mask] == 0).all()
        if side == "left":
            places = torch.cat([torch.arange(int(n)) for n in mask.sum(1)])
            assert torch.equal(batch["position_ids"][mask], places)
        names = ("input_ids", "polarity", "token_weights", "labels")
        assert_together(*(batch[name].numpy() for name in names))
        found += batch["input_ids"][mask].tolist()
    assert sorted(found) == sorted(token for e in examples for token in e["input_ids"])


def test_batches_that_hold_different_things_are_left_alone():
    examples = list(tagged([9, 3, 5]))
    collator = TokenColumnCollator(lambda some: padded(some, "left"))
    batches = [collator(examples[:2]), collator(examples[2:])]
    assert "position_ids" in batches[0]
    assert "position_ids" not in batches[1]
    assert deal_by_length(batches) is batches


def test_widths_are_multiples_where_asked():
    examples = list(tagged([9, 3, 5, 7]))
    batches = [padded(examples[:2]), padded(examples[2:])]
    assert [b["labels"].shape[1] for b in deal_by_length(batches, 4)] == [9, 8]


def test_dropout_and_noise_are_random_numbers():
    model = small_model("llama", 50)
    assert not draws_random_numbers(model)
    assert draws_random_numbers(model, neftune_noise_alpha=5.0)
    model.config.attention_dropout = 0.1
    assert draws_random_numbers(model)
    model.config.attention_dropout = 0.0
    for rate in (0.0, 0.1):
        adapter = LoraConfig(r=2, lora_dropout=rate, target_modules="all-linear")
        assert draws_random_numbers(get_peft_model(small_model("llama", 50), adapter)) == (rate > 0)
