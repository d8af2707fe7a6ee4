"""Columns with one value per token, carried into a batch together with their tokens.

Input: a dataset of tokens (`input_ids`, `labels`) with such columns. Output: the same dataset
with every column aligned, cut, packed and collated like its tokens. A value that loses its token
would silently train the wrong thing, so every step checks or keeps lengths. Knows nothing of
losses or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray
from torch import Tensor
from trl import pack_dataset
from trl.data_utils import get_dataset_column_names

from forgetting.console import logger
from forgetting.rundir.samples import IGNORE_INDEX

# Padding is zero.
TOKEN_COLUMNS = {
    "polarity": torch.long,
    "base_log_probs": torch.float32,
    "token_weights": torch.float32,
    "reference_log_probs": torch.float32,
    "alternative_weights": torch.float32,
}
WEIGHTS = ("token_weights", "alternative_weights")
ALTERNATIVE_COLUMNS = {"alternative_ids": torch.long, "alternative_log_probs": torch.float32}
"""Columns with a list for each token, empty unless the token has an `alternative_weights` above 0:
K token ids; their log-probabilities and, last, that of all other tokens together."""
ALL_COLUMNS = {**TOKEN_COLUMNS, **ALTERNATIVE_COLUMNS}


def align_token_columns(
    dataset: Dataset | IterableDataset, columns: Sequence[str], *, joined: bool = False
) -> Dataset | IterableDataset:
    """Bring each column to one value per token of `input_ids`.

    A row holds, for a column, one value for each of its tokens; or one for each token that is
    predicted (label other than -100, the first token apart), in order, as scores are; or a single
    number for all tokens that are predicted.

    Args:
        dataset: with `input_ids`, `labels` and the columns.
        columns: names among `TOKEN_COLUMNS`.
        joined: whether a row will follow another one without a boundary, as in `wrapped` packing.
            The first token, if it has a label, is then predicted as well.

    Raises:
        ValueError: a row has another number of values, or a value outside its range: a polarity
            other than -1, 0, +1, a weight below 0, a number that is not finite. Of a streamed
            dataset, when the row is read.
    """
    if isinstance(dataset, Dataset) and _is_aligned(dataset, columns):
        return dataset
    return dataset.map(
        _align_rows,
        batched=True,
        with_indices=True,
        fn_kwargs={"columns": list(columns), "joined": joined},
    )


def without_format(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The dataset without a format such as "torch", which may hide columns; transforms stay."""
    return dataset if is_transformed(dataset) else dataset.with_format(None)


def is_transformed(dataset: Dataset | IterableDataset) -> bool:
    """Whether the rows are made when they are read, by `with_transform`."""
    return isinstance(dataset, Dataset) and dataset.format["type"] == "custom"


def column_names(dataset: Dataset | IterableDataset) -> set[str]:
    """The columns of the rows as they are read; a transform may return others than it reads."""
    if is_transformed(dataset):
        return set(next(iter(dataset)))
    return set(get_dataset_column_names(dataset))


def _is_aligned(dataset: Dataset, columns: Sequence[str]) -> bool:
    """Whether the columns are aligned already; checks their values, many rows at a time."""
    features = dataset.features
    if any(not hasattr(features[name], "feature") for name in columns):
        return False
    chosen = dataset.select_columns(["labels", *columns]).with_format("arrow")
    first_row = 0
    for table in chosen.iter(batch_size=1000):
        lengths = pc.list_value_length(table["labels"])
        if any(not pc.list_value_length(table[name]).equals(lengths) for name in columns):
            return False
        flat = {name: _flatten(table[name]) for name in ("labels", *columns)}
        ends = np.cumsum(lengths.to_numpy())
        for name in columns:
            _refuse_other_kinds(name, flat[name], f"row {first_row} of the dataset")
            bad = _first_bad(name, flat[name], flat["labels"])
            if bad is not None:
                row = first_row + int(np.searchsorted(ends, bad, side="right"))
                raise ValueError(_complaint(name, f"row {row} of the dataset", flat[name][bad]))
            if not np.isfinite(flat[name]).all():
                return False
        first_row += table.num_rows
    return True


def _flatten(column: pa.ChunkedArray) -> NDArray:
    return pc.list_flatten(column).to_numpy()


def _align_rows(
    batch: dict[str, list[Any]], indices: Sequence[int], columns: Sequence[str], joined: bool
) -> dict[str, list[Any]]:
    return {
        name: [
            _align_row(
                name, values, np.asarray(labels), f"row {row} of the dataset", joined
            ).tolist()
            for row, values, labels in zip(indices, batch[name], batch["labels"], strict=True)
        ]
        for name in columns
    }


def _align_row(name: str, values: Any, labels: NDArray, row: str, joined: bool = False) -> NDArray:
    """One value per token; `row` says which one in messages."""
    try:
        given = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{row} holds lists of different lengths in {name}") from error
    _refuse_other_kinds(name, given, row)
    is_target = labels != IGNORE_INDEX
    without_first = is_target & (np.arange(len(labels)) > 0)
    if not joined:
        is_target = without_first
    aligned = given
    if given.shape != labels.shape:
        for chosen in (is_target, without_first):
            if given.ndim == 0 or given.shape == (chosen.sum(),):
                aligned = np.zeros(labels.shape, dtype=given.dtype)
                aligned[chosen] = given
                break
        else:
            raise ValueError(
                f"{row} has {len(given)} values in {name} for {len(labels)} tokens, of which "
                f"{is_target.sum()} are predicted. Pass one per token, one per predicted token, or "
                "one number"
            )
    # None becomes NaN.
    numbers = aligned.astype(np.float64)
    bad = _first_bad(name, numbers, labels)
    if bad is not None:
        raise ValueError(_complaint(name, row, aligned[bad]))
    is_number = np.isfinite(numbers)
    if is_number.all():
        return aligned
    # A token without a label counts for nothing, but NaN times 0 is NaN.
    return np.where(is_number, numbers, 0).astype(np.int8 if name == "polarity" else np.float64)


def _refuse_other_kinds(name: str, values: NDArray, row: str) -> None:
    """Refuse what is neither a number nor None.

    A truth value is refused, because False would mean to ignore a token.
    """
    if values.dtype.kind in "iuf":
        return
    for value in values.ravel().tolist():
        if isinstance(value, bool | np.bool_):
            raise ValueError(_complaint(name, row, f"the truth value {value}"))
        if isinstance(value, str):
            raise ValueError(_complaint(name, row, f"the text {value}"))
        if value is not None and not isinstance(value, Number):
            raise ValueError(_complaint(name, row, repr(value)))


def _first_bad(name: str, values: NDArray, labels: NDArray) -> int | None:
    """Position of the first value out of range among the labeled tokens; None if there is none."""
    if name == "polarity":
        good = np.isin(values, (-1, 0, 1))
    else:
        good = np.isfinite(values) & ((values >= 0) | (name not in WEIGHTS))
    bad = np.flatnonzero(~good & (labels != IGNORE_INDEX))
    return int(bad[0]) if bad.size else None


def _complaint(name: str, row: str, value: Any) -> str:
    allowed = {"polarity": "-1, 0 and +1", **dict.fromkeys(WEIGHTS, "finite numbers of at least 0")}
    return f"{row} holds {value} in {name}, which takes {allowed.get(name, 'finite numbers')}"


def cut_to_length(
    dataset: Dataset | IterableDataset, columns: Sequence[str], max_length: int
) -> Dataset | IterableDataset:
    """Cut each column to `max_length` values, and drop rows without a label."""
    cut = dataset.map(lambda row: {name: row[name][:max_length] for name in columns})
    return cut.filter(lambda row: any(label != IGNORE_INDEX for label in row["labels"]))


@dataclass(frozen=True)
class CutRows:
    """What cutting the rows of a dataset to a length removes."""

    num_labeled: int
    """Rows with a label before the cut."""
    num_without_labels: int
    """Those of them that lose all their labels, and are not trained on."""
    num_shortened: int
    """Those that lose some, but not all."""


def count_cut_rows(dataset: Dataset, max_length: int) -> CutRows:
    """Count the rows whose labels a cut to `max_length` tokens removes."""
    num_labeled = num_without_labels = num_shortened = 0
    for table in dataset.select_columns(["labels"]).with_format("arrow").iter(batch_size=1000):
        lengths = pc.list_value_length(table["labels"]).to_numpy()
        row = np.repeat(np.arange(lengths.size), lengths)
        position = np.arange(row.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        is_label = _flatten(table["labels"]) != IGNORE_INDEX
        num_labels, num_kept = (
            np.bincount(row[chosen], minlength=lengths.size)
            for chosen in (is_label, is_label & (position < max_length))
        )
        num_labeled += int((num_labels > 0).sum())
        num_without_labels += int(((num_labels > 0) & (num_kept == 0)).sum())
        num_shortened += int(((num_kept > 0) & (num_kept < num_labels)).sum())
    return CutRows(num_labeled, num_without_labels, num_shortened)


def report_cut_rows(dataset: Dataset, max_length: int, name: str) -> None:
    """Log the rows that a cut leaves without labels; SFTTrainer drops them without a word.

    Raises:
        ValueError: no row keeps a label.
    """
    cut = count_cut_rows(dataset, max_length)
    if cut.num_labeled and cut.num_without_labels == cut.num_labeled:
        raise ValueError(
            f"max_length {max_length} removes the labels of all {cut.num_labeled:,} rows of the "
            f"{name} dataset, because their responses begin after it. Raise max_length, or set it "
            "to None"
        )
    if cut.num_without_labels or cut.num_shortened:
        logger.warning(
            "max_length %d removes all labels of %d of %d rows of the %s dataset, which are "
            "dropped, and some labels of %d rows",
            max_length,
            cut.num_without_labels,
            cut.num_labeled,
            name,
            cut.num_shortened,
        )


def pack(
    dataset: Dataset | IterableDataset, columns: Sequence[str], max_length: int, strategy: str
) -> Dataset | IterableDataset:
    """Pack samples with all their columns into rows of at most `max_length` tokens.

    Args:
        columns: what is kept, `input_ids` and `labels` included.
        strategy: of `trl.pack_dataset`.
    """
    return pack_dataset(dataset.select_columns(list(columns)), max_length, strategy)


class TokenColumnCollator:
    """Collates with another collator and places `ALL_COLUMNS` on the tokens of its batch.

    What has a list for each token gets a third dimension, filled with zeros where the list is
    empty; it has the size 0 if all lists are.

    Args:
        collator: gives `input_ids` and `labels`, and an `attention_mask` that is 1 on the tokens
            of each example, in order, and 0 on padding, which may be on either side; without a
            mask all examples are in one row (padding-free).
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        mask = batch.get("attention_mask")
        present = [name for name in ALL_COLUMNS if name in examples[0]]
        # An evaluation set need not have any.
        labels = _labels_of_samples(batch, examples) if present else []
        for name in present:
            dtype = ALL_COLUMNS[name]
            values = [example[name] for example in examples]
            if name in ALTERNATIVE_COLUMNS:
                rows = _filled(name, values, [e["alternative_weights"] for e in examples])
            else:
                rows = [
                    torch.as_tensor(_align_row(name, *row, f"row {index} of a batch"), dtype=dtype)
                    for index, row in enumerate(zip(values, labels, strict=True))
                ]
            found, wanted = [len(row) for row in rows], [len(row) for row in labels]
            if found != wanted:
                raise ValueError(
                    f"{name} has {found} values for samples of {wanted} tokens. Pass one per token"
                )
            column = torch.zeros((*batch["labels"].shape, *rows[0].shape[1:]), dtype=dtype)
            if mask is None:
                column[0, : sum(found)] = torch.cat(rows)
            else:
                column[mask.bool()] = torch.cat(rows)
            batch[name] = column
        if mask is not None and "position_ids" not in batch and not bool(mask[:, 0].all()):
            # Models count positions from the first column, even if it is padding.
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        return batch


def _labels_of_samples(batch: dict[str, Any], examples: list[dict[str, Any]]) -> list[NDArray]:
    """The labels of each sample, without padding."""
    labels, mask = batch["labels"], batch.get("attention_mask")
    if mask is None:
        lengths = [len(example["input_ids"]) for example in examples]
        return [part.numpy() for part in labels[0, : sum(lengths)].split(lengths)]
    return [row[own.bool()].numpy() for row, own in zip(labels, mask, strict=True)]


def _filled(
    name: str, examples: list[list[list[float]]], weights: list[list[float]]
) -> list[Tensor]:
    """The lists of each token of some samples as tensors of shape (tokens, longest list)."""
    widths = {len(values) for row in examples for values in row} - {0}
    if len(widths) > 1:
        raise ValueError(f"{name} has lists of {min(widths)} and of {max(widths)} values")
    filled = []
    for row, own in zip(examples, weights, strict=True):
        whole = torch.zeros((len(row), *(widths or {0})), dtype=ALTERNATIVE_COLUMNS[name])
        places = [place for place, values in enumerate(row) if len(values)]
        if places:
            chosen = [row[place] for place in places]
            whole[places] = torch.as_tensor(np.asarray(chosen)).to(whole.dtype)
        if not {place for place, weight in enumerate(own) if weight > 0} <= set(places):
            raise ValueError(
                f"{name} has no values for a token whose alternative_weights is above 0"
            )
        filled.append(whole)
    return filled
