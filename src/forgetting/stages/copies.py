"""Makes the probe: copies of D_train records with planted noise, as samples.

Input: the records of D_train as text, and the settings of the detector. Output: a file of
samples whose noisy tokens are known, and the job that scores them. In memory are the copies and at
most 20,000 records. What is planted does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forgetting.config import Recipe
from forgetting.console import logger, progress
from forgetting.data.alignment import Tokenization, cut
from forgetting.data.planting import Planted, default_num_copies, plant
from forgetting.data.records import Record, Unusable
from forgetting.data.sources import Origin
from forgetting.formats import Message
from forgetting.method.columns import columns_of, of_reference
from forgetting.method.corruptions import CLEAN, CORRUPTIONS
from forgetting.models.tokenization import load_tokenization, tokenizer_threads
from forgetting.rundir import layout
from forgetting.rundir.planted import PlantedWriter, copies_of, planted_file
from forgetting.rundir.samples import IGNORE_INDEX, SampleFile, negative_column, rows_in_parts
from forgetting.rundir.stats import DataSummary
from forgetting.rundir.train_records import TrainRecord, train_records
from forgetting.stages.corpus_scores import ScoringJob
from forgetting.stages.reference import fold_of_samples

MAX_RECORDS = 20_000
"""Records that copies are made of, and foreign text is taken from; of more, a part is drawn."""
BATCH_RECORDS = 500
# Tells these random numbers from others that begin with the recipe's seed.
_STREAM = 0x50524F42


def plant_copies(recipe: Recipe, run: Path, file: Path) -> None:
    """Plant noise into copies of D_train records, and write them as samples.

    Args:
        file: Parquet file to write.

    Raises:
        InputError: the records of D_train are missing, or belong to other tokens.
    """
    train = SampleFile(layout.train_file(run))
    rng = np.random.default_rng([recipe.seed, _STREAM])
    copies = recipe.detector.copies or default_num_copies(len(train))
    kinds = {name: CORRUPTIONS[name] for name in recipe.detector.corruptions}
    tokenization = load_tokenization(recipe, DataSummary.load(layout.data_dir(run)).date)
    num_written = num_unusable = 0
    with (
        progress("Planting noise", copies) as advance,
        tokenizer_threads(),
        PlantedWriter(file, train.fingerprint) as writer,
    ):
        for group, share in _groups(recipe, run, len(train)):
            chosen = np.sort(rng.permutation(group)[:MAX_RECORDS])
            records = list(_chosen(run, train.fingerprint, chosen))
            conversations = [[(m.role, m.content) for m in r.messages] for r in records]
            planted = plant(conversations, rng, round(share * copies), kinds)
            for begin in range(0, len(planted), BATCH_RECORDS):
                part = planted[begin : begin + BATCH_RECORDS]
                for row in _rows(part, records, tokenization, recipe.data.max_length):
                    writer.write({"sample_id": num_written, **row})
                    num_written += 1
                advance(len(part), "")
            num_unusable += len(planted)
    if num_unusable := num_unusable - num_written:
        logger.info("%d copies were dropped: their noise left no text to learn from", num_unusable)


def _groups(
    recipe: Recipe, run: Path, num_samples: int
) -> Iterator[tuple[NDArray[np.int64], float]]:
    """Samples of D_train whose records may be mixed in copies, and their share of the copies."""
    # A response to forget is known to be bad, and a copy of it would pass for clean.
    every = np.flatnonzero(~_is_negative(layout.train_file(run)))
    if not any(map(of_reference, columns_of(recipe.detector_passes))):
        yield every, 1.0
    elif recipe.fold_names:
        folds = fold_of_samples(recipe, num_samples)
        for fold in range(len(recipe.fold_names)):
            members = every[folds[every] == fold]
            yield members, len(members) / max(len(every), 1)
    elif recipe.data.duplicates_in_reference:
        reference = layout.split_file(layout.data_dir(run), "reference")
        sample_ids = _sample_ids(layout.train_file(run))[every]
        yield every[~np.isin(sample_ids, _sample_ids(reference))], 1.0
    else:
        yield every, 1.0


def _sample_ids(file: Path) -> NDArray[np.int64]:
    parts = [part["sample_id"].to_numpy() for part in rows_in_parts(file, ["sample_id"])]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _is_negative(file: Path) -> NDArray[np.bool_]:
    parts = [negative_column(part) for part in rows_in_parts(file, ["is_negative"])]
    return np.concatenate([np.zeros(0, dtype=bool), *parts])


def _chosen(run: Path, fingerprint: str, chosen: NDArray[np.int64]) -> Iterator[TrainRecord]:
    """Some records of D_train by their places, which ascend."""
    begin = 0
    for part in train_records(run, fingerprint):
        inside = chosen[(chosen >= begin) & (chosen < begin + len(part))]
        yield from (part[place - begin] for place in inside.tolist())
        begin += len(part)


def _rows(
    planted: Sequence[Planted],
    records: Sequence[TrainRecord],
    tokenization: Tokenization,
    max_length: int,
) -> Iterator[dict[str, object]]:
    """Rows of the probe without their number, for copies that have a response token."""
    copies = [_record(copy, records[copy.index]) for copy in planted]
    results = tokenization.encode_batch(copies)
    for copy, record, result in zip(planted, copies, results, strict=True):
        if isinstance(result, Unusable):
            continue
        tokens = cut(result, max_length)
        if tokens.labels.count(IGNORE_INDEX) == len(tokens.labels):
            continue
        yield {
            "source": record.source,
            "input_ids": tokens.input_ids,
            "labels": tokens.labels,
            "noise": tokens.noise,
            "noise_kind": record.noise_kind,
            "copy_of": records[copy.index].sample_id,
        }


def _record(copy: Planted, of: TrainRecord) -> Record:
    """A copy as a record whose noise is known."""
    messages = of.messages
    kind = None
    if copy.kind != CLEAN:
        kind = copy.kind
        # What was called or thought next to the response does not belong to its noise.
        last = Message(*copy.turns[-1])
        messages = (*messages[: len(copy.turns) - 1], last)
    origin = Origin(of.file, of.record, of.line)
    return Record(messages, of.source, origin, copy.spans, kind, tools=of.tools)


def probe_job(recipe: Recipe, run: Path, probe: Path) -> ScoringJob:
    """The job that scores the copies in a folder."""
    train = SampleFile(layout.train_file(run))
    samples = planted_file(probe, train.fingerprint)
    sample_ids = _sample_ids(train.path)
    order = np.argsort(sample_ids)
    copied = copies_of(samples)
    places = order[np.searchsorted(sample_ids[order], copied)] if copied.size else copied
    # A copy is scored by the reference that has not seen its record.
    folds = fold_of_samples(recipe, len(train))[places] if recipe.fold_names else None
    columns = columns_of(recipe.detector_passes)
    return ScoringJob(recipe, run, samples, columns, folds, "Scoring copies", places)
