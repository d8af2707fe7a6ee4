"""The corpus of a run: all sources mixed, stripped of duplicates, split without overlap.

Goes in: the data settings of a recipe and a `Tokenization`. Comes out: a table of samples for
each split, the rejected records, and the counts of all that was dropped. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from forgetting.data.records import Record, Rejected, parse_record, recognise
from forgetting.data.samples import IGNORE_INDEX, SAMPLE_SCHEMA
from forgetting.data.sources import read_source
from forgetting.data.tokens import Tokenization, cut
from forgetting.errors import InputError
from forgetting.recipe import DataSettings

SPLITS = ("reference", "train", "heldout")
REJECTED_SCHEMA = pa.schema(
    [("source", pa.string()), ("origin", pa.string()), ("reason", pa.string())]
)
BATCH = 1000


@dataclass
class SourceCounts:
    """What became of a source's records."""

    name: str
    read: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Records that could not be used, by reason."""
    duplicates: int = 0
    prompt_too_long: int = 0
    cut: int = 0
    used: int = 0


@dataclass
class Corpus:
    """Tables of the splits, and an account of what is not in them."""

    tables: dict[str, pa.Table]
    rejected: list[Rejected]
    counts: dict[str, SourceCounts]
    max_length: int

    def summary(self) -> dict[str, Any]:
        """The counts as they are kept in `data/summary.json`."""
        return {
            "max_length": self.max_length,
            "sources": [asdict(counts) for counts in self.counts.values()],
            "splits": {name: _split_counts(table) for name, table in self.tables.items()},
        }

    def rejected_table(self) -> pa.Table:
        """Every record that could not be used, with its reason."""
        rows = [asdict(record) for record in self.rejected]
        return pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)


def _split_counts(table: pa.Table) -> dict[str, int]:
    labels = table["labels"].combine_chunks().flatten().to_numpy()
    return {
        "samples": table.num_rows,
        "tokens": int(labels.size),
        "response_tokens": int((labels != IGNORE_INDEX).sum()),
    }


def build_corpus(
    settings: DataSettings,
    tokenization: Tokenization,
    seed: int,
    advance: Callable[[int, str], None] = lambda amount, note: None,
) -> Corpus:
    """Read, clean, split and tokenise.

    The records of all sources are shuffled together with the seed; D_ref takes the first of
    them, D_train the next, the held-out samples the rest. Held-out samples take the right
    response where a noisy one is known.

    Args:
        advance: called with the number of samples tokenised since the last call.

    Raises:
        InputError: a source cannot be read, too many of its records cannot be used, or there
            are fewer usable records than the splits ask for.
    """
    records, rejected, counts = read_records(settings, seed)
    order = np.random.default_rng(seed).permutation(len(records))
    wanted = {
        "reference": settings.num_reference,
        "train": settings.num_train,
        "heldout": settings.num_heldout,
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    places = iter([name for name in SPLITS for _ in range(wanted[name])])
    split = next(places, None)
    taken = 0
    for index in order:
        if split is None:
            break
        row = _row(
            int(index),
            records[index],
            split == "heldout",
            tokenization,
            settings.max_length,
            counts,
        )
        if row is None:
            continue
        rows[split].append(row)
        split = next(places, None)
        taken += 1
        if taken % BATCH == 0:
            advance(BATCH, "")
    if taken < sum(wanted.values()):
        raise InputError(_too_few(settings, taken, len(records), counts))
    tables = {
        name: pa.Table.from_pylist(split_rows, schema=SAMPLE_SCHEMA)
        for name, split_rows in rows.items()
    }
    return Corpus(tables, rejected, counts, settings.max_length)


def with_trusted_reference(corpus: Corpus, trusted: Corpus) -> Corpus:
    """The corpus with D_ref from trusted sources.

    Samples of D_ref with the same tokens as one of D_train or of the held-out samples are left
    out, and counted as duplicates of their source.

    Args:
        corpus: without D_ref.
        trusted: its D_ref is taken.

    Raises:
        InputError: nothing is left of D_ref.
    """
    seen = {
        tuple(ids)
        for split in ("train", "heldout")
        for ids in corpus.tables[split]["input_ids"].to_pylist()
    }
    table = trusted.tables["reference"]
    is_new = [tuple(ids) not in seen for ids in table["input_ids"].to_pylist()]
    if not any(is_new):
        raise InputError(
            "reference.sources: all samples are in the corpus too, so none is left to train the "
            "reference model on"
        )
    counts = dict(corpus.counts)
    for name, count in trusted.counts.items():
        doubled = [s == name for s in table["source"].to_pylist()]
        dropped = sum(same and not new for same, new in zip(doubled, is_new, strict=True))
        label = f"{name} (trusted)"
        counts[label] = replace(
            count, name=label, duplicates=count.duplicates + dropped, used=count.used - dropped
        )
    tables = {**corpus.tables, "reference": table.filter(pa.array(is_new))}
    return Corpus(tables, [*corpus.rejected, *trusted.rejected], counts, corpus.max_length)


def read_records(
    settings: DataSettings, seed: int
) -> tuple[list[Record], list[Rejected], dict[str, SourceCounts]]:
    """All usable records without duplicates, in the order of the sources.

    Raises:
        InputError: as `build_corpus`.
    """
    records: list[Record] = []
    rejected: list[Rejected] = []
    counts: dict[str, SourceCounts] = {}
    seen: set[bytes] = set()
    for source in settings.sources:
        form = None
        source_rejected: list[Rejected] = []
        num_read = 0
        for origin, raw in read_source(source, seed):
            if form is None:
                form = recognise(raw, source, source.path or source.label)
            record = parse_record(raw, form, source, origin)
            num_read += 1
            count = counts.setdefault(record.source, SourceCounts(record.source))
            count.read += 1
            if isinstance(record, Rejected):
                count.rejected[record.reason] = count.rejected.get(record.reason, 0) + 1
                source_rejected.append(record)
                continue
            key = record.key()
            if key in seen:
                count.duplicates += 1
                continue
            seen.add(key)
            records.append(record)
        if len(source_rejected) > settings.max_rejected_share * num_read:
            raise InputError(_too_many_rejected(source_rejected, num_read, settings))
        rejected += source_rejected
    return records, rejected, counts


def _row(
    sample_id: int,
    record: Record,
    clean: bool,
    tokenization: Tokenization,
    max_length: int,
    counts: dict[str, SourceCounts],
) -> dict[str, Any] | None:
    count = counts[record.source]
    record = record.with_clean_response() if clean else record
    whole = tokenization.encode(record)
    tokens = cut(whole, max_length)
    if all(label == IGNORE_INDEX for label in tokens.labels):
        count.prompt_too_long += 1
        return None
    count.cut += len(tokens.input_ids) < len(whole.input_ids)
    count.used += 1
    return {
        "sample_id": sample_id,
        "source": record.source,
        "input_ids": tokens.input_ids,
        "labels": tokens.labels,
        "noise": tokens.noise,
        "noise_kind": record.noise_kind,
    }


def _too_many_rejected(rejected: list[Rejected], num_read: int, settings: DataSettings) -> str:
    shown = "\n".join(f"  {record.origin}: {record.reason}" for record in rejected[:5])
    return (
        f"{len(rejected)} of the {num_read} records of source {rejected[0].source} cannot be used, "
        f"more than data.max_rejected_share ({settings.max_rejected_share:g}) allows. The first:\n"
        f"{shown}\nMend the records, or map their fields with the source's `fields`"
    )


def _too_few(
    settings: DataSettings, usable: int, distinct: int, counts: dict[str, SourceCounts]
) -> str:
    asked = settings.num_reference + settings.num_train + settings.num_heldout
    rejected = sum(sum(c.rejected.values()) for c in counts.values())
    duplicates = sum(c.duplicates for c in counts.values())
    too_long = sum(c.prompt_too_long for c in counts.values())
    return (
        f"the recipe asks for {asked} samples (num_reference {settings.num_reference} + num_train "
        f"{settings.num_train} + num_heldout {settings.num_heldout}), but its sources have only "
        f"{usable}: {distinct} distinct usable records ({rejected} rejected, {duplicates} "
        f"duplicates dropped), of which {too_long} have a prompt that fills max_length "
        f"{settings.max_length}. Ask for fewer, or add sources"
    )
