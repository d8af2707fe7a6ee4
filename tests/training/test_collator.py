"""Every value stays with its token: aligned, cut, packed, collated."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetting.training.collator import (
    TokenColumnCollator,
    align_token_columns,
    count_cut_rows,
    cut_to_length,
    pack,
)
from tests.training.conftest import assert_together, padded, tagged

COLUMNS = ["input_ids", "labels", "polarity", "token_weights"]


LABELS = [-100, -100, 5, 6, -100, 7]


@pytest.mark.parametrize(
    ("given_values", "wanted"),
    [
        ([0, 0, 1, -1, 0, 1], [0, 0, 1, -1, 0, 1]),
        ([1, -1, 1], [0, 0, 1, -1, 0, 1]),
        (-1, [0, 0, -1, -1, 0, -1]),
    ],
    ids=["a token", "a predicted token", "a sample"],
)
@pytest.mark.parametrize("layout", [None, "torch", "numpy"])
def test_one_value_for_each_token_each_predicted_token_or_all(given_values, wanted, layout):
    rows = {"input_ids": [[1, 2, 5, 6, 3, 7]], "labels": [LABELS], "polarity": [given_values]}
    data = Dataset.from_dict(rows).with_format(layout)
    aligned = align_token_columns(data, ["polarity"]).with_format(None)
    assert aligned["polarity"] == [wanted]
    (example,) = list(data)
    collator = TokenColumnCollator(padded)
    assert collator([example])["polarity"].tolist() == [wanted]


@pytest.mark.parametrize(
    ("given_values", "wanted"),
    [(1, [1, 1, 0, 1]), ([-1, 1, 1], [-1, 1, 0, 1]), ([1, 1], [0, 1, 0, 1])],
)
def test_a_first_token_is_predicted_where_rows_are_joined(given_values, wanted):
    """If values are given for predicted tokens without it, it is ignored."""
    rows = {"input_ids": [[4, 5, 6, 7]], "labels": [[4, 5, -100, 7]], "polarity": [given_values]}
    aligned = align_token_columns(Dataset.from_dict(rows), ["polarity"], joined=True)
    assert aligned["polarity"] == [wanted]


def test_a_first_token_is_never_predicted():
    rows = {"input_ids": [[4, 5, 6]], "labels": [[4, 5, 6]], "polarity": [[-1, 1]]}
    aligned = align_token_columns(Dataset.from_dict(rows), ["polarity"])
    assert aligned["polarity"] == [[0, -1, 1]]


def test_a_streamed_dataset_is_aligned_as_it_is_read():
    rows = {"input_ids": [[1, 2, 5, 6, 3, 7]], "labels": [LABELS], "polarity": [-1]}
    stream = Dataset.from_dict(rows).to_iterable_dataset()
    assert next(iter(align_token_columns(stream, ["polarity"])))["polarity"] == [
        0,
        0,
        -1,
        -1,
        0,
        -1,
    ]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("polarity", [1, 1], r"row 1 .* 2 values in polarity for 3 tokens, of which 1"),
        ("polarity", [0, 0, 2], r"row 1 .* holds 2 in polarity"),
        ("polarity", 3, r"row 1 .* holds 3 in polarity"),
        ("token_weights", [0.0, 0.0, -1.0], r"row 1 .* holds -1.0 in token_weights"),
        ("token_weights", float("nan"), r"row 1 .* holds nan in token_weights"),
        ("base_log_probs", [0.0, 0.0, float("-inf")], r"row 1 .* holds -inf in base_log_probs"),
    ],
)
def test_what_does_not_fit_names_its_row(column, values, message):
    good = [0, 0, 1] if isinstance(values, list) else 1
    rows = {
        "input_ids": [[1, 2, 3]] * 2,
        "labels": [[-100, -100, 3]] * 2,
        column: [good, values] if column == "polarity" else [[0.0, 0.0, 1.0], values],
    }
    if not isinstance(values, list) and column != "polarity":
        rows[column] = [1.0, values]
    with pytest.raises(ValueError, match=message):
        align_token_columns(Dataset.from_dict(rows), [column])


def test_anything_may_stand_where_nothing_is_predicted():
    rows = {
        "input_ids": [[1, 2, 3]],
        "labels": [[-100, -100, 3]],
        "base_log_probs": [[float("nan"), float("-inf"), -1.0]],
    }
    align_token_columns(Dataset.from_dict(rows), ["base_log_probs"])


few = settings(max_examples=20)  # each writes and maps a data set
lengths_of_samples = st.lists(st.integers(2, 30), min_size=1, max_size=12)


@few
@given(lengths_of_samples, st.integers(2, 30))
def test_cut_columns_stay_together(lengths, limit):
    cut = cut_to_length(tagged(lengths), COLUMNS, limit)
    assert len(cut) == len(lengths)
    for row in cut:
        assert {len(row[name]) for name in COLUMNS} == {len(row["input_ids"])}
        assert len(row["input_ids"]) <= limit
        assert_together(*(row[n] for n in ("input_ids", "polarity", "token_weights", "labels")))


def test_a_row_that_is_left_without_a_label_is_dropped():
    data = Dataset.from_dict(
        {"input_ids": [[1, 2, 3], [4, 5, 6]], "labels": [[-100, -100, 3], [-100, 5, 6]]}
    )
    assert cut_to_length(data, ["input_ids", "labels"], 2)["input_ids"] == [[4, 5]]


labels_of_rows = st.lists(
    st.lists(st.sampled_from([-100, 7]), min_size=0, max_size=12), min_size=1, max_size=8
)


@few
@given(labels_of_rows, st.integers(1, 12))
def test_cut_rows_are_counted_as_one_by_one(rows, limit):
    found = count_cut_rows(
        Dataset.from_dict({"labels": rows}, Features({"labels": List(Value("int64"))})), limit
    )
    labeled = [row for row in rows if 7 in row]
    assert found.num_labeled == len(labeled)
    assert found.num_without_labels == sum(7 not in row[:limit] for row in labeled)
    assert found.num_shortened == sum(7 in row[:limit] and 7 in row[limit:] for row in labeled)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
@few
@given(lengths=lengths_of_samples)
def test_packed_columns_stay_together_and_no_token_is_lost(strategy, lengths):
    limit = 16
    packed = pack(tagged(lengths), COLUMNS, limit, strategy)
    found = []
    for row in packed:
        assert {len(row[name]) for name in COLUMNS} == {len(row["input_ids"])}
        assert len(row["input_ids"]) <= limit
        assert_together(*(row[n] for n in ("input_ids", "polarity", "token_weights", "labels")))
        found += row["input_ids"]
    kept = [min(length, limit) if strategy == "bfd" else length for length in lengths]
    wanted = [100 * (n + 1) + i for n, length in enumerate(kept) for i in range(length)]
    assert sorted(found) == wanted


@pytest.mark.parametrize("side", ["left", "right"])
@few
@given(lengths=lengths_of_samples)
def test_collated_values_lie_on_their_tokens_on_either_side(side, lengths):
    collator = TokenColumnCollator(lambda examples: padded(examples, side))
    batch = collator(list(tagged(lengths)))
    names = ("input_ids", "polarity", "token_weights", "labels")
    assert_together(*(batch[name].numpy() for name in names))
    assert int((batch["labels"] != -100).sum()) == sum(lengths) - len(lengths)
    mask = batch["attention_mask"] == 1
    if "position_ids" in batch:
        expected = torch.cat([torch.arange(length) for length in lengths])
        assert torch.equal(batch["position_ids"][mask], expected)
    else:
        assert mask[:, 0].all()


def test_a_value_too_few_is_noticed_even_if_the_sums_agree():
    examples = list(tagged([3, 3]))
    examples[0]["polarity"] = examples[0]["polarity"][:2]
    examples[1]["polarity"] = [*examples[1]["polarity"], 1]
    with pytest.raises(ValueError, match="row 1 of a batch has 4 values in polarity for 3 tokens"):
        TokenColumnCollator(padded)(examples)


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("column", ["polarity", "token_weights", "base_log_probs"])
def test_what_is_no_number_counts_for_nothing_where_no_token_is_predicted(column, nothing):
    rows = {"input_ids": [[1, 2, 3]], "labels": [[-100, 2, 3]], column: [[nothing, 1, 1]]}
    aligned = align_token_columns(Dataset.from_dict(rows), [column]).with_format(None)
    assert aligned[column][0] == [0, 1, 1]
