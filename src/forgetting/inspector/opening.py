"""Reads a run for the inspector.

Input: a run directory after `select` or `detect`, and a `decode`. Output: an `Inspection`. This
module reads the run; what is read on request, `record_texts` and `expected` read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from forgetting.data.alignment import Tokenization
from forgetting.errors import InputError
from forgetting.inspector.corpus import LIKELY_BAD, Inspection
from forgetting.inspector.expected import ExpectedTokens
from forgetting.inspector.pieces import Decode
from forgetting.inspector.record_texts import RecordTexts
from forgetting.inspector.shown import Explain, Judgment, ShownRun, ShownSelection
from forgetting.inspector.thresholds import Floats
from forgetting.method.columns import POSTERIOR
from forgetting.method.measures import DETECTOR, MEASURES, Measure, usable_measure, usable_measures
from forgetting.models.gguf import title_of
from forgetting.rundir import layout
from forgetting.rundir.findings import PosteriorPart, posterior_parts, require_lengths
from forgetting.rundir.reader import RunReader
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples
from forgetting.rundir.scores import LOG_PROBS, ScoredCorpus, has_scores
from forgetting.rundir.selections import own_scores, selected_parts
from forgetting.rundir.train_records import TrainRecordTable


def open_inspection(
    run_dir: Path,
    decode: Decode,
    variant: str | None = None,
    explain: Explain | None = None,
    quality: str | None = None,
    *,
    tokenization: Tokenization | None = None,
    suspected: Sequence[PosteriorPart] | None = None,
) -> Inspection | None:
    """Read a run for inspection.

    Args:
        run_dir: a run, at least up to `select` or `detect`.
        decode: text of token ids, special tokens included.
        variant: whose selection is shown; default: `forgetting`, or the first. If no variant
            selects, tokens are divided by the detector's posterior.
        explain: names the features that speak for a token being bad. Used if the detector found
            something.
        quality: measure that is shown. Default: the one that the variant selects by, or the
            detector's.
        tokenization: tells which characters of a record a token covers.
        suspected: shown in place of what the detector found, which is nothing.

    Returns:
        None if nothing is scored yet, if it is neither selected from nor judged by the detector, or
        if D_train is empty.

    Raises:
        InputError: there is no run, no such variant or no such measure, or scores, selection or
            findings are damaged or belong to other tokens than those of D_train.
    """
    run = RunReader(run_dir)
    if variant is not None and variant not in run.selected_variants:
        known = ", ".join(run.selected_variants) or "none"
        raise InputError(f"{run_dir} has no selection of a variant {variant}. It has: {known}")
    variant = variant or run.preferred_variant
    if not has_scores(run_dir):
        return None
    made = None if variant is None else run.selection(variant)
    if made is None and run.findings is None:
        return None
    corpus = ScoredCorpus(run_dir, run.fingerprint, own_scores(run_dir, variant))
    stored = corpus.column_names
    log_probs = [name for name in LOG_PROBS if name in stored]
    has_posterior = [] if run.findings is None else [POSTERIOR]
    available = [*stored, *has_posterior]
    if quality is not None:
        measure = usable_measure(quality, available, f"{run_dir}")
    else:
        measure = MEASURES[DETECTOR] if made is None else made.measure
    names = list(dict.fromkeys((*log_probs, *measure.columns)))
    parts = list(selected_parts(run_dir, variant, names, SAMPLE_SCHEMA.names, run.fingerprint))
    if not parts:
        return None
    samples = Samples(pa.concat_tables(part.samples.table for part in parts))
    judgment = _judgment(run, samples, suspected)
    columns = {name: np.concatenate([part.scores[name] for part in parts]) for name in names}
    polarity = np.concatenate([part.polarity for part in parts])
    if made is not None:
        selection = ShownSelection.of_variant(made)
    else:
        assert judgment is not None
        is_bad = judgment.posterior >= LIKELY_BAD
        polarity = np.where(is_bad, -1, 1).astype(np.int8)
        share_good = float(1 - is_bad.mean()) if len(is_bad) else 1.0
        selection = ShownSelection.of_detector(share_good)
    selection = replace(selection, quality=measure.name, measure=measure)
    if suspected is not None and judgment is not None:
        columns[POSTERIOR] = judgment.posterior

    def compute(other: Measure) -> Floats:
        """Quality of all response tokens, from scores that are read again."""
        read = [name for name in other.columns if name != POSTERIOR or judgment is None]
        parts = [shard.columns for shard in corpus.scores(read)] if read else []
        columns = {name: np.concatenate([part[name] for part in parts]) for name in read}
        if judgment is not None:
            columns[POSTERIOR] = judgment.posterior
        return np.asarray(other.compute(*(columns[name] for name in other.columns)))

    values = measure.compute(*(columns[name] for name in measure.columns))
    columns = {name: columns[name] for name in log_probs}
    columns |= {"quality": values, "polarity": polarity}
    if judgment is None or not judgment.is_shown:
        explain = None
    has_texts = layout.train_records_file(layout.data_dir(run_dir)).is_file()
    texts = TrainRecordTable(run_dir, run.fingerprint) if has_texts else None
    return Inspection(
        ShownRun(run.name, run.fingerprint, _model_name(run)),
        samples,
        selection,
        columns,
        decode,
        judgment,
        explain,
        None if texts is None else RecordTexts(texts, tokenization),
        _expected(run, corpus, decode),
        usable_measures(available),
        compute,
    )


def _model_name(run: RunReader) -> str:
    """The base model: its Hub id, or the name of its folder or file."""
    if run.recipe is None:
        return ""
    name = run.recipe.model.name_or_path
    return title_of(name) or (Path(name).name if Path(name).is_absolute() else name)


def _expected(run: RunReader, corpus: ScoredCorpus, decode: Decode) -> ExpectedTokens | None:
    if not layout.alternatives_files(layout.alternatives_dir(run.path)):
        return None
    return ExpectedTokens(run.path, run.fingerprint, corpus.shard_sizes, decode)


def _judgment(
    run: RunReader, samples: Samples, suspected: Sequence[PosteriorPart] | None
) -> Judgment | None:
    """What the detector found in D_train; None if it has not run."""
    summary = run.findings
    if summary is None:
        return None
    parts = suspected or list(posterior_parts(run.path, run.fingerprint))
    lengths = np.concatenate([part.lengths for part in parts])
    file = layout.posterior_file(layout.detector_dir(run.path))
    require_lengths(file, lengths, samples.num_response_tokens)
    return Judgment(
        summary.found,
        summary.verdict,
        [kind.words for kind in summary.kinds],
        np.concatenate([part.posterior for part in parts]),
        np.concatenate([part.kind for part in parts]),
        summary.samples.share if summary.found and summary.samples is not None else None,
        suspected is not None,
    )
