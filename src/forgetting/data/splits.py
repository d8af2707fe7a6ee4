"""Builds the corpus of a run: mixes the sources, drops duplicates, and splits without overlap.

In: the data settings of a recipe, a `Tokenization` and two folders. Out: a table of samples for
each split, the rejected records, and the counts of everything that was dropped. Every source is
read once. Usable records wait in a scratch file; only their hashes and positions are in memory.
Knows nothing about models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forgetting.config import DataSettings, SourceSettings
from forgetting.data.account import ROW_GROUP, Account, too_many_rejected
from forgetting.data.alignment import Tokenization, Tokens, cut
from forgetting.data.quotas import exchanged, interleaved, quotas
from forgetting.data.reading import NUM_SHOWN, read_records
from forgetting.data.records import Record, Rejected
from forgetting.data.spool import Spool
from forgetting.errors import InputError, TooFewSamples
from forgetting.formats import Unusable
from forgetting.rundir import layout
from forgetting.rundir.layout import SPLITS
from forgetting.rundir.samples import IGNORE_INDEX, SAMPLE_SCHEMA, TableWriter, rows_in_parts
from forgetting.rundir.train_records import TrainRecord, write_records

TRUSTED = " (trusted)"
"""Suffix for the names of sources from which only D_ref is taken."""
BATCH_RECORDS = 1000
BATCH_CHARACTERS = 2_000_000
Advance = Callable[[int, str], None]


class _Row(NamedTuple):
    """A sample that is written."""

    values: dict[str, Any]
    """By the columns of `SAMPLE_SCHEMA`."""
    record: Record
    tokens: Tokens
    was_cut: bool
    """Whether it was longer than `max_length`."""


def build_corpus(
    settings: DataSettings,
    tokenization: Tokenization,
    seed: int,
    output: Path,
    scratch: Path,
    advance: Advance = lambda amount, note: None,
    trusted: Sequence[SourceSettings] = (),
    *,
    forgets: bool = True,
) -> Account:
    """Read, clean, split and tokenize; writes `<split>.parquet`, `rejected.parquet` and
    `train-records.parquet` into `output`.

    The records of each source are shuffled with the seed, and the sources are interleaved so that
    every split holds them in the same proportion. If a record has a noisy and a right response,
    held-out samples use the right one. Records to forget are only in D_train. Nothing depends on
    the number of processes.

    Args:
        advance: called with the number of samples tokenized since the last call.
        trusted: sources from which D_ref is taken instead of the corpus. Records that are also in
            D_train or held out are dropped and counted as duplicates.
        forgets: whether records to forget can be used. If not, the first one is an error.

    Raises:
        InputError: a source cannot be read, too many of its records cannot be used, a turn has a
            weight that no loss can have, or D_ref is empty.
        TooFewSamples: there are fewer usable records than the splits ask for.
    """
    own = settings.model_copy(update={"num_reference": 0}) if trusted else settings
    only_reference = {"sources": list(trusted), "num_train": 0, "num_heldout": 0}
    with Account(own, layout.rejected_file(output)) as account:
        with Spool(scratch / "records.spool") as spool:
            read_records(own, seed, spool, account, "use" if forgets else "refuse")
            splits = _Splits(own, tokenization, seed, spool, account)
            splits.write(output, advance)
            write_records(output, _train_records(spool, output))
            # Not before: if there are too few samples, all is read again and would warn again.
            account.warn()
            taken = splits.keys() if trusted else set()
        if trusted:
            settings = settings.model_copy(update=only_reference)
            account.turn_to(settings, TRUSTED)
            with Spool(scratch / "trusted.spool") as spool:
                read_records(settings, seed, spool, account, "drop")
                splits = _Splits(settings, tokenization, seed, spool, account)
                splits.write_reference(taken, output, advance)
                account.warn()
    return account


def _train_records(spool: Spool, output: Path) -> Iterator[TrainRecord]:
    """The conversations of D_train, in the order of its samples."""
    for part in rows_in_parts(layout.split_file(output, "train"), ["sample_id"]):
        for sample_id in part["sample_id"].to_pylist():
            record = spool[sample_id]
            place = record.origin
            origin = place.name, place.record, place.line
            yield TrainRecord(sample_id, record.source, *origin, record.messages, record.tools)


class _Stream:
    """The usable samples of one source, in the given order of its records, tokenized in batches."""

    def __init__(
        self,
        source: SourceSettings,
        order: NDArray[np.int64],
        spool: Spool,
        tokenization: Tokenization,
        account: Account,
    ) -> None:
        self.source = source
        self._order = iter(order.tolist())
        self._passed_over: deque[int] = deque()
        """Records to forget that came up for another split than D_train."""
        self._spool = spool
        self._tokenization = tokenization
        self._account = account
        self._num_tried = 0
        self._num_rejected = 0
        self._first_rejected: list[Rejected] = []

    def take(self, split: str, number: int) -> Iterator[_Row]:
        """The next `number` samples with at least one labeled token, or all that are left."""
        while number > 0:
            batch = self._next_records(number, may_forget=split == "train")
            if not batch:
                return
            if split == "heldout":
                batch = [(index, record.with_clean_response()) for index, record in batch]
            results = self._tokenization.encode_batch([record for _, record in batch])
            self._num_tried += len(batch)
            for (index, record), result in zip(batch, results, strict=True):
                row = self._row(index, record, result)
                if row is not None:
                    number -= 1
                    yield row

    def _next_records(self, number: int, *, may_forget: bool) -> list[tuple[int, Record]]:
        """At most `number` records, and at most one batch."""
        batch: list[tuple[int, Record]] = []
        size = 0
        while len(batch) < min(number, BATCH_RECORDS) and size <= BATCH_CHARACTERS:
            index = self._next_index(may_forget)
            if index is None:
                break
            record = self._spool[index]
            batch.append((index, record))
            size += sum(len(message.content) for message in record.messages)
        return batch

    def _next_index(self, may_forget: bool) -> int | None:
        """Number of the next record; None if there is none."""
        for index in self._order:
            if may_forget or not self._spool.is_negative[index]:
                return index
            self._passed_over.append(index)
        return self._passed_over.popleft() if may_forget and self._passed_over else None

    def _row(self, index: int, record: Record, result: Tokens | Unusable) -> _Row | None:
        if isinstance(result, Unusable):
            rejected = Rejected(record.source, record.origin, result.reason, result.detail)
            self._account.reject(rejected)
            self._num_rejected += 1
            if len(self._first_rejected) < NUM_SHOWN:
                self._first_rejected.append(rejected)
            return None
        max_length = self._account.settings.max_length
        tokens = cut(result, max_length)
        if tokens.labels.count(IGNORE_INDEX) == len(tokens.labels):
            self._account.of(record.source).prompt_too_long += 1
            return None
        row = {
            "sample_id": index,
            "source": record.source,
            "input_ids": tokens.input_ids,
            "labels": tokens.labels,
            "noise": tokens.noise,
            "noise_kind": record.noise_kind,
            "weights": tokens.weights,
            "is_negative": record.is_negative,
        }
        return _Row(row, record, tokens, len(result.input_ids) > max_length)

    def check_rejected(self) -> None:
        """Raise an error if the template cannot render too many of the records."""
        if self._num_rejected > self._account.settings.max_rejected_share * self._num_tried:
            raise too_many_rejected(
                self.source.label,
                self._first_rejected,
                self._num_rejected,
                self._num_tried,
                self._account.settings,
            )


class _Splits:
    """Writes the splits: chooses the source of each sample and takes it from there."""

    def __init__(
        self,
        settings: DataSettings,
        tokenization: Tokenization,
        seed: int,
        spool: Spool,
        account: Account,
    ) -> None:
        self.settings = settings
        self.tokenization = tokenization
        self.seed = seed
        self.spool = spool
        self.account = account
        self.of_record = np.asarray(spool.source_index, dtype=np.int64)
        sizes = np.bincount(self.of_record, minlength=len(settings.sources)).tolist()
        counts = quotas(
            settings.num_samples,
            [source.num_samples for source in settings.sources],
            [source.share for source in settings.sources],
            sizes,
        )
        if sum(counts) > settings.num_samples:
            raise InputError(
                f"num_samples and share of the sources come to {sum(counts)} samples, more than "
                f"the {settings.num_samples} of the recipe. Lower them"
            )
        for source, count, size in zip(settings.sources, counts, sizes, strict=True):
            if count > size:
                raise InputError(_too_few_of(source, count, size))
        if sum(counts) < settings.num_samples:
            raise TooFewSamples(_too_few(account, sum(sizes), sum(sizes)), sum(sizes))
        learned = self.of_record[np.frombuffer(spool.is_negative, np.int8) == 0]
        _check_learned(settings, len(learned))
        # The splits one after the other, as `write` takes them.
        sizes_of_splits = [getattr(settings, f"num_{split}") for split in SPLITS]
        self._slots = exchanged(
            interleaved(counts),
            np.repeat([split == "train" for split in SPLITS], sizes_of_splits),
            np.bincount(learned, minlength=len(settings.sources)).tolist(),
        )
        self._written: dict[str, list[int]] = {}

    def write(self, output: Path, advance: Advance) -> None:
        """Write every split."""
        streams = self._streams(np.random.default_rng(self.seed).permutation(len(self.spool)))
        windows = {}
        begin = 0
        for split in SPLITS:
            windows[split] = self._slots[begin : begin + getattr(self.settings, f"num_{split}")]
            begin += len(windows[split])
        # D_train takes what the others cannot, so it comes last if there is any.
        order = sorted(SPLITS, key="train".__eq__) if any(self.spool.is_negative) else SPLITS
        for split in order:
            rows = self._rows(windows[split], split, streams)
            if split == "reference" and self.settings.duplicates_in_reference:
                # Skipped, so that the other splits do not depend on this option.
                for _ in rows:
                    pass
            else:
                self._written[split] = self._write(rows, split, output, advance)
        if self.settings.duplicates_in_reference:
            window = self._slots[: self.settings.num_reference]
            again = self._streams(self._with_repeats(self._written["heldout"]))
            self._write(self._rows(window, "reference", again), "reference", output, advance)
        for stream in streams:
            stream.check_rejected()

    def write_reference(self, taken: set[bytes], output: Path, advance: Advance) -> None:
        """Write only D_ref, without records whose keys are in `taken`."""
        streams = self._streams(np.random.default_rng(self.seed).permutation(len(self.spool)))
        rows = self._rows(self._slots, "reference", streams)
        if not self._write(self._new(rows, taken), "reference", output, advance):
            raise InputError(
                "reference.sources: all samples are in the corpus too, so there is none to train "
                "the reference model on. Add other records"
            )
        for stream in streams:
            stream.check_rejected()

    def _new(self, rows: Iterator[_Row], taken: set[bytes]) -> Iterator[_Row]:
        for row in rows:
            if taken.isdisjoint(self.spool[row.values["sample_id"]].keys()):
                yield row
            else:
                self.account.of(row.values["source"]).duplicates += 1

    def keys(self) -> set[bytes]:
        """Keys of all records that have been written."""
        written = chain.from_iterable(self._written.values())
        return set(chain.from_iterable(self.spool[index].keys() for index in written))

    def _streams(self, order: NDArray[np.int64]) -> list[_Stream]:
        """A stream for each source, with its records in this order."""
        return [
            _Stream(
                source,
                order[self.of_record[order] == index],
                self.spool,
                self.tokenization,
                self.account,
            )
            for index, source in enumerate(self.settings.sources)
        ]

    def _with_repeats(self, heldout: Sequence[int]) -> NDArray[np.int64]:
        """All records except the held-out ones, each as often as it was read, shuffled."""
        copies = np.array(self.spool.copies, dtype=np.int64)
        copies[heldout] = 0
        rng = np.random.default_rng([self.seed, 1])
        return rng.permutation(np.repeat(np.arange(len(copies)), copies))

    def _rows(
        self, window: NDArray[np.int64], split: str, streams: Sequence[_Stream]
    ) -> Iterator[_Row]:
        """The sample of each slot of a window, from the slot's source."""
        counts = np.bincount(window, minlength=len(streams)).tolist()
        taken = [stream.take(split, count) for stream, count in zip(streams, counts, strict=True)]
        num_missing = 0
        for source in window.tolist():
            row = next(taken[source], None)
            if row is not None:
                yield row
                continue
            streams[source].check_rejected()
            settings = streams[source].source
            if settings.num_samples is not None or settings.share is not None:
                used = self.account.of(settings.label).used
                raise InputError(_too_few_of(settings, int((self._slots == source).sum()), used))
            num_missing += 1
        # Sources without a number or share of their own make up for those that ran short.
        for stream in streams:
            if stream.source.num_samples is None and stream.source.share is None:
                for row in stream.take(split, num_missing):
                    num_missing -= 1
                    yield row
        if num_missing:
            for stream in streams:
                stream.check_rejected()
            usable = sum(count.used for count in self.account.sources.values())
            raise TooFewSamples(_too_few(self.account, usable, len(self.spool)), usable)

    def _write(self, rows: Iterator[_Row], split: str, output: Path, advance: Advance) -> list[int]:
        """Write a split and return the numbers of its records."""
        written = []
        with TableWriter(layout.split_file(output, split), SAMPLE_SCHEMA, ROW_GROUP) as writer:
            for row in rows:
                self.account.take(split, row.record, row.tokens, row.was_cut)
                writer.write(row.values)
                written.append(row.values["sample_id"])
                if len(written) % ROW_GROUP == 0:
                    advance(ROW_GROUP, "")
        return written


def _check_learned(settings: DataSettings, num_learned: int) -> None:
    asked = settings.num_reference + settings.num_heldout
    if num_learned < asked:
        raise InputError(
            f"D_ref and the held-out samples need {asked} responses to learn (num_reference "
            f"{settings.num_reference} + num_heldout {settings.num_heldout}), but only "
            f"{num_learned} usable records are not ones to forget. Ask for fewer, or add sources"
        )


def _too_few_of(source: SourceSettings, asked: int, usable: int) -> str:
    field = "num_samples" if source.num_samples is not None else "share"
    return (
        f"the recipe asks for {asked} samples of source {source.label} ({field}), which has only "
        f"{usable} distinct usable records. Ask for fewer, or add sources"
    )


def _too_few(account: Account, usable: int, distinct: int) -> str:
    settings = account.settings
    counts = account.sources.values()
    rejected = sum(sum(c.rejected.values()) for c in counts)
    duplicates = sum(c.duplicates + c.near_duplicates for c in counts)
    too_long = sum(c.prompt_too_long for c in counts)
    return (
        f"the recipe asks for {settings.num_samples} samples (num_reference "
        f"{settings.num_reference} + num_train {settings.num_train} + num_heldout "
        f"{settings.num_heldout}), but its sources have only {usable}: {distinct} distinct usable "
        f"records ({rejected} rejected, {duplicates} duplicates dropped), of which {too_long} have "
        f"a prompt that fills max_length {settings.max_length}. Ask for fewer, or add sources"
    )
