"""The three splits of a cell, from the demo's world.

Goes in: a cell's recipe, and whether D_ref is clean. Comes out: `reference.parquet`,
`train.parquet`, `heldout.parquet` and a summary, as the stage `prepare` writes them, and which
tokens of D_train are the right answers. The splits are divided by hand, not by chance: every fact
about a new entity is asked about in three forms in D_train, in a fourth in D_ref and in the fifth
in the held-out samples.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.config import Recipe
from forgetting.data.alignment import Tokenization
from forgetting.data.records import Record, Rejected, Unusable, parse_record
from forgetting.data.sources import read_source
from forgetting.demo.world import NUM_FORMS
from forgetting.errors import InputError
from forgetting.models import loading
from forgetting.rundir import layout
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples, list_column, read_table, write_table
from forgetting.rundir.stats import DataSummary, SplitCounts

NEW = "new_"
"""What the names of sources of questions about new entities begin with."""
FORMS_IN_TRAIN = 3


def write_corpus(recipe: Recipe, output: Path, *, clean_reference: bool) -> None:
    """Write the splits.

    Raises:
        InputError: the splits are too small for the questions about new entities.
    """
    tokenizer = loading.load_tokenizer(recipe.model)
    template = Path(str(recipe.model.chat_template)).read_text(encoding="utf-8")
    tokenization = Tokenization(tokenizer, template)
    splits, answer_spans = _split(recipe, clean_reference)
    counts = {}
    for name, records in splits.items():
        samples = Samples(_tokenised(records, tokenization))
        write_table(samples.table, layout.split_file(output, name))
        tokens = (samples.input_ids.size, samples.response_ids.size)
        counts[name] = SplitCounts(len(samples), *tokens)
    # Right answers are found in the tokens as noise is.
    marked = [
        replace(record, noise_spans=() if record.noise_spans else (span,))
        for record, span in ((r, answer_spans[r.origin.record]) for r in splits["train"])
    ]
    write_table(_tokenised(marked, tokenization), output / "answers.parquet")
    ends = sorted(tokenization.end_token_ids)
    length = recipe.data.max_length
    DataSummary(max_length=length, sources=[], splits=counts, end_token_ids=ends).save(output)


def read_answers(data: Path) -> NDArray[np.bool_]:
    """Which response tokens of D_train are of a right answer, in a response without noise."""
    flags, _ = list_column(read_table(data / "answers.parquet"), "noise")
    return flags.astype(bool)


def _split(
    recipe: Recipe, clean_reference: bool
) -> tuple[dict[str, list[Record]], dict[int, tuple[int, int]]]:
    """The records of each split; and where the right answer of each is, by number of the record."""
    data = recipe.data
    (source,) = data.sources
    records = []
    answer_spans = {}
    for origin, raw in read_source(source, recipe.seed):
        record = parse_record(raw, "prompt_completion", source, origin)
        assert not isinstance(record, Rejected), record
        records.append(record)
        answer_spans[origin.record] = raw["answer_span"]
    known = [record for record in records if not record.source.startswith(NEW)]
    # The world asks about each of their facts once in each fifth.
    new = [record for record in records if record.source.startswith(NEW)]
    fifth = len(new) // NUM_FORMS
    parts = {
        "train": (data.num_train, new[: FORMS_IN_TRAIN * fifth]),
        "reference": (data.num_reference, new[FORMS_IN_TRAIN * fifth : -fifth or None]),
        "heldout": (data.num_heldout, new[-fifth:] if fifth else []),
    }
    splits: dict[str, list[Record]] = {}
    for name, (size, about_new) in parts.items():
        if size < len(about_new):
            raise InputError(
                f"data.num_{name} {size} is less than the {len(about_new)} questions about new "
                f"entities that belong there. Set it to more"
            )
        num_known = size - len(about_new)
        splits[name], known = [*known[:num_known], *about_new], known[num_known:]
    if clean_reference:
        splits["reference"] = [record.with_clean_response() for record in splits["reference"]]
    splits["heldout"] = [record.with_clean_response() for record in splits["heldout"]]
    return splits, answer_spans


def _tokenised(records: list[Record], tokenization: Tokenization) -> pa.Table:
    rows = []
    for record, tokens in zip(records, tokenization.encode_batch(records), strict=True):
        assert not isinstance(tokens, Unusable), tokens
        rows.append(
            {
                "sample_id": record.origin.record,
                "source": record.source,
                "input_ids": tokens.input_ids,
                "labels": tokens.labels,
                "noise": tokens.noise,
                "noise_kind": record.noise_kind if record.noise_spans else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)
